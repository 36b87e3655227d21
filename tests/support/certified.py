"""Certificates for tests: a CA of one's own, and what it signs, as PEM files."""

from __future__ import annotations

import datetime as dt
import os
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


class Authority:
    """A CA, in `folder/NAME.pem`."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self.folder = folder
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"test {name}")])
        self.file = folder / f"{name}.pem"
        made = self._builder(self.name, self.key).add_extension(x509.BasicConstraints(True, None), critical=True)
        self.file.write_bytes(made.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))

    def issue(self, file: str, common_name: str, *dns: str) -> tuple[Path, Path]:
        """Write `file.pem` and `file-key.pem`, each replaced as a whole."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = self._builder(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)]), key)
        if dns:
            names = x509.SubjectAlternativeName([x509.DNSName(name) for name in dns])
            builder = builder.add_extension(names, critical=False)
        certificate = builder.sign(self.key, hashes.SHA256())
        paths = self.folder / f"{file}.pem", self.folder / f"{file}-key.pem"
        plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        _replace(paths[1], key.private_bytes(serialization.Encoding.PEM, *plain))
        _replace(paths[0], certificate.public_bytes(serialization.Encoding.PEM))
        return paths

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = dt.datetime.now(dt.UTC)
        return x509.CertificateBuilder(
            self.name, subject, key.public_key(), x509.random_serial_number(), now, now + dt.timedelta(1)
        )


def _replace(path: Path, data: bytes) -> None:
    path.with_suffix(".new").write_bytes(data)
    os.replace(path.with_suffix(".new"), path)  # noqa: PTH105 - one step, as an installer would


def served(authority: Authority, scheme: str = "mqtts", **options: object) -> dict[str, object]:
    """Settings of a server that uses `server.pem` of a CA's folder."""
    if not (authority.folder / "server.pem").exists():
        authority.issue("server", "localhost", "localhost")
    return {
        "listen": (f"{scheme}://localhost:0",),
        "certificate": str(authority.folder / "server.pem"),
        "private_key": str(authority.folder / "server-key.pem"),
    } | options


def trusting(authority: Authority, device: str = "") -> ssl.SSLContext:
    """A client's context, with a certificate of its own if it is a device."""
    context = ssl.create_default_context(cafile=str(authority.file))
    if device:
        context.load_cert_chain(*authority.issue(device, device))
    return context
