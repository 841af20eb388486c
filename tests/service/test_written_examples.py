"""The examples of docs/development work as they are written: each page's blocks become files, and its test runs.

A block begins with a comment that says where it belongs: a new file, an existing module (it is added at the end), or a
place in one (`in ZoneService`, `in DRIVERS`).
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"```python\n# (?P<path>\S+)(?: in (?P<place>\w+))?\n(?P<text>.*?)```", re.DOTALL)
# Runs before the tests of the page: new modules are found beside the real ones, additions are made to those in memory.
CONFTEST = """
import ast, importlib, json
from pathlib import Path
HERE = Path(__file__).parent
for name in ("cloud", "drivers", "testing"):
    importlib.import_module(f"caelum.{name}").__path__.append(str(HERE / "src" / "caelum" / name))
for module, place, text in json.loads((HERE / "additions.json").read_text()):
    target = importlib.import_module(module)
    if place is None:
        exec(text, vars(target))
    elif place.isupper():
        getattr(target, place).append(ast.literal_eval(text.strip()))
    else:
        names = {}
        exec(text, vars(target), names)
        for name, value in names.items():
            setattr(getattr(target, place), name, value)
"""


def unfold(page: Path, into: Path) -> None:
    """Write a page's blocks as files, and what is added to existing ones as a list."""
    additions = []
    for block in BLOCK.finditer(page.read_text()):
        path, place, text = block["path"], block["place"], block["text"]
        if (ROOT / path).exists():
            module = path.removeprefix("src/").removesuffix(".py").replace("/", ".")
            additions.append((module, place, text))
        else:
            (into / path).parent.mkdir(parents=True, exist_ok=True)
            (into / path).write_text(text)
    (into / "additions.json").write_text(json.dumps(additions))
    (into / "conftest.py").write_text(CONFTEST)


@pytest.mark.parametrize("name", ["adding-a-message", "adding-a-service", "adding-a-driver"])
def test_a_pages_example_works(name: str, tmp_path: Path) -> None:
    unfold(ROOT / "docs" / "development" / f"{name}.md", tmp_path)
    tests = sorted(str(one) for one in tmp_path.glob("tests/**/test_*.py"))
    assert tests
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:hypothesispytest",
        "-p",
        "no:cacheprovider",
    ]
    command += ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(tmp_path), *tests]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr
