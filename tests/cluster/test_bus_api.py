"""The API by AMQP alone: a client that knows the broker drives a cloud of several nodes."""

from __future__ import annotations

import asyncio
import collections
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest
from sqlalchemy import select
from tests.cluster.clouds import AmqpClient, Member, nodes
from tests.cluster.peers import until
from tests.service.gateway.lamps import LampModel, LampService

from caelum.cloud.identity.service import IdentityService
from caelum.cloud.management.service import ManagementService
from caelum.cluster.rabbitmq import RabbitMq
from caelum.gateway.portal import Portal, Request
from caelum.kernel import jobs
from caelum.kernel.bus import ApiCall
from caelum.kernel.node import Node
from caelum.kernel.rabbitmq_link import Link

ZONE = "org.zstack.header.zone."


@pytest.fixture
async def cloud(tmp_path: Path, broker: RabbitMq) -> AsyncIterator[list[Member]]:
    async with nodes(tmp_path, broker.url, 3) as made:
        yield made


@pytest.fixture
async def client(cloud: list[Member], broker: RabbitMq) -> AsyncIterator[AmqpClient]:
    async with AmqpClient(broker.url) as client:
        yield await client.log_in()


async def test_a_zone_is_made_queried_and_deleted(client: AmqpClient) -> None:
    made = await client.ask(ZONE + "APICreateZoneMsg", name="north")
    assert made["answerClass"] == ZONE + "APICreateZoneEvent"
    assert made["success"] is True
    uuid = made["inventory"]["uuid"]
    conditions = [{"name": "uuid", "op": "=", "value": uuid}]
    found = await client.ask(ZONE + "APIQueryZoneMsg", conditions=conditions)
    assert found["answerClass"] == ZONE + "APIQueryZoneReply"
    assert [one["name"] for one in found["inventories"]] == ["north"]
    deleted = await client.ask(ZONE + "APIDeleteZoneMsg", uuid=uuid)
    assert deleted["success"] is True


async def test_what_the_portal_refuses_comes_back_as_its_error(client: AmqpClient) -> None:
    answer = await client.ask(ZONE + "APICreateZoneMsg")
    assert (answer["success"], answer["error"]["code"]) == (False, "SYS.1007")
    client.session = "f" * 32
    answer = await client.ask(ZONE + "APICreateZoneMsg", name="north")
    assert answer["success"] is False
    assert answer["error"]["code"].startswith("ID.")
    answer = await client.ask("org.example.APINoSuchMsg")
    assert (answer["success"], answer["error"]["code"]) == (False, "SYS.1007")


