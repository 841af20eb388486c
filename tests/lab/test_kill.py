"""Killing the server and the agent of a real cloud at any moment: every operation ends or is undone, jobs tell the
truth, nothing is left over, and guests that nobody spoke of never notice.

`ROUNDS` in the environment says how often the server is killed (default 3).
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from cloud_lab import LabCloud, said

from caelum.kernel.ids import new_uuid

pytestmark = pytest.mark.timeout(180 + 90 * int(os.environ.get("ROUNDS", "3")))

ROUNDS = int(os.environ.get("ROUNDS", "3"))
SETTLED_WITHIN = 30.0
"""Seconds after the restart in which every operation has ended or is undone."""
CONNECTED_WITHIN = 15.0
"""Seconds after an agent's death in which its host is Connected again."""


class Bystander:
    """The first VM of the cloud, which nobody touches."""

    def __init__(self, cloud: LabCloud) -> None:
        self._cloud = cloud
        self.uuid: str = cloud.bystander["uuid"]
        self._pid, self._uptime = cloud.guest_pid(self.uuid), cloud.uptime(self.uuid)
        self._looked = time.monotonic()

    def check(self) -> None:
        """It is the same process, and its clock went on all the time."""
        assert self._cloud.guest_pid(self.uuid) == self._pid
        passed, uptime = time.monotonic() - self._looked, self._cloud.uptime(self.uuid)
        assert uptime > self._uptime + 0.5 * passed, f"{self._uptime} s, and {passed} s later {uptime} s"
        state = self._cloud.client.query("VmInstance", f"uuid={self.uuid}")[0]["state"]
        assert state == "Running"


class Vms:
    """Creates and destroys VMs by jobs of known UUIDs."""

    def __init__(self, cloud: LabCloud) -> None:
        self._cloud = cloud
        vm = cloud.bystander
        self._what = {
            "imageUuid": vm["imageUuid"],
            "instanceOfferingUuid": vm["instanceOfferingUuid"],
            "l3NetworkUuids": [vm["vmNics"][0]["l3NetworkUuid"]],
        }

    def create(self, vm_uuid: str) -> str:
        """Begin to create a VM; the job."""
        job = new_uuid()
        self._cloud.post("CreateVmInstance", job, name=f"vm-{vm_uuid[:8]}", resourceUuid=vm_uuid, **self._what)
        return job

    def destroy(self, vm_uuid: str) -> str:
        """Begin to destroy a VM; the job."""
        job = new_uuid()
        self._cloud.post("DestroyVmInstance", job, uuid=vm_uuid)
        return job

    def state(self, vm_uuid: str) -> str | None:
        """The VM's state, None when there is no such VM."""
        found = self._cloud.client.query("VmInstance", f"uuid={vm_uuid}")
        return found[0]["state"] if found else None

    def expunge(self, vm_uuid: str) -> None:
        """Remove what is left of a destroyed VM."""
        self._cloud.client.call("ExpungeVmInstance", uuid=vm_uuid)


@pytest.fixture
def vms(cloud: LabCloud) -> Vms:
    return Vms(cloud)


@pytest.fixture
def bystander(cloud: LabCloud) -> Iterator[Bystander]:
    watched = Bystander(cloud)
    yield watched
    watched.check()


def _ends(cloud: LabCloud, job: str, timeout: float) -> tuple[str, Any]:
    """The outcome of a job that is not Processing any more."""
    cloud.until(lambda: cloud.job(job)[0] != "Processing", timeout, f"job {job} ends")
    return cloud.job(job)


def _succeeds(cloud: LabCloud, job: str) -> None:
    outcome, answer = _ends(cloud, job, 60)
    assert outcome == "Succeeded", f"{answer}\n{cloud.logs()}"


def _clean(cloud: LabCloud) -> None:
    report = cloud.audit()
    assert report["findings"] == [], f"{said(report)}\n{cloud.logs()}"


def _connected(cloud: LabCloud) -> bool:
    return bool(cloud.client.query("Host")[0]["status"] == "Connected")


class ServerKills:
    """Kills the server at random moments of creations and destructions, one after another."""

    def __init__(self, cloud: LabCloud, vms: Vms) -> None:
        self._cloud, self._vms = cloud, vms
        self._vm: str | None = None
        self.report: list[str] = []
        self._random = random.Random(int(os.environ.get("SEED", "0")) or None)
        self._usual = self._measure()

    def _measure(self) -> dict[str, float]:
        """How long the operations take when nobody is killed."""
        vm_uuid, usual = new_uuid(), {}
        for what in ("create", "destroy"):
            begun = time.monotonic()
            outcome = _ends(self._cloud, getattr(self._vms, what)(vm_uuid), 60)
            assert outcome[0] == "Succeeded", outcome
            usual[what] = time.monotonic() - begun
        self._vms.expunge(vm_uuid)
        return usual

    def round(self, worse: Callable[[], float] | None = None) -> None:
        """One kill: a creation when there is no VM, else the destruction of the VM. `worse` happens right after it."""
        what = "create" if self._vm is None else "destroy"
        vm_uuid = self._vm or new_uuid()
        begun = time.monotonic()
        job = getattr(self._vms, what)(vm_uuid)
        at = self._random.uniform(0, 1.1 * self._usual[what])
        time.sleep(max(0.0, begun + at - time.monotonic()))
        killed = self._cloud.kill("server")
        if worse is not None:
            killed = worse()
        ready = self._cloud.ready()
        outcome, answer = _ends(self._cloud, job, SETTLED_WITHIN)
        settled = time.monotonic()
        state = self._vms.state(vm_uuid)
        self.report.append(
            f"{what:8} killed at {at:5.2f} s, ready after {ready - killed:5.2f} s, settled {settled - ready:5.2f} s"
            f" later: {outcome}, {state}"
        )
        print(self.report[-1], flush=True)
        self._check(what, vm_uuid, outcome, answer, state)
        _settle_clean(self._cloud, ready + SETTLED_WITHIN)

    def _check(self, what: str, vm_uuid: str, outcome: str, answer: Any, state: str | None) -> None:
        """What the job says is what is."""
        runs = self._cloud.guest_pid(vm_uuid) is not None
        if what == "create":
            wanted = ("Running", True) if outcome == "Succeeded" else (None, False)
            assert (state, runs) == wanted, (outcome, answer)
            self._vm = vm_uuid if outcome == "Succeeded" else None
        elif outcome == "Succeeded":
            assert (state, runs) == ("Destroyed", False), answer
            self._vms.expunge(vm_uuid)
            self._vm = None
        else:
            assert (state, runs) == ("Running", True), (outcome, answer)

    def end(self) -> None:
        """Remove what the last round made."""
        if self._vm is not None:
            _ends(self._cloud, self._vms.destroy(self._vm), 60)
            self._vms.expunge(self._vm)


