"""Enrolment with a one-time code (wire protocol, section 8).

Why it is safe. The code ends in the hash of the CA's public key, so it names the gateway's CA before anything is sent.
The CA certificate itself is fetched over a connection that proves nothing (`GET /enroll/ca`), which is harmless: the
request carries nothing secret, and what comes back is used only if its public key has the hash of the code. Then a
second connection trusts that one CA and nothing else, checks the host name, and only there the code and the proof are
sent. Someone in the middle can make the first step fail, not make the second succeed. (The standard library of Python
3.11 cannot show the chain a peer presented, or one connection would do.)
"""

from __future__ import annotations

import hashlib
import hmac
import re
import ssl
from http import HTTPStatus
from typing import Any, Final

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from edge_agent.access import has_clock, read_key, read_trust, trust_only
from edge_agent.clock import Clock
from edge_agent.errors import ConfigError, EnrolmentFailed, UsageError
from edge_agent.home import CA_FILE, Home
from edge_agent.https import DEFAULT_PORT, fetch, parse_url
from edge_agent.settings import parse_address
from edge_agent.trust import Trust, TrustFile, save_trust, write_file
from edge_protocol import jose
from edge_protocol.errors import KeySetRejected
from edge_protocol.jwk import b64url, unb64url
from edge_protocol.keys import SigningKey

CA_PATH: Final = "/enroll/ca"
ENROLL_PATH: Final = "/enroll"
TIME_PATH: Final = "/time"
NO_AUDIENCE: Final = "lockgate-enroll"
"""`aud` of the proof while the device does not know the gateway's audience."""
_CODE = re.compile(r"[A-Za-z0-9_-]{1,200}\.[A-Za-z0-9_-]{43}")


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What the gateway answers: all that a device must know."""

    id: str
    aud: str
    ca: str
    signing_key: dict[str, Any]
    key_set: str
    mqtt: list[str]


class _Time(msgspec.Struct):
    time: str


def enroll(home: Home, code: str, *, url: str | None = None) -> Trust:
    """Prove the device's key with a code, and keep what the gateway answers in the home.

    Args:
        home: Made by `edge-agent init`.
        code: `secret.hash`.
        url: `https://HOST:PORT`; None for port 8443 of the gateway that `init` named.

    Raises:
        ConfigError: The code, the URL or the home is not what it should be.
        EnrolmentFailed: The gateway is not the one of the code, or refused it; its answer is in the message.
        AgentError: The gateway cannot be reached.
    """
    settings, key = home.settings(), read_key(home)
    old = read_trust(home, settings)
    url = url or _default_url(settings.gateway)
    parse_url(url)
    ca = _fetch_ca(url, _pin(code)).public_bytes(Encoding.PEM)
    context = trust_only(ca)
    clock = _clock(url, ca, context)
    proof = _proof(key, settings.id, code, old.audience or NO_AUDIENCE, clock)
    body = msgspec.json.encode({"code": code, "id": settings.id, "jwk": key.public.jwk, "proof": proof})
    answer = _read_answer(*fetch(url, ENROLL_PATH, context, body=body))
    if answer.id != settings.id or (settings.audience and answer.aud != settings.audience):
        raise EnrolmentFailed(
            f"{url}: answered for {answer.id!r} at {answer.aud!r}; expected {settings.id!r} at {old.audience!r}"
        )
    return _keep(home, answer, url, clock, old_version=old.file.key_set_version if _is_same_gateway(old, answer) else 0)


def _default_url(gateway: str) -> str:
    if not gateway:
        raise ConfigError(f"where to enrol is not known: expected --url https://HOST:{DEFAULT_PORT}")
    host = parse_address(gateway).host
    return f"https://[{host}]:{DEFAULT_PORT}" if ":" in host else f"https://{host}:{DEFAULT_PORT}"


def _pin(code: str) -> bytes:
    """The hash of the CA's public key that a code ends in."""
    try:
        if not _CODE.fullmatch(code):
            raise ValueError("wrong characters or length")
        return unb64url(code.partition(".")[2])
    except ValueError as exc:
        raise UsageError(
            "enrolment code: expected SECRET.HASH as `gateway device add` printed it, the hash of 43 characters"
        ) from exc


