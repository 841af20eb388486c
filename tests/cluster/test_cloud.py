"""A whole cloud on several nodes: VMs are created while nodes die, and hosts have one attempt's work, once."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import pytest
from tests.cluster.member_clouds import ClusterCloud, cluster_cloud

from caelum.agent import protocol
from caelum.cloud.audit.api import INFO, RunAudit
from caelum.cloud.config.api import UpdateGlobalConfig
from caelum.cloud.vm.api import CreateVmInstance, StopVmInstance
from caelum.cloud.vm.messages import ListVms
from caelum.kernel import context, pki
from caelum.kernel.context import SYSTEM
from caelum.kernel.crashpoints import Plan, ProcessDied
from caelum.kernel.ids import new_uuid
from caelum.kernel.jobs import Job
from caelum.kernel.node import Node
from caelum.testing.cloud import EmbeddedCloud

PHASES = ["reserve/after", "prepare_host/before", "start_on_host/after", "complete"]


async def _ask(cloud: ClusterCloud, victim: EmbeddedCloud, name: str) -> tuple[str, str]:
    """Ask the victim's node, by an API job of its own, for a VM that it owns."""
    node, job = victim.node, new_uuid()
    vm = cloud.members.owned_by(victim, new_uuid)
    await node.jobs.create(job, "CreateVmInstance", SYSTEM)
    msg = CreateVmInstance(
        name=name, resource_uuid=vm, image_uuid=cloud.image, instance_offering_uuid=cloud.offering,
        l3_network_uuids=[cloud.l3],
    )  # fmt: skip
    with context.use(context.TaskContext(job_uuid=job, api="CreateVmInstance")):
        node.bus.send(msg)
    return vm, job


async def _answered(cloud: ClusterCloud, job: str) -> Job:
    async def done() -> Job | None:
        found = await cloud.cloud.node.jobs.get(job)
        return found if found is not None and found.done else None

    found: Job = await cloud.members.until(done, 60)
    return found


def _places(cloud: ClusterCloud, vm: str) -> list[str]:
    return [host.uuid for host in cloud.hosts.hosts if host.world.states().get(vm) == "Running"]


async def _followed(nodes: list[Node]) -> list[list[str]]:
    return [sorted(node.services["host"].tracker._followed) for node in nodes]  # type: ignore[attr-defined]


async def _no_complaints(cloud: ClusterCloud) -> None:
    """The auditor compares database, hosts and storages."""
    await cloud.api(UpdateGlobalConfig(category="audit", name="recheck.after", value="1"))
    reply = await cloud.api(RunAudit(), timeout=60.0)
    assert [one for one in reply.findings if one.severity != INFO] == []


@pytest.mark.timeout(400)
async def test_a_vm_is_created_though_its_node_dies_in_any_phase(tmp_path: Path) -> None:
    async with cluster_cloud(tmp_path, 2) as cloud:
        cluster = cloud.members
        for phase in PHASES:
            victim = cluster.clouds[1]
            plan = Plan(
                death=f"vm.create/{phase}", on_death=lambda node=victim.node: node.db.sever(ProcessDied("dead"))
            )  # type: ignore[misc]
            victim.node.workflows.crashpoints.plan = plan
            vm, job = await _ask(cloud, victim, phase.replace("/", "-").replace("_", "-"))
            await cluster.until(lambda plan=plan: plan.dead, 60)
            await cluster.kill(victim)
            answer = await _answered(cloud, job)
            assert answer.error is None, phase
            assert vm in (answer.result or "")
            assert len(_places(cloud, vm)) == 1, phase
            await cluster.add()
        await cloud.connected()
        vms = (await cloud.cloud.node.bus.call(ListVms())).vms
        assert [one.state for one in vms] == ["Running"] * len(PHASES)
        await _no_complaints(cloud)


@pytest.mark.timeout(300)
async def test_hosts_are_followed_by_one_node_each_as_nodes_come_and_go(tmp_path: Path) -> None:
    async with cluster_cloud(tmp_path, 2, hosts=6) as cloud:
        cluster = cloud.members
        everybody = sorted(host.uuid for host in cloud.hosts.hosts)

        async def each_once() -> bool:
            shares = await _followed(cluster.nodes)
            return sorted(uuid for share in shares for uuid in share) == everybody

        await cluster.until(each_once)
        third = await cluster.add()
        await cluster.until(each_once)
        await cluster.kill(third)
        await cluster.agreed()
        await cluster.until(each_once)
        await cloud.connected()
        # A host's report reaches the node that owns the VM, whichever node the host speaks to.
        vm = await cloud.create_vm()
        cloud.hosts.by_uuid(vm.host_uuid or "").guest_changes(vm.uuid, "Stopped")

        async def stopped() -> bool:
            return (await cloud.cloud.node.bus.call(ListVms(vm_uuids=[vm.uuid]))).vms[0].state == "Stopped"

        await cluster.until(stopped, 30)


@pytest.mark.timeout(300)
async def test_a_host_refuses_the_attempt_that_was_taken_over(tmp_path: Path) -> None:
    async with cluster_cloud(tmp_path, 2, hosts=1) as cloud:
        cluster, host = cloud.members, cloud.hosts[0]
        victim = cluster.clouds[1]
        cloud.hosts.fault("slow", "/vm/start", count=1, delay=3600.0)
        vm, job = await _ask(cloud, victim, "fenced")
        await cluster.until(lambda: host.arrived["/vm/start"] == 1, 60)
        await cluster.kill(victim)
        answer = await _answered(cloud, job)
        assert answer.error is None
        assert _places(cloud, vm) == [host.uuid]
        overtaken = [name for name, attempt in host.journal._attempts.items() if attempt == 2]
        assert len(overtaken) == 1
        files = pki.Files.in_directory(tmp_path / "node1" / "pki", "server")
        late = protocol.StopVm(vm_uuid=vm)
        async with aiohttp.ClientSession() as http:
            url = f"https://{host.ip}:{cloud.hosts.port}{late.path}"
            headers = {"taskuuid": new_uuid(), "attempt": f"{overtaken[0]}:1"}
            tls = await asyncio.to_thread(pki.client_context, files)
            async with http.post(
                url, json={"vmUuid": vm}, headers=headers, ssl=tls, server_hostname=host.uuid
            ) as refused:
                assert refused.status == 409
        assert _places(cloud, vm) == [host.uuid]


@pytest.mark.timeout(300)
async def test_any_node_serves_any_request(tmp_path: Path) -> None:
    async with cluster_cloud(tmp_path, 3) as cloud:
        cluster = cloud.members
        made = await asyncio.gather(*(cloud.create_vm(f"vm{number}") for number in range(6)))
        stops = [cluster.clouds[number % 3].api(StopVmInstance(uuid=vm.uuid)) for number, vm in enumerate(made)]
        assert {one.state for one in await asyncio.gather(*stops)} == {"Stopped"}
        owners = {cluster.owner(vm.uuid).node.uuid for vm in made}
        assert len(owners) > 1
        await _no_complaints(cloud)
