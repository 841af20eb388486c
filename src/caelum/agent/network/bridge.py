"""L2 networks on this host: one Linux bridge each, with an uplink or private.

Invariant: the host's own connectivity is never touched. An interface that carries an address of the host, or that
belongs to something else, is refused; a bridge that we did not make is used as it is, never changed and never deleted.
Our bridges carry their L2 network's UUID in the interface alias.
"""

from __future__ import annotations

import msgspec

from caelum.agent.core import Agent
from caelum.agent.network import guard, links, names
from caelum.agent.network.links import Link, Links, netlink
from caelum.agent.network.state import Networks
from caelum.agent.protocol import CheckInterface, CreateBridge, DeleteBridge, Empty
from caelum.agent.registry import handler

_MARK = "caelum-l2"


class Marker(msgspec.Struct, frozen=True):
    """What a bridge's alias tells: `caelum-l2:<uuid>:<uplink or nothing>`."""

    l2_uuid: str
    uplink: str | None

    @classmethod
    def of(cls, link: Link) -> Marker | None:
        """The marker of a bridge of ours, or None."""
        mark, _, rest = link.alias.partition(":")
        l2_uuid, _, uplink = rest.partition(":")
        return cls(l2_uuid, uplink or None) if mark == _MARK else None

    def text(self) -> str:
        """The alias."""
        return f"{_MARK}:{self.l2_uuid}:{self.uplink or ''}"


@handler(CheckInterface)
async def check_interface(agent: Agent, cmd: CheckInterface) -> Empty:
    """Fail unless the interface is there."""
    await agent.run_blocking(_check, names.interface(cmd.name))
    return Empty()


def _check(name: str) -> None:
    with netlink() as net:
        net.get(name)


@handler(CreateBridge, lock="bridge-{bridge}")
async def create_bridge(agent: Agent, cmd: CreateBridge) -> Empty:
    """Make or adopt the bridge of an L2 network."""
    names.uuid(cmd.l2_uuid)
    names.interface(cmd.bridge)
    if cmd.interface is not None:
        names.interface(cmd.interface)
    await agent.run_blocking(_realise, cmd)
    await agent.run_blocking(Networks(agent.state_dir).save_bridge, cmd)
    await guard.refresh(agent)
    return Empty()


def _realise(cmd: CreateBridge) -> None:
    with netlink() as net:
        uplink = net.get(cmd.interface) if cmd.interface else None
        bridge = net.find(cmd.bridge)
        if bridge is not None and _is_operators(net, bridge, uplink):
            return
        if uplink is not None:
            _check_uplink(net, uplink, bridge, cmd.mtu)
        if bridge is None:
            bridge = net.add_bridge(cmd.bridge, _mac(cmd, uplink))
        _take(net, bridge, cmd)
        links.silence(cmd.bridge)
        net.change(bridge, br_stp_state=0, br_forward_delay=0, br_mcast_snooping=0, kind="bridge")
        if uplink is not None and uplink.master != bridge.index:
            net.change(uplink, master=bridge.index)
        if uplink is not None:
            net.change(uplink, state="up")
        net.change(bridge, mtu=cmd.mtu, state="up")


def _is_operators(net: Links, bridge: Link, uplink: Link | None) -> bool:
    """Whether the bridge is the operator's and serves as it is; a failure when it is the operator's and does not."""
    if bridge.kind != "bridge":
        raise names.failure(f"{bridge.name} is no bridge but {bridge.kind or 'a physical interface'}", name=bridge.name)
    if Marker.of(bridge) is not None:
        return False
    ports = net.ports(bridge)
    if uplink is not None and uplink.master == bridge.index:
        return True
    if not ports and not net.addresses(bridge):
        return False  # what a creation leaves that was interrupted before it set the marker
    raise names.failure(
        f"the bridge {bridge.name} is not ours: its ports are {names.listed(port.name for port in ports)}; to use it,"
        f" put {uplink.name if uplink else 'an uplink'} into it, or choose another bridge name",
        bridge=bridge.name, ports=[port.name for port in ports],
    )  # fmt: skip