def _fetch_ca(url: str, pin: bytes) -> x509.Certificate:
    """Get the CA certificate from a peer that is not proven yet, and prove it by the pin."""
    context = ssl.create_default_context()
    context.check_hostname = False  # nothing secret is sent here, and nothing believed: see above
    context.verify_mode = ssl.CERT_NONE
    status, body = fetch(url, CA_PATH, context)
    try:
        certificates = x509.load_pem_x509_certificates(body) if status == HTTPStatus.OK else []
    except ValueError as exc:
        raise EnrolmentFailed(f"{url}{CA_PATH}: expected a CA certificate in PEM") from exc
    for certificate in certificates:
        public = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        if hmac.compare_digest(hashlib.sha256(public).digest(), pin):
            return certificate
    raise EnrolmentFailed(
        f"{url}: the gateway's CA is not the one this code was made for (HTTP status {status}); nothing was sent to it"
    )


def _clock(url: str, ca: bytes, context: ssl.SSLContext) -> Clock:
    """This device's clock, or the proven gateway's if this device can have none: the proof says when it was made."""
    clock = Clock()
    if not has_clock(ca):
        status, body = fetch(url, TIME_PATH, context)
        if status != HTTPStatus.OK or not clock.correct(str(msgspec.json.decode(body)["time"])):
            raise EnrolmentFailed(
                f"{url}{TIME_PATH}: status {status}; expected the time, since this device has no clock"
            )
    return clock


def _proof(key: SigningKey, device: str, code: str, audience: str, clock: Clock) -> str:
    claims = {
        "id": device,
        "code_hash": b64url(hashlib.sha256(code.encode()).digest()),
        "aud": audience,
        "iat": int(clock.now_s()),
    }
    return jose.sign(msgspec.json.encode(claims), key)


def _read_answer(status: int, body: bytes) -> Answer:
    if status != HTTPStatus.OK:
        raise EnrolmentFailed(f"the gateway refused: HTTP status {status} {_reason(body)}".rstrip())
    try:
        return msgspec.json.decode(body, type=Answer)
    except msgspec.DecodeError as exc:
        raise EnrolmentFailed(f"the gateway's answer: {exc}; expected id, aud, ca, signing_key, key_set, mqtt") from exc


def _reason(body: bytes) -> str:
    """Rule and detail of a problem document (RFC 9457); the beginning of any other answer."""
    try:
        problem = msgspec.json.decode(body, type=dict[str, Any])
        return f"{problem['rule']}: {problem['detail']}"
    except (msgspec.MsgspecError, UnicodeDecodeError, KeyError):
        return body[:300].decode(errors="replace").strip()


def _is_same_gateway(old: Trust, answer: Answer) -> bool:
    return old.file.signing_key is not None and old.file.signing_key.get("kid") == answer.signing_key.get("kid")


def _keep(home: Home, answer: Answer, url: str, clock: Clock, *, old_version: int) -> Trust:
    """Prove the key set by the signing key that came with it and write both; the CA first, since gateway.json names it."""
    file = TrustFile(
        audience=answer.aud,
        signing_key=answer.signing_key,
        key_set_version=old_version,
        ca=CA_FILE,
        mqtt=answer.mqtt,
        url=url,
    )
    trust = Trust(home.trust_file, file, audience=answer.aud)
    try:
        trust.prove(answer.key_set, clock.now_s())
    except KeySetRejected as exc:
        if exc.rule != "key-set-expired":  # expired: this device's clock may be wrong, the first connection mends it
            raise EnrolmentFailed(f"the gateway's key set: {exc}") from exc
    write_file(home.path / CA_FILE, answer.ca.encode())
    save_trust(home.trust_file, msgspec.structs.replace(file, key_set=answer.key_set))
    return trust
