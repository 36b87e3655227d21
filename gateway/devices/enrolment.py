"""Enrolment by one-time code (wire protocol, section 8). No HTTP here: the web listener calls `enrol`.

A code is `secret.base64url(SHA-256(CA SubjectPublicKeyInfo))`; the store holds only its hash (`enrol/{hash}`), which is
also what the device's proof names, so a stolen store enrols nobody and looking a code up compares no secret.

A use is taken before the device is registered: two requests can never share the last one. Who it was taken for is
remembered until the code expires, so a device whose answer was lost gets the same answer when it asks again.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import structlog
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from edge_protocol import jose
from edge_protocol.errors import KeyInvalid, Rejected, TokenRejected, TopicInvalid
from edge_protocol.ids import device_id
from edge_protocol.jwk import b64url
from edge_protocol.keys import VerifyKey, verify_key_from_jwk
from gateway.devices.identity import GatewayIdentity
from gateway.devices.registry import Registry
from gateway.errors import ConfigError, Conflict, NotFound, RevisionDiffers
from gateway.ports.state import ABSENT, Entry, StateStore
from gateway.rules.admission import Attempts
from gateway.rules.selection import matches_pattern

log = structlog.get_logger()

PREFIX: Final = "enrol/"
UNKNOWN_AUDIENCE: Final = "lockgate-enroll"
"""`aud` of a proof by a device that does not know the gateway's audience yet: it learns it from the answer."""
SKEW_S: Final = 600
DEFAULT_TTL_S: Final = 24 * 3600
_SECRET_BYTES: Final = 24
_MAX_CODE_CHARS: Final = 256
_MAX_MEMBERS: Final = 32
_PAGE: Final = 500


class EnrolmentRefused(Rejected):
    """The request enrols nobody; the rule says why. `retry_after_s` is set for `too-many-attempts`."""

    retry_after_s: float = 0.0


class _Use(msgspec.Struct, frozen=True):
    """For which key, and which registration of the id, a use was taken."""

    kid: str
    epoch: int


