"""A real broker for the whole session, and management nodes' buses on it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack

import pytest
from tests.cluster.peers import Peer, Peers, joined

from caelum.cluster.rabbitmq import RabbitMq


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMq]:
    """A running RabbitMQ. A test that stops it must start it again."""
    if not RabbitMq.available():
        pytest.skip("RabbitMQ is not installed; `tools/install cluster` does it")
    broker = RabbitMq(tmp_path_factory.mktemp("rabbitmq"))
    asyncio.run(broker.start())
    yield broker
    asyncio.run(broker.stop())


@pytest.fixture
async def peers(broker: RabbitMq) -> AsyncIterator[Peers]:
    """Makes nodes that know of each other: `a, b = await peers(2)`."""
    await broker.start()  # in case a test before failed while it was down
    async with AsyncExitStack() as stack:
        made: list[Peer] = []

        async def make(count: int) -> list[Peer]:
            for _ in range(count):
                made.append(await stack.enter_async_context(Peer(broker.url)))
            joined(made)
            return made

        yield make
