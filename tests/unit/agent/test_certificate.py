"""A host's certificate is renewed in time, for the same key, and used at once."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from caelum.agent.certificate import renew_if_due
from caelum.agent.core import Agent, AgentConfig
from caelum.agent.tls import Tls
from caelum.kernel import pki
from caelum.kernel.ids import new_uuid

from .fakes import Sink

HOST = pki.Identity("host", new_uuid())


class Renewing:
    """A management node that renews."""

    def __init__(self, authority: pki.CertificateAuthority) -> None:
        self.authority = authority
        self.other_key = False
        self.urls: list[str] = []

    @contextlib.asynccontextmanager
    async def post(self, url: str, *, data: bytes, **_: Any) -> AsyncIterator[Any]:
        self.urls.append(url)
        fresh = self.authority.issue(HOST).certificate if self.other_key else self.authority.renew(HOST, data)

        class Reply:
            def raise_for_status(self) -> None: ...

            async def read(self) -> bytes:
                return fresh

        yield Reply()


@pytest.fixture
def authority(tmp_path: Path) -> pki.CertificateAuthority:
    return pki.CertificateAuthority.open(tmp_path / "ca")


def _agent(tmp_path: Path, authority: pki.CertificateAuthority, days: int) -> tuple[Agent, Renewing]:
    credential = authority.issue(HOST, lifetime=datetime.timedelta(days=days))
    (tmp_path / "ca.crt").write_bytes(authority.certificate_pem)
    (tmp_path / "tls.crt").write_bytes(credential.certificate)
    (tmp_path / "tls.key").write_bytes(credential.key)
    http = Renewing(authority)
    agent = Agent(AgentConfig(state_dir=tmp_path, tls_dir=tmp_path), http, Sink())  # type: ignore[arg-type]
    agent.report_to("https://server:8443/agent/report", HOST.uuid)
    return agent, http


async def test_a_certificate_near_its_end_is_renewed(tmp_path: Path, authority: pki.CertificateAuthority) -> None:
    agent, http = _agent(tmp_path, authority, days=10)
    tls = Tls(tmp_path)
    assert await renew_if_due(agent)
    assert http.urls == ["https://server:8443/agent/certificate"]
    assert pki.remaining((tmp_path / "tls.crt").read_bytes()) > datetime.timedelta(days=80)
    assert tls.reload()
    assert not tls.reload()
    assert not await renew_if_due(agent)


async def test_one_that_is_good_for_long_is_kept(tmp_path: Path, authority: pki.CertificateAuthority) -> None:
    agent, http = _agent(tmp_path, authority, days=60)
    assert not await renew_if_due(agent)
    assert http.urls == []


async def test_a_certificate_for_another_key_is_refused(tmp_path: Path, authority: pki.CertificateAuthority) -> None:
    agent, http = _agent(tmp_path, authority, days=10)
    http.other_key = True
    before = (tmp_path / "tls.crt").read_bytes()
    with pytest.raises(ValueError, match="for another key"):
        await renew_if_due(agent)
    assert (tmp_path / "tls.crt").read_bytes() == before
