"""Settings on where images may come from."""

from __future__ import annotations

import ipaddress

from caelum.kernel.errors import invalid
from caelum.kernel.settings import Seconds, setting


def _check_networks(text: str) -> None:
    for one in filter(None, (part.strip() for part in text.split(","))):
        try:
            ipaddress.ip_network(one)
        except ValueError as error:
            raise invalid("value", f"{one!r} is no network like 192.168.0.0/16: {error}") from None


WHITELIST = setting(
    "image",
    "download.localPath.whitelist",
    "/home/**;/mnt/**;/opt/**;/root/**;",
    str,
    "the white list to specify local available download paths",
)
BLACKLIST = setting(
    "image",
    "download.localPath.blacklist",
    "/**/.*/**;/**/~*/**;/etc/**;/usr/local/zstack/**;/var/log/**;/dev/**;/proc/**;/sys/**",
    str,
    "the black list to filter local download path",
)
FILTER = setting(
    "image",
    "download.localPath.customFilter",
    "whitelist",
    str,
    "which list decides on paths of the server that administrators may add images from: only those on the white list,"
    " or all that are not on the black list",
    valid=("whitelist", "blacklist"),
)
ALLOWED_NETWORKS = setting(
    "image",
    "download.allowedNetworks",
    "",
    str,
    "networks that are not public but may be downloaded from, like 192.168.1.0/24,10.0.0.0/8; every other private,"
    " loopback or link-local address is refused",
    validator=_check_networks,
)
IDLE_TIMEOUT = setting(
    "image",
    "download.idleTimeout",
    60,
    Seconds,
    "how long a download may stand still before it is given up, in seconds",
    minimum=1,
)