def _check_uplink(net: Links, uplink: Link, bridge: Link | None, mtu: int) -> None:
    """Refuse an interface that the host itself uses, or that somebody else's bridge or bond has."""
    if bridge is not None and uplink.master == bridge.index:
        return
    if uplink.master is not None:
        master = next((link.name for link in net.all() if link.index == uplink.master), str(uplink.master))
        raise names.failure(f"{uplink.name} belongs to {master} already", interface=uplink.name, master=master)
    addresses = net.addresses(uplink)
    if addresses:
        raise names.failure(
            f"{uplink.name} carries this host's addresses {names.listed(addresses)}, and a bridge would cut them off;"
            f" make a bridge with {uplink.name} in it that carries the addresses, and give its name",
            interface=uplink.name, addresses=addresses,
        )  # fmt: skip
    if uplink.mtu < mtu:
        raise names.failure(
            f"{uplink.name} has an MTU of {uplink.mtu}, the network needs {mtu}", interface=uplink.name, mtu=uplink.mtu
        )


def _take(net: Links, bridge: Link, cmd: CreateBridge) -> None:
    """Set our marker; a bridge that still serves guests of another L2 network is refused."""
    wanted, present = Marker(cmd.l2_uuid, cmd.interface), Marker.of(bridge)
    if present == wanted:
        return
    if present is not None:
        others = [port for port in net.ports(bridge) if port.name not in (present.uplink, cmd.interface)]
        if present.l2_uuid != cmd.l2_uuid and others:
            raise names.failure(
                f"the bridge {bridge.name} serves the L2 network {present.l2_uuid}, with the ports"
                f" {names.listed(port.name for port in others)}",
                bridge=bridge.name, l2_uuid=present.l2_uuid, ports=[port.name for port in others],
            )  # fmt: skip
        _release_uplink(net, bridge, present.uplink, keep=cmd.interface)
    net.change(bridge, ifalias=wanted.text())


def _release_uplink(net: Links, bridge: Link, uplink: str | None, keep: str | None) -> None:
    link = net.find(uplink) if uplink and uplink != keep else None
    if link is not None and link.master == bridge.index:
        net.change(link, master=0)


def _mac(cmd: CreateBridge, uplink: Link | None) -> str:
    """The uplink's address, so that switches see one; a private bridge gets one that is always the same."""
    return uplink.mac if uplink is not None and uplink.mac else names.fixed_mac("bridge", cmd.l2_uuid)


@handler(DeleteBridge, lock="bridge-{bridge}")
async def delete_bridge(agent: Agent, cmd: DeleteBridge) -> Empty:
    """Remove the bridge of an L2 network; one that is not (or no longer) this network's stays."""
    names.uuid(cmd.l2_uuid)
    await agent.run_blocking(_remove, names.interface(cmd.bridge), cmd.l2_uuid)
    networks = Networks(agent.state_dir)
    remembered = await agent.run_blocking(networks.bridge, cmd.bridge)
    if remembered is not None and remembered.l2_uuid == cmd.l2_uuid:
        await agent.run_blocking(networks.forget_bridge, cmd.bridge)
        await guard.refresh(agent)
    return Empty()


def _remove(name: str, l2_uuid: str) -> None:
    with netlink() as net:
        bridge = net.find(name)
        marker = Marker.of(bridge) if bridge is not None else None
        if bridge is None or marker is None or marker.l2_uuid != l2_uuid:
            return
        others = [port.name for port in net.ports(bridge) if port.name != marker.uplink]
        if others:
            raise names.failure(
                f"the bridge {name} still has the ports {names.listed(others)}", bridge=name, ports=others
            )
        _release_uplink(net, bridge, marker.uplink, keep=None)
        net.remove(name)


def ours(net: Links) -> list[Link]:
    """The bridges that we made."""
    return [link for link in net.all() if link.kind == "bridge" and Marker.of(link) is not None]
