"""Where the simulation takes the place of the real world: clocks, random numbers, SQLite's threads, TLS, logs.

Invariant: the product's modules do not know; what is replaced is replaced for the block only, and in this process only.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import random
import ssl
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

import aio_pika
import aiohttp.connector
import aiosqlite.core
from cryptography import x509

from caelum.kernel import log as kernel_log
from caelum.kernel import loop_watch, pki
from caelum.testing.simulation import postgres
from caelum.testing.simulation.broker import Broker
from caelum.testing.simulation.loop import VirtualLoop
from caelum.testing.simulation.network import Credential
from caelum.testing.simulation.sqlite import DatabaseServer, InlineConnection

EPOCH = 1_780_000_000.0
"""The wall clock at the beginning, in seconds since 1970."""
_BOOTED = 100_000.0
"""The monotonic clock at the beginning."""


class Clocks:
    """What the clocks of the machine that runs now show."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def monotonic(self) -> float:
        """Nobody sets this one."""
        return _BOOTED + self._loop.time()

    def wall(self) -> float:
        """This one may jump."""
        return EPOCH + self._loop.time() + self._loop.machine.clock_offset

    def gettime(self, _clock: int) -> float:
        """Only clocks that nobody sets are asked for by number."""
        return self.monotonic()


def credential(kind: int, files: pki.Files) -> ssl.SSLContext:
    """A TLS context of these files, without their secrets."""
    certificate = x509.load_pem_x509_certificate(files.certificate.read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    made = Credential(kind)
    made.urn = names.get_values_for_type(x509.UniformResourceIdentifier)[0]
    addresses = (str(one) for one in names.get_values_for_type(x509.IPAddress))
    made.names = frozenset([*names.get_values_for_type(x509.DNSName), *addresses])
    return made


def cheap_scrypt(password: bytes, *, salt: bytes, dklen: int = 64, **_costs: Any) -> bytes:
    """A hash of a password that costs nothing: what is simulated has no secrets."""
    return hashlib.sha512(salt + password).digest()[:dklen].ljust(dklen, b"\0")


@contextlib.contextmanager
def unreal(loop: VirtualLoop, database: DatabaseServer, broker: Broker, seed: str) -> Iterator[None]:
    """Let everything that the program asks of the outer world come from the loop and the seed."""
    clocks, chance = Clocks(loop), random.Random(f"{seed}/program")  # noqa: S311 - repeatable, not secret
    InlineConnection.server = database
    replaced: list[tuple[Any, str, Any]] = [
        (time, "monotonic", clocks.monotonic),
        (aiohttp.connector, "monotonic", clocks.monotonic),
        (time, "time", clocks.wall),
        (time, "clock_gettime", clocks.gettime),
        (os, "urandom", chance.randbytes),
        (random, "_urandom", chance.randbytes),
        (hashlib, "scrypt", cheap_scrypt),
        (aio_pika, "connect", broker.connect),
        (aiosqlite.core, "Connection", InlineConnection),
        (pki, "_context", credential),
        (loop_watch, "INTERVAL", 3600.0),  # a virtual clock is never late, and hours pass while a host hangs
        (kernel_log.Logging, "start", lambda _self: None),
        (kernel_log.Logging, "stop", lambda _self: None),
    ]
    state, level = random.getstate(), logging.getLogger().level
    with contextlib.ExitStack() as stack:
        for target, name, value in replaced:
            stack.enter_context(mock.patch.object(target, name, value))
        stack.enter_context(postgres.served(loop, EPOCH))
        random.seed(f"{seed}/global")
        yield
    random.setstate(state)
    logging.getLogger().setLevel(level)
