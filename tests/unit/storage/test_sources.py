"""Where images may come from: every way around the rules is closed."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from caelum.cloud.backup_storage.errors import DOWNLOAD_ERROR
from caelum.drivers.directory_backup import settings
from caelum.drivers.directory_backup.sources import Guard, open_source
from caelum.kernel.errors import INVALID_ARGUMENT, CloudError


def guard(
    allowed: str = "", white: str = "", mode: str = "whitelist", always: str = "/never", idle: float = 1
) -> Guard:
    return Guard(allowed, white, settings.BLACKLIST.default, mode, idle, always)


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.1.2.3", "192.168.0.1", "172.16.5.5", "169.254.169.254", "0.0.0.0", "100.64.0.1", "::1", "fe80::1",
     "fd00::1", "224.0.0.1", "255.255.255.255", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1",
     "2002:7f00:1::"],
)  # fmt: skip
def test_addresses_that_only_our_network_reaches_are_refused(address: str) -> None:
    with pytest.raises(CloudError) as refused:
        guard().check_address(ipaddress.ip_address(address))
    assert refused.value.kind is INVALID_ARGUMENT
    assert refused.value.facts["address"] == str(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700:4700::1111"])
def test_public_addresses_are_asked(address: str) -> None:
    guard().check_address(ipaddress.ip_address(address))


def test_a_setting_allows_single_networks() -> None:
    open_one = guard(allowed="10.0.0.0/8, fd00::/8")
    open_one.check_address(ipaddress.ip_address("10.9.9.9"))
    open_one.check_address(ipaddress.ip_address("fd00::9"))
    open_one.check_address(ipaddress.ip_address("::ffff:10.1.1.1"))
    with pytest.raises(CloudError):
        open_one.check_address(ipaddress.ip_address("192.168.0.1"))


def test_a_wrong_network_is_no_value_of_the_setting() -> None:
    with pytest.raises(CloudError):
        settings.ALLOWED_NETWORKS.parse("10.0.0.0/33")


@pytest.mark.parametrize("url", ["ftp://8.8.8.8/x", "http:///x", "gopher://x/", "/etc/passwd", "file://other/x"])
def test_other_schemes_are_refused(url: str) -> None:
    with pytest.raises(CloudError):
        guard(white="/**").check_url(url, True)


def test_files_are_for_administrators(tmp_path: Path) -> None:
    allowed = guard(white=f"{tmp_path}/**")
    allowed.check_url(f"file://{tmp_path}/a.qcow2", True)
    with pytest.raises(CloudError, match="administrator"):
        allowed.check_url(f"file://{tmp_path}/a.qcow2", False)


@pytest.mark.parametrize(
    ("path", "fits"),
    [("/images/a", True), ("/images/deep/er/a", True), ("/images", False), ("/imagesx/a", False),
     ("/etc/passwd", False), ("/data/x/keep/a", True), ("/data/x/y/keep/a", False)],
)  # fmt: skip
def test_the_white_list(path: str, fits: bool) -> None:
    listed = guard(white="/images;/data/*/keep/**")
    if fits:
        listed.check_path(path)
    else:
        with pytest.raises(CloudError, match="whitelist"):
            listed.check_path(path)


def test_the_black_list_alone_lets_everything_else_through() -> None:
    listed = guard(mode="blacklist")
    listed.check_path("/somewhere/a.qcow2")
    for path in ("/etc/shadow", "/home/me/.ssh/id", "/proc/self/environ", "/dev/sda"):
        with pytest.raises(CloudError, match="blacklist"):
            listed.check_path(path)


async def read(url: str, rules: Guard) -> tuple[int | None, bytes]:
    async with open_source(url, rules) as source:
        return source.size, b"".join([chunk async for chunk in source.chunks])


async def test_a_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "a b").write_bytes(b"x" * 100)
    assert await read(f"file://{tmp_path}/a%20b", guard(white=str(tmp_path))) == (100, b"x" * 100)


async def test_a_link_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "in" / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(CloudError, match="whitelist"):
        await read(f"file://{tmp_path}/in/link", guard(white=f"{tmp_path}/in"))
    with pytest.raises(CloudError, match="whitelist"):
        await read(f"file://{tmp_path}/in/../secret", guard(white=f"{tmp_path}/in"))


async def test_only_plain_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CloudError, match="plain file"):
        await read(f"file://{tmp_path}/pipe", guard(white=str(tmp_path)))
    with pytest.raises(CloudError, match="cannot open"):
        await read(f"file://{tmp_path}/none", guard(white=str(tmp_path)))


@pytest.fixture
async def server() -> AsyncIterator[TestServer]:
    async def image(_request: web.Request) -> web.Response:
        return web.Response(body=b"i" * 5000)

    async def moved(request: web.Request) -> web.Response:
        return web.Response(status=302, headers={"Location": request.query["to"]})

    async def short(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "100"})
        await response.prepare(request)
        await response.write(b"abc")
        assert request.transport is not None
        request.transport.abort()
        return response

    app = web.Application()
    app.router.add_get("/image", image)
    app.router.add_get("/moved", moved)
    app.router.add_get("/short", short)
    async with TestServer(app, host="127.0.0.1") as running:
        yield running


async def test_http_from_an_allowed_network(server: TestServer) -> None:
    size, body = await read(str(server.make_url("/image")), guard(allowed="127.0.0.0/8"))
    assert (size, len(body)) == (5000, 5000)


async def test_a_name_that_leads_home_is_refused(server: TestServer) -> None:
    with pytest.raises(CloudError, match="not a public address"):
        await read(f"http://localhost:{server.port}/image", guard())


async def test_an_address_that_leads_home_is_refused(server: TestServer) -> None:
    with pytest.raises(CloudError, match="not a public address"):
        await read(str(server.make_url("/image")), guard())


async def test_a_redirect_is_judged_like_the_first_address(server: TestServer) -> None:
    allowed = guard(allowed="127.0.0.1/32")
    moved = str(server.make_url("/moved").with_query(to="/image"))
    assert (await read(moved, allowed))[0] == 5000
    for target in ("http://169.254.169.254/latest", "http://127.0.0.2/x", "file:///etc/passwd"):
        with pytest.raises(CloudError) as refused:
            await read(str(server.make_url("/moved").with_query(to=target)), allowed)
        assert refused.value.kind is INVALID_ARGUMENT


async def test_a_redirect_without_end_is_given_up(server: TestServer) -> None:
    loop = str(server.make_url("/moved").with_query(to="/moved?to=/moved"))
    with pytest.raises(CloudError) as failed:
        await read(
            loop.replace("%2Fmoved%3Fto%3D%2Fmoved", "%2Fmoved%3Fto%3D%252Fmoved"), guard(allowed="127.0.0.1/32")
        )
    assert failed.value.kind is DOWNLOAD_ERROR


async def test_what_is_not_there_and_what_breaks_off(server: TestServer) -> None:
    for path, words in (("/nothing", "status 404"), ("/short", "broke off")):
        with pytest.raises(CloudError, match=words) as failed:
            await read(str(server.make_url(path)), guard(allowed="127.0.0.1/32"))
        assert failed.value.kind is DOWNLOAD_ERROR
