"""Configuration, options and rules as functions of the commands; nothing hostile gets into a configuration file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from caelum.agent.network import dhcp, dnsmasq, guard, names, nat, spoofing
from caelum.agent.network.state import DhcpState, Networks
from caelum.agent.protocol import ApplyDhcp, ApplyNat, CreateBridge, DhcpEntry, HostRoute, Nic
from caelum.agent.registry import AgentFailure

L3 = "0123456789ab4cdef0123456789abcde"
MAC1, MAC2 = "fa:16:3e:00:00:01", "fa:16:3e:00:00:02"


def command(**changes: Any) -> ApplyDhcp:
    fields: dict[str, Any] = {
        "l3_uuid": L3, "bridge": "br0", "server_ip": "10.0.0.2", "netmask": "255.255.255.0", "gateway": "10.0.0.1",
        "dns": ["8.8.8.8"], "entries": [entry(MAC1, "10.0.0.11")], **changes,
    }  # fmt: skip
    return ApplyDhcp(**fields)


def entry(mac: str, ip: str, hostname: str = "web", *, is_default: bool = True) -> DhcpEntry:
    return DhcpEntry(mac=mac, ip=ip, hostname=hostname, is_default=is_default)


def all_texts(cmd: ApplyDhcp) -> list[str]:
    options = dnsmasq.options_text(cmd, reaches_gateway=True)
    return [dnsmasq.config_text(cmd, Path("/x")), dnsmasq.hosts_text(cmd.entries), dnsmasq.names_text(cmd), options]


def test_names_fit_and_come_from_the_uuid() -> None:
    assert len(names.server_port(L3)) <= 15
    assert names.server_port(L3) == "cd0123456789ab"
    assert names.fixed_mac("a") == names.fixed_mac("a") != names.fixed_mac("b")
    assert int(names.fixed_mac("a")[:2], 16) & 0b11 == 0b10, "locally administered, unicast"


@pytest.mark.parametrize(
    "changes",
    [
        {"entries": [entry(MAC1, "10.0.0.11", "a\ndhcp-script=/bin/sh")]},
        {"entries": [entry(MAC1, "10.0.0.11", "a,b")]},
        {"entries": [entry("fa:16:3e:00:00", "10.0.0.11")]},
        {"entries": [entry(MAC1, "10.0.0.11\n")]},
        {"domain": "x\ndhcp-script=/bin/sh"},
        {"domain": "x/y"},
        {"dns": ["8.8.8.8\n"], "forward_dns": True},
        {"dns": ["nowhere"]},
        {"gateway": "10.0.0.1,evil"},
        {"netmask": "255.0.255.0"},
        {"host_routes": [HostRoute(prefix="10.0.0.0/33", nexthop="10.0.0.1")]},
        {"host_routes": [HostRoute(prefix="10.0.0.0/8", nexthop="x")]},
    ],
)
def test_no_text_breaks_out_of_its_place(changes: dict[str, Any]) -> None:
    cmd = command(**changes)
    with pytest.raises(AgentFailure):
        all_texts(cmd)


@pytest.mark.parametrize("text", ["", "a/b", "..", "x" * 16, "a b", "-a", "a\n"])
def test_interface_names(text: str) -> None:
    with pytest.raises(AgentFailure):
        names.interface(text)


def test_leases_have_no_tags_and_strangers_no_answer() -> None:
    cmd = command(entries=[entry(MAC2, "10.0.0.12", "db", is_default=False), entry(MAC1, "10.0.0.11")])
    assert dnsmasq.hosts_text(cmd.entries) == f"{MAC1},10.0.0.11,web\n{MAC2},10.0.0.12,db\n"
    config = dnsmasq.config_text(cmd, Path("/x")).splitlines()
    assert f"dhcp-mac=set:other,{MAC2}" in config
    assert "dhcp-ignore=tag:!known" in config
    assert not [line for line in config if line.startswith("server=")]


def test_options_of_default_and_other_networks() -> None:
    routes = [HostRoute(prefix="10.9.0.0/16", nexthop="10.0.0.9")]
    options = dnsmasq.options_text(command(host_routes=routes), reaches_gateway=True).splitlines()
    full = "169.254.169.254/32,10.0.0.2,10.9.0.0/16,10.0.0.9,0.0.0.0/0,10.0.0.1"
    assert f"tag:!other,option:classless-static-route,{full}" in options
    assert f"tag:!other,249,{full}" in options
    assert "tag:other,option:classless-static-route,10.9.0.0/16,10.0.0.9" in options
    assert {"tag:other,option:router", "tag:other,option:dns-server"} <= set(options), "kept from the guest"


def test_default_route_stays_whole() -> None:
    """RFC 3442: a client that takes option 121 ignores the router, so the default route must be in it, once."""
    assert dnsmasq.default_routes(command(metadata=False), [], "10.0.0.1") == []
    own = ["0.0.0.0/0,10.0.0.7"]
    assert dnsmasq.default_routes(command(metadata=False), own, "10.0.0.1") == own
    assert dnsmasq.default_routes(command(), [], "") == ["169.254.169.254/32,10.0.0.2"]


@pytest.mark.parametrize(
    ("dns", "forward", "reaches", "expected"),
    [
        (["8.8.8.8"], False, True, ["8.8.8.8"]),
        ([], False, True, []),
        (["10.0.0.2", "8.8.8.8"], False, False, ["10.0.0.2", "8.8.8.8"]),
        (["10.0.0.2", "8.8.8.8"], True, True, ["10.0.0.2"]),
        (["10.0.0.2", "8.8.8.8"], True, False, ["10.0.0.2", "8.8.8.8"]),
        (["8.8.8.8"], True, False, ["10.0.0.2", "8.8.8.8"]),
    ],
)
def test_name_servers(dns: list[str], forward: bool, reaches: bool, expected: list[str]) -> None:
    cmd = command(dns=dns, forward_dns=forward)
    assert dnsmasq.name_servers(cmd, reaches_gateway=reaches) == expected
    servers = [line for line in dnsmasq.config_text(cmd, Path("/x")).splitlines() if line.startswith("server=")]
    assert servers == (["server=8.8.8.8"] if forward else []), "never to itself"


def test_merged_entries_replace_by_mac_and_by_address() -> None:
    known = [entry(MAC1, "10.0.0.11"), entry(MAC2, "10.0.0.12"), entry("fa:16:3e:00:00:03", "10.0.0.13")]
    given = [entry(MAC1.upper(), "10.0.0.12")]
    assert dhcp.merged(known, given) == [known[2], given[0]]


def test_guard_has_uplink_rules_only_with_an_uplink() -> None:
    state = DhcpState(command=command())
    private, with_uplink = (
        CreateBridge(l2_uuid=L3, bridge="br0", interface=uplink) for uplink in (None, "eth1")
    )  # fmt: skip
    forward, output = guard.chains([private], [state])
    assert (len(forward.rules), len(output.rules)) == (2, 1)
    forward, _ = guard.chains([with_uplink], [state])
    assert len(forward.rules) == 5
    assert "'concat': ['eth1', '10.0.0.2']" in str(forward.rules)
    assert str(0xFA163E000001) in str(forward.rules)
    assert guard.chains([], [DhcpState(command=command(entries=[]))])[0].rules == []


def test_overlapping_sources_of_a_nic_are_one() -> None:
    nic = Nic(
        nic_uuid=L3, device_id=0, mac=MAC1, name="vnic1.0", bridge="br0", ips=["10.0.0.11"],
        extra_source_ips=["10.0.0.0/24", "fd00::1", "fd00::/64"],
    )  # fmt: skip
    rules = str(spoofing.chain(nic).rules)
    assert "10.0.0.11" not in rules
    assert "{'addr': '10.0.0.0', 'len': 24}" in rules
    assert "fd00::1'" not in rules


def test_translation_refuses_a_gateway_outside() -> None:
    with pytest.raises(AgentFailure, match=r"not in 10\.0\.0\.0/24"):
        nat._gateway(ApplyNat(l3_uuid=L3, bridge="br0", gateway="10.0.1.1", cidr="10.0.0.0/24"))


def test_foreign_policies_that_drop() -> None:
    def chain(table: str, policy: str, hook: str = "forward", family: str = "ip") -> dict[str, Any]:
        return {"chain": {"family": family, "table": table, "name": "FORWARD", "hook": hook, "policy": policy}}

    accepting = {"rule": {"family": "ip", "table": "knows", "expr": [{"match": {"right": "br0"}}, {"accept": None}]}}
    ruleset = [
        {"metainfo": {}}, chain("filter", "drop"), chain("knows", "drop"), accepting, chain("free", "accept"),
        chain("in", "drop", hook="input"), chain("caelum-nat-x", "drop"), chain("six", "drop", family="ip6"),
    ]  # fmt: skip
    assert nat.blockers(ruleset, "br0") == ["ip filter FORWARD"]


def test_state_survives_and_is_forgotten(tmp_path: Path) -> None:
    networks = Networks(tmp_path)
    state = DhcpState(command=command(), served={"10.0.0.11": MAC1})
    networks.save_dhcp(state)
    assert Networks(tmp_path).dhcp(L3) == state
    (networks.folder(L3) / "dhcp.json").write_text("{broken")
    assert networks.dhcp(L3) is None
    assert list(networks.all_dhcp()) == []
    networks.forget(L3, keep="nat.json")
    assert not networks.folder(L3).exists()
