"""Deleting a resource with everything that lives below it.

Invariant: descendants go before their parents (leaves first), each resource once, however many ways lead to it.
Resource types form a graph of `parents` edges; from the type that is deleted it is flattened to an order, and edges
that would close a cycle are dropped.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import ClassVar, Literal

import msgspec

from caelum.kernel.errors import CloudError, as_cloud_error, error_type
from caelum.kernel.extension import ExtensionPoint, Extensions

log = logging.getLogger(__name__)

Mode = Literal["Permissive", "Enforcing"]

DELETE_FAILED = error_type(
    "SYS.1004",
    "Unable to delete a resource",
    "Remove the cause, or repeat with deleteMode=Enforcing to go on in spite of it.",
)


class CascadeExtension(ExtensionPoint):
    """What deletion means for one resource type. All methods may be repeated for resources that are already gone."""

    resource: ClassVar[str]
    parents: ClassVar[tuple[str, ...]] = ()

    async def children(self, parent_type: str, uuids: list[str]) -> list[str]:
        """The resources of our type that live below these parents."""
        raise NotImplementedError

    async def check(self, uuids: list[str]) -> None:
        """Object to a Permissive deletion by raising."""

    async def delete(self, uuids: list[str], force: bool, issuer: str) -> None:
        """Delete these. `issuer` is the resource type whose deletion began it all."""
        raise NotImplementedError

    async def cleanup(self, uuids: list[str]) -> None:
        """Remove what is left behind, once everything is deleted."""


class PlanStep(msgspec.Struct, frozen=True, rename="camel"):
    """Resources of one type that would go."""

    resource: str
    uuids: list[str]


class CascadePlan(msgspec.Struct, frozen=True, rename="camel"):
    """What a deletion takes along, in the order of deletion: leaves first, the root last."""

    steps: list[PlanStep]

    def uuids(self, resource: str) -> list[str]:
        """The resources of a type that would go."""
        return next((step.uuids for step in self.steps if step.resource == resource), [])


class Cascade:
    """Runs deletions over all cascade extensions of a node."""

    def __init__(self, extensions: Extensions) -> None:
        self._extensions = extensions

    async def plan(self, resource: str, uuids: Iterable[str]) -> CascadePlan:
        """A dry run: what deleting these would take along."""
        by_type = self._by_type()
        found: dict[str, dict[str, None]] = {resource: dict.fromkeys(uuids)}
        edges = _edges(by_type.values())
        order = _flatten(resource, edges)
        position = {name: index for index, name in enumerate(order)}
        for name in order:
            for child in edges.get(name, ()):
                if found.get(name) and position[child] > position[name]:
                    below = await by_type[child].children(name, list(found[name]))
                    found.setdefault(child, {}).update(dict.fromkeys(below))
        return CascadePlan([PlanStep(name, list(found[name])) for name in reversed(order) if found.get(name)])

    async def delete(self, resource: str, uuids: Iterable[str], mode: Mode | str | None = "Permissive") -> CascadePlan:
        """Delete these and what lives below them.

        Permissive asks everyone first and stops at the first error. Enforcing goes on in spite of errors, which are
        logged; only when the root itself cannot be deleted does it raise.
        """
        plan = await self.plan(resource, uuids)
        by_type = self._by_type()
        if resource not in by_type:
            raise CloudError(DELETE_FAILED, f"no service deletes {resource}", resourceType=resource)
        if mode == "Enforcing":
            await self._enforce(plan, by_type, resource)
        else:
            await self._permit(plan, by_type, resource)
        await self._cleanup(plan, by_type)
        return plan

    def _by_type(self) -> dict[str, CascadeExtension]:
        return {one.resource: one for one in self._extensions.of(CascadeExtension)}

    async def _permit(self, plan: CascadePlan, by_type: dict[str, CascadeExtension], issuer: str) -> None:
        for step in plan.steps:
            await by_type[step.resource].check(step.uuids)
        for step in plan.steps:
            try:
                await by_type[step.resource].delete(step.uuids, False, issuer)
            except Exception as error:
                raise _failed(step, issuer, error) from error

    async def _enforce(self, plan: CascadePlan, by_type: dict[str, CascadeExtension], issuer: str) -> None:
        for step in plan.steps:
            try:
                await by_type[step.resource].delete(step.uuids, True, issuer)
            except Exception as error:
                if step.resource == issuer:
                    raise _failed(step, issuer, error) from error
                log.exception("deleting %s goes on, though %d %s resist", issuer, len(step.uuids), step.resource)

    async def _cleanup(self, plan: CascadePlan, by_type: dict[str, CascadeExtension]) -> None:
        for step in plan.steps:
            try:
                await by_type[step.resource].cleanup(step.uuids)
            except Exception:
                log.exception("cleaning up after %d deleted %s failed", len(step.uuids), step.resource)


def _failed(step: PlanStep, issuer: str, error: Exception) -> CloudError:
    return CloudError(
        DELETE_FAILED,
        f"deleting {issuer} stopped at {len(step.uuids)} resources of {step.resource}: {as_cloud_error(error).details}",
        cause=error,
        resourceType=step.resource,
        uuids=step.uuids,
    )


def _edges(extensions: Iterable[CascadeExtension]) -> dict[str, list[str]]:
    edges: dict[str, list[str]] = {}
    for one in extensions:
        for parent in one.parents:
            edges.setdefault(parent, []).append(one.resource)
    return edges


def _flatten(root: str, edges: dict[str, list[str]]) -> list[str]:
    """The types that can be reached from the root, parents before children where no cycle forbids it."""
    finished: list[str] = []
    seen: set[str] = set()

    def visit(name: str) -> None:
        seen.add(name)
        for child in edges.get(name, ()):
            if child not in seen:
                visit(child)
        finished.append(name)

    visit(root)
    return finished[::-1]
