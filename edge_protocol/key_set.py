"""The gateway's key set: its envelope keys, signed by the key that devices pinned at enrolment (wire protocol, section 1)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from edge_protocol import jose
from edge_protocol.envelope_keys import SealKey, Suite, seal_key_from_jwk
from edge_protocol.errors import KeyInvalid, KeySetRejected, TokenRejected
from edge_protocol.keys import SigningKey, VerifyKey

MAX_KEY_SET_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySet:
    """A proven key set.

    Attributes:
        version: Only grows.
        issued_at: Unix seconds.
        expires_at: Unix seconds.
        keys: The current envelope key of each suite that the gateway allows.
    """

    version: int
    issued_at: int
    expires_at: int
    keys: tuple[SealKey, ...]

    def best(self, suites: Sequence[Suite]) -> SealKey | None:
        """The key of the first of these suites that the gateway has; None if it has none of them."""
        by_suite = {key.suite: key for key in self.keys}
        return next((by_suite[suite] for suite in suites if suite in by_suite), None)


def sign_key_set(
    keys: Iterable[SealKey], key: SigningKey, *, version: int, audience: str, issued_at: int, expires_at: int
) -> str:
    """Publish envelope keys: a compact JWS by the gateway's signing key."""
    claims = {
        "ver": version,
        "iat": issued_at,
        "exp": expires_at,
        "aud": audience,
        "keys": [dict(each.jwk) for each in keys],
    }
    return jose.sign(msgspec.json.encode(claims), key)


def verify_key_set(
    text: str | bytes, pinned: Sequence[VerifyKey], *, audience: str, min_version: int, now_s: float
) -> KeySet:
    """Prove a key set.

    Args:
        text: The JWS.
        pinned: The gateway's signing keys, as pinned at enrolment.
        audience: The gateway's audience.
        min_version: The highest version seen so far.
        now_s: Unix time in seconds.

    Raises:
        KeySetRejected: `key-set-malformed`, `key-set-forged`, `key-set-wrong-audience`, `key-set-expired`,
            `key-set-old`.
    """
    try:
        jws = jose.parse(text, limit=MAX_KEY_SET_BYTES)
    except TokenRejected as exc:
        raise KeySetRejected("key-set-malformed", exc.detail) from exc
    if jose.verify(jws, pinned) is None:
        raise KeySetRejected("key-set-forged", "not signed by the pinned key of this gateway")
    claims: dict[str, Any] = dict(jws.payload)
    numbers = [claims.get(name) for name in ("ver", "iat", "exp")]
    if not all(type(number) is int and number >= 0 for number in numbers) or not isinstance(claims.get("keys"), list):
        raise KeySetRejected("key-set-malformed", "expected {ver, iat, exp, aud, keys}")
    if claims.get("aud") != audience:
        raise KeySetRejected("key-set-wrong-audience", f"aud: expected {audience!r}")
    if claims["exp"] <= now_s:
        raise KeySetRejected("key-set-expired", f"expired at {claims['exp']}, it is {int(now_s)}")
    if claims["ver"] < min_version:
        raise KeySetRejected("key-set-old", f"version {claims['ver']}, {min_version} has been seen")
    return KeySet(
        version=claims["ver"],
        issued_at=claims["iat"],
        expires_at=claims["exp"],
        keys=tuple(_known_keys(claims["keys"])),
    )


def _known_keys(jwks: list[Any]) -> Iterable[SealKey]:
    """Keys of suites this version knows: newer ones may stand beside them."""
    for jwk in jwks:
        try:
            yield seal_key_from_jwk(jwk if isinstance(jwk, dict) else {})
        except KeyInvalid:
            continue
