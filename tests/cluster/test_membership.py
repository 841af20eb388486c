"""Joining, leaving, dying, and what a node that lost its lease may still do: nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from sqlalchemy import select, update
from tests.cluster.bakeries import Bakeries, FlourModel
from tests.unit.kernel.bakery import BakeCake

from caelum.kernel.errors import CloudError
from caelum.kernel.ids import new_uuid
from caelum.kernel.membership import EVICTED, ManagementNodeModel, NodeLifecycle
from caelum.kernel.node import Node
from caelum.kernel.postgresql import DATABASE_UNAVAILABLE


async def _rows(cluster: Bakeries) -> dict[str, str]:
    async with cluster.nodes[0].db.read() as session:
        found = await session.execute(select(ManagementNodeModel.uuid, ManagementNodeModel.state))
        return {one.uuid: one.state for one in found}


async def test_nodes_that_join_and_leave_are_one_ring(tmp_path: Path) -> None:
    async with Bakeries(tmp_path, 2) as cluster:
        third = await cluster.add()
        assert await _rows(cluster) == {node.uuid: "Running" for node in cluster.nodes}
        keys = [new_uuid() for _ in range(300)]
        owners = [[node.ring.owner(key) for key in keys] for node in cluster.nodes]
        assert owners[0] == owners[1] == owners[2]
        assert set(owners[0]) == {node.uuid for node in cluster.nodes}
        cakes = await asyncio.gather(*(third.api(BakeCake(uuid=key, flour=0)) for key in keys[:20]))
        assert {cake.state for cake in cakes} == {"Baked"}
        gone = third.node.uuid
        await cluster.remove(third)
        await cluster.agreed()
        assert gone not in await _rows(cluster)
        events = [(one.life_cycle, one.node_uuid) for one in await cluster.clouds[0].seen(NodeLifecycle)]
        assert ("NodeJoin", gone) in events
        assert ("NodeLeft", gone) in events


async def test_nodes_that_start_at_once_become_one_cloud(tmp_path: Path) -> None:
    cluster = Bakeries(tmp_path, 0)
    async with cluster:
        clouds = [cluster.prepare() for _ in range(3)]
        await asyncio.gather(*(one.__aenter__() for one in clouds))
        cluster.clouds += clouds
        await cluster.agreed()
        assert len(await _rows(cluster)) == 3


async def test_a_dead_node_is_evicted_once_and_its_place_is_filled(tmp_path: Path) -> None:
    async with Bakeries(tmp_path, 3) as cluster:
        victim = cluster.clouds[2]
        await cluster.kill(victim)
        await cluster.agreed()
        assert victim.node.uuid not in await _rows(cluster)
        left = [one for one in await cluster.clouds[0].seen(NodeLifecycle) if one.node_uuid == victim.node.uuid]
        assert [one.life_cycle for one in left] == ["NodeJoin", "NodeLeft"]
        await cluster.add()
        assert len(await _rows(cluster)) == 3
        assert not cluster.lost


async def test_two_nodes_that_die_at_once_are_both_evicted(tmp_path: Path) -> None:
    async with Bakeries(tmp_path, 3) as cluster:
        first, second = cluster.clouds[1:]
        await asyncio.gather(cluster.kill(first), cluster.kill(second))
        await cluster.agreed()
        assert await _rows(cluster) == {cluster.nodes[0].uuid: "Running"}


async def test_the_ring_is_repaired_though_nobody_hears_the_news(tmp_path: Path) -> None:
    async with Bakeries(tmp_path, 2) as cluster:
        deaf = cluster.nodes[0]
        deaf.ring.leave(cluster.nodes[1].uuid)
        await cluster.agreed()
        assert deaf.ring.members == {node.uuid for node in cluster.nodes}


async def test_a_paused_node_commits_nothing_and_ends_when_it_wakes(tmp_path: Path) -> None:
    async with Bakeries(tmp_path, 2) as cluster:
        paused = cluster.clouds[1]
        uuid = paused.node.uuid
        paused.node.membership.freeze()
        await cluster.until(lambda: paused.node.membership.lease.left < 0)
        assert not paused.node.serves
        await cluster.until(lambda: uuid not in cluster.nodes[0].ring.members)
        with pytest.raises(CloudError) as refused:
            async with paused.node.db.read():
                pass
        assert refused.value.kind is DATABASE_UNAVAILABLE
        # Even a node that believes in its lease has no row to commit by.
        paused.node.membership.lease.renew(paused.node.membership.lease.now())
        with pytest.raises(CloudError) as evicted:
            async with paused.node.db.transaction() as tx:
                await tx.execute(update(FlourModel).values(used=7))
        assert evicted.value.kind is EVICTED
        assert len(cluster.lost) == 1
        assert not paused.node.ready
        assert (await cluster.row(FlourModel, "wheat")).used == 0


async def test_a_transaction_that_was_paused_cannot_be_committed_after_the_eviction(tmp_path: Path) -> None:
    async with Bakeries(tmp_path, 2, database_idle_seconds=2.0) as cluster:
        paused, other = cluster.clouds[1], cluster.clouds[0]
        with pytest.raises(CloudError) as refused:
            await _pause_in_transaction(cluster, paused.node, other.node)
        assert refused.value.kind in (DATABASE_UNAVAILABLE, EVICTED)
        assert (await cluster.row(FlourModel, "wheat")).used == 1


async def _pause_in_transaction(cluster: Bakeries, paused: Node, other: Node) -> None:
    async with paused.db.transaction() as tx:
        await tx.execute(update(FlourModel).values(used=7))
        paused.membership.freeze()
        await cluster.until(lambda: paused.uuid not in other.ring.members)
        await asyncio.create_task(_use_flour(other, 1))


async def test_a_short_pause_costs_nothing(tmp_path: Path) -> None:
    async with Bakeries(tmp_path, 2, node_eviction_seconds=60.0) as cluster:
        paused = cluster.clouds[1]
        paused.node.membership.freeze()
        await cluster.until(lambda: paused.node.membership.lease.left < 0)
        waiting = asyncio.create_task(_use_flour(paused.node, 2))
        paused.node.membership.thaw()
        await waiting
        await cluster.until(lambda: paused.node.serves)
        assert (await cluster.row(FlourModel, "wheat")).used == 2
        assert not cluster.lost


async def _use_flour(node: Node, cups: int) -> None:
    async with node.db.transaction() as tx:
        await tx.execute(update(FlourModel).values(used=FlourModel.used + cups))


async def test_a_node_that_reaches_no_database_ends_after_its_patience(tmp_path: Path) -> None:
    async with Bakeries(tmp_path, 2) as cluster:
        alone = cluster.clouds[1].node
        alone.membership.freeze()
        await cluster.until(lambda: alone.membership.lease.left < 0)

        async def no_database() -> None:
            raise CloudError(DATABASE_UNAVAILABLE, "cut off")

        alone.membership._beat = no_database  # type: ignore[method-assign]
        alone.membership.thaw()
        await cluster.until(lambda: cluster.lost)
        assert "could not be reached" in cluster.lost[0]
