"""The agent dies, libvirt dies, the server is deaf, a guest ends by itself: nothing is lost and no guest suffers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import aiohttp
import libvirt
import pytest
from agent_vm_lab import Lab, PrivateLibvirt, definition, disk, eventually, nic

from caelum.agent.protocol import (
    INTERRUPTED,
    INVALID,
    NOT_FOUND,
    STALE_ATTEMPT,
    Cdrom,
    DestroyVm,
    DumpHost,
    GetHostCapacity,
    GetVmStates,
    PauseVm,
    Ping,
    RebootVm,
    SetCdrom,
    StartVm,
    StopVm,
)  # fmt: skip
from caelum.kernel import pki
from caelum.kernel.ids import new_uuid

pytest_plugins = ("agent_vm_lab",)
pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(120)]


def bootless(tmp_path: Path, internal_id: int, **fields: Any) -> StartVm:
    """A guest without an operating system: it starts at once, and never answers a polite request."""
    return definition(disk(tmp_path, 0), internal_id, **fields)


async def test_a_killed_agent_leaves_guests_and_answers_from_its_journal(lab: Lab, tmp_path: Path) -> None:
    await lab.connect()
    cmd = bootless(tmp_path, 72)
    vm = cmd.vm_uuid
    started = await lab.submit(cmd)
    await lab.answer(started)
    before = _emulators(vm)
    stopping = await lab.submit(StopVm(vm_uuid=vm, grace_seconds=60))
    assert (await lab.task(stopping))["state"] == "Running"
    lab.kill_agent()
    lab.deaf = True
    await lab.start_agent()

    assert _emulators(vm) == before
    status = await lab.task(stopping)
    assert status["state"] == "Done"
    assert status["answer"]["error"]["code"] == INTERRUPTED
    assert stopping not in lab.answers
    lab.deaf = False
    assert (await lab.answer(stopping)).error.code == INTERRUPTED
    assert (await lab.run(Ping())).vm_states == {vm: "Running"}
    assert (await lab.run(Ping())).host_uuid == lab.host_uuid

    del lab.answers[started]
    await lab.submit(cmd, taskuuid=started)  # known from the former agent's life: answered, not run
    assert (await lab.answer(started)).result["hypervisor"] == "tcg"
    assert (await lab.task(new_uuid()))["state"] == "Unknown"
    await lab.run(StopVm(vm_uuid=vm, kind="cold"))
    await eventually(lambda: lab.states(vm)[-1] == "Stopped")


async def test_a_stopped_agent_leaves_guests(lab: Lab, tmp_path: Path) -> None:
    cmd = bootless(tmp_path, 73)
    await lab.run(cmd)
    before = _emulators(cmd.vm_uuid)
    stopping = await lab.submit(StopVm(vm_uuid=cmd.vm_uuid, grace_seconds=60))
    assert lab.stop_agent() == 0
    await lab.start_agent()
    assert _emulators(cmd.vm_uuid) == before
    assert (await lab.answer(stopping)).error.code == INTERRUPTED
    await lab.run(DestroyVm(vm_uuid=cmd.vm_uuid))
    assert _emulators(cmd.vm_uuid) == []


async def test_the_agent_outlives_libvirt(lab: Lab, libvirtd: PrivateLibvirt, tmp_path: Path) -> None:
    await lab.connect()
    cmd = bootless(tmp_path, 74)
    vm = cmd.vm_uuid
    await lab.run(cmd)
    libvirtd.kill()
    _, body = await lab.post(Ping())
    assert body["error"]["transient"]
    os.kill(_emulators(vm)[0], 9)
    libvirtd.start()
    await eventually(lambda: lab.states(vm)[-1] == "Stopped", what="the end of a guest, unseen, is found")
    await lab.run(cmd)
    await eventually(lambda: lab.states(vm)[-1] == "Running")
    await lab.run(DestroyVm(vm_uuid=vm))


async def test_a_guest_that_ends_by_itself_is_reported_and_unguarded(lab: Lab, lan: str, tmp_path: Path) -> None:
    await lab.connect()
    cmd = bootless(tmp_path, 75, nics=[nic(0, lan, 75)])
    vm = cmd.vm_uuid
    await lab.run(cmd)
    lab.deaf = True
    os.kill(_emulators(vm)[0], 9)
    await eventually(lambda: _state(lab, vm) == libvirt.VIR_DOMAIN_SHUTOFF)
    lab.kill_agent()
    await lab.start_agent()
    lab.deaf = False
    await eventually(lambda: lab.states(vm)[-1] == "Stopped", what="the end is reported by the next agent")
    assert (await lab.run(GetVmStates(vm_uuids=[vm]))).states == {vm: "Stopped"}
    again = await lab.run(cmd)
    assert again.vnc_port >= 5900
    await lab.run(DestroyVm(vm_uuid=vm))
    assert (await lab.run(GetVmStates(vm_uuids=[vm]))).states == {}


async def test_domains_of_others_are_left_alone(lab: Lab, tmp_path: Path) -> None:
    name = new_uuid()
    connection = libvirt.open(lab.libvirt_uri)
    xml = (
        f"<domain type='qemu'><name>{name}</name><memory>65536</memory><os><type arch='x86_64'>hvm</type></os></domain>"
    )
    stranger = connection.defineXML(xml)
    try:
        connected = await lab.connect()
        assert connected.unknown_domains == [name]
        assert name not in connected.vm_states
        stranger.create()
        await eventually(
            lambda: [one["body"] for one in lab.reports if one["kind"] == "unknown-domain"] == [{"name": name}]
        )
        answer = await lab.answer(await lab.submit(DestroyVm(vm_uuid=name)))
        assert answer.error is not None
        assert stranger.isActive()
        assert (await lab.run(DumpHost())).unknown_domains == [name]
        capacity = await lab.run(GetHostCapacity())
        assert (capacity.used_cpu, capacity.used_memory) == (1, 64 << 20)
    finally:
        stranger.destroy()
        stranger.undefine()
        connection.close()


async def test_a_start_that_fails_leaves_nothing(lab: Lab, tmp_path: Path) -> None:
    cmd = bootless(tmp_path, 76, nics=[nic(0, "nobridge", 76)])
    answer = await lab.answer(await lab.submit(cmd))
    assert answer.error is not None
    assert (await lab.run(GetVmStates())).states == {}
    assert list((lab.state / "vm").iterdir()) == []
    os.unlink(cmd.disks[0].install_path)
    answer = await lab.answer(await lab.submit(cmd))
    assert answer.error is not None
    assert answer.error.code == NOT_FOUND


async def test_an_overtaken_attempt_does_nothing(lab: Lab, tmp_path: Path) -> None:
    cmd = bootless(tmp_path, 77)
    flow = new_uuid()
    await lab.run(cmd, attempt=f"{flow}:2")
    status, body = await lab.post(DestroyVm(vm_uuid=cmd.vm_uuid), taskuuid=new_uuid(), attempt=f"{flow}:1")
    assert (status, body["error"]["code"]) == (409, STALE_ATTEMPT)
    # One that was accepted in time, and waits for its turn when it is overtaken, does nothing either.
    slow = await lab.submit(StopVm(vm_uuid=cmd.vm_uuid, grace_seconds=60), attempt=f"{flow}:2")
    waiting = await lab.submit(PauseVm(vm_uuid=cmd.vm_uuid), attempt=f"{flow}:2")
    newest = await lab.submit(GetVmStates(), attempt=f"{flow}:3")
    await lab.answer(newest)
    assert (await lab.cancel(slow))["answer"]["error"]["code"] == "AGENT.1009"
    assert (await lab.answer(waiting)).error.code == STALE_ATTEMPT
    assert (await lab.run(GetVmStates())).states == {cmd.vm_uuid: "Running"}
    await lab.run(DestroyVm(vm_uuid=cmd.vm_uuid))


async def test_only_a_management_node_is_obeyed(lab: Lab) -> None:
    for name, content in (("o.crt", lab.other_host.certificate), ("o.key", lab.other_host.key)):
        (lab.directory / name).write_bytes(content)
    files = pki.Files(lab.directory / "o.crt", lab.directory / "o.key", lab.tls / "ca.crt")
    connector = aiohttp.TCPConnector(ssl=pki.client_context(files))
    async with (
        aiohttp.ClientSession(connector=connector) as other_host,
        other_host.post(f"{lab.base}/host/echo", server_hostname=lab.host_uuid) as reply,
    ):
        assert reply.status == 403
    answer = await lab.answer(await lab.submit(DestroyVm(vm_uuid="..")))
    assert answer.error is not None
    assert answer.error.code == INVALID
    assert (lab.state / "agent.db").exists()
    status, body = await lab.post(PauseVm(vm_uuid="x"))
    assert (status, body["error"]["code"]) == (400, "AGENT.1001")


async def test_definitions_of_every_kind_start(lab: Lab, tmp_path: Path) -> None:
    iso = tmp_path / "empty.iso"
    iso.write_bytes(bytes(1 << 16))
    data = disk(tmp_path, 1)
    cmd = bootless(
        tmp_path, 78, boot_mode="UEFI", cdroms=[Cdrom(device_id=0), Cdrom(device_id=1, install_path=str(iso))],
        cidata={"meta-data": "instance-id: i-1\n", "user-data": "#cloud-config\n"}, console_password="secret",
        cpu_speed_quota=50, clock="localtime", paused=True, boot_order=("CdRom", "HardDisk"),
    )  # fmt: skip
    cmd.disks.append(type(data)(**{name: getattr(data, name) for name in data.__struct_fields__} | {"bus": "scsi"}))
    await lab.connect()
    await lab.run(cmd)
    await eventually(lambda: lab.states(cmd.vm_uuid) == ["Paused"])
    await lab.run(SetCdrom(vm_uuid=cmd.vm_uuid, cdrom=Cdrom(device_id=0, install_path=str(iso))))
    await lab.run(SetCdrom(vm_uuid=cmd.vm_uuid, cdrom=Cdrom(device_id=1)))
    files = {path.name for path in (lab.state / "vm" / cmd.vm_uuid).iterdir()}
    assert files == {"cidata.iso", "serial.log", "nvram.fd"}
    rebooted = await lab.run(RebootVm(definition=bootless_again(cmd), grace_seconds=0))
    assert rebooted.vnc_port >= 5900
    async with lab.socket(f"/console/vnc/{cmd.vm_uuid}", protocols=("binary",)) as screen:
        assert (await screen.receive_bytes(timeout=10)).startswith(b"RFB 003.")
        await lab.run(DestroyVm(vm_uuid=cmd.vm_uuid))
        assert (await screen.receive(timeout=10)).type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED)
    assert list((lab.state / "vm").iterdir()) == []


def bootless_again(cmd: StartVm) -> StartVm:
    """The same guest, to run, with plain firmware."""
    fields = {name: getattr(cmd, name) for name in cmd.__struct_fields__}
    return StartVm(**fields | {"boot_mode": "Legacy", "paused": False, "cdroms": [], "cidata": None})


def _emulators(vm_uuid: str) -> list[int]:
    """The processes that run a guest."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if arguments[0].endswith(b"qemu-system-x86_64") and any(vm_uuid.encode() in one for one in arguments):
            found.append(int(path.parent.name))
    return found


def _state(lab: Lab, vm_uuid: str) -> int:
    connection = libvirt.open(lab.libvirt_uri)
    try:
        state: int = connection.lookupByName(vm_uuid).state()[0]
        return state
    finally:
        connection.close()
