"""Commands are made of operation names; two operations must never have the same one."""

from __future__ import annotations

from collections import Counter
from importlib import resources

import msgspec
import pytest

from caelum.cli.naming import groups, kebab, option_of, verb_of
from caelum.sdk import manifest
from caelum.sdk.generate import generate
from caelum.sdk.manifest import Operation, Parameter, load


def test_every_operation_has_a_command_of_its_own() -> None:
    for group, operations in groups().items():
        verbs = Counter(verb_of(one) for one in operations)
        assert [verb for verb, count in verbs.items() if count > 1] == [], group


@pytest.mark.parametrize(
    ("operation", "command"),
    [
        ("CreateVmInstance", "create"),
        ("QueryVmInstance", "list"),
        ("QueryVmNic", "list-nic"),
        ("AttachL3NetworkToVm", "attach-l3-network"),
        ("DeleteVmHostname", "delete-hostname"),
        ("AddDnsToL3Network", "add-dns"),
        ("AttachDataVolumeToVm", "attach-data-volume-to-vm"),
        ("AddLocalPrimaryStorage", "add-local"),
        ("AddKVMHost", "add-kvm"),
        ("CreateL2NoVlanNetwork", "create-l2-no-vlan-network"),
    ],
)
def test_a_command_leaves_out_what_its_group_says(operation: str, command: str) -> None:
    assert verb_of(load()[operation]) == command


def test_a_reference_is_an_option_without_uuid() -> None:
    assert option_of(Parameter("l3NetworkUuids", "list", "body", resource="L3NetworkVO")) == "l3-networks"
    assert option_of(Parameter("memorySize", "integer", "body")) == "memory-size"
    assert kebab("defaultL3NetworkUuid") == "default-l3-network-uuid"


def test_the_manifest_is_what_the_declarations_say() -> None:
    kept = resources.files("caelum.sdk").joinpath("operations.json").read_bytes()
    assert kept == generate(), "run: python -m caelum.sdk.generate"


def test_what_a_server_adds_is_learned_and_takes_no_name_away(monkeypatch: pytest.MonkeyPatch) -> None:
    known = dict(load())
    monkeypatch.setattr(manifest, "load", lambda: known)
    text = msgspec.json.encode(
        [
            Operation("CreateZone", "POST", "/evil", "evil", "Not ours.", []),
            Operation("CreateGreeting", "POST", "/greetings", "hello", "Greet.", []),
        ]
    )
    assert manifest.learn(text) == ["CreateGreeting"]
    assert (known["CreateZone"].path, known["CreateGreeting"].path) == ("/zones", "/greetings")
    for bad in (b"[{}]", b"<html>", b"\xff"):
        with pytest.raises(msgspec.DecodeError):
            manifest.learn(bad)
