"""What a command sends, and what it shows."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from caelum.cli import commands, output, session


class Client:
    """Keeps what it is told to do."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def call(self, name: str, /, **parameters: Any) -> Any:
        parameters.pop("timeout", None), parameters.pop("progress", None)
        self.calls.append((name, parameters))
        return {"uuid": "1" * 32}


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Client:
    client = Client()
    monkeypatch.setattr(session, "client", lambda: client)
    return client


def test_passwords_of_accounts_are_hashed_and_those_of_consoles_are_not(client: Client) -> None:
    hashed = hashlib.sha512(b"secret").hexdigest()
    assert commands.run("account", ["create", "--name", "a", "--password", "secret"]) == 0
    assert commands.run("account", ["update", "2" * 32, "--password", "secret"]) == 0
    assert commands.run("vm", ["set-console-password", "3" * 32, "--console-password", "secret"]) == 0
    assert [call[1].get("password") or call[1]["consolePassword"] for call in client.calls] == [
        hashed,
        hashed,
        "secret",
    ]


def test_a_record_names_what_is_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    nics = [{"uuid": "4" * 32, "ip": "10.0.0.1"}, {"uuid": "5" * 32, "ip": "10.0.0.2"}]
    output.show(
        {"name": "web", "cpuNum": 1, "vmNics": nics, "allVolumes": [{"uuid": "6" * 32, "name": "root"}]}, "table"
    )
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(maxsplit=1)[1] for line in lines] == ["web", "1", "10.0.0.1, 10.0.0.2", "root"]
