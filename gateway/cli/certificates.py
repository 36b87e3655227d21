"""Development certificates: a CA of one's own and the server certificate it signs; and the check of either at start.

For trying things out and for small installations. Where there is a real CA, put its files in the place of these. Keys
are ECDSA P-256, which every MQTT client's TLS library can verify; they are on disk before anything refers to them.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from gateway.errors import ConfigError, Conflict

_T = TypeVar("_T")

CA_DAYS: Final = 3650
SERVER_DAYS: Final = 825  # the longest that Apple's TLS accepts of a private CA
ALWAYS: Final = ("localhost", "127.0.0.1", "::1")
_CLOCK_MARGIN: Final = timedelta(minutes=5)  # a device's clock may be behind
_PUBLIC, _PRIVATE = 0o644, 0o600


@dataclass(frozen=True, slots=True)
class Issuer:
    """A CA that can sign."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


def write_certificates(folder: Path, hosts: Sequence[str], *, now: datetime) -> list[Path]:
    """Make what is missing of ca.pem, ca-key.pem, server.pem (with its chain) and server-key.pem.

    Args:
        folder: Exists.
        hosts: Names and addresses of the server, besides `ALWAYS`.
        now: Begin of validity.

    Returns:
        The files written; none that exists is touched.

    Raises:
        Conflict: Half a pair exists.
        ConfigError: A host is no name and no address.
    """
    names = _names((*ALWAYS, *hosts))
    ca_pem, ca_key = _pair(folder, "ca")
    server_pem, server_key = _pair(folder, "server")
    written: list[Path] = []
    if not server_pem.exists():
        if not ca_pem.exists():
            _write_issuer(ca_pem, ca_key, now=now)
            written += [ca_pem, ca_key]
        _write_server(server_pem, server_key, _load_issuer(ca_pem, ca_key), names, now=now)
        written += [server_pem, server_key]
    return written


def write_file(path: Path, data: bytes, mode: int) -> None:
    """Write a new file, durable on return; never over another.

    Raises:
        FileExistsError: There is one.
    """
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def check_server_certificate(certificate: Path, private_key: Path, *, now: datetime) -> datetime:
    """Check that a server certificate can be used; tell until when.

    Raises:
        ConfigError: A file cannot be read, the key is another one's, or it is not valid now.
    """
    chain = _parse(certificate, "mqtt.certificate", "PEM certificates", x509.load_pem_x509_certificates)
    key = _parse(private_key, "mqtt.private_key", "a PEM private key without a password", _load_key)
    own = chain[0]
    if own.public_key() != key.public_key():
        raise ConfigError("mqtt.private_key", str(private_key), f"the key of {certificate}")
    start, end = own.not_valid_before_utc, own.not_valid_after_utc
    if not start <= now < end:
        raise ConfigError("mqtt.certificate", str(certificate), f"one that is valid now, and this is {start} to {end}")
    return end


def _pair(folder: Path, name: str) -> tuple[Path, Path]:
    certificate, key = folder / f"{name}.pem", folder / f"{name}-key.pem"
    if key.exists() and not certificate.exists():
        raise Conflict(f"{key} exists without {certificate.name}: bring that back, or move the key away")
    return certificate, key


def _names(hosts: Iterable[str]) -> list[x509.GeneralName]:
    return [_name(host) for host in dict.fromkeys(hosts)]


def _name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    if not host.isascii() or not host or any(char in host for char in " :/"):
        raise ConfigError("--host", host, "a DNS name in ASCII or an IP address, without a port")
    return x509.DNSName(host)


def _write_issuer(certificate: Path, key_file: Path, *, now: datetime) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = _subject("Lockgate development CA")
    made = (
        _builder(name, name, key.public_key(), now, CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    write_file(key_file, _key_pem(key), _PRIVATE)
    write_file(certificate, _pem(made), _PUBLIC)


def _write_server(
    certificate: Path, key_file: Path, issuer: Issuer, names: list[x509.GeneralName], *, now: datetime
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    authority = issuer.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    made = (
        _builder(_subject("Lockgate gateway"), issuer.certificate.subject, key.public_key(), now, SERVER_DAYS)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(authority), critical=False)
        .sign(issuer.key, hashes.SHA256())
    )
    write_file(key_file, _key_pem(key), _PRIVATE)
    # The chain holds the CA too: an agent that enrols pins it from the handshake (wire protocol, section 8).
    write_file(certificate, _pem(made) + _pem(issuer.certificate), _PUBLIC)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_MARGIN)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _usage(*, certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not certificates,
        key_cert_sign=certificates,
        crl_sign=certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _load_issuer(certificate: Path, key: Path) -> Issuer:
    if not key.exists():
        raise Conflict(f"{certificate} exists without {key.name}: put your server.pem and server-key.pem beside it")
    try:
        loaded = serialization.load_pem_private_key(key.read_bytes(), password=None)
        issuer = x509.load_pem_x509_certificate(certificate.read_bytes())
    except (ValueError, TypeError) as exc:
        raise Conflict(f"{certificate}, {key.name}: expected a CA's certificate and key in PEM ({exc})") from exc
    if not isinstance(loaded, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise Conflict(f"{key}: expected an ECDSA or RSA key")
    return Issuer(issuer, loaded)


def _load_key(data: bytes) -> PrivateKeyTypes:
    return serialization.load_pem_private_key(data, password=None)


def _parse(path: Path, setting: str, expected: str, load: Callable[[bytes], _T]) -> _T:
    try:
        return load(path.read_bytes())
    except OSError as exc:
        raise ConfigError(setting, str(path), f"a readable file ({exc.strerror})") from exc
    except (ValueError, TypeError) as exc:
        raise ConfigError(setting, str(path), f"{expected} ({exc})") from exc


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
