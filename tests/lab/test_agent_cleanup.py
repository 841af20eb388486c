"""`caelum agent --clean` leaves nothing of ours on the host, and everything of others."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import agent_network_lab as net
import libvirt
import pytest
from agent_vm_lab import Lab, PrivateLibvirt, definition, nic, root_disk

from caelum.agent.network import names
from caelum.agent.network.dnsmasq import RUN_DIR
from caelum.agent.protocol import (
    ApplyDhcp,
    ApplyMetadata,
    ApplyNat,
    CreateBridge,
    DhcpEntry,
    MetadataEntry,
)
from caelum.kernel.ids import new_uuid

pytestmark = [
    pytest.mark.skipif(not net.RUNS_HERE, reason=f"needs root and {net.MISSING}"),
    pytest.mark.timeout(240),
]

L2, L3 = new_uuid(), new_uuid()
FOREIGN_DOMAIN = "<domain type='qemu'><name>stranger</name><memory>65536</memory><os><type>hvm</type></os></domain>"
FORWARD = Path("/proc/sys/net/ipv4/ip_forward")


@pytest.fixture(scope="module")
def host_network() -> Iterator[None]:
    """Everything below happens in a network of its own."""
    with net.own_network():
        yield


@pytest.fixture(scope="module")
def libvirtd(host_network: None) -> Iterator[PrivateLibvirt]:
    daemon = PrivateLibvirt()
    daemon.start()
    yield daemon
    daemon.close()


@pytest.fixture
async def lab(tmp_path: Path, libvirtd: PrivateLibvirt) -> AsyncIterator[Lab]:
    lab = Lab(tmp_path, libvirtd.uri)
    await lab.open()
    await lab.start_agent()
    yield lab
    await lab.close()
    clean(lab)


def clean(lab: Lab, uri: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable, "-m", "caelum.agent.main", "--clean", "--state-dir", str(lab.state),
        "--tls-dir", str(lab.tls), "--libvirt-uri", uri or lab.libvirt_uri,
        "--log-level", "warning",
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


async def furnish(lab: Lab, directory: Path) -> tuple[str, Path]:
    """A network with everything, and a guest in it; the guest's UUID and its disk."""
    await lab.connect()
    await lab.run(CreateBridge(l2_uuid=L2, bridge="brclean", interface=None))
    entry = DhcpEntry(mac="fa:00:00:00:51:00", ip="10.99.1.10", hostname="web")
    await lab.run(
        ApplyDhcp(
            l3_uuid=L3, bridge="brclean", server_ip="10.99.1.2", netmask="255.255.255.0", gateway="10.99.1.1", dns=[],
            entries=[entry],
        )
    )  # fmt: skip
    vm = new_uuid()
    await lab.run(ApplyMetadata(l3_uuid=L3, entries=[MetadataEntry(ip="10.99.1.10", vm_uuid=vm, hostname="web")]))
    await lab.run(ApplyNat(l3_uuid=L3, bridge="brclean", gateway="10.99.1.1", cidr="10.99.1.0/24"))
    root = root_disk(directory)
    guest = definition(root, 81, nics=[nic(0, "brclean", 81)])
    await lab.run(guest)
    return guest.vm_uuid, Path(root.install_path)


def kernel() -> dict[str, object]:
    """What of ours is in the kernel."""
    tables = [one["table"]["name"] for one in json.loads(net.run("nft", "-j", "list", "tables"))["nftables"][1:]]
    links = [one["ifname"] for one in json.loads(net.run("ip", "-j", "link"))]
    return {
        "tables": sorted(one for one in tables if one.startswith("caelum-")),
        "links": sorted(one for one in links if one.startswith(("brclean", "cd", "vnic"))),
        "namespace": Path(f"/run/netns/{names.namespace(L3)}").exists(),
        "files": (RUN_DIR / L3).exists(),
        "forward": FORWARD.read_text().strip(),
    }


