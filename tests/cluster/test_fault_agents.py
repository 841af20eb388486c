"""Answers of agents that come twice, in another order, late, never, or from somebody else."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from fault_cluster import FaultCluster
from fault_trial import FULL, Trial

from caelum.agent.protocol import Series, StartVm
from caelum.kernel import pki
from caelum.kernel.ids import new_uuid

UNRELIABLE = 60.0 if FULL else 8.0
CALLBACK = "/agent/callback"
SUCCESS = b'{"result": {"vncPort": 5999}}'


async def test_answers_come_twice_late_reordered_or_never(cluster: FaultCluster, trial: Trial) -> None:
    kinds: list[dict[str, Any]] = [
        {"kind": "double_reply", "probability": 0.2},
        {"kind": "lose_reply", "probability": 0.05},
        {"kind": "lose_ack", "probability": 0.1},
        {"kind": "slow", "probability": 0.3, "delay": 1.0},
    ]
    # A machine's start comes in a series with what it needs.
    faults = [{**one, "path": path} for path in ("/vm/*", Series.path) for one in kinds]

    async def disturb() -> None:
        await asyncio.to_thread(cluster.simulator, "PUT", "/faults", faults)
        await asyncio.sleep(UNRELIABLE)
        await asyncio.to_thread(cluster.simulator, "DELETE", "/faults")

    # An answer that never comes is asked for after 5 s.
    await trial.of("agents' answers doubled, reordered, late, lost", disturb, downtime=3.0, recovery=30.0 + UNRELIABLE)


async def test_forged_answers_are_refused_and_change_nothing(cluster: FaultCluster, tmp_path: Path) -> None:
    hosts = await asyncio.to_thread(cluster.simulator, "GET", "/hosts")
    slow = {"kind": "slow", "path": StartVm.path, "count": 1, "delay": 5.0}
    await asyncio.to_thread(cluster.simulator, "POST", "/faults", slow)
    vm = new_uuid()
    creation = asyncio.create_task(
        asyncio.to_thread(cluster.client.call, "CreateVmInstance", name="forged", resourceUuid=vm, **cluster.resources)
    )
    task = await under_way(cluster)
    other = next(one["uuid"] for one in hosts if one["uuid"] != task["host"])
    url = task["callback"]
    assert CALLBACK in url

    assert await post(url, task["task"], cluster.host_identity("host", other)) == 403
    assert await post(url, task["task"], cluster.host_identity("server", new_uuid())) == 403
    stranger = pki.Files.in_directory(tmp_path, "own")
    pki.store(stranger, pki.CertificateAuthority.open(tmp_path).issue(pki.Identity("host", task["host"])))
    for files in (stranger, None):
        with pytest.raises((aiohttp.ClientError, OSError)):
            await post(url, task["task"], files)
    # Very late: an answer to what nobody waits for any more, at any node.
    for index in range(3):
        late = f"https://{cluster.layout.address}:{cluster.layout.callback_port + index}{CALLBACK}"
        assert await post(late, new_uuid(), cluster.host_identity("host", task["host"])) == 404

    assert not creation.done()
    made = await creation
    assert (made["state"], made["hostUuid"]) == ("Running", task["host"])
    for operation in ("DestroyVmInstance", "ExpungeVmInstance"):
        await asyncio.to_thread(cluster.client.call, operation, uuid=vm)


async def under_way(cluster: FaultCluster) -> dict[str, Any]:
    """The start of the VM, once it is under way on a host."""
    for _ in range(300):
        for task in await asyncio.to_thread(cluster.simulator, "GET", "/tasks"):
            if task["path"] in (StartVm.path, Series.path):
                return dict(task)
        await asyncio.sleep(0.1)
    raise AssertionError("the VM was not started on any host")


async def post(url: str, task_uuid: str, files: pki.Files | None) -> int:
    """Answer a task with a success; the HTTP status."""
    tls = ssl.create_default_context() if files is None else pki.client_context(files, check_name=False)
    if files is None:
        tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    elif not files.authority.exists():
        raise AssertionError(f"{files.authority} is missing")
    async with (
        aiohttp.ClientSession() as http,
        http.post(
            url, data=SUCCESS, headers={"taskuuid": task_uuid}, ssl=tls, timeout=aiohttp.ClientTimeout(total=10)
        ) as response,
    ):
        return response.status
