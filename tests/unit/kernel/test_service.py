"""Declarations of handlers, checks and events."""

import msgspec
import pytest
from tests.unit.kernel.zoo import Fed, Feed, Wash

from caelum.kernel.events import CanonicalEvent, canonical, from_wire, matches, to_wire
from caelum.kernel.service import compile_signature, handles, handlings, interceptings, intercepts


def test_queue_names_are_compiled_and_checked_when_declared() -> None:
    assert compile_signature(Wash, "wash-{uuid}-x")(Wash(uuid="u")) == "wash-u-x"
    assert compile_signature(Wash, "{number}:{uuid}")(Wash(uuid="u", number=3)) == "3:u"
    assert compile_signature(Wash, "{number}:{uuid}")(Wash(uuid=None)) is None
    assert compile_signature(Wash, "wash-{uuid}")(Wash(uuid=None)) is None
    assert compile_signature(Wash, "all")(Wash()) == "all"
    with pytest.raises(TypeError, match="names field name, which Wash does not have"):
        handles(Wash, queue="wash-{name}")


def test_marks_are_found_on_instances_also_by_inheritance() -> None:
    class Base:
        @handles(Feed)
        @handles(Wash, queue="wash-{uuid}", level=3)
        async def both(self, msg: Feed | Wash) -> None: ...

        @intercepts(Feed, order=-5)
        async def check(self, msg: Feed) -> None: ...

    class Derived(Base):
        pass

    one = Derived()
    found = {handling.cls: (handling.level, handler) for handling, handler in handlings(one)}
    assert set(found) == {Feed, Wash}
    assert found[Wash][0] == 3
    assert found[Feed][1] == one.both
    assert [(mark.cls, mark.order, check) for mark, check in interceptings(one)] == [(Feed, -5, one.check)]


def test_event_paths_are_filled_from_fields_and_read_back() -> None:
    event = Fed(animal_name="lion", portion=2)
    assert event.path == "/zoo/lion/fed"
    wire = msgspec.json.decode(msgspec.json.encode(to_wire(event, "node-a")))
    assert wire == {
        "path": "/zoo/lion/fed",
        "content": {"animalName": "lion", "portion": 2},
        "managementNodeId": "node-a",
    }
    assert from_wire(wire["path"], wire["content"]) == event
    assert from_wire("/nothing/known", {}) is None


def test_event_declarations_are_checked() -> None:
    with pytest.raises(TypeError, match="no field animal_name"):

        @canonical("/zoo/{animalName}/gone")
        class Gone(CanonicalEvent):
            name: str

    with pytest.raises(TypeError, match="is declared by"):

        @canonical("/zoo/{animalName}/fed")
        class Other(CanonicalEvent):
            animal_name: str


@pytest.mark.parametrize(
    ("pattern", "path", "fits"),
    [
        ("/vm/state/change", "/vm/state/change", True),
        ("/vm/state/change", "/vm/state/changed", False),
        ("/globalConfig/update/{category}/{name}/{nodeUuid}", "/globalConfig/update/vm/x/1", True),
        ("/globalConfig/update/{category}/{name}/{nodeUuid}", "/globalConfig/update/vm/x", False),
        ("/vm/*", "/vm/state/change", True),
        ("/vm/*", "/vms/state", False),
        ("*", "/anything", True),
        ("/a.b", "/axb", False),
    ],
)
def test_path_patterns(pattern: str, path: str, fits: bool) -> None:
    assert matches(pattern, path) is fits
