"""What is wrong with one node's machine: its clock, its disk."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_cluster import FaultCluster
from fault_trial import FULL, Trial

LASTS = 60.0 if FULL else 6.0
TINY = 4 << 20
"""Bytes of a small disk."""


def restart(cluster: FaultCluster, index: int) -> None:
    """End a node in order and start it again."""
    cluster.hold(index, signal.SIGTERM)
    deadline = time.monotonic() + 60
    while is_alive(cluster.pid(index)) and time.monotonic() < deadline:
        time.sleep(0.05)
    cluster.release(index)
    cluster.wait_ready(index)


def faketime() -> Path:
    """The library that makes a process see another time."""
    return next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))


def is_alive(pid: int) -> bool:
    """Whether the process is there, and no zombie."""
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][:1]
    except OSError:
        return False


async def test_the_clock_of_a_node_jumps(cluster: FaultCluster, trial: Trial, tmp_path: Path) -> None:
    library = faketime()
    offset = tmp_path / "offset"
    offset.write_text("+0")
    # The monotonic clock does not jump on a real machine either.
    words = f"env LD_PRELOAD={library} FAKETIME_TIMESTAMP_FILE={offset} FAKETIME_CACHE_DURATION=1 DONT_FAKE_MONOTONIC=1"
    cluster.wrapper(1).write_text(f"{words} FAKETIME_DONT_FAKE_MONOTONIC=1")
    await asyncio.to_thread(restart, cluster, 1)
    await asyncio.to_thread(cluster.wait_met)

    async def leap() -> None:
        for now in ("+1h", "-1h"):
            await asyncio.to_thread(offset.write_text, now)
            await asyncio.sleep(LASTS)

    try:
        name = "the clock of a node jumps an hour forward, then two back"
        await trial.of(name, leap, downtime=3.0, recovery=30.0 + 2 * LASTS)
        assert len(await asyncio.to_thread(cluster.client.query, "ManagementNode")) == 3
    finally:
        cluster.mend()
        await asyncio.to_thread(restart, cluster, 1)


@pytest.fixture
def small_disk(cluster: FaultCluster) -> Iterator[Path]:
    """Node 2 with its data directory on a disk of a few megabytes."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    data = cluster.layout.data_of(2)
    cluster.hold(2, signal.SIGTERM)
    while is_alive(cluster.pid(2)):
        time.sleep(0.05)
    aside = data.with_name("node3-aside")
    data.rename(aside)
    data.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={TINY}", "tmpfs", data], check=True)
    try:
        subprocess.run(["cp", "-a", f"{aside}/pki", data], check=True)
        cluster.release(2)
        cluster.wait_met()
        yield data
    finally:
        cluster.hold(2, signal.SIGTERM)
        while is_alive(cluster.pid(2)):
            time.sleep(0.05)
        subprocess.run(["umount", "-l", data], check=True)
        data.rmdir()
        aside.rename(data)
        cluster.release(2)


async def test_the_disk_of_a_node_is_full(cluster: FaultCluster, trial: Trial, small_disk: Path) -> None:
    async def fill() -> None:
        def write() -> None:
            with (small_disk / "ballast").open("wb", buffering=0) as file:
                try:
                    while True:
                        file.write(bytes(4096))
                except OSError:
                    return

        await asyncio.to_thread(write)
        await asyncio.sleep(LASTS)
        (small_disk / "ballast").unlink()

    await trial.of("the disk of a node is full", fill, downtime=3.0, recovery=30.0 + LASTS)
