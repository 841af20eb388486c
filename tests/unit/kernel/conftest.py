"""Fixtures of the kernel's tests."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.unit.kernel.bakery import BakeryService

from caelum.kernel.database import Database
from caelum.kernel.node import Node
from caelum.testing import databases
from caelum.testing.cloud import EmbeddedCloud


@pytest.fixture
async def db(tmp_path: Path) -> AsyncIterator[Database]:
    """An empty database with all tables."""
    database = Database(databases.url_for(tmp_path / "test.db"))
    await database.migrate()
    yield database
    await database.close()


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    """A node with the bakery."""
    async with EmbeddedCloud(tmp_path, [BakeryService]) as cloud:
        yield cloud.node
