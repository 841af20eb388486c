"""A guest's life under the agent, with a real libvirt and a real (emulated) guest."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from agent_vm_lab import Lab, PrivateLibvirt, definition, disk, eventually, nic, read_until, root_disk

from caelum.agent.protocol import (
    AttachDisk,
    AttachNic,
    DestroyVm,
    DetachDisk,
    DetachNic,
    GetConsole,
    GetVmStates,
    PauseVm,
    Ping,
    ResumeVm,
    StopVm,
)  # fmt: skip

pytest_plugins = ("agent_vm_lab",)
pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(240)]


async def test_a_guest_lives_and_everything_is_reported(
    lab: Lab, lan: str, libvirtd: PrivateLibvirt, tmp_path: Path
) -> None:
    connected = await lab.connect()
    assert connected.facts.hypervisor == "tcg"
    assert connected.facts.total_memory > 1 << 30
    seed = {"meta-data": "instance-id: i-71\nlocal-hostname: seeded\n", "user-data": ""}
    cmd = definition(root_disk(tmp_path), 71, nics=[nic(0, lan, 71)], cidata=seed)
    vm = cmd.vm_uuid
    started = await lab.run(cmd)
    assert started.hypervisor == "tcg"
    assert (await lab.run(cmd)) == started  # already running: success, the same guest
    await eventually(lambda: lab.states(vm) == ["Running"])
    assert (await lab.run(GetConsole(vm_uuid=vm))).vnc_port == started.vnc_port

    async with lab.socket(f"/console/serial/{vm}") as serial:
        await read_until(serial, "host=seeded")
        await serial.send_str("\n")
        await read_until(serial, "seeded login:")
        await lab.run(PauseVm(vm_uuid=vm))
        await lab.run(PauseVm(vm_uuid=vm))
        assert (await lab.run(Ping())).vm_states == {vm: "Paused"}
        await lab.run(ResumeVm(vm_uuid=vm))
        await eventually(lambda: lab.states(vm) == ["Running", "Paused", "Running"])

        data = disk(tmp_path, 1)
        await lab.run(AttachDisk(vm_uuid=vm, disk=data))
        await lab.run(AttachDisk(vm_uuid=vm, disk=data))
        await serial.send_str("root\n")
        await read_until(serial, "assword:")
        await serial.send_str("caelum\n")
        await read_until(serial, "# ")
        await serial.send_str("echo serial=$(cat /sys/block/vdb/serial)\n")
        await read_until(serial, f"serial={data.volume_uuid[:20]}")
        await lab.run(DetachDisk(vm_uuid=vm, disk=data))
        await lab.run(DetachDisk(vm_uuid=vm, disk=data))
        await serial.send_str("ls /sys/block | grep -c vd\n")
        await read_until(serial, "\n1\r")

        extra = nic(1, lan, 71)
        await lab.run(AttachNic(vm_uuid=vm, nic=extra))
        await lab.run(AttachNic(vm_uuid=vm, nic=extra))
        assert extra.name in _ports(lan)
        await serial.send_str("sleep 1; cat /sys/class/net/eth1/address\n")
        await read_until(serial, extra.mac)
        await lab.run(DetachNic(vm_uuid=vm, nic=extra))
        assert extra.name not in _ports(lan)

        data = disk(libvirtd.small, 2)
        await lab.run(AttachDisk(vm_uuid=vm, disk=data))
        await serial.send_str("dd if=/dev/zero of=/dev/vdb bs=1M count=8; echo written\n")
        await eventually(lambda: lab.states(vm)[-1] == "Paused")
        full = [one["body"] for one in lab.reports if one["kind"] == "storage-full"]
        assert full == [{"vmUuid": vm, "path": data.install_path}]
        libvirtd.enlarge_small()
        await lab.run(ResumeVm(vm_uuid=vm))
        await read_until(serial, "\nwritten")
        await lab.run(DetachDisk(vm_uuid=vm, disk=data))

        async with lab.socket(f"/console/serial/{vm}") as second:
            await read_until(second, "\nwritten")  # from the log, said before this viewer came
            await second.send_str("echo both\n")
            await read_until(second, "\nboth")
            await read_until(serial, "\nboth")

        await lab.run(StopVm(vm_uuid=vm, grace_seconds=60))
    await eventually(lambda: lab.states(vm)[-1] == "Stopped")
    assert (await lab.run(GetVmStates())).states == {}
    await lab.run(StopVm(vm_uuid=vm))
    await lab.run(DestroyVm(vm_uuid=vm))
    assert list((lab.state / "vm").iterdir()) == []
    assert [report["number"] for report in lab.reports] == list(range(1, len(lab.reports) + 1))


def _ports(name: str) -> list[str]:
    shown = subprocess.run(["ip", "-br", "link", "show", "master", name], capture_output=True, text=True, check=True)
    return [line.split()[0].split("@")[0] for line in shown.stdout.splitlines()]
