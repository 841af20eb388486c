"""Write docs/errors.md and docs/settings.md from what the program declares.

python tools/generate_docs.py            # write
python tools/generate_docs.py --check    # exit code 1 when they are not what would be written
"""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from caelum import builtin
from caelum.kernel import config
from caelum.kernel.errors import catalogue
from caelum.kernel.settings import Setting, declared_settings

DOCS = Path(__file__).parent.parent / "docs"
_GENERATED = "<!-- Written by tools/generate_docs.py from the declarations; do not edit. -->\n"
_ERRORS = """# Errors

An error on the wire is `{"error": {...}}`:

| field | is |
| --- | --- |
| `code` | one of those below; codes that the original system has mean the same here |
| `description` | the fixed text of the code |
| `details` | what happened here, with names and numbers |
| `elaboration` | what to do |
| `cause`, `causes` | the errors below it |
| `opaque` | the facts of the details as values, for programs |

*Transient*: the same request may succeed when it is repeated.
"""
_SETTINGS = """# Configuration and settings

The **configuration** is read when a server starts: a TOML file (`caelum server --config FILE`) with the keys below,
overridden by the environment. **Settings** can be changed while the cloud runs, and some of them for single resources:

    caelum config list category=vm
    caelum config update vm deletionPolicy --value Direct
    caelum config update-resource-config vm deletionPolicy UUID --value Never

Sizes take `K`, `M`, `G`, `T`; times `s`, `m`, `h`, `d`, `w`.
"""


def cell(text: object) -> str:
    """A text as a table's cell."""
    return " ".join(str(text).split()).replace("|", "\\|")


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A table in Markdown."""
    lines = [list(head)]
    lines.append(["---"] * len(lines[0]))
    lines += [[cell(one) for one in row] for row in rows]
    return "".join(f"| {' | '.join(row)} |\n" for row in lines)


def errors() -> str:
    """The page of errors."""
    parts = [_GENERATED, _ERRORS]
    by_group: dict[str, list[Any]] = {}
    for one in sorted(catalogue().values(), key=lambda one: (one.code.split(".")[0], _number(one.code))):
        by_group.setdefault(one.code.split(".")[0], []).append(one)
    for group, found in sorted(by_group.items()):
        rows = [(f"`{one.code}`", _described(one), one.remedy) for one in found]
        parts.append(f"\n## {group}\n\n" + table(("code", "what", "what to do"), rows))
    return "".join(parts)


def _described(one: Any) -> str:
    return f"{one.description} *(transient)*" if one.transient else str(one.description)


def _number(code: str) -> tuple[int, str]:
    tail = code.partition(".")[2]
    return (int(tail) if tail.isdigit() else 0, tail)


def settings() -> str:
    """The page of the configuration and of the settings."""
    parts = [_GENERATED, _SETTINGS, "\n## Configuration\n\n"]
    parts.append(table(("key", "environment", "default", "meaning"), _configuration()))
    by_category: dict[str, list[Setting[Any]]] = {}
    for one in sorted(declared_settings(), key=lambda one: (one.category, one.name)):
        by_category.setdefault(one.category, []).append(one)
    for category, found in by_category.items():
        rows = [(f"`{one.name}`", f"`{one.default_text}`" if one.default_text else "", _meaning(one)) for one in found]
        parts.append(f"\n## {category}\n\n" + table(("name", "default", "meaning"), rows))
    return "".join(parts)


def _configuration() -> Iterator[tuple[str, str, str, str]]:
    texts = dict(_field_texts())
    for field in msgspec.structs.fields(config.Config):
        default = "" if field.default in (None, "", msgspec.NODEFAULT) else f"`{_toml(field.default)}`"
        yield f"`{field.name}`", f"`{config.PREFIX}{field.name.upper()}`", default, texts.get(field.name, "")


def _toml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _field_texts() -> Iterator[tuple[str, str]]:
    """The text below each field of the configuration."""
    body = ast.parse(inspect.getsource(config.Config)).body[0]
    if not isinstance(body, ast.ClassDef):
        return
    for field, text in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
            yield field.target.id, str(ast.literal_eval(text.value))


def _meaning(one: Setting[Any]) -> str:
    bounds = [f"at least {one.minimum:g}"] if one.minimum is not None else []
    bounds += [f"at most {one.maximum:g}"] if one.maximum is not None else []
    bounds += [f"one of {', '.join(f'`{each}`' for each in one.valid)}"] if one.valid else []
    bounds += [f"can be set for single {', '.join(each.removesuffix('VO') for each in one.bindable)}"] * bool(
        one.bindable
    )
    return one.description.rstrip(".") + "".join(f"; {each}" for each in bounds)


def main() -> int:
    """Write the pages, or compare them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    builtin.import_declarations()
    importlib.import_module("caelum.gateway.server")  # declares errors and settings of its own
    stale = []
    for name, text in (("errors.md", errors()), ("settings.md", settings())):
        path = DOCS / name
        if options.check:
            stale += [name] if not path.exists() or path.read_text() != text else []
        else:
            path.write_text(text)
    if stale:
        print(f"docs: {', '.join(stale)} is out of date: run python tools/generate_docs.py", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
