"""Settings of consoles."""

from __future__ import annotations

from caelum.kernel.settings import Seconds, setting

TOKEN_TIMEOUT = setting(
    "console", "vnc.token.timeout", "1800", Seconds, "how long a console token can be used, in seconds", minimum=1
)
PROXY_IDLE_TIMEOUT = setting(
    "console",
    "proxy.idleTimeout",
    "60",
    Seconds,
    "how long a console outlives a viewer that does not answer any more, in seconds",
    minimum=1,
)
PING_INTERVAL = setting(
    "console", "agent.ping.interval", "60", Seconds, "the interval to ping console proxies, in seconds", minimum=2
)
SESSION_IDLE_TIMEOUT = setting(
    "console",
    "session.idleTimeout",
    "3600",
    Seconds,
    "how long a console stays open when nothing is typed and nothing changes on it, in seconds",
    minimum=1,
)
MOST_SESSIONS = setting(
    "console", "proxy.maxSessions", 1000, int, "how many consoles one proxy holds open at once", minimum=1
)
MOST_SESSIONS_OF_VM = setting(
    "console", "vm.maxSessions", 16, int, "how many consoles of one VM a proxy holds open at once", minimum=1
)
ALLOWED_ORIGINS = setting(
    "console",
    "proxy.allowedOrigins",
    "",
    str,
    "web origins, comma-separated, whose pages may open consoles besides the proxy's own and the API's",
)
