"""Certificates of simulated hosts, made when a host first needs one.

Invariant: each host is known by a certificate of its own, as a real one is. They share one key, since making keys and
keeping them costs more than all the rest, and nobody is to be kept out of a simulation.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from caelum.kernel import pki
from caelum.kernel.pki import CertificateAuthority, Identity


class Certificates:
    """Makes what hosts speak TLS with. `directory` is a private scratch directory."""

    def __init__(self, authority: CertificateAuthority, directory: Path) -> None:
        self._authority = authority
        self._files = pki.Files(directory / "host.pem", directory / "host.key", directory / "ca.pem")
        key = ec.generate_private_key(ec.SECP256R1())
        form = serialization.Encoding.PEM
        private = key.private_bytes(form, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        self._files.key.write_bytes(private)
        self._files.authority.write_bytes(authority.certificate_pem)
        request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
        self._request = request.public_bytes(form)

    def server_context(self, host_uuid: str) -> ssl.SSLContext:
        """What this host's agent listens with."""
        return self._context(host_uuid, pki.server_context)

    def client_context(self, host_uuid: str) -> ssl.SSLContext:
        """What this host's agent answers and reports with."""
        return self._context(host_uuid, pki.client_context)

    def _context(self, host_uuid: str, make: Callable[[pki.Files], ssl.SSLContext]) -> ssl.SSLContext:
        certificate = self._authority.renew(Identity("host", host_uuid), self._request)
        self._files.certificate.write_bytes(certificate)
        return make(self._files)
