"""Commands for a host on a bus that stands for the host's owner."""

from __future__ import annotations

from typing import Any, cast

import pytest

from caelum.agent import protocol as p
from caelum.drivers.kvm.messages import RunAgentCommand
from caelum.drivers.kvm.remote import all_on_host
from caelum.kernel.bus import Bus
from caelum.kernel.errors import INVALID_ARGUMENT, CloudError

COMMANDS = [p.ReleaseDhcp(l3_uuid="l3", macs=["aa"]), p.ReleaseMetadata(l3_uuid="l3", ips=["10.0.0.10"])]


class Owner:
    """The server that owns the host: it does not know one of the commands."""

    def __init__(self, unknown: str) -> None:
        self._unknown = unknown
        self.ran: list[str] = []

    async def call(self, msg: RunAgentCommand, _timeout: float | None = None) -> dict[str, Any]:
        if msg.path == self._unknown:
            raise CloudError(INVALID_ARGUMENT, f"agents have no command {msg.path}", path=msg.path)
        self.ran.append(msg.path)
        return {"results": []} if msg.path == p.Series.path else {}


async def test_a_server_of_the_version_before_gets_the_commands_one_by_one() -> None:
    owner = Owner(p.Series.path)
    await all_on_host(cast("Bus", owner), "host", COMMANDS)
    assert owner.ran == [p.ReleaseDhcp.path, p.ReleaseMetadata.path]


async def test_a_server_of_this_version_gets_them_at_once() -> None:
    owner = Owner("none")
    await all_on_host(cast("Bus", owner), "host", COMMANDS)
    assert owner.ran == [p.Series.path]


async def test_another_refusal_is_told() -> None:
    with pytest.raises(CloudError, match="no command /network/dhcp/release"):
        await all_on_host(cast("Bus", Owner(p.ReleaseDhcp.path)), "host", COMMANDS[:1])
