"""Certificates bind a connection to a UUID, in both directions, over real TLS."""

from __future__ import annotations

import asyncio
import datetime
import ssl
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from caelum.kernel import pki
from caelum.kernel.ids import derived_uuid
from caelum.kernel.pki import CertificateAuthority, Files, Identity

HOST_A, HOST_B, NODE = (derived_uuid(name) for name in ("host a", "host b", "node"))


def _host_files(directory: Path, host_uuid: str) -> Files:
    files = Files.in_directory(directory, host_uuid)
    pki.store(files, CertificateAuthority.open(directory).issue(Identity("host", host_uuid), ["127.0.0.1"]))
    return files


async def _talk(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> tuple[Identity | None, Identity | None]:
    """Whom the server saw, and whom the client saw."""
    seen: asyncio.Future[Identity | None] = asyncio.get_running_loop().create_future()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.set_result(pki.peer_identity(writer))
        writer.write(await reader.readexactly(1))
        await writer.drain()
        writer.close()

    listener = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=server)
    try:
        port = listener.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client, server_hostname=name)
        writer.write(b"x")
        # With TLS 1.3 a client learns at its first read that its certificate was refused.
        await reader.readexactly(1)
        peer = pki.peer_identity(writer)
        writer.close()
        return await seen, peer
    finally:
        listener.close()


async def test_both_ends_learn_who_the_other_is(tmp_path: Path) -> None:
    host, node = _host_files(tmp_path, HOST_A), pki.ensure_server(tmp_path, NODE)
    seen, peer = await _talk(pki.server_context(host), pki.client_context(node), HOST_A)
    assert seen == Identity("server", NODE)
    assert peer == Identity("host", HOST_A)


async def test_agents_reach_any_node_under_one_name(tmp_path: Path) -> None:
    host, node = _host_files(tmp_path, HOST_A), pki.ensure_server(tmp_path, NODE)
    seen, peer = await _talk(pki.server_context(node), pki.client_context(host), pki.SERVER_NAME)
    assert (seen, peer) == (Identity("host", HOST_A), Identity("server", NODE))


async def test_a_listener_gives_no_tickets(tmp_path: Path) -> None:
    host, node = _host_files(tmp_path, HOST_A), pki.ensure_server(tmp_path, NODE)
    server, client = pki.server_context(host), pki.client_context(node)

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readexactly(1))
        await writer.drain()
        writer.close()

    listener = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=server)
    async with listener:
        port = listener.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client, server_hostname=HOST_A)
        writer.write(b"x")
        await reader.readexactly(1)  # tickets would have come before
        session = writer.get_extra_info("ssl_object").session
        writer.close()
    assert session is None or not session.has_ticket


async def test_one_host_cannot_stand_in_for_another(tmp_path: Path) -> None:
    other, node = _host_files(tmp_path, HOST_B), pki.ensure_server(tmp_path, NODE)
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        await _talk(pki.server_context(other), pki.client_context(node), HOST_A)


async def test_a_foreign_authority_is_refused_by_both_ends(tmp_path: Path) -> None:
    forged = _host_files(tmp_path / "foreign", HOST_A)
    node = pki.ensure_server(tmp_path / "own", NODE)
    with pytest.raises(ssl.SSLCertVerificationError):
        await _talk(pki.server_context(forged), pki.client_context(node), HOST_A)
    trusting = forged._replace(authority=node.authority)
    with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
        await _talk(pki.server_context(node), pki.client_context(trusting), pki.SERVER_NAME)


def test_keys_are_private_and_the_authority_is_made_once(tmp_path: Path) -> None:
    first = CertificateAuthority.open(tmp_path / "pki")
    assert CertificateAuthority.open(tmp_path / "pki").certificate_pem == first.certificate_pem
    pki.ensure_server(tmp_path / "pki", NODE)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "pki").iterdir()}
    assert modes == {"ca.key": 0o600, "ca.pem": 0o600, "server.key": 0o600, "server.pem": 0o600}


def test_the_servers_certificate_is_renewed_in_time_and_for_other_names(tmp_path: Path) -> None:
    files = pki.ensure_server(tmp_path, NODE, ["10.0.0.1"])
    before = files.certificate.read_bytes()
    assert pki.ensure_server(tmp_path, NODE, ["10.0.0.1"]).certificate.read_bytes() == before
    assert pki.ensure_server(tmp_path, NODE, ["10.0.0.2"]).certificate.read_bytes() != before
    short = CertificateAuthority.open(tmp_path).issue(
        Identity("server", NODE), ["10.0.0.2"], lifetime=datetime.timedelta(days=29)
    )
    pki.store(files, short)
    renewed = pki.ensure_server(tmp_path, NODE, ["10.0.0.2"]).certificate.read_bytes()
    assert pki.remaining(renewed) > datetime.timedelta(days=89)


def test_a_renewal_keeps_the_identity_whatever_the_request_says(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(HOST_B)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = CertificateAuthority.open(tmp_path).renew(
        Identity("host", HOST_A), request.public_bytes(serialization.Encoding.PEM)
    )
    names = x509.load_pem_x509_certificate(pem).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [f"urn:caelum:host:{HOST_A}"]
    assert names.get_values_for_type(x509.DNSName) == [HOST_A]
