"""Many runs, each in a process of its own that is forked from one with the template.

Invariant: a run begins in the same state of memory whichever ran before it; one that never ends is killed and is a
failure like any other.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator

import msgspec

from caelum.testing.simulation.run import Outcome

LIMIT = 300.0
"""Real seconds that one run may take; it needs a few."""
Runner = Callable[[int], Outcome]


class _Child:
    """A process that runs a seed, and what it said so far."""

    def __init__(self, seed: int, runner: Runner) -> None:
        self.seed, self.begun, self.text = seed, time.monotonic(), b""
        self.reader, writer = os.pipe()
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self.reader)
            _tell(writer, seed, runner)
            os._exit(0)
        os.close(writer)

    def read(self) -> bool:
        """Take what is there; False at the end."""
        block = os.read(self.reader, 1 << 20)
        self.text += block
        return bool(block)

    def outcome(self) -> Outcome:
        """What it said in the end."""
        os.close(self.reader)
        os.waitpid(self.pid, 0)
        try:
            return msgspec.json.decode(self.text, type=Outcome)
        except msgspec.DecodeError:
            return _failed(self.seed, "the process of the run died or was killed for its time")

    def kill_if_late(self) -> None:
        """End it when it takes too long."""
        if time.monotonic() - self.begun > LIMIT:
            os.kill(self.pid, signal.SIGKILL)


def run_all(runner: Runner, seeds: Iterable[int], workers: int) -> Iterator[Outcome]:
    """Run the seeds, so many at a time; outcomes come as they are ready."""
    waiting = iter(seeds)
    running: dict[int, _Child] = {}
    while True:
        while len(running) < workers and (seed := next(waiting, None)) is not None:
            child = _Child(seed, runner)
            running[child.reader] = child
        if not running:
            return
        ready, _, _ = select.select(list(running), [], [], 1.0)
        for reader in ready:
            if not running[reader].read():
                yield running.pop(reader).outcome()
        for child in running.values():
            child.kill_if_late()


def _tell(writer: int, seed: int, runner: Runner) -> None:
    try:
        outcome = runner(seed)
    except BaseException:  # noqa: BLE001 - the parent must be told
        outcome = _failed(seed, traceback.format_exc())
    text = memoryview(msgspec.json.encode(outcome))
    while text:
        text = text[os.write(writer, text) :]


def _failed(seed: int, why: str) -> Outcome:
    return Outcome(
        seed=seed, digest="", problems=[why], lines=[], calls=0, succeeded=0, kills=0, virtual_seconds=0, steps=0
    )
