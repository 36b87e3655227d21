"""The server's certificate, and the CA of its clients, as TLS contexts that can be replaced while connections live.

A new context is built from the files as a whole, or not at all: with a bad or half-written pair the old one stays, and
the log says so. Connections keep the context they began with.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog

from gateway.errors import ConfigError
from gateway.mqtt.settings import ServerSettings

log = structlog.get_logger()

LOOK_S: Final = 2.0
"""How often the files are looked at."""

_Stamp = tuple[tuple[int, int, int] | None, ...]


class Certificates:
    """The context that new connections get.

    Attributes:
        context: The current one.
        on_reload: Called when the files have changed and can be used; for others who use the same. If it raises an error
            of reading them, it is called again.
        check_at_s: When the wheel looks at the files next (`Timed`).
    """

    def __init__(self, settings: ServerSettings) -> None:
        """Load the files.

        Raises:
            ConfigError: One of them cannot be used.
        """
        self._settings = settings
        self._seen = self._stamp()
        self.context = server_context(settings)
        self.on_reload: Callable[[], object] = lambda: None
        self.check_at_s = float("inf")

    def reload(self) -> bool:
        """Load the files again; tell whether they could be used. If not, the old context stays."""
        self._seen = self._stamp()
        try:
            self.context = server_context(self._settings)
        except ConfigError as exc:
            log.warning("certificate_not_reloaded", setting=exc.key, reason=str(exc))
            return False
        log.info("certificate_reloaded", certificate=self._settings.certificate)
        try:
            self.on_reload()
        except (OSError, ssl.SSLError) as exc:  # they read the files too, which may have changed again meanwhile
            log.warning("certificate_not_reloaded", setting="mqtt.certificate", reason=str(exc))
            self._seen = ()
            return False
        return True

    def check(self, now_s: float) -> float:
        """Load the files again if one has changed since it was last looked at (`Timed`)."""
        if self._stamp() != self._seen:
            self.reload()
        return now_s + LOOK_S

    def _stamp(self) -> _Stamp:
        settings = self._settings
        names = (settings.certificate, settings.private_key, settings.client_ca)
        return tuple(_file_stamp(name) for name in names if name)  # "" would be the current folder


def server_context(settings: ServerSettings) -> ssl.SSLContext:
    """Build a server's context: TLS 1.2 or later, and with `client_ca` a certificate from every client.

    Raises:
        ConfigError: A file cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(settings.certificate, settings.private_key)
    except (OSError, ssl.SSLError) as exc:
        found = f"{settings.certificate}, {settings.private_key}"
        raise ConfigError("mqtt.certificate", found, f"a PEM certificate and its private key ({exc})") from exc
    if settings.client_ca:
        _require_certificates(context, settings.client_ca)
    return context


def certified_names(certificate: dict[str, object] | None) -> frozenset[str]:
    """The names that a peer's certificate proves: its subject's CN and its DNS names (`SSLSocket.getpeercert`)."""
    if not certificate:
        return frozenset()
    subject: object = certificate.get("subject", ())
    names: object = certificate.get("subjectAltName", ())
    assert isinstance(subject, tuple)
    assert isinstance(names, tuple)
    common = {value for part in subject for key, value in part if key == "commonName"}
    return frozenset(common | {value for kind, value in names if kind == "DNS"})


def _require_certificates(context: ssl.SSLContext, file: str) -> None:
    context.verify_mode = ssl.CERT_REQUIRED
    context.options |= ssl.OP_NO_TICKET  # a resumed session would skip the check of a certificate
    context.num_tickets = 0
    try:
        context.load_verify_locations(file)
    except (OSError, ssl.SSLError) as exc:
        raise ConfigError("mqtt.client_ca", file, f"PEM certificates of the CA of clients ({exc})") from exc
    if not context.cert_store_stats()["x509_ca"]:
        raise ConfigError("mqtt.client_ca", file, "certificates of a CA")


def _file_stamp(name: str) -> tuple[int, int, int] | None:
    try:
        stat = Path(name).stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns, stat.st_size
