"""Where images come from: `http(s)://` addresses and files of the server, each only as far as it is allowed.

Invariant: the server never asks an address on a user's word that its own network would trust: every address is checked
after it was resolved and right before the connection is made, at each redirect anew. Files are opened first and judged
by the path that is really open, so a link that is moved in between leads nowhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import re
import socket
import stat
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

from caelum.cloud.backup_storage.errors import DOWNLOAD_ERROR
from caelum.kernel.errors import CloudError, invalid

CHUNK = 1 << 20
CONNECT_TIMEOUT = 15.0
MAX_REDIRECTS = 5

_TRANSLATED = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("2002::/16"))
"""IPv6 networks that lead to IPv4 addresses which they hide."""

_WILDCARDS = {"**": ".*", "*": "[^/]*"}

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class AddressRefusedError(OSError):
    """An address that must not be asked. An OSError, as the resolver's callers expect."""


class Guard:
    """What may be fetched. `allowed` networks are exempt from the rule that only public addresses are asked."""

    def __init__(self, allowed: str, whitelist: str, blacklist: str, mode: str, idle: float, always: str) -> None:
        self._allowed: list[Network] = [ipaddress.ip_network(one.strip()) for one in allowed.split(",") if one.strip()]
        self._white, self._black, self._mode = _patterns(f"{whitelist};{always}/**"), _patterns(blacklist), mode
        self._always = _patterns(f"{always}/**")
        self.idle = idle

    def check_url(self, url: str, is_admin: bool) -> None:
        """Refuse what can be refused without asking anybody."""
        parts = urlsplit(url)
        if parts.scheme == "file":
            if not is_admin:
                raise invalid("url", "only an administrator can add an image from a file of the server")
            self.check_path(os.path.realpath(_path_of(url)))
        elif parts.scheme in ("http", "https"):
            if not parts.hostname:
                raise invalid("url", f"{url!r} names no host")
            self.check_host(parts.hostname)
        else:
            raise invalid("url", f"images come from http://, https:// or file:// addresses, not {parts.scheme}://")

    def check_host(self, host: str) -> None:
        """Refuse an address that must not be asked. Names are checked when they are resolved."""
        with contextlib.suppress(ValueError):
            self.check_address(ipaddress.ip_address(host))

    def check_address(self, address: Address) -> None:
        """Refuse an address that is not public and not allowed."""
        plain = getattr(address, "ipv4_mapped", None) or address
        if any(plain.version == one.version and plain in one for one in self._allowed):
            return
        hidden = any(plain.version == one.version and plain in one for one in _TRANSLATED)
        if hidden or not plain.is_global or plain.is_multicast:
            raise invalid(
                "url",
                f"{address} is not a public address; setting image/download.allowedNetworks can allow its network",
                address=str(address),
            )

    def check_path(self, path: str) -> None:
        """Refuse a real path that the lists do not allow."""
        if _matches(self._always, path):
            return
        if self._mode == "whitelist" and not _matches(self._white, path):
            raise invalid("url", f"{path} is not below a directory of setting image/download.localPath.whitelist")
        if self._mode == "blacklist" and _matches(self._black, path):
            raise invalid("url", f"{path} is on setting image/download.localPath.blacklist")


def _patterns(text: str) -> list[re.Pattern[str]]:
    """Patterns with `*` (part of a name) and `**` (any parts), separated by semicolons; a plain path is a directory."""
    found = []
    for one in filter(None, (part.strip().rstrip("/") for part in text.split(";"))):
        parts = (_WILDCARDS.get(part) or re.escape(part) for part in re.split(r"(\*\*|\*)", one))
        found.append(re.compile("".join(parts) + ("" if "*" in one else "/.*")))
    return found


def _matches(patterns: list[re.Pattern[str]], path: str) -> bool:
    return any(one.fullmatch(path) for one in patterns)


def _path_of(url: str) -> str:
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost"):
        raise invalid("url", f"{url!r} names a host; a file of the server is file:///path")
    return unquote(parts.path)


class Source:
    """An open image. `size` is None when the other side does not say."""

    def __init__(self, size: int | None, chunks: AsyncIterator[bytes]) -> None:
        self.size = size
        self.chunks = chunks


@contextlib.asynccontextmanager
async def open_source(url: str, guard: Guard) -> AsyncIterator[Source]:
    """Open an image for reading. Raises BS.1000 or INVALID_ARGUMENT."""
    if urlsplit(url).scheme == "file":
        handle, size = await asyncio.to_thread(_open_file, _path_of(url), guard)
        try:
            yield Source(size, _file_chunks(handle))
        finally:
            os.close(handle)
        return
    timeout = aiohttp.ClientTimeout(
        total=None, connect=2 * CONNECT_TIMEOUT, sock_connect=CONNECT_TIMEOUT, sock_read=guard.idle
    )
    connector = aiohttp.TCPConnector(resolver=_GuardedResolver(guard), force_close=True)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False) as session:
        with _told(url):
            response = await _get(session, url, guard)
        with contextlib.closing(response):
            yield Source(response.content_length, _http_chunks(response, url))


def _open_file(path: str, guard: Guard) -> tuple[int, int]:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise invalid("url", f"cannot open {path}: {error.strerror}") from None
    try:
        status = os.fstat(handle)
        guard.check_path(os.path.realpath(f"/proc/self/fd/{handle}"))
        if not stat.S_ISREG(status.st_mode):
            raise invalid("url", f"{path} is no plain file")
    except BaseException:
        os.close(handle)
        raise
    return handle, status.st_size


async def _file_chunks(handle: int) -> AsyncIterator[bytes]:
    while chunk := await asyncio.to_thread(os.read, handle, 4 * CHUNK):
        yield chunk


async def _http_chunks(response: aiohttp.ClientResponse, url: str) -> AsyncIterator[bytes]:
    with _told(url):
        async for chunk in response.content.iter_chunked(CHUNK):
            yield chunk


async def _get(session: aiohttp.ClientSession, url: str, guard: Guard) -> aiohttp.ClientResponse:
    for _ in range(MAX_REDIRECTS + 1):
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise invalid("url", f"it redirects to {url!r}")
        guard.check_host(parts.hostname)
        response = await session.get(url, allow_redirects=False)
        if response.status not in (301, 302, 303, 307, 308):
            break
        url = urljoin(url, response.headers.get("Location", ""))
        response.close()
    if response.status != 200:
        response.close()
        raise CloudError(DOWNLOAD_ERROR, f"{url} answers with status {response.status}", status=response.status)
    return response


@contextlib.contextmanager
def _told(url: str) -> Any:
    """Errors of the network as ours."""
    try:
        yield
    except aiohttp.ClientConnectorError as error:
        refused = error.os_error
        if isinstance(refused, AddressRefusedError) and isinstance(refused.__cause__, CloudError):
            raise refused.__cause__ from None
        raise CloudError(DOWNLOAD_ERROR, f"cannot reach {url}: {error}", url=url) from error
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise CloudError(DOWNLOAD_ERROR, f"the download of {url} broke off: {error or 'no data'}", url=url) from error


class _GuardedResolver(AbstractResolver):
    """Resolves names, and gives nothing but addresses that may be asked: what is connected to is what was checked."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._inner = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        found = await self._inner.resolve(host, port, family)
        for one in found:
            try:
                self._guard.check_address(ipaddress.ip_address(one["host"].partition("%")[0]))
            except CloudError as error:
                raise AddressRefusedError(f"{host} is {one['host']}") from error
        return found

    async def close(self) -> None:
        await self._inner.close()