async def test_the_shared_queue_spreads_the_load_and_the_ring_decides_who_works(
    cloud: list[Member], client: AmqpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await asyncio.gather(*[client.ask(ZONE + "APICreateZoneMsg", name=f"zone-{n}") for n in range(30)])
    uuids = [one["inventory"]["uuid"] for one in made]
    portals: collections.Counter[str] = collections.Counter()
    handle = Portal.handle

    async def counted(self: Portal, request: Request) -> Any:
        portals[self._node.uuid] += 1
        return await handle(self, request)

    monkeypatch.setattr(Portal, "handle", counted)
    changes = [client.ask(ZONE + "APIUpdateZoneMsg", uuid=uuid, description=f"{n}") for n in range(5) for uuid in uuids]
    answers = await asyncio.gather(*changes)
    assert all(one["success"] for one in answers)
    assert sum(portals.values()) == 150
    assert len(portals) == 3
    assert max(portals.values()) <= 75, "no node takes more than half of it"
    worked = [sum(e.stats.count for e in one.node.bus.endpoints() if e.name == "APIUpdateZoneMsg") for one in cloud]
    owned = [sum(one.node.ring.owner(uuid) == one.node.uuid for uuid in uuids) * 5 for one in cloud]
    assert worked == owned


async def test_an_operation_that_is_delivered_twice_is_one_job(cloud: list[Member], client: AmqpClient) -> None:
    first = await client.ask(ZONE + "APICreateZoneMsg", name="once", request="a" * 32)
    again = await client.ask(ZONE + "APICreateZoneMsg", name="once", request="a" * 32)
    assert first["inventory"]["uuid"] == again["inventory"]["uuid"]
    found = await client.ask(ZONE + "APIQueryZoneMsg", conditions=[])
    assert len(found["inventories"]) == 1


async def test_another_node_sends_the_answer_of_a_job_that_it_finishes(
    cloud: list[Member], client: AmqpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a take-over: the node that took the operation never answers, another one finishes its job."""

    async def dead(self: object, uuid: str, request: Request, taken_over: bool) -> None:
        return None

    monkeypatch.setattr("caelum.gateway.runner.Runner._run", dead)
    asked = asyncio.create_task(client.ask(ZONE + "APICreateZoneMsg", name="taken over", request="b" * 32))
    everybody = [one.node.uuid for one in cloud]
    async with asyncio.timeout(30):
        while not await cloud[0].node.jobs.orphans(everybody):  # noqa: ASYNC110 - rows do not tell
            await asyncio.sleep(0.05)

    async def by_nobody(_tx: Any, _uuid: str) -> bool:
        return False

    await cloud[0].node.jobs.settle_orphans(everybody, by_nobody)
    answer = await asked
    assert (answer["success"], answer["error"]["code"]) == (False, jobs.MANAGEMENT_NODE_UNAVAILABLE.code)


async def test_the_answer_of_a_job_that_is_taken_over_comes_by_amqp(tmp_path: Path, broker: RabbitMq) -> None:
    services = [ManagementService, IdentityService, LampService]
    async with nodes(tmp_path, broker.url, 3, services) as cloud, AmqpClient(broker.url) as client:
        await client.log_in()
        lamps = {one.node.uuid: cast("LampService", one.node.services["gateway"]) for one in cloud}
        for one in cloud:
            lamps[one.node.uuid].thinking.clear()
            one.node.vault = cloud[0].node.vault  # a cluster's nodes have the same key
        asked = asyncio.create_task(client.ask("org.zstack.header.lamp.APIBuildLampMsg", name="desk"))
        await until(lambda: any(one.asked.is_set() for one in lamps.values()))
        dead = next(uuid for uuid, one in lamps.items() if one.asked.is_set())
        heir = next(one.node for one in cloud if one.node.uuid != dead)
        lamps[heir.uuid].thinking.set()

        async def by_nobody(_tx: Any, _uuid: str) -> bool:
            return False

        assert await heir.jobs.settle_orphans([dead], by_nobody) == []
        answer = await asked
        assert (answer["success"], answer["inventory"]["name"]) == (True, "desk")
        lamps[dead].thinking.set()  # what it still does joins the same run
        await until(lambda: not any(one.node.bus.busy() for one in cloud))
        async with heir.db.read() as session:
            assert len(list(await session.scalars(select(LampModel)))) == 1


async def test_a_node_that_stops_hands_over_what_it_did_not_answer(tmp_path: Path, broker: RabbitMq) -> None:
    taken: list[str] = []

    async def stuck(call: ApiCall) -> bytes | None:
        taken.append(call.id)
        await asyncio.Event().wait()
        return None

    async with nodes(tmp_path, broker.url, 1) as [alive], AmqpClient(broker.url) as client:
        await client.log_in()
        async with nodes(tmp_path, broker.url, 1) as [stopping]:
            await stopping.node.events.idle()  # it opens its portal when it hears of itself
            await stopping.node.bus.close_api()
            await stopping.node.bus.open_api(stuck)
            asked = [asyncio.create_task(client.ask(ZONE + "APIQueryZoneMsg", conditions=[])) for _ in range(6)]
            await until(lambda: bool(taken))
        answers = await asyncio.gather(*asked)
    assert all(one["success"] for one in answers)
    assert alive is not stopping


def _mute(node: Node, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Answers that this node sends get lost on the way to the broker; the queues they were for."""
    sent: list[str] = []

    async def publish(exchange: str, key: str, message: Any, *, mandatory: bool = True) -> None:
        if exchange:
            await Link.publish(link, exchange, key, message, mandatory=mandatory)
        else:
            sent.append(key)
            await asyncio.Event().wait()

    link = node.bus._link  # type: ignore[attr-defined]
    monkeypatch.setattr(link, "publish", publish)
    return sent


async def test_an_answer_that_the_broker_never_got_is_given_by_another_node(
    cloud: list[Member], client: AmqpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    mute = cloud[0].node
    sent = _mute(mute, monkeypatch)
    asked = [asyncio.create_task(client.ask(ZONE + "APIQueryZoneMsg", conditions=[])) for _ in range(9)]
    await until(lambda: bool(sent) and sum(one.done() for one in asked) == 6)
    await mute.bus._link.stop()  # type: ignore[attr-defined]
    answers = await asyncio.wait_for(asyncio.gather(*asked), 30)
    assert all(one["success"] for one in answers)


async def test_an_answer_of_a_job_that_the_broker_never_got_is_sent_by_another_node(
    cloud: list[Member], client: AmqpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    mute, other = cloud[0].node, cloud[1].node
    sent = _mute(mute, monkeypatch)
    asked = [asyncio.create_task(client.ask(ZONE + "APICreateZoneMsg", name=f"zone-{n}")) for n in range(6)]
    await until(lambda: bool(sent) and sum(one.done() for one in asked) == 4)
    await mute.jobs.tell_undelivered(100)  # what is on its way already is not sent again
    await mute.bus._link.stop()  # type: ignore[attr-defined]
    await other.jobs.inherit_hooks([mute.uuid])
    await other.jobs.tell_undelivered(100)
    answers = await asyncio.wait_for(asyncio.gather(*asked), 30)
    assert all(one["success"] for one in answers)
    assert len({one["inventory"]["uuid"] for one in answers}) == 6

    async def settled() -> bool:
        async with other.db.read() as session:
            return await session.scalar(select(jobs.JobModel.uuid).where(jobs.JobModel.web_hook.is_not(None))) is None

    await cloud[1].cloud.until(settled)
