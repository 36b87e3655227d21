"""Tokens: the JWT that proves a principal at CONNECT (wire protocol, section 2).

Two steps, since the shell must look keys up in between: `read` takes a token apart and checks every form rule,
`verify` proves it. Unknown device, wrong key and bad signature read the same to the peer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from edge_protocol import jose
from edge_protocol.errors import TokenRejected
from edge_protocol.ids import is_audience
from edge_protocol.jose import Jws
from edge_protocol.keys import SigningKey, VerifyKey

MAX_INTEGER: Final = 1 << 53
_STRINGS: Final = ("aud", "sub", "iss", "jti")
_INTEGERS: Final = ("iat", "exp", "nbf")
NOT_PROVEN: Final = "not-proven"
_TIME_RULES: Final = frozenset(("token-expired", "token-not-yet-valid"))


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPolicy:
    """What a token must satisfy.

    Attributes:
        audience: `aud` must equal it.
        max_lifetime_s: `exp - iat` may be this long, in seconds.
        skew_s: How far clocks may differ, in seconds.
        require_jti: A token without `jti` is refused (the gateway's own tokens).
    """

    audience: str
    max_lifetime_s: int = 24 * 3600
    skew_s: int = 60
    require_jti: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """What a token claims; proven once `verify` has returned it. Times are Unix seconds."""

    aud: str
    sub: str
    iat: int
    exp: int
    iss: str | None = None
    nbf: int | None = None
    jti: str | None = None
    roles: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class UnprovenToken:
    """A token whose form is right. Its claims serve to look keys up and for nothing else."""

    jws: Jws
    claims: Claims


def mint(
    key: SigningKey,
    *,
    audience: str,
    subject: str,
    issued_at: int,
    expires_at: int,
    issuer: str | None = None,
    jti: str | None = None,
    roles: Sequence[str] = (),
) -> str:
    """Make a token. Times are Unix seconds; `kid` is always named.

    Raises:
        ValueError: The audience is not 1 to 255 of `!` to `~`, or it expires before it is issued.
    """
    if not is_audience(audience):
        raise ValueError(f"audience {audience!r}: expected 1 to 255 characters of '!' to '~'")
    if not 0 <= issued_at < expires_at < MAX_INTEGER:
        raise ValueError("expected 0 <= issued_at < expires_at < 2^53")
    claims: dict[str, Any] = {"aud": audience, "sub": subject, "iat": issued_at, "exp": expires_at}
    if issuer is not None:
        claims["iss"] = issuer
    if jti is not None:
        claims["jti"] = jti
    if roles:
        claims["roles"] = list(roles)
    return jose.sign(msgspec.json.encode(claims), key, typ="JWT")


def read(token: str | bytes) -> UnprovenToken:
    """Take a token apart and check its form.

    Raises:
        TokenRejected: `token-malformed`, with the member and what was expected.
    """
    jws = jose.parse(token)
    claims = jws.payload
    if jws.header.get("typ", "JWT").upper() != "JWT":  # a media type: in any case (RFC 7515, 4.1.9)
        raise TokenRejected("token-malformed", "header typ: expected JWT, or none")
    for name in ("aud", "sub", "iat", "exp"):
        if name not in claims:
            raise TokenRejected("token-malformed", f"{name}: expected this claim")
    for name in _STRINGS:
        if not isinstance(claims.get(name, ""), str):
            raise TokenRejected("token-malformed", f"{name}: expected a string")
    for name in _INTEGERS:
        value = claims.get(name, 0)
        if type(value) is not int or not 0 <= value < MAX_INTEGER:
            raise TokenRejected("token-malformed", f"{name}: expected an integer of seconds, from 0, below 2^53")
    roles = claims.get("roles", [])
    if not isinstance(roles, list) or not all(isinstance(role, str) for role in roles):
        raise TokenRejected("token-malformed", "roles: expected an array of strings")
    known = {name: claims[name] for name in (*_STRINGS, *_INTEGERS) if name in claims}
    return UnprovenToken(jws, Claims(**known, roles=tuple(roles)))


def verify(
    token: UnprovenToken, keys: Sequence[VerifyKey], *, policy: TokenPolicy, now_s: float
) -> tuple[Claims, VerifyKey]:
    """Prove a token: signature first, then its claims.

    Args:
        token: From `read`.
        keys: The keys valid now for the principal it names; none for an unknown one.
        policy: What else must hold.
        now_s: Unix time in seconds.

    Returns:
        The claims, now proven, and the key that proved them.

    Raises:
        TokenRejected: `not-proven`, `wrong-audience`, `token-lifetime`, `token-expired`, `token-not-yet-valid`,
            `token-without-id`.
    """
    key = jose.verify(token.jws, keys)
    if key is None:
        raise TokenRejected(NOT_PROVEN, "no valid key of this client proves the token")
    claims = token.claims
    if claims.aud != policy.audience:
        raise TokenRejected("wrong-audience", f"aud: expected {policy.audience!r}")
    if not 0 < claims.exp - claims.iat <= policy.max_lifetime_s:
        raise TokenRejected("token-lifetime", f"exp - iat: expected 1 to {policy.max_lifetime_s} seconds")
    if claims.exp + policy.skew_s <= now_s:
        raise TokenRejected("token-expired", f"expired at {claims.exp}, it is {int(now_s)}")
    if (valid_from := max(claims.iat, claims.nbf or 0)) - policy.skew_s > now_s:
        raise TokenRejected("token-not-yet-valid", f"valid from {valid_from}, it is {int(now_s)}")
    if policy.require_jti and not claims.jti:
        raise TokenRejected("token-without-id", "jti: expected one in a token of this issuer")
    return claims, key


def is_about_time(refusal: TokenRejected) -> bool:
    """Tell whether a right clock would have helped: the CONNACK then carries the server's time."""
    return refusal.rule in _TIME_RULES
