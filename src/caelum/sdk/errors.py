"""What a client is told when an operation fails."""

from __future__ import annotations

from typing import Any


class ApiError(Exception):
    """The cloud's answer to an operation that failed: `error` is the wire error with code, details and cause."""

    def __init__(self, error: dict[str, Any]) -> None:
        self.error = error
        self.code: str = error.get("code", "")
        super().__init__(explain(error))


def explain(error: dict[str, Any]) -> str:
    """The error, its causes below it, and what to do, as lines of text."""
    lines, indent = [], ""
    current: dict[str, Any] | None = error
    while current:
        lines.append(f"{indent}[{current.get('code')}] {current.get('details') or current.get('description')}")
        for other in current.get("causes") or []:
            lines.append(f"{indent}  - {other.get('details')}")
        indent += "  "
        current = current.get("cause")
    if error.get("elaboration"):
        lines.append(f"What to do: {error['elaboration']}")
    return "\n".join(lines)
