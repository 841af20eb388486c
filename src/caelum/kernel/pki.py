"""Who is who between servers and hosts: one certificate authority, and certificates that carry a UUID.

Invariant: a peer is exactly who its certificate names. A host's certificate names its host UUID as URI
(`urn:caelum:host:<uuid>`) and as DNS name (the bare UUID), so that ordinary TLS host name checking with the UUID as
the server name pins a connection to that host, whatever its address. A server's carries `urn:caelum:server:<node>` and
the DNS name `caelum-server`. A host's certificate is good for both directions, therefore whoever accepts connections
must also look at the peer's `Identity`: a host may not command another host, nor speak for it.

Keys are EC P-256, in files that only their owner can read. Nothing here needs the network; file access is short, but
callers inside an event loop run it in a thread.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import ssl
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple
from weakref import WeakKeyDictionary

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

SERVER_NAME = "caelum-server"
"""The TLS server name under which agents reach any management node."""

LIFETIME = datetime.timedelta(days=90)
RENEW_BEFORE = datetime.timedelta(days=30)
_CA_LIFETIME = datetime.timedelta(days=3650)
_CLOCK_SKEW = datetime.timedelta(hours=24)

Kind = Literal["host", "server"]


class Identity(NamedTuple):
    """Whom a certificate names."""

    kind: Kind
    uuid: str

    @property
    def urn(self) -> str:
        return f"urn:caelum:{self.kind}:{self.uuid}"


class Credential(NamedTuple):
    """A certificate and its key, in PEM."""

    certificate: bytes
    key: bytes


class Files(NamedTuple):
    """Where a party's certificate, key and authority lie: what an `ssl.SSLContext` is built from."""

    certificate: Path
    key: Path
    authority: Path

    @classmethod
    def in_directory(cls, directory: Path, name: str) -> Files:
        return cls(directory / f"{name}.pem", directory / f"{name}.key", directory / "ca.pem")


