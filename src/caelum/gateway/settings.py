"""Settings of the gateway."""

from __future__ import annotations

import ipaddress

from caelum.kernel.settings import Size, setting

MAX_BODY = setting("rest", "maxBodySize", "1M", Size, "Largest body of an API request", minimum=1024)
MAX_CONCURRENT = setting(
    "rest",
    "maxConcurrentRequests",
    1000,
    int,
    "API requests that one management node works on at a time, but for polls that wait; others wait in line for 20 s",
    minimum=1,
)
RATE = setting(
    "rest",
    "rateLimit.perSecond",
    2000,
    int,
    "API requests per second of one client address, in the long run",
    minimum=1,
)
BURST = setting("rest", "rateLimit.burst", 4000, int, "API requests that a client may send at once", minimum=1)


def _check_networks(text: str) -> None:
    networks(text)


def networks(text: str) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    """The networks that the text lists, split by commas. Raises ValueError."""
    return [ipaddress.ip_network(one.strip()) for one in text.split(",") if one.strip()]


WEB_HOOK_DENIED = setting(
    "rest",
    "webHook.deniedNetworks",
    "0.0.0.0/8,127.0.0.0/8,169.254.0.0/16,224.0.0.0/4,240.0.0.0/4,::/128,::1/128,fe80::/10,ff00::/8",
    str,
    "Networks to which web hooks are not sent, split by commas: clients must not reach the server's own services",
    validator=_check_networks,
)
