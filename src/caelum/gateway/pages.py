"""Pages: the OpenAPI document, its browsable reference, the clients' manifest, and the web UI when it is built.

Invariant: everything comes from this server; only files inside the UI's folder are served.
"""

from __future__ import annotations

import asyncio
import mimetypes
from importlib.resources import files
from pathlib import Path

import msgspec
from aiohttp import web

from caelum.gateway.http import SECURITY_HEADERS, raw_json
from caelum.gateway.openapi import document
from caelum.gateway.reading import check_text
from caelum.gateway.refusal import Refusal
from caelum.sdk.generate import generate_foreign

UI = Path(__file__).parent.parent / "ui"
_CSP = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self' ws: wss:"
_REFERENCE = {"docs": "docs.html", "docs.js": "docs.js", "docs.css": "docs.css"}
_MADE = {"openapi.json": lambda: msgspec.json.encode(document()), "operations.json": generate_foreign}
"""What is made of the declarations, once; the second tells clients which operations plugins add."""
_ROOT = """<!doctype html><meta charset="utf-8"><title>Caelum</title>
<h1>Caelum</h1><p>The API is at <code>/zstack/v1</code>; its reference is at <a href="/docs">/docs</a>.</p>"""


class Pages:
    """What browsers load."""

    def __init__(self, ui: Path = UI) -> None:
        self._ui = ui.resolve()
        self._made: dict[str, bytes] = {}

    async def serve(self, request: web.BaseRequest, segments: list[str]) -> web.StreamResponse:
        """The page at a path."""
        page = segments[0] if len(segments) == 1 else None
        if page not in _MADE and page not in _REFERENCE and segments and not await self._has_ui():
            raise Refusal(404, f"there is nothing at {request.rel_url.raw_path[:255]}")
        if request.method not in ("GET", "HEAD"):
            raise Refusal(405, f"the method {request.method} is not allowed", {"Allow": "GET"})
        if page is not None and page in _MADE:
            return raw_json(await self._made_page(page))
        if page in _REFERENCE:
            return _file(_REFERENCE[page], files("caelum.gateway").joinpath(_REFERENCE[page]).read_bytes())
        return await self._ui_file(segments)

    async def _made_page(self, page: str) -> bytes:
        if page not in self._made:
            # A few hundred operations take long enough to be felt; other requests go on meanwhile.
            self._made[page] = await asyncio.to_thread(_MADE[page])
        return self._made[page]

    async def _has_ui(self) -> bool:
        return await asyncio.to_thread((self._ui / "index.html").is_file)

    async def _ui_file(self, segments: list[str]) -> web.StreamResponse:
        found = await asyncio.to_thread(_find, self._ui, segments)
        if found is None:
            return _file("index.html", _ROOT.encode())
        return _file(found.name, await asyncio.to_thread(found.read_bytes))


def _find(root: Path, segments: list[str]) -> Path | None:
    """The file of a path inside `root`; a path that is none belongs to the UI's own router."""
    for one in segments:
        check_text(one)
    wanted = root.joinpath(*segments).resolve()
    if wanted.is_relative_to(root) and wanted.is_file():
        return wanted
    index = root / "index.html"
    return index if index.is_file() else None


def _file(name: str, body: bytes) -> web.Response:
    kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
    if kind.startswith("text/") or kind.endswith("javascript"):
        kind += "; charset=utf-8"
    headers = {"Content-Type": kind, "Content-Security-Policy": _CSP, "Cache-Control": "no-cache", **SECURITY_HEADERS}
    return web.Response(body=body, headers=headers)