class CertificateAuthority:
    """Issues certificates. Its key is in a directory that only its owner reads, and in the database of a cluster."""

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self._certificate = certificate
        self._key = key

    @classmethod
    def open(cls, directory: Path) -> CertificateAuthority:
        """Load the authority of this directory; the first call makes it."""
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        key_path, certificate_path = directory / "ca.key", directory / "ca.pem"
        _write_once(key_path, _key_pem(_new_key()))
        key = _load_key(key_path.read_bytes())
        if not certificate_path.exists():
            _write_once(certificate_path, _pem(_self_signed(key)))
        return cls(x509.load_pem_x509_certificate(certificate_path.read_bytes()), key)

    @classmethod
    def place(cls, directory: Path, certificate: bytes, key: bytes, secret: str) -> None:
        """Make this authority the directory's, in place of any other. Raises ValueError when the secret is wrong."""
        plain = _key_pem(_load_key(key, secret))
        for path, content in ((directory / "ca.key", plain), (directory / "ca.pem", certificate)):
            if not path.exists() or path.read_bytes() != content:
                _replace(path, content)

    def key_pem(self, secret: str) -> bytes:
        """The key, encrypted when there is a secret."""
        return _key_pem(self._key, secret)

    @property
    def certificate_pem(self) -> bytes:
        """What the other party must trust."""
        return _pem(self._certificate)

    def derive(self, purpose: bytes) -> bytes:
        """32 bytes that follow from the authority's key, and another 32 for each purpose."""
        number = self._key.private_numbers().private_value.to_bytes(32, "big")
        return HKDF(hashes.SHA256(), 32, salt=None, info=purpose).derive(number)

    def issue(
        self, identity: Identity, names: Iterable[str] = (), lifetime: datetime.timedelta = LIFETIME
    ) -> Credential:
        """A new key and its certificate. `names` are further DNS names or IP addresses."""
        key = _new_key()
        return Credential(self._sign(key.public_key(), identity, names, lifetime), _key_pem(key))

    def renew(self, identity: Identity, request_pem: bytes) -> bytes:
        """A fresh certificate for the key in a signing request; the names asked for in it are ignored."""
        request = x509.load_pem_x509_csr(request_pem)
        key = request.public_key()
        if not request.is_signature_valid or not isinstance(key, ec.EllipticCurvePublicKey):
            raise ValueError("the signing request is not signed by its own elliptic-curve key")
        return self._sign(key, identity, (), LIFETIME)

    def _sign(
        self, key: ec.EllipticCurvePublicKey, identity: Identity, names: Iterable[str], lifetime: datetime.timedelta
    ) -> bytes:
        own_name = identity.uuid if identity.kind == "host" else SERVER_NAME
        alternatives = [x509.UniformResourceIdentifier(identity.urn), *map(_general_name, (own_name, *names))]
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = (
            _builder(_name(identity.uuid), self._certificate.subject, key, lifetime)
            .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        return _pem(builder.sign(self._key, hashes.SHA256()))


def ensure_server(directory: Path, node_uuid: str, names: Iterable[str] = ()) -> Files:
    """The node's own certificate files, made or renewed when they are missing, near their end, or for other names."""
    files = Files.in_directory(directory, "server")
    authority = CertificateAuthority.open(directory)
    wanted = frozenset(names)
    if not files.key.exists() or not _still_good(files.certificate, Identity("server", node_uuid), wanted):
        store(files, authority.issue(Identity("server", node_uuid), sorted(wanted)))
    return files


def store(files: Files, credential: Credential) -> None:
    """Put a credential into its files, each replaced at once."""
    _replace(files.key, credential.key)
    _replace(files.certificate, credential.certificate)


def server_context(files: Files) -> ssl.SSLContext:
    """For a listener: TLS 1.3, and nobody without a certificate of our authority gets in.

    It gives no tickets to resume a session with: nobody uses them, and a client keeps several KB for each.
    """
    context = _context(ssl.PROTOCOL_TLS_SERVER, files)
    context.verify_mode = ssl.CERT_REQUIRED
    context.num_tickets = 0
    return context


def client_context(files: Files, *, check_name: bool = True) -> ssl.SSLContext:
    """For a client; name checking is off only for a first contact, whose peer's `Identity` is then looked at."""
    context = _context(ssl.PROTOCOL_TLS_CLIENT, files)
    context.check_hostname = check_name
    return context


_identities: WeakKeyDictionary[Any, Identity] = WeakKeyDictionary()
"""By connection: TLS 1.3 never asks for another certificate in the middle of one, and to parse it takes a while."""


def peer_identity(transport_or_ssl: Any) -> Identity | None:
    """Whom the verified certificate at the other end of a connection names; None without one of ours."""
    ssl_object = transport_or_ssl
    if hasattr(transport_or_ssl, "get_extra_info"):
        ssl_object = transport_or_ssl.get_extra_info("ssl_object")
    if ssl_object is None:
        return None
    identity = _identities.get(ssl_object) or _named_by(ssl_object.getpeercert())
    if identity is not None:
        _identities[ssl_object] = identity
    return identity


def _named_by(certificate: dict[str, Any] | None) -> Identity | None:
    for kind, value in (certificate or {}).get("subjectAltName", ()):
        identity = _parse_urn(value) if kind == "URI" else None
        if identity is not None:
            return identity
    return None


def remaining(certificate_pem: bytes) -> datetime.timedelta:
    """How long a certificate is still good."""
    return x509.load_pem_x509_certificate(certificate_pem).not_valid_after_utc - _now()


def _parse_urn(urn: str) -> Identity | None:
    match urn.split(":"):
        case ["urn", "caelum", "host", uuid]:
            return Identity("host", uuid)
        case ["urn", "caelum", "server", uuid]:
            return Identity("server", uuid)
    return None


def _context(protocol: int, files: Files) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cafile=files.authority)
    context.load_cert_chain(files.certificate, files.key)
    return context


def _still_good(path: Path, identity: Identity, names: frozenset[str]) -> bool:
    if not path.exists():
        return False
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    alternatives = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    wanted = {x509.UniformResourceIdentifier(identity.urn), *map(_general_name, (SERVER_NAME, *names))}
    return certificate.not_valid_after_utc - _now() > RENEW_BEFORE and set(alternatives) == wanted


def _self_signed(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    name, public = _name("Caelum authority"), key.public_key()
    builder = (
        _builder(name, name, public, _CA_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(_ca_usage(), critical=True)
    )
    return builder.sign(key, hashes.SHA256())


def _ca_usage() -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, lifetime: datetime.timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        # Hosts whose clock is behind ours must not see a certificate of the future.
        .not_valid_before(_now() - _CLOCK_SKEW)
        .not_valid_after(_now() + lifetime)
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey, secret: str = "") -> bytes:
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if secret:
        encryption = serialization.BestAvailableEncryption(secret.encode())
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


def _load_key(pem: bytes, secret: str = "") -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(pem, secret.encode() or None)
    except TypeError as error:
        raise ValueError(f"the authority's key and the secret do not fit: {error}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("the authority's key is not an elliptic-curve key")
    return key


def _write_temporary(path: Path, content: bytes) -> Path:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return temporary


def _write_once(path: Path, content: bytes) -> None:
    """Make a file unless it exists; of several processes at once, the first wins and the file is never half written."""
    if path.exists():
        return
    temporary = _write_temporary(path, content)
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass
    finally:
        temporary.unlink()


def _replace(path: Path, content: bytes) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    _write_temporary(path, content).replace(path)