def processes() -> list[str]:
    """Command lines that hold the network's UUID: its servers."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and entry.name != str(os.getpid()):
            try:
                line = (entry / "cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
            except OSError:
                continue
            if L3 in line:
                found.append(line)
    return found


NOTHING = {"tables": [], "links": [], "namespace": False, "files": False, "forward": "0"}


def domains(lab: Lab) -> list[str]:
    connection = libvirt.open(lab.libvirt_uri)
    try:
        return [one.name() for one in connection.listAllDomains()]
    finally:
        connection.close()


@pytest.mark.parametrize("forgotten", [False, True], ids=["remembered", "forgotten"])
async def test_everything_of_ours_goes_and_everything_of_others_stays(
    lab: Lab, tmp_path: Path, forgotten: bool
) -> None:
    vm, disk = await furnish(lab, tmp_path)
    there = kernel()
    assert there["namespace"]
    assert there["forward"] == "1"
    assert there["links"] == ["brclean", names.server_port(L3), "vnic81.0"]
    assert len(there["tables"]) == 3  # type: ignore[arg-type]
    assert len(processes()) == 2
    refused = clean(lab)
    assert (refused.returncode, "an agent runs already" in refused.stderr) == (1, True)
    assert kernel() == there
    lab.stop_agent()
    if forgotten:
        shutil.rmtree(lab.state / "network")
    with strangers(lab):
        done = clean(lab)
        assert (done.returncode, done.stderr) == (0, ""), done
        assert f"removed guest {vm}" in done.stdout
        assert domains(lab) == ["stranger"]
        # What forwarding was before is known from the files alone.
        assert kernel() == {**NOTHING, "forward": "1" if forgotten else "0"}
        assert processes() == []
        assert disk.exists()
        assert not (lab.state / "vm").exists()
        again = clean(lab)
        assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    net.run("sysctl", "-q", "-w", "net.ipv4.ip_forward=0")


async def test_without_libvirt_the_rest_goes_and_it_says_so(lab: Lab, tmp_path: Path) -> None:
    await furnish(lab, tmp_path)
    lab.stop_agent()
    done = clean(lab, "qemu+unix:///system?socket=/nowhere")
    assert done.returncode == 1
    assert "/nowhere cannot be asked" in done.stderr
    there = kernel()
    assert (there["namespace"], there["forward"]) == (False, "0")
    assert clean(lab).returncode == 0
    assert kernel() == NOTHING


class strangers:  # noqa: N801 - used like a function
    """Things of others: a domain, a bridge, a table, and another host's namespace. They must be there at the end."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._namespace, self._elsewhere = names.namespace(new_uuid()), f"else-{new_uuid()[:8]}"

    def __enter__(self) -> None:
        connection = libvirt.open(self._lab.libvirt_uri)
        connection.defineXML(FOREIGN_DOMAIN)
        connection.close()
        net.run("ip", "link", "add", "brstranger", "type", "bridge")
        net.run("nft", "add", "table", "ip", "stranger")
        for name in (self._namespace, self._elsewhere):
            net.run("ip", "netns", "add", name)
        net.run(
            "ip", "-n", self._elsewhere, "link", "add", "cdother", "type", "veth",
            "peer", "name", "eth0", "netns", self._namespace,
        )  # fmt: skip

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                assert "brstranger" in net.run("ip", "-br", "link")
                assert "stranger" in net.run("nft", "list", "tables")
                assert "eth0" in net.run("ip", "-n", self._namespace, "-br", "link")
        finally:
            connection = libvirt.open(self._lab.libvirt_uri)
            connection.lookupByName("stranger").undefine()
            connection.close()
            net.run("ip", "link", "delete", "brstranger", check=False)
            net.run("nft", "delete", "table", "ip", "stranger", check=False)
            for name in (self._namespace, self._elsewhere):
                net.run("ip", "netns", "delete", name)
