"""`caelum vm console`: pipes and terminals, and the terminal afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import WSMsgType, web

from caelum.cli import console
from caelum.console import origin

VM = {"uuid": "a" * 32, "name": "web1"}
SCRIPT = """
import sys
from caelum.cli import console
class Client:
    def query(self, resource, *conditions, **options):
        return [{"uuid": "a" * 32}] if conditions[0] in ("name=web1", "uuid=" + "a" * 32) else []
    def call(self, name, vmInstanceUuid):
        return {"scheme": "http", "hostname": "127.0.0.1", "port": int(sys.argv[1]), "token": sys.argv[2]}
console.QUIET_SECONDS = 0.5
sys.exit(console.attach(Client(), sys.argv[3]))
"""


class Guest:
    """A serial line that answers in capitals; `exit` ends it."""

    def __init__(self) -> None:
        self.port = 0
        self.heard = b""

    async def serial(self, request: web.Request) -> web.StreamResponse:
        if request.query["token"] != "good":
            raise web.HTTPUnauthorized
        socket = web.WebSocketResponse(protocols=("binary",), timeout=0.5)
        await socket.prepare(request)
        await socket.send_bytes(b"login: ")
        async for message in socket:
            assert message.type is WSMsgType.BINARY
            self.heard += message.data
            await socket.send_bytes(message.data.upper())
            if b"exit" in self.heard:
                await socket.close(code=1000, message=b"the guest's console ended")
        return socket


@pytest.fixture
def guest() -> Iterator[Guest]:
    guest, loop, ready = Guest(), asyncio.new_event_loop(), threading.Event()

    async def serve() -> None:
        app = web.Application()
        app.add_routes([web.get("/serial", guest.serial)])
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        guest.port = int(runner.addresses[0][1])
        ready.set()

    def run() -> None:
        loop.run_until_complete(serve())
        loop.run_forever()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(10)
    yield guest
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)


def command(guest: Guest, name: str = "web1", token: str = "good") -> list[str]:
    return [sys.executable, "-c", SCRIPT, str(guest.port), token, name]


def piped(guest: Guest, typed: bytes, **more: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(command(guest, **more), input=typed, capture_output=True, timeout=30)


def test_a_pipe_is_typed_and_the_answer_printed(guest: Guest) -> None:
    done = piped(guest, b"hello\n\x1dworld\n")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"login: ")
    assert b"HELLO\n\x1dWORLD\n" in done.stdout  # Ctrl-] leaves a terminal only


def test_no_input_at_all_shows_what_is_there(guest: Guest, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"from a file\n")
    for path, shown in ((Path("/dev/null"), b"login: "), (tmp_path / "file", b"login: FROM A FILE\n")):
        with path.open("rb") as source:
            done = subprocess.run(command(guest), stdin=source, capture_output=True, timeout=30)
        assert (done.returncode, done.stdout) == (0, shown)


def test_a_large_input_arrives_whole(guest: Guest) -> None:
    typed = b"".join(b"%07d\n" % number for number in range(50_000))
    done = piped(guest, typed)
    assert guest.heard == typed
    assert done.stdout == b"login: " + typed


def test_the_guests_end_ends_the_command(guest: Guest) -> None:
    with subprocess.Popen(command(guest), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(b"exit\n")
        process.stdin.flush()  # and stays open
        assert process.wait(20) == 0


def test_a_refusal_is_told_without_the_token(guest: Guest) -> None:
    done = piped(guest, b"", token="secret")
    assert done.returncode == 1
    assert b"HTTP 401" in done.stderr
    assert b"secret" not in done.stderr
    done = piped(guest, b"", name="web9")
    assert done.returncode == 1
    assert b"No VM is named 'web9'" in done.stderr


class Terminal:
    """The command on a terminal of its own."""

    def __init__(self, guest: Guest) -> None:
        self.leader, follower = pty.openpty()
        self.before = termios.tcgetattr(self.leader)
        streams = {"stdin": follower, "stdout": follower, "stderr": follower}
        self.process = subprocess.Popen(command(guest), start_new_session=True, **streams)  # type: ignore[call-overload]
        os.close(follower)
        self.shown = b""

    def read_until(self, text: bytes) -> None:
        end = time.monotonic() + 20
        while text not in self.shown:
            assert time.monotonic() < end, self.shown
            with contextlib.suppress(OSError):
                self.shown += os.read(self.leader, 4096)

    def is_raw(self) -> bool:
        return not termios.tcgetattr(self.leader)[3] & (termios.ICANON | termios.ECHO | termios.ISIG)


@pytest.mark.parametrize(
    ("leave", "code"),
    [
        (lambda one: os.write(one.leader, b"\x1d"), 0),
        (lambda one: os.write(one.leader, b"exit\r"), 0),
        (lambda one: one.process.send_signal(signal.SIGTERM), 1),
    ],
)
def test_a_terminal_is_raw_inside_and_as_before_afterwards(
    guest: Guest, leave: Callable[[Terminal], Any], code: int
) -> None:
    terminal = Terminal(guest)
    terminal.read_until(b"login: ")
    assert terminal.is_raw()
    os.write(terminal.leader, b"a\x03b\r")  # Ctrl-C goes to the guest
    terminal.read_until(b"A\x03B\r")
    leave(terminal)
    assert terminal.process.wait(20) == code
    assert termios.tcgetattr(terminal.leader) == terminal.before
    os.close(terminal.leader)


def test_the_address_of_the_serial_line() -> None:
    access = {"scheme": "https", "hostname": "fd00::1", "port": 4900, "token": "t"}
    assert console.serial_url(access) == "wss://[fd00::1]:4900/serial?token=t"


@pytest.mark.parametrize(
    ("theirs", "host", "allowed"),
    [
        (None, "cloud:4900", True),
        ("http://cloud:4900", "cloud:4900", True),
        ("http://CLOUD:4900", "cloud:4900", True),
        ("http://cloud:8080", "cloud:4900", True),
        ("http://cloud", "cloud", True),
        ("https://cloud", "cloud", True),
        ("https://cloud", "cloud:443", True),
        ("http://[fd00::1]:4900", "[fd00::1]:4900", True),
        ("https://Portal.example/", "cloud:4900", True),
        ("http://portal.example", "cloud:4900", False),
        ("http://cloud:80", "cloud:4900", False),
        ("http://cloud.evil:4900", "cloud:4900", False),
        ("http://evil:4900", "cloud:4900", False),
        ("null", "cloud:4900", False),
        ("file://", "cloud:4900", False),
        ("http://cloud:x", "cloud:4900", False),
        ("", "cloud:4900", False),
    ],
)
def test_whose_pages_may_open_consoles(theirs: str | None, host: str, allowed: bool) -> None:
    assert origin.is_allowed(theirs, host, [8080], ["https://portal.example"]) is allowed


def test_whose_pages_may_frame_the_console() -> None:
    framers = origin.framers("cloud:4900", [8080], ["https://portal.example", "https://a; script-src *"])
    assert framers == "'self' http://cloud:8080 https://cloud:8080 https://portal.example"
    assert origin.framers("x; script-src *", [8080], []) == "'self'"
