"""Renew the host's certificate in time, by asking the management node that it reports to.

Invariant: the key never leaves this host and stays the same; the certificate file is replaced at once or not at all.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from urllib.parse import urljoin

import aiohttp
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from caelum.agent.core import Agent
from caelum.kernel import pki

log = logging.getLogger(__name__)

CHECK_SECONDS = 3600.0
POST_TIMEOUT = 30.0
RENEWAL = "certificate"
"""Where certificates are renewed, beside the report URL."""


async def keep_fresh(agent: Agent) -> None:
    """Renew for ever; a failure is tried again at the next look, of which many are left."""
    while True:
        try:
            if await renew_if_due(agent):
                log.info("the certificate was renewed")
        except (OSError, ValueError, aiohttp.ClientError) as error:
            log.warning("the certificate cannot be renewed: %s", error)
        await asyncio.sleep(CHECK_SECONDS)


async def renew_if_due(agent: Agent) -> bool:
    """Renew when the end is near and this host is adopted; returns whether it did."""
    path = agent.config.tls_dir / "tls.crt"
    pem = await agent.run_blocking(path.read_bytes)
    if agent.report_url is None or pki.remaining(pem) > pki.RENEW_BEFORE:
        return False
    request = await agent.run_blocking(signing_request, agent.config.tls_dir / "tls.key")
    url = urljoin(agent.report_url, RENEWAL)
    timeout = aiohttp.ClientTimeout(total=POST_TIMEOUT)
    async with agent.http.post(url, data=request, timeout=timeout, server_hostname=pki.SERVER_NAME) as reply:
        reply.raise_for_status()
        fresh = await reply.read()
    await agent.run_blocking(_replace, path, pem, fresh)
    return True


def signing_request(key_path: Path) -> bytes:
    """A signing request for the key in a file."""
    key = serialization.load_pem_private_key(key_path.read_bytes(), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError(f"{key_path} is not an elliptic-curve key")
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM)


def _replace(path: Path, old: bytes, fresh: bytes) -> None:
    """Replace the certificate, unless the new one is not for the same key."""
    former, new = x509.load_pem_x509_certificate(old), x509.load_pem_x509_certificate(fresh)
    if former.public_key() != new.public_key():
        raise ValueError("the new certificate is for another key")
    temporary = path.with_suffix(".part")
    temporary.write_bytes(fresh)
    temporary.replace(path)
