"""The public contract: every operation and inventory that we declare agrees with the specification's facts.

The specification lies beside the repository (`../shared/spec`, or where `CAELUM_SPEC` says); without it these tests are
skipped. Our own additions, which the specification does not have, are listed here and nowhere else.
"""

from __future__ import annotations

import functools
import json
import os
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Union

import msgspec
import pytest

from caelum.builtin import import_declarations
from caelum.gateway.answer import body_types
from caelum.kernel.message import (
    ApiMeta,
    ApiQuery,
    ParamMeta,
    apis,
    inventories,
    inventory_meta,
    parameters,
    reply_type,
)

SPEC = Path(os.environ.get("CAELUM_SPEC", Path(__file__).parents[3] / "shared" / "spec"))

OWN_OPERATIONS: frozenset[str] = frozenset(
    {
        "APIAddDirectoryBackupStorageMsg", "APIRunAuditMsg",
        "APICreateAccessKeyMsg", "APIDeleteAccessKeyMsg", "APIChangeAccessKeyStateMsg", "APIQueryAccessKeyMsg",
    }
)  # fmt: skip
"""Operations that we add; those of access keys are the original's, from a part that its specification leaves out."""
OWN_PARAMETERS: dict[str, frozenset[str]] = {}
"""Parameters that we add, by operation."""
OWN_INVENTORIES: frozenset[str] = frozenset({"AccessKeyInventory"})
"""Inventories that we add."""
OWN_FIELDS: dict[str, frozenset[str]] = {}
"""Fields that we add, by inventory."""
DEVIATIONS: dict[str, str] = {
    "APIRenewSessionMsg.sessionUuid: resource": "no table has a session by the UUID that its client knows",
    "APIQueryPrimaryStorageMsg: paths": "a single primary storage can be asked for like everything else",
    "APIDeleteResourceConfigMsg.resourceUuid: is the target": "who only shares a resource does not change it",
    "APIDeleteVmSshKeyMsg.uuid: resource": "a VM that does not exist is an error and not silence",
    "APISetVmSshKeyMsg.SshKey: not trimmed": "a key is kept as it is given",
    "APICreateVmInstanceMsg: parameters that are missing": "diskAOs is not offered yet",
    "APIGetVmStartingCandidateClustersHostsMsg: answer's keys": "clusters are not offered yet",
}
"""What we do differently on purpose: "<operation>[.<parameter>]: <fact>" with the reason."""

pytestmark = pytest.mark.skipif(not (SPEC / "api.json").is_file(), reason=f"the specification is not at {SPEC}")

INT64_MAX = 2**63 - 1
_SCALARS = {
    "byte": int,
    "String": str,
    "Integer": int,
    "int": int,
    "Long": int,
    "long": int,
    "Short": int,
    "boolean": bool,
    "Boolean": bool,
    "Double": float,
    "double": float,
    "Float": float,
    "float": float,
}


@functools.cache
def load(name: str) -> Any:
    return json.loads((SPEC / name).read_bytes())


@functools.cache
def declared() -> list[ApiMeta]:
    import_declarations()
    return [meta for meta in apis() if meta.cls.__module__.startswith("caelum.")]


@functools.cache
def facts() -> dict[str, Any]:
    """The specification's messages by name."""
    return {one["name"]: one for one in load("api.json")["messages"]}


@functools.cache
def inventory_facts() -> dict[str, Any]:
    return {one["class"]: one for one in load("inventories.json")["inventories"].values()}


def ours(kind: str, name: str) -> bool:
    """Whether something outside the specification is one of the listed additions."""
    return name in (OWN_OPERATIONS if kind == "operation" else OWN_INVENTORIES)


