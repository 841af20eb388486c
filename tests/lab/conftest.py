"""What all tests in the lab share: one real cloud, brought up once and taken down whatever happens."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from cloud_lab import LabCloud


@pytest.fixture(scope="session")
def session_cloud() -> Iterator[LabCloud]:
    """A one-machine cloud on a machine of its own."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    made = LabCloud()
    try:
        made.up()
        yield made
    finally:
        print(made.down())


@pytest.fixture
def cloud(session_cloud: LabCloud) -> Iterator[LabCloud]:
    """The cloud, with the test inside its network."""
    with session_cloud.machine.inside():
        yield session_cloud
