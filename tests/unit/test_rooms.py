"""What belongs to one service stays there: the rules of imports that `.importlinter` has no words for."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import grimp
import pytest

OPEN = {"api", "attach_api", "messages", "extension", "spec", "events", "errors", "tags", "settings"}
"""Modules of a service that other rooms may import: what it declares, and nothing of what it does."""
MAY_READ_TABLES = {"query", "audit"}
"""Services that may import all tables; they only read."""
EXCEPTIONS = {
    # What a reservation on a storage costs is one formula; the audit must use the very same.
    ("caelum.cloud.audit.checks.storage_capacity", "caelum.cloud.primary_storage.capacity"),
    # Tests wait until every host is connected, which only the tracker itself can tell.
    ("caelum.testing.simcloud", "caelum.cloud.host.service"),
}
AGENT_HELPERS = {"caelum.kernel.ids", "caelum.kernel.image_header", "caelum.kernel.pki"}
"""All that the agent may import of the kernel: plain helpers without state."""

Import = tuple[str, str]


@functools.cache
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("caelum", cache_dir=None)


def imports() -> Iterator[Import]:
    for importer in sorted(graph().modules):
        for imported in sorted(graph().find_modules_directly_imported_by(importer)):
            yield importer, imported


def service_of(module: str) -> str | None:
    """The folder below `caelum.cloud` that a module lives in; helpers beside the folders belong to everybody."""
    parts = module.split(".")
    if parts[1:2] != ["cloud"] or len(parts) < 3 or not graph().find_children(".".join(parts[:3])):
        return None
    return parts[2]


def inside(module: str) -> str:
    """`caelum.cloud.vm.flows.create` -> `flows`; the package itself is nothing."""
    parts = module.split(".")
    return parts[3] if len(parts) > 3 else ""


def into_services() -> Iterator[tuple[str, str, str]]:
    """Every import of something inside a service from outside of it, and what is imported."""
    for importer, imported in imports():
        owner = service_of(imported)
        if owner is not None and owner != service_of(importer) and inside(imported):
            yield importer, imported, inside(imported)


def test_nobody_imports_the_inside_of_a_service() -> None:
    wrong = []
    for importer, imported, what in into_services():
        tables = what == "model" and (service_of(importer) in MAY_READ_TABLES or _is_child_table(importer))
        if what not in OPEN and not tables and (importer, imported) not in EXCEPTIONS:
            wrong.append(f"{importer} -> {imported}")
    assert wrong == []


def _is_child_table(importer: str) -> bool:
    """A driver's table may extend that of the service whose resources it drives (KVM hosts are hosts)."""
    return importer.startswith("caelum.drivers.") and importer.endswith(".model")


def test_the_exceptions_are_still_needed() -> None:
    assert set(imports()) >= EXCEPTIONS


def test_there_is_something_to_hold_apart() -> None:
    services = {service_of(module) for module in graph().modules} - {None}
    assert {"vm", "host", "volume", "query"} <= services
    assert len(list(into_services())) > 100


def test_the_agent_takes_plain_helpers_of_the_kernel_only() -> None:
    taken = {imported for importer, imported in imports() if importer.startswith("caelum.agent.")}
    assert {one for one in taken if not one.startswith("caelum.agent")} - {"caelum"} <= AGENT_HELPERS


@pytest.mark.parametrize("room", ["caelum.drivers.", "caelum.simulator."])
def test_of_the_agent_only_what_it_says_is_known_elsewhere(room: str) -> None:
    taken = {imported for importer, imported in imports() if importer.startswith(room)}
    assert {one for one in taken if one.startswith("caelum.agent")} <= {"caelum.agent.protocol", "caelum.agent.news"}


def test_drivers_know_of_each_other_what_they_declare() -> None:
    wrong = []
    for importer, imported in imports():
        mine, theirs = importer.split("."), imported.split(".")
        if mine[1:2] == theirs[1:2] == ["drivers"] and mine[2:3] != theirs[2:3] and len(theirs) > 3:
            wrong += [f"{importer} -> {imported}"] if theirs[3] not in OPEN | {"remote"} else []
    assert wrong == []
