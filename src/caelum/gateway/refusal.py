"""Errors of the HTTP layer. They are plain text, unlike the operations' own errors, which are JSON."""

from __future__ import annotations

from collections.abc import Mapping


class Refusal(Exception):  # noqa: N818 - it is an answer, not a defect
    """A request that never became an API message: its HTTP status and one line that says why."""

    def __init__(self, status: int, text: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.headers = dict(headers or {})
