"""The scenarios in which the crash harness runs the durable workflows, one for each workflow's `rehearsal`.

Invariant: a rehearsal prepares everything that its trigger needs, and two runs of it give equal clouds, up to UUIDs
and addresses.

    @rehearsal("vm_stop")
    @asynccontextmanager
    async def vm_stop() -> AsyncIterator[Rehearsal]:
        async with Stage(directory, hosts=simulator.dump) as stage:
            vm = await prepare_vm(stage)
            yield Rehearsal(stage, lambda: stage.cloud.api(StopVmInstance(uuid=vm.uuid)))
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import pkgutil
import shutil
import sqlite3
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol

import caelum.testing
from caelum.kernel.node import Node, PartSpec
from caelum.testing.cloud import EmbeddedCloud
from caelum.testing.databases import on_postgresql


class Cloud(Protocol):
    """What the harness needs of the cloud in which a workflow is rehearsed."""

    @property
    def node(self) -> Node:
        """The node that runs now."""

    async def reboot(self) -> None:
        """The process of the node has died: start a new node on the same database, with the same hosts."""

    async def dump_hosts(self) -> Any:
        """Everything that is on the hosts, as JSON values."""

    async def save(self) -> bool:
        """Remember everything as it is now; False when this cloud cannot do it."""

    async def restore(self) -> bool:
        """Put everything back as it was saved, with a new node; False when nothing was saved."""


class Stage:
    """A `Cloud` on a directory, whose node can die and come back: `async with Stage(tmp_path, ...) as stage:`.

    `hosts` tells what is on the simulated hosts, which outlive the node; `keep` remembers it and returns what puts it
    back; `ready` waits, after each start of the node, until the cloud works again (hosts connected).
    """

    def __init__(
        self,
        directory: Path,
        services: Sequence[PartSpec] | None = None,
        drivers: Sequence[PartSpec] | None = None,
        *,
        hosts: Callable[[], Awaitable[Any]] | None = None,
        keep: Callable[[], Callable[[], None]] | None = None,
        ready: Callable[[EmbeddedCloud], Awaitable[None]] | None = None,
        **config: Any,
    ) -> None:
        def make() -> EmbeddedCloud:
            return EmbeddedCloud(directory, services, drivers, **config)

        self._make, self._directory = make, directory
        self._hosts, self._keep, self._ready = hosts, keep, ready
        self._saved: Path | None = None
        self._put_back: Callable[[], None] | None = None
        self._stack = contextlib.ExitStack()
        self.cloud = self._make()

    @property
    def node(self) -> Node:
        """The node that runs now."""
        return self.cloud.node

    async def __aenter__(self) -> Stage:
        await self._start()
        return self

    async def __aexit__(self, *error: Any) -> None:
        with self._stack:
            await self.cloud.__aexit__(*error)

    async def reboot(self) -> None:
        """Start a new node on the same directory."""
        self.cloud = self._make()
        await self._start()

    async def dump_hosts(self) -> Any:
        """Everything that is on the hosts."""
        return None if self._hosts is None else await self._hosts()

    async def save(self) -> bool:
        """Remember the directory and the hosts. PostgreSQL copies no database that is in use, so there it cannot."""
        if self._keep is None or on_postgresql():
            return False
        self._saved = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="caelum-saved-")))
        self._put_back = self._keep()
        await asyncio.to_thread(_copy, self._directory, self._saved)
        return True

    async def restore(self) -> bool:
        """Put both back, and start a new node."""
        if self._saved is None or self._put_back is None:
            return False
        await self.cloud.__aexit__(None, None, None)
        self._put_back()
        await asyncio.to_thread(_replace, self._saved, self._directory)
        await self.reboot()
        return True

    async def _start(self) -> None:
        await self.cloud.__aenter__()
        if self._ready is not None:
            await self._ready(self.cloud)


def _copy(directory: Path, target: Path) -> None:
    """Copy a cloud's files while its node runs."""
    shutil.copytree(directory, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("caelum.db*"))
    with (
        contextlib.closing(sqlite3.connect(directory / "caelum.db")) as source,
        contextlib.closing(sqlite3.connect(target / "caelum.db")) as copy,
    ):
        source.backup(copy)


def _replace(saved: Path, directory: Path) -> None:
    for found in directory.iterdir():
        if found.is_dir():
            shutil.rmtree(found)
        else:
            found.unlink()
    shutil.copytree(saved, directory, dirs_exist_ok=True)


class Rehearsal:
    """A prepared cloud and the operation to rehearse in it.

    `ignore` names tables, or columns as "table.column", that are not state (logs, caches); `masks` are texts that
    differ from one preparation to the next, such as directories and ports; `hosts` tells what is compared besides the
    database, by default everything that is on the hosts.
    """

    def __init__(
        self,
        cloud: Cloud,
        trigger: Callable[[], Awaitable[Any]],
        *,
        ignore: frozenset[str] = frozenset(),
        masks: tuple[str, ...] = (),
        hosts: Callable[[], Awaitable[Any]] | None = None,
    ) -> None:
        self.cloud, self.trigger, self.ignore, self.masks = cloud, trigger, ignore, masks
        self.dump_hosts = hosts or cloud.dump_hosts


Factory = Callable[[], AbstractAsyncContextManager[Rehearsal]]
_rehearsals: dict[str, Factory] = {}


def rehearsal(name: str) -> Callable[[Factory], Factory]:
    """Declare a scenario: an async context manager that yields a `Rehearsal`."""

    def declare(factory: Factory) -> Factory:
        if name in _rehearsals:
            raise TypeError(f"rehearsal {name} is declared twice")
        _rehearsals[name] = factory
        return factory

    return declare


def rehearsals() -> Mapping[str, Factory]:
    """Every declared scenario by name."""
    return _rehearsals


def import_rehearsals() -> None:
    """Load every module of scenarios: those here by name, those of plugins by entry point `caelum.rehearsals`."""
    for found in pkgutil.iter_modules(caelum.testing.__path__, "caelum.testing."):
        if found.name.startswith("caelum.testing.rehearsals_"):
            importlib.import_module(found.name)
    for point in entry_points(group="caelum.rehearsals"):
        point.load()
