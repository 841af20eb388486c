"""What goes wrong on demand, and how long things take. Everything random comes from one seed.

Invariant: a fault is looked up once per command, when it arrives; one with a `count` is used up by exactly that many
commands. A series of commands is hit by the first fault that hits it or one of them, and takes as long as they do; it
fails as a whole, but for an error, which comes when that one's turn does.
"""

from __future__ import annotations

import random
from fnmatch import fnmatchcase
from typing import Literal

import msgspec

Kind = Literal["refuse", "error", "hang", "lose_reply", "double_reply", "die", "die_after", "slow", "lose_ack"]


class Fault(msgspec.Struct, rename="camel", kw_only=True, omit_defaults=True):
    """What happens to commands whose path matches `path`, on hosts whose UUID matches `host`.

    refuse: HTTP 503 and nothing is done; error: the command fails with agent error `code`; hang: acknowledged, then
    nothing until it is cancelled; lose_reply: done, but the answer is lost, with the connection of a request that
    waits for it, or as a callback that is never sent (a repetition or a poll finds it); lose_ack: done, but the
    connection breaks before the acknowledgement; double_reply: answered twice, by callback for the second time;
    die: the agent is gone before it does anything; die_after: it is gone after the effect, before the answer;
    slow: `delay` more seconds.
    """

    kind: Kind
    path: str = "*"
    host: str = "*"
    count: int | None = None
    probability: float = 1.0
    delay: float = 0.0
    code: str = "AGENT.1012"
    details: str = "a simulated failure"
    transient: bool = False

    def hits(self, path: str) -> bool:
        """Whether commands of this path are meant."""
        return fnmatchcase(path, self.path)


class Latency(msgspec.Struct, rename="camel", kw_only=True, omit_defaults=True):
    """How long commands whose path matches take: `fixed` low; `uniform` low..high; `exponential` low + mean high."""

    path: str = "*"
    kind: Literal["fixed", "uniform", "exponential"] = "fixed"
    low: float = 0.0
    high: float = 0.0


class Cut(msgspec.Struct, rename="camel", kw_only=True):
    """A management node, by the UUID in its certificate and the start of its callback URLs, that no host reaches."""

    server: str
    callback: str


class Behaviour:
    """The faults and latencies in force. The first that matches counts."""

    def __init__(self, seed: int = 0) -> None:
        self.cuts: list[Cut] = []
        self.faults: list[Fault] = []
        self.latencies: list[Latency] = []
        self._random = random.Random(seed)  # noqa: S311 - repeatable, not secret

    def add(self, fault: Fault) -> None:
        """Put a fault in force, before those that are."""
        self.faults.insert(0, fault)

    def clear(self) -> None:
        """Everything works again."""
        self.faults.clear()
        self.cuts.clear()

    def is_cut_from(self, server: str) -> bool:
        """Whether this management node does not reach the hosts."""
        return any(one.server == server for one in self.cuts)

    def cannot_post(self, url: str) -> bool:
        """Whether the management node that listens there cannot be reached."""
        return any(url.startswith(one.callback) for one in self.cuts)

    def fault_for(self, host_uuid: str, path: str) -> Fault | None:
        """The fault that hits this command, used up by one."""
        for fault in self.faults:
            fits = fault.hits(path) and fnmatchcase(host_uuid, fault.host)
            if fits and fault.count != 0 and self._random.random() < fault.probability:
                if fault.count is not None:
                    fault.count -= 1
                return fault
        return None

    def delay_for(self, path: str) -> float:
        """Seconds that this command takes."""
        for one in self.latencies:
            if fnmatchcase(path, one.path):
                return self._draw(one)
        return 0.0

    def _draw(self, latency: Latency) -> float:
        match latency.kind:
            case "fixed":
                return latency.low
            case "uniform":
                return self._random.uniform(latency.low, latency.high)
        return latency.low + self._random.expovariate(1 / latency.high if latency.high else 1.0)
