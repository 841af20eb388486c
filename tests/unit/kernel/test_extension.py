"""Extension points and drivers: ordered, switchable, and none can harm the rest."""

import logging
import sys
from pathlib import Path

import pytest

from caelum.kernel.errors import OPERATION_ERROR, CloudError
from caelum.kernel.extension import NO_DRIVER, Drivers, ExtensionPoint, Extensions, discover


class BeforeStart(ExtensionPoint):
    """A point for the tests."""

    async def before_start(self, vm: list[str]) -> str | None: ...


class AfterStart(ExtensionPoint):
    """Another one."""

    async def after_start(self, vm: list[str]) -> None: ...


class First(BeforeStart):
    order = -1

    async def before_start(self, vm: list[str]) -> str:
        vm.append("first")
        return "one"


class Last(BeforeStart, AfterStart):
    order = 1

    async def before_start(self, vm: list[str]) -> str:
        vm.append("last")
        return "three"

    async def after_start(self, vm: list[str]) -> None:
        vm.append("after")


class Vetoes(BeforeStart, AfterStart):
    async def before_start(self, vm: list[str]) -> None:
        raise CloudError(OPERATION_ERROR, "not today")

    async def after_start(self, vm: list[str]) -> None:
        raise ValueError("too late to object")


async def test_extensions_run_in_order_and_return_what_they_found() -> None:
    extensions, vm = Extensions(), []
    for one in (Last(), First(), First()):
        extensions.add(one)
    assert await extensions.each(BeforeStart, "before_start", vm) == ["one", "one", "three"]
    assert vm == ["first", "first", "last"]
    assert await extensions.each(AfterStart, "after_start", vm) == [None]


async def test_adding_twice_counts_once_and_removing_ends_it() -> None:
    extensions, last = Extensions(), Last()
    extensions.add(last)
    extensions.add(last)
    assert extensions.of(BeforeStart) == [last]
    extensions.remove(last)
    assert extensions.of(BeforeStart) == []
    assert extensions.of(AfterStart) == []


async def test_the_first_exception_vetoes() -> None:
    extensions, vm = Extensions(), []
    for one in (Vetoes(), First(), Last()):
        extensions.add(one)
    with pytest.raises(CloudError, match="not today"):
        await extensions.each(BeforeStart, "before_start", vm)
    assert vm == ["first"]


async def test_a_notified_extension_that_fails_disturbs_nobody(caplog: pytest.LogCaptureFixture) -> None:
    extensions, vm = Extensions(), []
    extensions.add(Vetoes())
    extensions.add(Last())
    with caplog.at_level(logging.ERROR):
        await extensions.notify(AfterStart, "after_start", vm)
    assert vm == ["after"]
    assert "too late to object" in caplog.text


@pytest.mark.parametrize("name", ["Vetoes", f"{__name__}:Vetoes"])
async def test_an_extension_can_be_switched_off_by_name(name: str) -> None:
    extensions, vm = Extensions([name]), []
    extensions.add(Vetoes())
    extensions.add(First())
    await extensions.each(BeforeStart, "before_start", vm)
    assert vm == ["first"]


class StorageDriver:
    """A driver interface for the tests."""


def test_drivers_are_found_by_interface_and_type() -> None:
    drivers, local = Drivers(), StorageDriver()
    drivers.add(StorageDriver, "LocalStorage", local)
    assert drivers.get(StorageDriver, "LocalStorage") is local
    assert drivers.types(StorageDriver) == ["LocalStorage"]
    assert drivers.all(StorageDriver) == {"LocalStorage": local}
    with pytest.raises(ValueError, match="LocalStorage"):
        drivers.add(StorageDriver, "LocalStorage", StorageDriver())
    with pytest.raises(CloudError) as caught:
        drivers.get(StorageDriver, "Ceph")
    assert caught.value.kind is NO_DRIVER
    assert caught.value.facts == {"type": "Ceph", "available": ["LocalStorage"]}


def test_broken_and_missing_parts_are_reported_and_the_rest_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "good_plugin.py").write_text("class Good:\n    pass\n")
    (tmp_path / "bad_plugin.py").write_text("raise RuntimeError('bad at import')\n")
    info = tmp_path / "outside-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: outside\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[caelum.testplugins]\ngood = good_plugin:Good\nbad = bad_plugin:Bad\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with caplog.at_level(logging.ERROR):
        parts = discover("caelum.testplugins", ["caelum.not_there:Service", "good_plugin:Nothing"])
    assert [(part.name, part.factory is None) for part in parts] == [
        ("caelum.not_there:Service", True),
        ("good_plugin:Nothing", True),
        ("good", False),
        ("bad", True),
    ]
    assert parts[3].error == "RuntimeError: bad at import"
    assert "cannot load caelum.not_there:Service" in caplog.text
    sys.modules.pop("good_plugin", None)