def test_killing_the_server_at_random_moments(cloud: LabCloud, vms: Vms, bystander: Bystander) -> None:
    kills = ServerKills(cloud, vms)
    for _ in range(ROUNDS):
        kills.round()
        bystander.check()
    kills.end()
    _clean(cloud)


def test_killing_the_server_again_while_it_takes_up_its_work(cloud: LabCloud, vms: Vms, bystander: Bystander) -> None:
    kills = ServerKills(cloud, vms)

    def again() -> float:
        cloud.ready()
        time.sleep(random.uniform(0, 1.5))
        return cloud.kill("server")

    for _ in range(max(2, ROUNDS // 4)):
        kills.round(again)
        bystander.check()
    kills.end()
    _clean(cloud)


def test_killing_server_and_agent_at_once(cloud: LabCloud, vms: Vms, bystander: Bystander) -> None:
    kills = ServerKills(cloud, vms)
    for _ in range(max(2, ROUNDS // 4)):
        kills.round(lambda: cloud.kill("agent"))
        bystander.check()
    kills.end()
    _clean(cloud)


def test_killing_the_agent_in_mid_life(cloud: LabCloud, vms: Vms, bystander: Bystander) -> None:
    def serves() -> bool:
        """The host is Connected, and by the new agent: a command goes through."""
        return _connected(cloud) and cloud.audit()["clean"]

    for _ in range(max(1, ROUNDS // 3)):
        before, killed = cloud.pid("agent"), cloud.kill("agent")
        cloud.until(lambda: cloud.pid("agent") not in (None, before), CONNECTED_WITHIN, "the agent runs again")  # noqa: B023
        back = cloud.until(serves, CONNECTED_WITHIN, "the host is Connected")
        print(f"agent killed in mid-life: host usable again after {back - killed:.2f} s", flush=True)
        assert back - killed < CONNECTED_WITHIN
        bystander.check()
        vm_uuid = new_uuid()
        _succeeds(cloud, vms.create(vm_uuid))
        _succeeds(cloud, vms.destroy(vm_uuid))
        vms.expunge(vm_uuid)
        _clean(cloud)


@pytest.mark.parametrize("what", ["create", "destroy"])
def test_killing_the_agent_in_the_middle_of_a_command(
    cloud: LabCloud, vms: Vms, bystander: Bystander, what: str
) -> None:
    chance = random.Random()
    for _ in range(max(1, ROUNDS // 3)):
        vm_uuid = new_uuid()
        if what == "destroy":
            _succeeds(cloud, vms.create(vm_uuid))
        begun = time.monotonic()
        job = getattr(vms, what)(vm_uuid)
        at = chance.uniform(0.05, 1.2)
        time.sleep(max(0.0, begun + at - time.monotonic()))
        killed = cloud.kill("agent")
        outcome, answer = _ends(cloud, job, SETTLED_WITHIN + CONNECTED_WITHIN)
        assert outcome == "Succeeded", f"a command waits for its agent: {answer}\n{cloud.logs()}"
        ended = time.monotonic()
        back = cloud.until(lambda: _connected(cloud), CONNECTED_WITHIN, "the host is Connected")
        assert back - killed < max(CONNECTED_WITHIN, ended - killed)
        state = vms.state(vm_uuid)
        print(
            f"agent killed {at:.2f} s into {what}: ended after {ended - killed:.2f} s, {outcome}, {state}", flush=True
        )
        _settle_clean(cloud, back + SETTLED_WITHIN)
        runs = cloud.guest_pid(vm_uuid) is not None
        assert runs == (state == "Running"), (state, outcome, answer)
        if state == "Running":
            _succeeds(cloud, vms.destroy(vm_uuid))
        if vms.state(vm_uuid) is not None:
            vms.expunge(vm_uuid)
        bystander.check()
    _clean(cloud)


def _settle_clean(cloud: LabCloud, until: float) -> None:
    """Nothing is wrong, and what could not be done while a part was dead is done by then."""
    report: dict[str, Any] = {}

    def clean() -> bool:
        report.update(cloud.audit())
        return not report["findings"]

    try:
        cloud.until(clean, max(0.0, until - time.monotonic()), "the auditor finds nothing")
    except AssertionError as error:
        raise AssertionError(f"{said(report)}\n{error}") from None
