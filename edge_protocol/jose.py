"""JWS in compact form, read strictly before PyJWT sees it (RFC 7515; wire protocol, section 2).

PyJWT alone accepts duplicate members, foreign `kid`, `jwk` and `jku`, `crit`, padding, string times (tried, 2.15). So
a text is first taken apart here, under a size limit, and only then verified, with one algorithm: the key's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from jwt import InvalidTokenError
from jwt.api_jws import PyJWS

from edge_protocol.errors import TokenRejected
from edge_protocol.jwk import unb64url
from edge_protocol.keys import SigningKey, VerifyKey

MAX_TOKEN_BYTES: Final = 8 * 1024
_HEADER_MEMBERS: Final = frozenset(("alg", "kid", "typ"))


@dataclass(frozen=True, slots=True)
class Jws:
    """A JWS taken apart, its signature not verified.

    Attributes:
        text: As it came.
        header: `alg` and optionally `kid`, `typ`; all strings.
        payload: The JSON object it carries. Believe nothing of it before `verify`.
    """

    text: str = field(repr=False)
    header: Mapping[str, str]
    payload: Mapping[str, Any]


def sign(payload: bytes, key: SigningKey, *, typ: str | None = None) -> str:
    """Sign bytes as a compact JWS with `alg`, `kid` and optionally `typ`."""
    headers = {"kid": key.public.jwk["kid"], **({"typ": typ} if typ else {})}
    return PyJWS().encode(payload, key.key, algorithm=key.alg, headers={"typ": None, **headers})


def parse(text: str | bytes, *, limit: int = MAX_TOKEN_BYTES) -> Jws:
    """Take a compact JWS apart, strictly.

    Args:
        text: Three base64url parts joined by dots.
        limit: At most so many bytes.

    Raises:
        TokenRejected: `token-malformed`, with the rule that was broken.
    """
    if len(text) > limit:
        raise TokenRejected("token-malformed", f"{len(text)} bytes, at most {limit} are allowed")
    try:
        text = text.decode("ascii") if isinstance(text, bytes) else text
        text.encode("ascii")
    except UnicodeError as exc:
        raise TokenRejected("token-malformed", "expected ASCII") from exc
    parts = text.split(".")
    if len(parts) != 3:
        raise TokenRejected("token-malformed", "expected three parts joined by dots")
    header, payload = (_json_part(part, what) for part, what in zip(parts, ("header", "payload"), strict=False))
    _decoded(parts[2], "signature")
    if extra := sorted(header.keys() - _HEADER_MEMBERS):
        raise TokenRejected("token-malformed", f"header member {extra[0][:40]!r}: expected only alg, kid, typ")
    if "alg" not in header or not all(isinstance(value, str) for value in header.values()):
        raise TokenRejected("token-malformed", "header: expected alg, and strings only")
    return Jws(text, header, payload)


def verify(jws: Jws, keys: Sequence[VerifyKey]) -> VerifyKey | None:
    """Find the key that signed it; None if none of these did.

    A key is tried only if the header's `alg` is its algorithm, and its `kid`, if named, its thumbprint.
    """
    for key in keys:
        if jws.header["alg"] != key.alg or jws.header.get("kid", key.jwk["kid"]) != key.jwk["kid"]:
            continue
        try:
            PyJWS(algorithms=[key.alg]).decode(jws.text, key.key, algorithms=[key.alg])
        except (InvalidTokenError, TypeError, ValueError):
            continue
        return key
    return None


def _json_part(part: str, what: str) -> dict[str, Any]:
    try:
        # as text, since json guesses UTF-16 and passes surrogates in bytes; written again, since it passes "\\ud800"
        value = json.loads(_decoded(part, what).decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as exc:
        raise TokenRejected("token-malformed", f"{what}: expected a UTF-8 JSON object with unique members") from exc
    if not isinstance(value, dict):
        raise TokenRejected("token-malformed", f"{what}: expected a JSON object")
    return value


def _decoded(part: str, what: str) -> bytes:
    try:
        return unb64url(part)
    except ValueError as exc:
        raise TokenRejected("token-malformed", f"{what}: {exc}") from exc


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("duplicate member")
    return members


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
