"""The documentation is of this program: generated pages are up to date, links lead somewhere, named files exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")])
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")
FILE = re.compile(r"`((?:src|tests|tools|bench|examples|packaging|docs)/[\w./-]+)`")


def test_generated_pages_are_up_to_date() -> None:
    # In a process of its own: other tests declare errors and settings too.
    command = [sys.executable, str(ROOT / "tools" / "generate_docs.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_file_names_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    links = [one for one in LINK.findall(text) if not one.startswith(("http://", "https://", "mailto:"))]
    missing = [one for one in links if not (page.parent / one).exists()]
    missing += [one for one in FILE.findall(text) if not (ROOT / one).exists()]
    assert missing == []
