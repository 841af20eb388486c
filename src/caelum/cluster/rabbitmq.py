"""A RabbitMQ broker of one's own: on free loopback ports, with all its data in one directory.

Invariant: it shares nothing with another broker of this machine (ports, cookie, node name, epmd, data), and none of its
processes outlives the one that started it, however that one ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path

SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
"""The program itself: the one in PATH changes to another user, which owns none of our directories."""
START_SECONDS = 120.0
STOP_SECONDS = 30.0
_HELLO = b"AMQP\x00\x00\x09\x01"
_CONFIG = """\
listeners.tcp.default = 127.0.0.1:{port}
loopback_users = none
disk_free_limit.absolute = 50MB
vm_memory_high_watermark.absolute = 1GB
log.file.level = info
"""
_LOCAL_ONLY = "-kernel inet_dist_use_interface {127,0,0,1}"
_QUIET = "-noinput +S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none"


class RabbitMq:
    """One broker. Its port stays the same from the first start on, so that clients find it again after a restart."""

    def __init__(self, directory: Path, port: int = 0) -> None:
        self.directory = directory.absolute()
        self.port = port
        self._epmd_port = 0
        # Not asyncio's processes: those belong to the loop that started them, and tests have many loops.
        self._broker: subprocess.Popen[bytes] | None = None
        self._epmd: subprocess.Popen[bytes] | None = None

    @staticmethod
    def available() -> bool:
        """Whether the broker's program is installed (`tools/install cluster`)."""
        return SERVER.exists()

    @property
    def url(self) -> str:
        """Where clients connect to."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}/"

    @property
    def running(self) -> bool:
        """Whether its process lives."""
        return self._broker is not None and self._broker.poll() is None

    @property
    def pid(self) -> int:
        """Its process. Raises RuntimeError when it does not run."""
        if self._broker is None:
            raise RuntimeError("the broker does not run")
        return self._broker.pid

    async def start(self) -> None:
        """Start and wait until it takes connections. Raises RuntimeError with the end of its output."""
        if self.running:
            return
        self._prepare()
        if self._epmd is None or self._epmd.poll() is not None:
            # In the foreground and ours: the one that Erlang would start by itself outlives everybody.
            self._epmd = self._spawn("epmd", "-address", "127.0.0.1", "-port", str(self._epmd_port))
        self._broker = self._spawn(str(SERVER))
        try:
            async with asyncio.timeout(START_SECONDS):
                await self._answering(self._broker)
        except (TimeoutError, RuntimeError) as error:
            await self.kill()
            await self._end_epmd()
            raise RuntimeError(f"RabbitMQ did not start: {error}\n{self._output()}") from None

    async def stop(self) -> None:
        """Stop in order; what is durable stays for the next start."""
        await self._end(signal.SIGTERM)
        await self._end_epmd()

    async def kill(self) -> None:
        """Kill it, as a power failure would."""
        await self._end(signal.SIGKILL)

    async def restart(self) -> None:
        """Stop and start."""
        await self.stop()
        await self.start()

    async def wipe(self) -> None:
        """Kill it and lose everything that it kept: the next start is that of a new broker on the same port."""
        await self.kill()
        await asyncio.to_thread(shutil.rmtree, self.directory / "mnesia", ignore_errors=True)

    # --- processes ----------------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        for name in ("mnesia", "log", "home"):
            (self.directory / name).mkdir(parents=True, exist_ok=True)
        self.port = self.port or free_port()
        self._epmd_port = self._epmd_port or free_port()
        (self.directory / "rabbitmq.conf").write_text(_CONFIG.format(port=self.port))
        (self.directory / "plugins").write_text("[].\n")

    def _environment(self) -> dict[str, str]:
        here = self.directory
        return {
            "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
            "LANG": "C.UTF-8",
            "HOME": str(here / "home"),
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_CRASH_DUMP_SECONDS": "0",
            "RABBITMQ_NODENAME": "caelum@localhost",
            "RABBITMQ_CONFIG_FILE": str(here / "rabbitmq"),
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_MNESIA_BASE": str(here / "mnesia"),
            "RABBITMQ_LOG_BASE": str(here / "log"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(here / "plugins"),
            # Makes the script become the broker. Otherwise it waits beside it, and its death leaves the broker alive.
            "RABBITMQ_ALLOW_INPUT": "true",
            "RABBITMQ_PID_FILE": str(here / "pid"),
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"{_QUIET} {_LOCAL_ONLY}",
        }

    def _spawn(self, *command: str) -> subprocess.Popen[bytes]:
        with (self.directory / "log" / "output").open("ab") as output:
            # A session of its own, so that a terminal's Ctrl-C reaches the tests and not the broker below them.
            return subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command],
                cwd=self.directory, env=self._environment(), start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )  # fmt: skip

    async def _answering(self, broker: subprocess.Popen[bytes]) -> None:
        while broker.poll() is None:
            if await _greets(self.port):
                return
            await asyncio.sleep(0.1)
        raise RuntimeError(f"it ended with exit code {broker.returncode}")

    async def _end(self, number: signal.Signals) -> None:
        broker, self._broker = self._broker, None
        if broker is not None:
            broker.send_signal(number)
            await _gone(broker)

    async def _end_epmd(self) -> None:
        epmd, self._epmd = self._epmd, None
        if epmd is not None:
            epmd.kill()
            await _gone(epmd)

    def _output(self) -> str:
        return (self.directory / "log" / "output").read_text(errors="replace")[-2000:]


def free_port() -> int:
    """A TCP port of the loopback address that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def _gone(process: subprocess.Popen[bytes]) -> None:
    """Wait for the end of a process that was told to end; kill it when it takes too long."""
    try:
        await asyncio.to_thread(process.wait, STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        await asyncio.to_thread(process.wait)


async def _greets(port: int) -> bool:
    """Whether a broker answers there: its first frame is a method frame, `Connection.Start`."""
    try:
        async with asyncio.timeout(5):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(_HELLO)
                return (await reader.readexactly(1)) == b"\x01"
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
    except (OSError, TimeoutError, asyncio.IncompleteReadError):
        return False
