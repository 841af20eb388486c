"""What all tests in the lab share: a network of their own, and one real cloud, brought up once and taken down whatever
happens.

An agent takes everything in its network that carries our marks for its own, so no test may share a network with a
cloud that runs on this machine.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from agent_network_lab import own_network
from agent_vm_lab import guest_image
from cloud_lab import LabCloud
from first_light_lab import guests, peer, session_guests, two_guests, web  # noqa: F401 - fixtures


@pytest.fixture(scope="session", autouse=True)
def apart_from_the_machine() -> Iterator[None]:
    """The machine's own network is out of the tests' reach."""
    if os.geteuid() != 0:
        yield
        return
    guest_image()  # now: its packages come from outside
    with own_network():
        yield


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
