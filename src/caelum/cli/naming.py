"""From operation names to commands: `CreateVmInstance` is `caelum vm create`, `QueryVmNic` is `caelum vm list-vm-nic`.

Invariant: every operation has exactly one command, derived from its name and its service alone.
"""

from __future__ import annotations

import re

from caelum.sdk.manifest import Operation, Parameter, load

MAIN_NOUNS = {
    "vm": "VmInstance",
    "l2": "L2Network",
    "l3": "L3Network",
    "primary_storage": "PrimaryStorage",
    "backup_storage": "BackupStorage",
    "network_service": "NetworkServiceProvider",
    "directory_backup": "BackupStorage",
    "local_storage": "PrimaryStorage",
    "no_vlan": "L2Network",
    "flat_network": "L3Network",
    "kvm": "Host",
    "config": "GlobalConfig",
    "console": "ConsoleProxyAgent",
    "identity": "Account",
    "management": "ManagementNode",
    "offering": "InstanceOffering",
}
"""The noun of a service's own resource where it is not the service's name; it is left out of the command."""
GROUPS = {
    "directory_backup": "backup-storage",
    "local_storage": "primary-storage",
    "no_vlan": "l2",
    "flat_network": "l3",
    "kvm": "host",
    "identity": "account",
}
"""Services whose commands stand with those of a neighbour."""
_WORDS = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z0-9]+|[A-Z]+[0-9]*")


def kebab(name: str) -> str:
    """`l3NetworkUuids` -> `l3-network-uuids`, `KVMHost` -> `kvm-host`; a number stays with the letter before it."""
    return "-".join(word.lower() for word in re.findall(r"[A-Z]{2,}(?![a-z])|[A-Z]?[a-z0-9]+|[A-Z]", name))


def group_of(operation: Operation) -> str:
    """The first word of the command: the service, as users call it."""
    return GROUPS.get(operation.category, operation.category.replace("_", "-"))


def groups() -> dict[str, list[Operation]]:
    """Operations by the first word of their command."""
    found: dict[str, list[Operation]] = {}
    for operation in load().values():
        found.setdefault(group_of(operation), []).append(operation)
    return dict(sorted(found.items()))


def verb_of(operation: Operation) -> str:
    """The second word of the command: the operation's name without the noun that the group says already."""
    noun = MAIN_NOUNS.get(operation.category) or "".join(one.title() for one in operation.category.split("_"))
    words = _WORDS.findall(operation.name)
    verb, rest = words[0].lower(), operation.name[len(words[0]) :]
    if operation.query:
        verb = "list"
    for name in (noun, noun.removesuffix("Instance")):
        rest = re.sub(rf"^{name}(?=[A-Z]|$)|(To|From|On|Of)?{name}$", "", rest) or ""
    return f"{verb}-{kebab(rest)}" if rest else verb


def option_of(parameter: Parameter) -> str:
    """The option's name: references lose their `Uuid`, because a name does too."""
    name = parameter.name
    if parameter.resource is not None:
        name = re.sub(r"Uuid(s?)$", r"\1", name) or name
    return kebab(name)


def query_of(vo: str) -> str:
    """The query that finds resources of a type ("VmInstanceVO") by name."""
    return f"Query{vo.removesuffix('VO')}"
