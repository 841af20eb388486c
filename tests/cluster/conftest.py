"""What the tests of several nodes share: a broker for the whole session, buses on it, a whole cluster to be broken."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack

import pytest
from fault_fixtures import (  # noqa: F401 - fixtures and hooks
    cluster,
    judge,
    pytest_collection_modifyitems,
    pytest_sessionfinish,
    pytest_terminal_summary,
    pytest_testnodedown,
    running_cluster,
    trial,
)
from tests.cluster.peers import Peer, Peers, joined

from caelum.cluster.postgres import binaries
from caelum.cluster.rabbitmq import RabbitMq

# Short, but longer than a busy machine lets a loop wait.
FAST = {"node_lease_seconds": 2.5, "node_eviction_seconds": 4.0, "node_patience_seconds": 3.0, "stop_seconds": 2.0}


@pytest.fixture(autouse=True)
def _postgresql_is_there() -> None:
    if binaries() is None:
        pytest.skip("PostgreSQL is not installed: tools/install cluster")


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
