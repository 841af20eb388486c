"""This node's side of the agents: certificates, the client, the listener, and what agents report.

Invariant: a command goes to the host that its UUID names, at the address that the database has now; a host that the
database does not know can neither report nor fetch anything.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import NamedTuple, TypeVar, cast

import msgspec
from sqlalchemy import Table, bindparam, select

from caelum.agent import protocol as p
from caelum.agent.news import Report, TaskProgress, VmStateReport
from caelum.cloud.host.errors import HOST_DISCONNECTED
from caelum.cloud.host.messages import HostAgentSeen, HostSuspected, VmStatesSeenOnHost
from caelum.drivers.kvm import listener as paths
from caelum.drivers.kvm.client import Address, AgentClient, Pace
from caelum.drivers.kvm.extension import AgentRoutes
from caelum.drivers.kvm.listener import AgentListener, KnownHosts
from caelum.drivers.kvm.model import KVM, KvmHostModel
from caelum.drivers.kvm.patience import FINAL, patiently
from caelum.drivers.kvm.settings import AGENT_PORT
from caelum.kernel import pki
from caelum.kernel.errors import CloudError, invalid, not_found
from caelum.kernel.events import CanonicalEvent, canonical
from caelum.kernel.node import Node
from caelum.kernel.pki import CertificateAuthority, Files, Identity
from caelum.kernel.prepared import Prepared, Reading

log = logging.getLogger(__name__)

A = TypeVar("A")

_COMMANDS = p.commands()
_RENEWAL_CHECK = 6 * 3600.0
_HOST = cast("Table", KvmHostModel.__table__)
_PLACE = Prepared(
    select(_HOST.c.management_ip, _HOST.c.status, _HOST.c.agent_protocol).where(
        _HOST.c.uuid == bindparam("key"), _HOST.c.hypervisor_type == KVM
    )
)
CONNECTING, DISCONNECTED = "Connecting", "Disconnected"
_SERIES_COMMAND = 3
"""The protocol since which agents take several commands at once."""


class Place(NamedTuple):
    """Where a host's agent is, the host's status, and the protocol that the agent spoke when it was last connected."""

    management_ip: str
    status: str
    protocol: int | None


@canonical("/kvm/agent/task/progress")
class AgentTaskProgressed(CanonicalEvent):
    """An agent told a node how far a task is that another node may have given it."""

    task_uuid: str
    percent: int
    text: str


class Agents:
    """All agents, as this node sees them."""

    def __init__(self, node: Node, pace: Pace | None = None) -> None:
        self._node = node
        self._pace = pace
        self._directory = node.config.data_dir / "pki"
        self._seen: dict[str, str] = {}
        self.callback_base = ""
        self.client: AgentClient
        self._listener: AgentListener
        self._files: Files

    async def start(self) -> None:
        """Make the certificates, and listen for agents."""
        self._files = await asyncio.to_thread(self._certificates)
        self._server_tls = pki.server_context(self._files)
        self._client_tls = pki.client_context(self._files)
        config = self._node.config
        self.client = AgentClient(self._client_tls, "", self._pace, self._node.membership)
        routes = [route for one in self._node.extensions.of(AgentRoutes) for route in one.routes()]
        self._listener = AgentListener(self.client, KnownHosts(self._is_known), self._report, self._renew, routes)
        port = await self._listener.start(config.agent_listen_host, config.agent_listen_port, self._server_tls)
        host = config.resolved_host()
        self.callback_base = f"https://{f'[{host}]' if ':' in host else host}:{port}"
        self.client.callback_url = self.callback_base + paths.CALLBACK_PATH
        for one in self._node.extensions.of(AgentRoutes):
            one.listening(self.callback_base)
        self._node.bus.subscribe(AgentTaskProgressed, self._progress_elsewhere)
        self._node.timers.every(_RENEWAL_CHECK, self._renew_own, name="kvm.certificate")
        log.info("agents answer to %s", self.callback_base)

    async def stop(self) -> None:
        """Stop listening and speaking."""
        if hasattr(self, "_listener"):
            await self._listener.stop()
            await self.client.close()

    @property
    def report_url(self) -> str:
        """Where agents report to."""
        return self.callback_base + paths.REPORT_PATH

    def _certificates(self) -> Files:
        names = {self._node.config.resolved_host(), socket.gethostname(), "localhost", "127.0.0.1"}
        return pki.ensure_server(self._directory, self._node.uuid, names)

    async def _renew_own(self) -> None:
        await asyncio.to_thread(self._certificates)
        for tls in (self._server_tls, self._client_tls):
            tls.load_cert_chain(self._files.certificate, self._files.key)

    # --- commands ---------------------------------------------------------------------------------------------------

    def address(self, host_uuid: str, management_ip: str) -> Address:
        """Where a host's agent is."""
        return Address(host_uuid, management_ip, self._node.settings.get(AGENT_PORT))

    async def run(self, host_uuid: str, command: p.Command[A], timeout: float | None = None) -> A:
        """Run a command on a host that is not known to be lost; one that turns out to be is looked at now."""
        place = await self._find(host_uuid)
        address = self.address(host_uuid, place.management_ip)
        try:
            if isinstance(command, p.Series) and (place.protocol or 0) < _SERIES_COMMAND:
                return cast("A", await self._one_by_one(address, command, timeout))
            return await self.client.run(address, command, timeout)
        except CloudError as error:
            if error.kind is HOST_DISCONNECTED:
                self._node.bus.send(HostSuspected(host_uuid=host_uuid, reason=error.details))
                if place.status == CONNECTING:
                    error.facts[FINAL] = True
            raise

    async def _one_by_one(self, address: Address, series: p.Series, timeout: float | None) -> p.SeriesAnswer:
        commands = [msgspec.convert(one.body, _COMMANDS[one.path]) for one in series.orders]
        answers = [await self.client.run(address, one, timeout) for one in commands]
        return p.SeriesAnswer(results=[msgspec.to_builtins(one) for one in answers])

    async def run_patiently(self, host_uuid: str, command: p.Command[A], timeout: float | None = None) -> A:
        """The same; a host that is gone for a moment is waited for, and the command repeated."""
        return await patiently(self._node.bus, host_uuid, lambda: self.run(host_uuid, command, timeout))

    async def address_of(self, host_uuid: str) -> Address:
        """Where the agent of a host is that can be tried. Raises HOST.1010 for one that is known to be lost."""
        return self.address(host_uuid, (await self._find(host_uuid)).management_ip)

    async def _find(self, host_uuid: str) -> Place:
        found = await self._place(host_uuid)
        if found is None:
            raise not_found("HostVO", host_uuid)
        if found.status == DISCONNECTED:
            raise CloudError(HOST_DISCONNECTED, f"host[uuid:{host_uuid}] is Disconnected", hostUuid=host_uuid)
        return found

    async def _place(self, host_uuid: str) -> Place | None:
        async def load(session: Reading) -> Place | None:
            found = await _PLACE.rows(session, key=host_uuid)
            return None if not found else Place(*found[0])

        return await self._node.db.remember_one((KvmHostModel, host_uuid), load)

    async def who_is_at(self, management_ip: str) -> str:
        """The UUID of the host whose agent answers at an address. Raises HOST.1010, or SYS.1007 for a stranger."""
        tls = pki.client_context(self._files, check_name=False)
        port = self._node.settings.get(AGENT_PORT)
        identity = await self.client.first_contact(tls, management_ip, port)
        if identity is None or identity.kind != "host":
            why = f"what listens at {management_ip}:{port} does not have a host's certificate"
            raise invalid("managementIp", why, port=port)
        return identity.uuid

    # --- what agents send -------------------------------------------------------------------------------------------

    async def _is_known(self, host_uuid: str) -> bool:
        return await self._place(host_uuid) is not None

    async def _renew(self, host_uuid: str, request: bytes) -> bytes:
        def sign() -> bytes:
            return CertificateAuthority.open(self._directory).renew(Identity("host", host_uuid), request)

        return await asyncio.to_thread(sign)

    async def _report(self, report: Report) -> None:
        if report.kind != "agent-stopping" and self._seen.get(report.host_uuid) != report.agent_uuid:
            self._seen[report.host_uuid] = report.agent_uuid
            self._node.bus.send(HostAgentSeen(host_uuid=report.host_uuid, agent_uuid=report.agent_uuid))
        match report.kind:
            case "vm-state":
                await self._vm_state(report)
            case "progress":
                await self._progress(msgspec.convert(report.body, TaskProgress))
            case "agent-stopping":
                self._node.bus.send(HostAgentSeen(host_uuid=report.host_uuid))
            case _:
                log.warning("host %s reports %s: %s", report.host_uuid, report.kind, report.body)

    async def _vm_state(self, report: Report) -> None:
        seen = msgspec.convert(report.body, VmStateReport)
        await self._node.bus.call(VmStatesSeenOnHost(host_uuid=report.host_uuid, states={seen.vm_uuid: seen.state}))

    async def _progress(self, progress: TaskProgress) -> None:
        waiting = self.client.pending.get(progress.task_uuid)
        if waiting is not None and waiting.job_uuid is not None:
            await self._node.jobs.progress(waiting.job_uuid, progress.percent, progress.text or None)
        elif waiting is None and not self._node.ring.alone:
            # The host reports to the node that connected it; another one may have sent the command.
            news = AgentTaskProgressed(task_uuid=progress.task_uuid, percent=progress.percent, text=progress.text)
            self._node.bus.publish(news)

    async def _progress_elsewhere(self, news: AgentTaskProgressed) -> None:
        if news.task_uuid in self.client.pending:
            await self._progress(TaskProgress(task_uuid=news.task_uuid, percent=news.percent, text=news.text))
