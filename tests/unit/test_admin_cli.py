"""`caelum admin`."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from caelum.cli import admin, session
from caelum.kernel import pki
from caelum.sdk.client import ApiError
from caelum.sdk.manifest import load

FINDING = {
    "kind": "orphan-volume", "severity": "error", "resourceType": "VolumeVO", "resourceUuid": "b" * 32,
    "details": "1 file without a row", "facts": {},
}  # fmt: skip


class Client:
    """Answers what it is given."""

    def __init__(self, **answers: Any) -> None:
        self.answers = answers

    def call(self, name: str, **parameters: Any) -> Any:
        answer = self.answers[name]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def query(self, resource: str) -> Any:
        return self.call(f"Query{resource}")


def use(monkeypatch: pytest.MonkeyPatch, **answers: Any) -> None:
    assert set(answers) <= set(load())
    monkeypatch.setattr(session, "client", lambda: Client(**answers))


@pytest.mark.parametrize(("findings", "code"), [([], 0), ([FINDING], 1)])
def test_an_audit_is_told_and_ends_with_its_outcome(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], findings: list[Any], code: int
) -> None:
    use(monkeypatch, RunAudit={"clean": not findings, "checked": {"hosts": 2, "vms": 3}, "findings": findings})
    assert admin.main(["audit"]) == code
    said = capsys.readouterr().out
    assert "looked at 2 hosts, 3 vms" in said
    assert ("1 file without a row" in said) is bool(findings)
    assert admin.main(["audit", "-o", "json"]) == code
    assert json.loads(capsys.readouterr().out)["findings"] == findings


def test_nodes_and_refusals(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    nodes = [{"uuid": one * 32, "hostName": f"10.0.0.{one}", "joinDate": "a", "heartBeat": "b"} for one in "12"]
    use(monkeypatch, QueryManagementNode=nodes, GetVersion={"version": "1.2.3"})
    assert admin.main(["nodes"]) == 0
    said = capsys.readouterr().out
    assert [float(line.split()[-1].rstrip("%")) for line in said.splitlines() if "10.0.0." in line] == [
        pytest.approx(50, abs=8)
    ] * 2
    assert "Version 1.2.3." in said
    use(monkeypatch, QueryManagementNode=ApiError({"code": "ID.1002", "details": "administrators only"}))
    assert admin.main(["nodes"]) == 1
    assert "administrators only" in capsys.readouterr().err


def test_a_hosts_certificate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, data, uuid = tmp_path / "out", tmp_path / "data", "d" * 32
    command = ["issue-host-certificate", "--host-uuid", uuid, "--address", "10.0.0.9", "--out", str(out)]
    command += ["--data-dir", str(data)]
    assert admin.main(command) == 1
    assert "There is no authority" in capsys.readouterr().err
    assert not data.exists()

    authority = pki.CertificateAuthority.open(data / "pki")
    assert admin.main(command) == 0
    assert uuid in capsys.readouterr().out
    files = pki.Files(out / "tls.crt", out / "tls.key", out / "ca.crt")
    pki.server_context(files)  # the three fit together
    assert files.authority.read_bytes() == authority.certificate_pem
    assert stat.S_IMODE(files.key.stat().st_mode) == 0o600
    first = files.certificate.read_bytes()
    assert admin.main(command) == 1
    assert "--force replaces them" in capsys.readouterr().err
    assert files.certificate.read_bytes() == first
    assert admin.main([*command, "--force"]) == 0
    assert files.certificate.read_bytes() != first
    assert admin.main([*command, "--host-uuid", "short"]) == 2
