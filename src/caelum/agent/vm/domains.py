"""What the agent does with libvirt domains: blocking functions, each given the connection.

Invariant: `find` is the only way to a domain, and it refuses one that has our name but not our mark.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

import libvirt  # type: ignore[import-untyped]
import libvirt_qemu  # type: ignore[import-untyped]

from caelum.agent.protocol import LIBVIRT, NOT_FOUND, Nic
from caelum.agent.registry import AgentFailure
from caelum.agent.vm.xml import NAMESPACE, PREFIX, nic_mark

AGENT_SECONDS = 3
"""Time for a guest's agent to answer."""
STATES = {
    libvirt.VIR_DOMAIN_NOSTATE: "NoState",
    libvirt.VIR_DOMAIN_RUNNING: "Running",
    libvirt.VIR_DOMAIN_BLOCKED: "Running",
    libvirt.VIR_DOMAIN_PAUSED: "Paused",
    libvirt.VIR_DOMAIN_SHUTDOWN: "Running",  # on its way down, but its disks are still in use
    libvirt.VIR_DOMAIN_SHUTOFF: "Stopped",
    libvirt.VIR_DOMAIN_CRASHED: "Crashed",
    libvirt.VIR_DOMAIN_PMSUSPENDED: "Paused",
}
_ELEMENT = libvirt.VIR_DOMAIN_METADATA_ELEMENT
_UNDEFINE = (
    libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
    | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
)


def find(connection: Any, vm_uuid: str) -> Any | None:
    """The domain of this VM, or None. Raises when the name is taken by a domain that is not ours."""
    try:
        domain = connection.lookupByName(vm_uuid)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return None
        raise
    if mark(domain) is None:
        raise AgentFailure(LIBVIRT, f"the domain {vm_uuid} on this host is not ours; it is left alone")
    return domain


def running(connection: Any, vm_uuid: str) -> Any:
    """The domain of this VM, which must be running or paused."""
    domain = find(connection, vm_uuid)
    if domain is None or not domain.isActive():
        raise AgentFailure(NOT_FOUND, f"no running guest {vm_uuid} on this host")
    return domain


def mark(domain: Any) -> ET.Element | None:
    """Our metadata in a domain; None when it is not ours (or gone meanwhile)."""
    try:
        return ET.fromstring(domain.metadata(_ELEMENT, NAMESPACE))  # noqa: S314 - written by us, read from libvirt
    except libvirt.libvirtError as error:
        if error.get_error_code() in (libvirt.VIR_ERR_NO_DOMAIN_METADATA, libvirt.VIR_ERR_NO_DOMAIN):
            return None
        raise


def nics(domain: Any) -> list[Nic]:
    """The NICs that our metadata remembers, as far as their removal needs them."""
    marked = mark(domain)
    return [] if marked is None else [_nic(element) for element in marked]


def _nic(element: ET.Element) -> Nic:
    name, mac, uuid = (element.get(key, "") for key in ("name", "mac", "uuid"))
    return Nic(nic_uuid=uuid, device_id=-1, mac=mac, name=name, bridge=element.get("bridge", ""), ips=[])


def remember_nic(domain: Any, nic: Nic, *, present: bool) -> None:
    """Add a NIC to our metadata or take it out; the same again changes nothing."""
    marked = mark(domain)
    if marked is None:
        return
    for element in [one for one in marked if one.get("uuid") == nic.nic_uuid]:
        marked.remove(element)
    if present:
        marked.append(nic_mark(nic))
    for element in marked.iter():
        element.tag = element.tag.rpartition("}")[2]  # libvirt puts the namespace on, and refuses what has it already
    text = ET.tostring(marked, encoding="unicode")
    flags = libvirt.VIR_DOMAIN_AFFECT_CONFIG | (libvirt.VIR_DOMAIN_AFFECT_LIVE if domain.isActive() else 0)
    domain.setMetadata(_ELEMENT, text, PREFIX, NAMESPACE, flags)


def state(domain: Any) -> str:
    """The VM state of a domain."""
    return STATES.get(domain.state()[0], "NoState")


def all_states(connection: Any, known: set[str]) -> tuple[dict[str, str], list[str]]:
    """States of all our domains, and the names of the others. `known` are names that need no look at their mark."""
    ours: dict[str, str] = {}
    others: list[str] = []
    for domain, facts in connection.getAllDomainStats(libvirt.VIR_DOMAIN_STATS_STATE, 0):
        name = domain.name()
        if name in known or mark(domain) is not None:
            ours[name] = STATES.get(facts.get("state.state"), "NoState")
        else:
            others.append(name)
    return ours, sorted(others)


def live_xml(domain: Any) -> ET.Element:
    """The definition of a domain as it runs now (as it will start, when it does not run)."""
    return ET.fromstring(domain.XMLDesc(0))  # noqa: S314 - written by libvirt


def device(domain: Any, alias: str) -> ET.Element | None:
    """The device with this alias, or None."""
    for element in live_xml(domain).iterfind("./devices/*"):
        name = element.find("alias")
        if name is not None and name.get("name") == alias:
            return element
    return None


def vnc_port(domain: Any) -> int:
    """The loopback port of a running guest's VNC server."""
    graphics = live_xml(domain).find("./devices/graphics[@type='vnc']")
    port = -1 if graphics is None else int(graphics.get("port", "-1"))
    if port <= 0:
        raise AgentFailure(LIBVIRT, f"the guest {domain.name()} has no VNC port", transient=True)
    return port


def hypervisor(domain: Any) -> str:
    """`kvm` or `tcg`: what the domain was started with."""
    return "kvm" if live_xml(domain).get("type") == "kvm" else "tcg"


def define_paused(connection: Any, xml: str) -> Any:
    """Define a domain and start it paused; when it does not start, nothing of it is left."""
    domain = connection.defineXML(xml)
    try:
        domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)
    except libvirt.libvirtError:
        if not domain.isActive():
            undefine(domain)
            raise
    return domain


def ask_to_stop(domain: Any, button: bool) -> None:
    """Ask a guest to shut down: by its agent if it has one, or by the power `button`."""
    if state(domain) == "Paused":
        domain.resume()  # a paused guest cannot answer
    if button or not _agent_connected(domain):
        domain.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN)
        return
    try:
        # Not by libvirt's own shutdown call, which waits a minute for the guest to go.
        libvirt_qemu.qemuAgentCommand(domain, '{"execute": "guest-shutdown"}', AGENT_SECONDS, 0)
    except libvirt.libvirtError:
        pass  # an agent that obeys does not answer either; the button comes next


def _agent_connected(domain: Any) -> bool:
    target = live_xml(domain).find("./devices/channel/target[@name='org.qemu.guest_agent.0']")
    return target is not None and target.get("state") == "connected"


def pull_plug(domain: Any) -> None:
    """End a guest at once; success when it ended by itself."""
    try:
        domain.destroy()
    except libvirt.libvirtError:
        if domain.isActive():
            raise


def undefine(domain: Any) -> None:
    """Forget a domain with its managed save and NVRAM; success if absent."""
    try:
        domain.undefineFlags(_UNDEFINE)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
            raise