class Differences:
    """What was found, all of it, so that one run shows everything."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def compare(self, where: str, fact: str, mine: Any, wanted: Any) -> None:
        if mine != wanted and f"{where}: {fact}" not in DEVIATIONS:
            self.found.append(f"{where}: {fact} is {mine!r}, the specification has {wanted!r}")

    def none(self) -> None:
        assert not self.found, f"{len(self.found)} differences:\n" + "\n".join(self.found)


def known() -> Iterator[tuple[ApiMeta, dict[str, Any]]]:
    for meta in declared():
        if meta.name in facts():
            yield meta, facts()[meta.name]


def test_operations_are_those_of_the_specification() -> None:
    extra = [meta.name for meta in declared() if meta.name not in facts() and not ours("operation", meta.name)]
    assert extra == [], "neither in the specification nor among our additions"


def test_routes_and_kinds() -> None:
    differences = Differences()
    for meta, fact in known():
        paths = {one for one in (fact["path"], *fact["optionalPaths"]) if one != "null"}
        differences.compare(meta.name, "paths", {meta.path, *meta.also}, paths)
        differences.compare(meta.name, "method", meta.method, fact["method"])
        differences.compare(meta.name, "body key", meta.body_key, fact.get("bodyKey"))
        differences.compare(meta.name, "is an action", meta.action is not None, fact["isAction"])
        differences.compare(meta.name, "kind", meta.kind, fact["kind"])
        differences.compare(meta.name, "class", meta.java_class, fact["class"].replace("$", "."))
        differences.compare(meta.name, "needs no login", not meta.login, fact["suppressCredentialCheck"])
        differences.compare(meta.name, "administrators only", meta.admin_only, fact["rbac"]["adminOnly"])
    differences.none()


def test_answers() -> None:
    differences = Differences()
    for meta, fact in known():
        body = set(fact["response"]["body"])
        if issubclass(meta.cls, ApiQuery):
            wanted_class = {one["message"].rpartition(".")[2]: one for one in load("queries.json")["messages"]}
            inventory = wanted_class[meta.name]["inventoryClass"]
            differences.compare(
                meta.name, "inventory", inventory_meta(reply_type(meta.cls)).java_class, inventory.replace("$", ".")
            )
            continue
        mine = set(body_types(meta))
        if "success" in mine:
            mine.add("error")  # travels in the error form instead
        differences.compare(meta.name, "answer's keys", mine, body)
    differences.none()


def _spec_params(fact: dict[str, Any]) -> dict[str, dict[str, Any]]:
    bases = ("APIQueryMessage",)
    return {one["name"]: one for one in fact["params"] if one["declaredIn"] not in bases}


def test_parameters() -> None:
    differences = Differences()
    for meta, fact in known():
        if issubclass(meta.cls, ApiQuery):
            continue
        mine = {one.wire: one for one in parameters(meta.cls)}
        wanted = _spec_params(fact)
        extra = set(mine) - set(wanted) - OWN_PARAMETERS.get(meta.name, frozenset())
        differences.compare(meta.name, "parameters that are not in the specification", sorted(extra), [])
        differences.compare(meta.name, "parameters that are missing", sorted(set(wanted) - set(mine)), [])
        for name in mine.keys() & wanted.keys():
            _compare_parameter(differences, f"{meta.name}.{name}", mine[name], wanted[name])
    differences.none()


def _compare_parameter(differences: Differences, where: str, mine: ParamMeta, wanted: dict[str, Any]) -> None:
    param = mine.param
    differences.compare(where, "type", _shape(mine.type), _java_shape(wanted["type"]))
    differences.compare(where, "required", mine.required, wanted["required"])
    # The base class's deleteMode is not checked there, and is here.
    if not where.endswith(".deleteMode"):
        differences.compare(where, "valid values", param.valid_values, _tuple(wanted.get("validValues")))
    # Where the original sets no limit, and lets the database fail, we may set one.
    if "maxLength" in wanted:
        differences.compare(where, "longest", param.max_length, wanted["maxLength"])
    if wanted.get("minLength"):
        differences.compare(where, "shortest", param.min_length, wanted["minLength"])
    if "numberRange" in wanted:
        low, high = wanted["numberRange"]
        mine_high = INT64_MAX if param.maximum is None else param.maximum
        differences.compare(where, "range", (param.minimum, mine_high), (low, high))
    differences.compare(where, "nonempty", param.nonempty, wanted.get("nonempty", False))
    differences.compare(where, "may be the empty string", param.empty_string, wanted.get("emptyString", True))
    differences.compare(where, "not trimmed", param.no_trim, wanted.get("noTrim", False))
    # Checking more is allowed, and so is routing by a parameter that nobody checks.
    if wanted.get("checkAccount"):
        differences.compare(where, "account checked", param.check_account, True)
        differences.compare(where, "is the target", param.target, wanted.get("operationTarget", False))
    gone = wanted.get("successIfResourceNotExisting", False)
    differences.compare(where, "succeeds when missing", param.success_if_missing, gone)
    resource = wanted.get("resourceType")
    differences.compare(where, "resource", param.resource, resource and resource.rpartition(".")[2])
    if wanted.get("validRegexValues"):
        differences.compare(where, "regex", param.regex is not None, True)


def _tuple(values: Any) -> Any:
    return None if values is None or isinstance(values, dict) else tuple(values)


def _plain(hint: Any) -> Any:
    if typing.get_origin(hint) in (Union, types.UnionType):
        rest = [one for one in typing.get_args(hint) if one is not type(None)]
        return _plain(rest[0]) if len(rest) == 1 else hint
    return hint


def _shape(hint: Any) -> str:
    """A type as the few kinds that matter on the wire."""
    plain = _plain(hint)
    origin, arguments = typing.get_origin(plain) or plain, typing.get_args(plain)
    if origin in (list, set, tuple):
        return f"list of {_shape(arguments[0])}" if arguments else "list of object"
    if origin is dict:
        return "map"
    if origin is typing.Literal:
        return "str"
    if isinstance(plain, type) and plain in (str, int, bool, float):
        return plain.__name__
    return "str" if "datetime" in str(plain) else "object"


def _java_shape(java: str) -> str:
    java = java.strip()
    for prefix in ("List<", "Set<", "Collection<", "ArrayList<"):
        if java.startswith(prefix):
            return f"list of {_java_shape(java[len(prefix) : -1])}"
    if java.endswith("[]"):
        return f"list of {_java_shape(java[:-2])}"
    if java in ("List", "Set"):
        return "list of object"
    if java.partition("<")[0].endswith("Map"):
        return "map"
    if java in _SCALARS:
        return _SCALARS[java].__name__
    enums = load("inventories.json")["enums"]
    is_text = java in ("Timestamp", "Date") or any(
        one.endswith((f".{java}", f"${java}")) or one == java for one in enums
    )
    return "str" if is_text else "object"


def test_inventories() -> None:
    differences = Differences()
    declared()
    for cls in inventories():
        if not cls.__module__.startswith("caelum."):
            continue
        meta = inventory_meta(cls)
        fact = inventory_facts().get(meta.java_class)
        if fact is None:
            differences.compare(cls.__name__, "in the specification", ours("inventory", cls.__name__), True)
            continue
        vo = fact.get("mappingVOClass") or ""
        differences.compare(cls.__name__, "resource type", meta.vo, vo.rpartition(".")[2])
        mine = {one.encode_name: one.type for one in msgspec.structs.fields(cls)}
        hidden = {one["name"] for one in fact["fields"] if one["apiNoSee"]}
        wanted = {one["name"]: one["type"] for one in fact["fields"] if one["name"] not in hidden}
        extra = set(mine) - set(wanted) - OWN_FIELDS.get(cls.__name__, frozenset())
        differences.compare(cls.__name__, "fields that are not in the specification", sorted(extra), [])
        for name in mine.keys() & wanted.keys():
            differences.compare(f"{cls.__name__}.{name}", "type", _shape(mine[name]), _java_shape(wanted[name]))
        _compare_joins(differences, cls)
    differences.none()


def _compare_joins(differences: Differences, cls: type) -> None:
    meta = inventory_meta(cls)
    fact = load("queries.json")["inventories"].get(meta.java_class)
    if fact is None:
        return
    wanted = {
        one["expandedField"]: (one["inventoryClass"].rpartition(".")[2], one["foreignKey"], one["expandedInventoryKey"])
        for one in fact["expandedQueries"]
    }
    for one in meta.expands:
        mine = (one.inventory, one.foreign_key, one.key)
        differences.compare(f"{cls.__name__}.{one.field}", "join", mine, wanted.get(one.field, mine))


def test_coverage(capsys: pytest.CaptureFixture[str]) -> None:
    """Tells how much of the contract is declared; it judges nothing."""
    mine = {meta.name for meta in declared()}
    by_category: dict[str, list[int]] = {}
    for name, fact in facts().items():
        numbers = by_category.setdefault(fact["category"], [0, 0])
        numbers[0] += name in mine
        numbers[1] += 1
    with capsys.disabled():
        covered = sum(one[0] for one in by_category.values())
        print(f"\noperations: {covered} of {len(facts())} declared, {len(mine - set(facts()))} of our own")
        parts = [f"{name} {n}/{total}" for name, (n, total) in sorted(by_category.items()) if n]
        print("  " + ", ".join(parts))
        classes = {inventory_meta(cls).java_class for cls in inventories()}
        missing = _missing_fields()
        print(f"inventories: {len(classes & set(inventory_facts()))} of {len(inventory_facts())} declared;")
        print(f"  fields not offered yet: {missing}")
    assert mine


def _missing_fields() -> dict[str, list[str]]:
    found = {}
    for cls in inventories():
        fact = inventory_facts().get(inventory_meta(cls).java_class)
        if fact is not None:
            wanted = {one["name"] for one in fact["fields"] if not one["apiNoSee"]}
            mine = {one.encode_name for one in msgspec.structs.fields(cls)}
            if wanted - mine:
                found[cls.__name__] = sorted(wanted - mine)
    return found
