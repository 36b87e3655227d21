"""Where devices reach the gateway: what is listened on, with a name that the server's certificate has."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from urllib.parse import urlsplit

from cryptography import x509

from gateway.config import Settings


def public_addresses(
    settings: Settings, *, mqtt: Sequence[str] | None = None, enrol_port: int | None = None
) -> tuple[list[str], str | None]:
    """Tell the MQTT URLs and the enrolment URL to print and to hand out.

    Args:
        settings: The configuration.
        mqtt: What is really listened on, if it is known (port 0 has become a port).
        enrol_port: Likewise of `http.device_listen`.
    """
    name = _certified_name(settings)
    urls = [_with_name(url, name) for url in (mqtt or settings.mqtt.listen)]
    enrol = settings.http.device_listen and _with_name(settings.http.device_listen, name, enrol_port)
    return list(dict.fromkeys(urls)), enrol or None


def _with_name(url: str, name: str, port: int | None = None) -> str:
    parts = urlsplit(url)
    host = parts.hostname or ""
    host = name if _is_unspecified(host) else host
    shown = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{shown}:{port or parts.port}{parts.path}"


def _is_unspecified(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def _certified_name(settings: Settings) -> str:
    """The last name of the certificate: the one that `gateway init --host` was given last, else this host's."""
    try:
        certificate = x509.load_pem_x509_certificate(settings.path(settings.mqtt.certificate).read_bytes())
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, x509.ExtensionNotFound):
        return "localhost"
    hosts = names.get_values_for_type(x509.DNSName)
    return hosts[-1] if hosts else "localhost"