class _Code(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is stored of a code. `ids`: an id, or a pattern with a final `*`. `enrolled`: by device id."""

    ids: str
    role: str
    expires: int
    uses_left: int
    labels: dict[str, str] = {}
    enrolled: dict[str, _Use] = {}


_code_of = msgspec.json.Decoder(_Code).decode


@dataclass(frozen=True, slots=True)
class _Request:
    code: str
    device: str
    key: VerifyKey
    proof: str

    @property
    def code_hash(self) -> str:
        return _hash(self.code)


class Enrolment:
    """Makes codes and exchanges them for a registration."""

    def __init__(
        self,
        state: StateStore,
        registry: Registry,
        identity: GatewayIdentity,
        *,
        audience: str,
        ca_pem: bytes,
        mqtt: Sequence[str],
        clock: Callable[[], float] = time.time,
        attempts: Attempts | None = None,
    ) -> None:
        self._state, self._registry, self._identity, self._clock = state, registry, identity, clock
        self._audience, self._ca_pem, self._mqtt = audience, ca_pem, tuple(mqtt)
        self._pin = b64url(hashlib.sha256(_public_key_info(ca_pem)).digest())
        self._attempts = attempts or Attempts(per_s=0.5, burst=20)

    async def create_code(
        self,
        ids: str,
        *,
        role: str,
        labels: Mapping[str, str] | None = None,
        ttl_s: int = DEFAULT_TTL_S,
        uses: int = 1,
    ) -> str:
        """Make a code; durable on return. It is shown once and stored nowhere.

        Args:
            ids: The device id it is for, or a pattern with a final `*` (`cart-*`).
            role: Role of the devices.
            labels: Labels of the devices.
            ttl_s: It expires so many seconds from now.
            uses: So many devices may enrol by it.

        Raises:
            TopicInvalid: The id, or what comes before `*`, cannot be a device's.
            NotFound: The policy has no such role.
            ConfigError: `ttl_s` or `uses` is below 1.
        """
        if ids != "*":
            device_id(ids.removesuffix("*"))
        self._registry.check_role(role)
        for name, value in (("ttl", ttl_s), ("uses", uses)):
            if value < 1:
                raise ConfigError(name, value, "at least 1")
        code = f"{_secret()}.{self._pin}"
        expires = int(self._clock()) + ttl_s
        stored = _Code(ids=ids, role=role, expires=expires, uses_left=uses, labels=dict(labels or {}))
        await self._state.put(PREFIX + _hash(code), msgspec.json.encode(stored), expect=ABSENT)
        log.info("enrolment_code_created", ids=ids, role=role, uses=uses, expires=expires)
        return code

    async def enrol(self, request: Mapping[str, Any], *, peer: str) -> dict[str, Any]:
        """Exchange a code for a registration.

        Args:
            request: `{code, id, jwk, proof}`, as decoded from JSON; anything else may be in it.
            peer: Address of the sender: attempts are counted by it.

        Returns:
            `{id, aud, ca, signing_key, key_set, mqtt}`. The same request again gives the same registration.

        Raises:
            EnrolmentRefused: The rule and the detail may be told to the peer.
            BusUnavailable: The store cannot be used now; the request may be repeated.
        """
        try:
            if wait_s := self._attempts.take(peer, self._clock()):
                refusal = EnrolmentRefused("too-many-attempts", f"try again in {wait_s:.0f} seconds")
                refusal.retry_after_s = wait_s
                raise refusal
            return await self._enrol(_request(request))
        except EnrolmentRefused as exc:
            log.warning("enrolment_refused", peer=peer, rule=exc.rule, detail=exc.detail)
            raise

    async def prune(self) -> int:
        """Forget codes that have expired; tell how many."""
        gone, after = 0, ""
        while page := await self._state.scan(PREFIX, after, _PAGE):
            after = page[-1].key
            for entry in page:
                if _code_of(entry.value).expires <= self._clock():
                    await self._state.delete(entry.key)
                    gone += 1
        return gone

    async def _enrol(self, request: _Request) -> dict[str, Any]:
        entry, code = await self._code(request)
        self._check_proof(request)
        use = _Use(request.key.jwk["kid"], await self._registry.next_epoch(request.device))
        if code.enrolled.get(request.device) != use:
            if not code.uses_left:
                raise EnrolmentRefused("code-used", "the code has been used; ask for a new one")
            enrolled = {**code.enrolled, request.device: use}
            code = msgspec.structs.replace(code, uses_left=code.uses_left - 1, enrolled=enrolled)
            entry = await self._save(entry, code)
        await self._register(request, entry, code)
        key_set = self._identity.key_set(audience=self._audience, now_s=self._clock())
        return {
            "id": request.device,
            "aud": self._audience,
            "ca": self._ca_pem.decode(),
            "signing_key": dict(self._identity.signing_jwk),
            "key_set": key_set,
            "mqtt": list(self._mqtt),
        }

    async def _code(self, request: _Request) -> tuple[Entry, _Code]:
        entry = await self._state.get(PREFIX + request.code_hash)
        if entry is None:
            raise EnrolmentRefused("code-unknown", "no such code; ask for a new one")
        code = _code_of(entry.value)
        if code.expires <= self._clock():
            raise EnrolmentRefused("code-expired", "the code has expired; ask for a new one")
        if not matches_pattern(code.ids, request.device):
            raise EnrolmentRefused("id-not-allowed", f"id {request.device!r}: this code is for {code.ids!r}")
        return entry, code

    def _check_proof(self, request: _Request) -> None:
        try:
            proof = jose.parse(request.proof)
        except TokenRejected as exc:
            raise EnrolmentRefused("proof-malformed", exc.detail) from exc
        if jose.verify(proof, [request.key]) is None:
            raise EnrolmentRefused("proof-not-proven", "proof: expected a JWS by the key of jwk")
        claims = proof.payload
        expected = {"id": request.device, "code_hash": request.code_hash}
        for name, value in expected.items():
            if claims.get(name) != value:
                raise EnrolmentRefused("proof-mismatch", f"proof: {name} differs from the request's")
        if claims.get("aud") not in (self._audience, UNKNOWN_AUDIENCE):
            raise EnrolmentRefused("wrong-audience", f"proof: aud: expected this gateway's, or {UNKNOWN_AUDIENCE!r}")
        issued_at, now_s = claims.get("iat"), self._clock()
        if type(issued_at) is not int or not now_s - SKEW_S <= issued_at <= now_s + SKEW_S:
            raise EnrolmentRefused(
                "proof-time", f"proof: iat: expected an integer within {SKEW_S} seconds of {int(now_s)}"
            )

    async def _save(self, entry: Entry, code: _Code) -> Entry:
        value = msgspec.json.encode(code)
        try:
            revision = await self._state.put(entry.key, value, expect=entry.revision)
        except RevisionDiffers as exc:
            raise EnrolmentRefused("code-busy", "the code is being used by another request; try again") from exc
        return Entry(entry.key, value, revision)

    async def _register(self, request: _Request, entry: Entry, code: _Code) -> None:
        with suppress(NotFound):
            if (await self._registry.show(request.device)).key(request.key.jwk["kid"]):
                return  # the answer was lost, and the device asks again
        try:
            await self._registry.add(request.device, request.key, role=code.role, labels=code.labels)
        except Conflict as exc:
            enrolled = {name: use for name, use in code.enrolled.items() if name != request.device}
            await self._save(entry, msgspec.structs.replace(code, uses_left=code.uses_left + 1, enrolled=enrolled))
            raise EnrolmentRefused("already-registered", str(exc)) from exc


def _request(request: Mapping[str, Any]) -> _Request:
    code, device, jwk, proof = (request.get(name) for name in ("code", "id", "jwk", "proof"))
    if not isinstance(code, str) or not 1 <= len(code) <= _MAX_CODE_CHARS or not code.isascii():
        raise EnrolmentRefused("malformed", f"code: expected a string of at most {_MAX_CODE_CHARS} ASCII characters")
    if not isinstance(device, str) or not isinstance(proof, str):
        raise EnrolmentRefused("malformed", "id, proof: expected strings")
    if not isinstance(jwk, dict) or len(jwk) > _MAX_MEMBERS:
        raise EnrolmentRefused("malformed", "jwk: expected a public JWK")
    if "d" in jwk:
        raise EnrolmentRefused("key-private", "jwk: expected the public key only; this one is spent, make another")
    try:
        return _Request(code, device_id(device), verify_key_from_jwk(jwk), proof)
    except TopicInvalid as exc:
        raise EnrolmentRefused("bad-id", str(exc)) from exc
    except KeyInvalid as exc:
        raise EnrolmentRefused("key-invalid", str(exc)) from exc


def _secret() -> str:
    """Never beginning with `-`: on a command line that would be an option."""
    while not (secret := secrets.token_urlsafe(_SECRET_BYTES))[0].isalnum():
        pass
    return secret


def _hash(code: str) -> str:
    return b64url(hashlib.sha256(code.encode()).digest())


def _public_key_info(ca_pem: bytes) -> bytes:
    try:
        certificate = x509.load_pem_x509_certificate(ca_pem)
    except ValueError as exc:
        raise ConfigError("mqtt.certificate", "the CA", f"a certificate in PEM ({exc})") from exc
    return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
