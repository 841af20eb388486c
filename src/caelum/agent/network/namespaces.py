"""Network namespaces: make, enter, look into, remove.

Invariant: entering happens in a thread of its own that ends with the work, so no other thread ever finds itself in a
namespace it did not ask for.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from caelum.agent.network import names
from caelum.agent.protocol import NETWORK

if TYPE_CHECKING:
    from caelum.agent.core import Agent

T = TypeVar("T")

DIRECTORY = Path("/run/netns")
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def path(namespace: str) -> Path:
    """Where a namespace is bound."""
    return DIRECTORY / namespace


def exists(namespace: str) -> bool:
    """Whether there is such a namespace: its file is bound, not a leftover."""
    try:
        return inside(namespace, lambda: True)
    except OSError:
        return False


def inside(namespace: str, function: Callable[..., T], *args: object) -> T:
    """Run a blocking function in a namespace. OSError when there is no such namespace."""
    outcome: Future[T] = Future()

    def work() -> None:
        try:
            _enter(namespace)
            outcome.set_result(function(*args))
        except BaseException as error:
            outcome.set_exception(error)

    thread = threading.Thread(target=work, name=f"in-{namespace}", daemon=True)
    thread.start()
    thread.join()
    return outcome.result()


def _enter(namespace: str) -> None:
    handle = os.open(path(namespace), os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.setns(handle, _CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"cannot enter the namespace {namespace}: {os.strerror(number)}")
    finally:
        os.close(handle)


async def ensure(agent: Agent, namespace: str) -> None:
    """Make a namespace unless it is there."""
    if await agent.run_blocking(exists, namespace):
        return
    if path(namespace).exists():
        await agent.run(["ip", "netns", "delete", namespace], timeout=10, check=False)
    await agent.run(["ip", "netns", "add", namespace], timeout=10, error_code=NETWORK)


async def remove(agent: Agent, namespace: str) -> None:
    """Remove a namespace; nothing to do if there is none."""
    if path(namespace).exists():
        await agent.run(["ip", "netns", "delete", namespace], timeout=10, error_code=NETWORK)


def command(namespace: str, argv: list[str]) -> list[str]:
    """`argv` as it runs inside a namespace."""
    return ["nsenter", f"--net={path(namespace)}", "--", *argv]


def members(namespace: str) -> list[int]:
    """The processes inside a namespace."""
    try:
        identity = path(namespace).stat()
    except FileNotFoundError:
        return []
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and _same(entry / "ns" / "net", identity):
            found.append(int(entry.name))
    return found


def _same(file: Path, identity: os.stat_result) -> bool:
    try:
        one = file.stat()
    except OSError:  # the process ended meanwhile
        return False
    return (one.st_dev, one.st_ino) == (identity.st_dev, identity.st_ino)


def ours() -> list[str]:
    """The L3 networks whose namespace is here."""
    prefix = names.namespace("0" * 32)[:-32]
    present = os.listdir(DIRECTORY) if DIRECTORY.is_dir() else []
    return sorted(name.removeprefix(prefix) for name in present if name.startswith(prefix))
