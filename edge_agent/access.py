"""What the daemon and the commands need to reach the gateway: key, trust, address, TLS, each read from the home."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime
from typing import Final

from cryptography import x509

from edge_agent.errors import ConfigError, cause_of
from edge_agent.home import Home
from edge_agent.settings import Address, Settings, parse_address
from edge_agent.trust import Trust, load_trust
from edge_protocol.errors import KeyInvalid
from edge_protocol.keys import SigningKey, load_signing_key

_ANY_HOST: Final = frozenset(("0.0.0.0", "::"))  # noqa: S104  # an address to refuse, not to bind

_NO_CHECK_TIME: Final = ssl.VerifyFlags(0x200000)  # X509_V_FLAG_NO_CHECK_TIME; the ssl module has no name for it


def read_key(home: Home) -> SigningKey:
    """Read the device's private key; ConfigError if it is missing or is none."""
    try:
        return load_signing_key(home.key_file.read_bytes())
    except (OSError, KeyInvalid) as exc:
        raise ConfigError(f"{home.key_file}: {cause_of(exc)}; expected the key that `edge-agent init` makes") from exc


def read_trust(home: Home, settings: Settings) -> Trust:
    """Read gateway.json; ConfigError if it is wrong."""
    return load_trust(home.trust_file, audience=settings.audience)


def address_of(home: Home, settings: Settings, trust: Trust) -> Address:
    """Where the gateway is: as `init --gateway` said, else the first address that enrolment named.

    Raises:
        ConfigError: Neither did, or it is plain `mqtt://` to another machine.
    """
    named = [settings.gateway] if settings.gateway else trust.file.mqtt
    if not named:
        raise ConfigError(
            f"{home.settings_file}: gateway is not set; expected mqtts://HOST:8883, or `edge-agent enroll CODE` first"
        )
    address = parse_address(named[0])
    if address.host in _ANY_HOST:
        raise ConfigError(f'gateway {named[0]!r}: expected the name of a host; set gateway = "mqtts://HOST:8883"')
    if not (address.tls or address.is_loopback or settings.uplink.insecure_plaintext):
        raise ConfigError(
            f"gateway {named[0]!r}: expected mqtts://; plain mqtt:// goes to this machine only, "
            "unless uplink.insecure_plaintext = true"
        )
    return address


def tls_context(home: Home, trust: Trust) -> ssl.SSLContext:
    """TLS that trusts the CA given, or the system's, and checks the host name.

    Raises:
        ConfigError: The CA file cannot be read.
    """
    if not trust.file.ca:
        return _at_least_1_2(ssl.create_default_context())
    path = home.path / trust.file.ca
    try:
        return trust_only(path.read_bytes())
    except (OSError, ValueError) as exc:
        raise ConfigError(f"{path}: {cause_of(exc)}; expected the CA certificate in PEM") from exc


def trust_only(ca: bytes) -> ssl.SSLContext:
    """TLS that trusts the certificates of a PEM file, and nothing else, and checks the host name.

    A device whose clock is before the CA was made has no clock. It would refuse every certificate as not yet valid and
    never be told the time, so dates alone are not checked then: chain and host name are, by the pinned CA.

    Raises:
        ValueError: There is no certificate in it (`ssl.SSLError` is one too).
    """
    context = _at_least_1_2(ssl.create_default_context(cadata=ca.decode("ascii")))
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # the CA given may be an intermediate one
    if not has_clock(ca):
        context.verify_flags |= _NO_CHECK_TIME
    return context


def has_clock(ca: bytes) -> bool:
    """Whether this device's clock can be right: it is not before the CA certificates (PEM) were made."""
    made = max(certificate.not_valid_before_utc for certificate in x509.load_pem_x509_certificates(ca))
    return datetime.now(UTC) >= made


def _at_least_1_2(context: ssl.SSLContext) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
