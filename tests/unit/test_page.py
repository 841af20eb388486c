"""Every page of the program can be read at one sitting: the budget of functions, files, types and docstrings."""

from __future__ import annotations

import ast
import functools
import statistics
from collections.abc import Iterator
from pathlib import Path

import msgspec

import caelum

MEDIAN_FUNCTION = 9
P95_FUNCTION = 40
LONGEST_FUNCTION = 80
LONGEST_FILE = 600
SOURCE = Path(caelum.__file__).parent
Function = ast.FunctionDef | ast.AsyncFunctionDef


class Page(msgspec.Struct, frozen=True):
    """A module as text and as a tree."""

    path: Path
    lines: int
    tree: ast.Module

    def functions(self) -> Iterator[Function]:
        return (one for one in ast.walk(self.tree) if isinstance(one, Function))


@functools.cache
def pages() -> list[Page]:
    """Every module that somebody wrote: revisions of the database are written by a tool."""
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        text = path.read_text()
        if text.strip() and "versions" not in path.parts:
            found.append(Page(path.relative_to(SOURCE), len(text.splitlines()), ast.parse(text)))
    return found


def lengths() -> dict[str, int]:
    """How many lines each function has, with its signature and docstring."""
    return {
        f"{page.path}:{one.name}:{one.lineno}": (one.end_lineno or one.lineno) - one.lineno + 1
        for page in pages()
        for one in page.functions()
    }


def test_functions_are_short() -> None:
    found = sorted(lengths().values())
    assert len(found) > 3000
    assert statistics.median(found) <= MEDIAN_FUNCTION
    assert found[int(len(found) * 0.95)] <= P95_FUNCTION


def test_no_function_is_long() -> None:
    assert {name: lines for name, lines in lengths().items() if lines > LONGEST_FUNCTION} == {}


def test_no_file_is_long() -> None:
    assert {str(page.path): page.lines for page in pages() if page.lines > LONGEST_FILE} == {}


def test_every_module_says_what_it_is_for() -> None:
    assert [str(page.path) for page in pages() if not ast.get_docstring(page.tree)] == []


def test_every_function_has_types() -> None:
    untyped = []
    for page in pages():
        for one in page.functions():
            arguments = [*one.args.posonlyargs, *one.args.args, *one.args.kwonlyargs, one.args.vararg, one.args.kwarg]
            bare = [each.arg for each in arguments if each is not None and each.annotation is None]
            if one.returns is None or set(bare) - {"self", "cls", "mcs"}:
                untyped.append(f"{page.path}:{one.lineno} {one.name}")
    assert untyped == []


def test_nothing_is_left_to_do() -> None:
    marks = ("TODO", "FIXME", "XXX")
    assert [str(page.path) for page in pages() if any(one in (SOURCE / page.path).read_text() for one in marks)] == []
