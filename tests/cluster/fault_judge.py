"""What must be true after any fault: nothing stuck, nothing leaked, nothing done twice, and every answer true."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any

import asyncpg
from fault_cluster import FaultCluster
from fault_load import TRANSITIONAL, Load

from caelum.sdk import ApiError

RECOVERY = 60.0
"""Seconds within which everything that a fault interrupted must be over; the aim is 30."""
AUDIT_PATIENCE = 60.0
"""Seconds within which garbage collection, which tries again after a while, must have cleaned up."""
OPEN = {
    "jobs": "SELECT uuid, api FROM api_job WHERE state = 'Processing'",
    "workflows": "SELECT uuid, name FROM workflow_journal WHERE state IN ('Running', 'Undoing')",
}


class Judge:
    """Looks at the database, the hosts and the clients' records."""

    def __init__(self, cluster: FaultCluster) -> None:
        self._cluster = cluster

    async def rows(self, statement: str) -> list[Any]:
        """Ask the database directly, not through a node."""
        connection = await self._connect()
        try:
            return list(await connection.fetch(statement, timeout=30))
        finally:
            await connection.close()

    async def _connect(self) -> Any:
        """Connect, also to a server that has just begun to listen and repairs its data first."""
        layout, until = self._cluster.layout, time.monotonic() + RECOVERY
        while True:
            try:
                return await asyncpg.connect(
                    host=layout.address, port=layout.database_port, user="postgres", database="postgres", timeout=10
                )
            except asyncpg.CannotConnectNowError:
                if time.monotonic() > until:
                    raise
            await asyncio.sleep(0.2)

    async def open(self) -> dict[str, str]:
        """The jobs and workflows that are under way: UUID to what."""
        found = {}
        for kind, statement in OPEN.items():
            found |= {f"{kind} {row[0]}": row[1] for row in await self.rows(statement)}
        return found

    async def settled(self, interrupted: dict[str, str], begun: float, seconds: float = RECOVERY) -> float:
        """Wait until what was under way at the fault is over; the seconds since `begun`."""
        left = interrupted
        while left:
            left = {key: what for key, what in (await self.open()).items() if key in interrupted}
            if left and time.monotonic() > begun + seconds:
                raise AssertionError(f"still under way {seconds} s after the fault: {left}")
            await asyncio.sleep(0.2)
        return time.monotonic() - begun

    async def verdict(self, load: Load) -> None:
        """Everything that must hold once the clients have ended."""
        await load.end()
        wrong = [one.wrong for one in load.record.done if one.wrong is not None]
        assert not wrong, "\n".join(wrong)
        await self.settled(await self.open(), time.monotonic())
        await self.stable()
        await self.hosts_agree()
        await self.clean()

    async def stable(self) -> None:
        """No resource is on its way from one state to another, every host is connected, and of each VM it is known
        again what became of it."""
        states = ",".join(f"'{one}'" for one in sorted(TRANSITIONAL))
        assert await self.rows(f"SELECT uuid, state FROM vm_instance WHERE state IN ({states})") == []
        for table in ("volume", "image"):
            busy = f"SELECT uuid, status FROM {table} WHERE status NOT IN ('Ready', 'Deleted', 'NotInstantiated')"
            assert await self.rows(busy) == []
        deadline = time.monotonic() + RECOVERY
        unknown = "SELECT uuid, state FROM vm_instance WHERE state = 'Unknown'"
        while lost := await self.rows(f"SELECT name, status FROM host WHERE status <> 'Connected' UNION {unknown}"):
            assert time.monotonic() < deadline, lost
            await asyncio.sleep(0.2)

    async def hosts_agree(self) -> None:
        """Each VM that runs does so on one host, the one that the database says, and nothing else runs anywhere."""
        dump = await asyncio.to_thread(self._cluster.simulator, "GET", "/dump")
        on_hosts = sorted((vm, host) for host, world in dump.items() for vm in world["vms"])
        vms = {row[0]: tuple(row[1:]) for row in await self.rows("SELECT uuid, host_uuid, state FROM vm_instance")}
        running = sorted((vm, host) for vm, (host, state) in vms.items() if state == "Running")
        strange = {vm: (host, vms.get(vm)) for vm, host in set(on_hosts) ^ set(running)}
        assert on_hosts == running, f"VMs that host and database see differently (host, its row): {strange}"
        volumes = Counter(file for world in dump.values() for file in world["files"] if "/rootVolumes/" in file)
        assert [file for file, number in volumes.items() if number > 1] == []

    async def clean(self) -> None:
        """The auditor finds nothing, at the latest when what is tried again later has been."""
        deadline = time.monotonic() + AUDIT_PATIENCE
        while True:
            try:
                report = await asyncio.to_thread(self._cluster.client.call, "RunAudit", timeout=60)
            except ApiError as error:
                report = {"clean": False, "findings": str(error)}
            if report["clean"]:
                return
            assert time.monotonic() < deadline, report["findings"]
            await asyncio.sleep(1)


def summary(failed: list[Any]) -> str:
    """How often which error."""
    counted = Counter(f"{one.name}: {one.error['code']} {one.error.get('details')}"[:300] for one in failed)
    return "\n".join(f"{number} x {what}" for what, number in counted.most_common(8))
