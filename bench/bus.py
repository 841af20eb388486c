"""How many calls a second the bus carries: in memory, and between two nodes over RabbitMQ.

    python bench/bus.py [--seconds 5] [--concurrency 1 64 512] [--url amqp://...] [--json]

Two nodes are two processes, as in a cluster; the broker is one of its own unless `--url` names another. Each call is
answered by a handler that does nothing, so the numbers are what the bus itself costs. Goal with a broker on an idle
machine of 2 cores: 4,000 calls a second. Exit code 1: the goal is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import uvloop

from caelum.cluster.rabbitmq import RabbitMq
from caelum.kernel.bus import BusBase
from caelum.kernel.events import EventHub
from caelum.kernel.memory_bus import MemoryBus
from caelum.kernel.message import Message, message
from caelum.kernel.queue import WorkQueues
from caelum.kernel.rabbitmq_bus import RabbitMqBus
from caelum.kernel.ring import Ring
from caelum.kernel.service import handles

GOAL = 4000.0
ASKING, ANSWERING = "bench-asking", "bench-answering"


@message(service="bench", route_by="uuid")
class Echo(Message[str], kw_only=True):
    """Answers its own text."""

    uuid: str
    text: str = "a text of the usual length of a name"


class Bench:
    """The service that does nothing."""

    name = "bench"

    @handles(Echo)
    async def echo(self, msg: Echo) -> str:
        """Answer at once."""
        return msg.text


class Result(NamedTuple):
    """What one run showed; times in milliseconds."""

    bus: str
    concurrency: int
    calls_per_second: float
    median: float
    p99: float
    processor: float
    """Microseconds of processor per call, of both nodes and the broker together, which hardly depend on what else the
    machine does."""

    def line(self) -> str:
        """A row of the table."""
        rate, times = (
            f"{self.calls_per_second:10,.0f} calls/s",
            f"median {self.median:7.2f} ms   p99 {self.p99:7.2f} ms",
        )
        return f"{self.bus:9} {self.concurrency:5} at a time {rate}   {times}   processor {self.processor:5.0f} µs"


def ring_of(me: str) -> Ring:
    """A ring that knows both nodes."""
    ring = Ring(me)
    for one in (ASKING, ANSWERING):
        ring.join(one)
    return ring


def used(pids: Sequence[int]) -> float:
    """Seconds of processor that this process and the given ones have used so far."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


async def measure(
    name: str, bus: BusBase, uuid: str, concurrency: int, seconds: float, pids: Sequence[int] = ()
) -> Result:
    """Call for so long, so many at a time."""
    times: list[float] = []
    end = time.perf_counter() + seconds

    async def caller() -> None:
        while (begun := time.perf_counter()) < end:
            await bus.call(Echo(uuid=uuid))
            times.append(time.perf_counter() - begun)

    begun, before = time.perf_counter(), used(pids)
    await asyncio.gather(*[caller() for _ in range(concurrency)])
    rate = len(times) / (time.perf_counter() - begun)
    processor = (used(pids) - before) / len(times)
    times.sort()
    median, p99 = statistics.median(times), times[int(len(times) * 0.99)]
    return Result(name, concurrency, rate, median * 1000, p99 * 1000, processor * 1e6)


async def in_memory(concurrency: list[int], seconds: float) -> list[Result]:
    """One node that serves everything."""
    ring = Ring(ASKING)
    ring.join(ASKING)
    bus = MemoryBus(ring, WorkQueues(), EventHub())
    bus.register(Bench())
    return [await measure("memory", bus, "x", one, seconds) for one in concurrency]


async def over_rabbitmq(url: str, pids: list[int], concurrency: list[int], seconds: float) -> list[Result]:
    """Two nodes, the second in a process of its own."""
    ring = ring_of(ASKING)
    bus = RabbitMqBus(url, ring, WorkQueues(), EventHub())
    bus.register(Bench())
    await bus.start()
    other = await asyncio.create_subprocess_exec(
        sys.executable, __file__, "--answer", url, stdout=subprocess.PIPE, stdin=subprocess.PIPE
    )
    try:
        if other.stdout is None or not await other.stdout.readline():
            raise RuntimeError("the answering node did not start")
        uuid = next(name for n in range(10_000) if ring.owner(name := f"resource-{n}") == ANSWERING)
        pids = [*pids, other.pid]
        return [await measure("rabbitmq", bus, uuid, one, seconds, pids) for one in concurrency]
    finally:
        other.terminate()
        await other.wait()
        await bus.stop()


async def answer(url: str) -> None:
    """The second node, until it is ended."""
    bus = RabbitMqBus(url, ring_of(ANSWERING), WorkQueues(), EventHub())
    bus.register(Bench())
    await bus.start()
    print("ready", flush=True)
    await asyncio.Event().wait()


@asynccontextmanager
async def broker(url: str | None) -> AsyncIterator[tuple[str, list[int]]]:
    """The broker that was named, or one of our own, with its process."""
    if url is not None:
        yield url, []
        return
    with tempfile.TemporaryDirectory(prefix="caelum-bench-") as directory:
        own = RabbitMq(Path(directory))
        await own.start()
        try:
            yield own.url, [own.pid]
        finally:
            await own.stop()


async def run(options: argparse.Namespace) -> list[Result]:
    """All measurements."""
    results = await in_memory(options.concurrency, options.seconds)
    async with broker(options.url) as (url, pids):
        return results + await over_rabbitmq(url, pids, options.concurrency, options.seconds)


def main() -> int:
    """The command. Answers the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 64, 512])
    parser.add_argument("--url", help="a broker that runs already")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--answer", metavar="URL", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.answer:
        uvloop.run(answer(options.answer))
        return 0
    results = uvloop.run(run(options))
    if options.json:
        print(json.dumps([one._asdict() for one in results]))
    else:
        print("\n".join(one.line() for one in results))
        print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    best = max(one.calls_per_second for one in results if one.bus == "rabbitmq")
    return 0 if best >= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
