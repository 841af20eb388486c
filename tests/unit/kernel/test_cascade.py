"""Cascades: leaves first, each once, cycles broken; Permissive asks and stops, Enforcing goes through."""

import logging

import pytest

from caelum.kernel.cascade import DELETE_FAILED, Cascade, CascadeExtension
from caelum.kernel.errors import OPERATION_ERROR, CloudError
from caelum.kernel.extension import Extensions

CHILDREN = {
    ("ZoneVO", "z1"): {"ClusterVO": ["c1", "c2"], "StorageVO": ["s1"]},
    ("ClusterVO", "c1"): {"HostVO": ["h1"]},
    ("ClusterVO", "c2"): {"HostVO": ["h2"]},
    ("HostVO", "h1"): {"VmVO": ["v1", "v2"]},
    ("HostVO", "h2"): {"VmVO": ["v3"]},
    ("StorageVO", "s1"): {"VmVO": ["v2", "v3", "v4"], "VolumeVO": ["o1"]},
    ("VmVO", "v4"): {"VolumeVO": ["o4"], "HostVO": ["h1"]},
}


class Recorder:
    def __init__(self) -> None:
        self.log: list[tuple[str, str, tuple[str, ...]]] = []
        self.objects: dict[str, str] = {}
        self.flags: set[tuple[bool, str]] = set()

    def extension(self, name: str, *above: str) -> CascadeExtension:
        recorder = self

        class One(CascadeExtension):
            resource = name
            parents = above

            async def children(self, parent_type: str, uuids: list[str]) -> list[str]:
                return [child for one in uuids for child in CHILDREN.get((parent_type, one), {}).get(name, [])]

            async def check(self, uuids: list[str]) -> None:
                recorder.note("check", name, uuids)

            async def delete(self, uuids: list[str], force: bool, issuer: str) -> None:
                recorder.flags.add((force, issuer))
                recorder.note("delete", name, uuids)

            async def cleanup(self, uuids: list[str]) -> None:
                recorder.note("cleanup", name, uuids)

        return One()

    def note(self, what: str, name: str, uuids: list[str]) -> None:
        if self.objects.get(name) == what:
            raise CloudError(OPERATION_ERROR, f"{name} objects to {what}")
        self.log.append((what, name, tuple(uuids)))

    def done(self, what: str) -> list[str]:
        return [name for one, name, _ in self.log if one == what]


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def cascade(recorder: Recorder) -> Cascade:
    extensions = Extensions()
    for name, *parents in (
        ("ZoneVO",),
        ("VmVO", "HostVO", "StorageVO"),
        ("ClusterVO", "ZoneVO"),
        ("HostVO", "ClusterVO", "VmVO"),  # the edge from the VM closes a cycle
        ("StorageVO", "ZoneVO"),
        ("VolumeVO", "StorageVO", "VmVO"),
    ):
        extensions.add(recorder.extension(name, *parents))
    return Cascade(extensions)


async def test_the_plan_is_a_dry_run_with_leaves_first_and_each_resource_once(
    cascade: Cascade, recorder: Recorder
) -> None:
    plan = await cascade.plan("ZoneVO", ["z1"])
    order = [step.resource for step in plan.steps]
    assert order[-1] == "ZoneVO"
    assert order.index("VolumeVO") < order.index("VmVO") < order.index("HostVO") < order.index("ClusterVO")
    assert order.index("VmVO") < order.index("StorageVO")
    assert sorted(plan.uuids("VmVO")) == ["v1", "v2", "v3", "v4"]
    assert sorted(plan.uuids("VolumeVO")) == ["o1", "o4"]
    assert plan.uuids("ImageVO") == []
    assert recorder.log == []


async def test_the_plan_takes_only_what_lives_below(cascade: Cascade) -> None:
    plan = await cascade.plan("ClusterVO", ["c2"])
    assert {step.resource: step.uuids for step in plan.steps} == {"VmVO": ["v3"], "HostVO": ["h2"], "ClusterVO": ["c2"]}


async def test_permissive_checks_all_then_deletes_then_cleans_up(cascade: Cascade, recorder: Recorder) -> None:
    plan = await cascade.delete("ZoneVO", ["z1"])
    names = [step.resource for step in plan.steps]
    assert recorder.done("check") == names
    assert recorder.done("delete") == names
    assert recorder.done("cleanup") == names
    assert [what for what, _, _ in recorder.log] == ["check"] * 6 + ["delete"] * 6 + ["cleanup"] * 6
    assert recorder.flags == {(False, "ZoneVO")}


async def test_permissive_deletes_nothing_when_one_objects(cascade: Cascade, recorder: Recorder) -> None:
    recorder.objects = {"HostVO": "check"}
    with pytest.raises(CloudError, match="HostVO objects to check"):
        await cascade.delete("ZoneVO", ["z1"])
    assert recorder.done("delete") == []


async def test_permissive_stops_at_an_error_and_nothing_above_is_deleted(cascade: Cascade, recorder: Recorder) -> None:
    recorder.objects = {"HostVO": "delete"}
    with pytest.raises(CloudError) as caught:
        await cascade.delete("ZoneVO", ["z1"])
    assert caught.value.kind is DELETE_FAILED
    assert caught.value.facts["resourceType"] == "HostVO"
    wire = caught.value.to_wire()
    assert wire.cause is not None
    assert wire.cause.details == "HostVO objects to delete"
    assert not {"ClusterVO", "ZoneVO", "HostVO"} & set(recorder.done("delete"))
    assert recorder.done("cleanup") == []


async def test_enforcing_goes_on_and_logs(
    cascade: Cascade, recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    recorder.objects = {"HostVO": "delete", "VmVO": "cleanup"}
    with caplog.at_level(logging.ERROR):
        await cascade.delete("ZoneVO", ["z1"], mode="Enforcing")
    assert recorder.done("check") == []
    assert recorder.done("delete")[-1] == "ZoneVO"
    assert recorder.flags == {(True, "ZoneVO")}
    assert recorder.done("cleanup")[-1] == "ZoneVO"
    assert "HostVO objects to delete" in caplog.text


async def test_enforcing_fails_only_when_the_root_stays(cascade: Cascade, recorder: Recorder) -> None:
    recorder.objects = {"ZoneVO": "delete"}
    with pytest.raises(CloudError, match="ZoneVO objects to delete"):
        await cascade.delete("ZoneVO", ["z1"], mode="Enforcing")


async def test_a_type_that_nobody_deletes_is_refused(cascade: Cascade) -> None:
    with pytest.raises(CloudError, match="no service deletes ImageVO"):
        await cascade.delete("ImageVO", ["i1"])
