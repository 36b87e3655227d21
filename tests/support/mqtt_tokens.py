"""Who connects in the tests of the MQTT server: keys of devices, an issuer, their tokens and envelopes."""

from __future__ import annotations

import time
import uuid
from functools import cache
from typing import Any, Final

import ingest_parts as parts

from edge_protocol import tokens
from edge_protocol.keys import SigningKey, new_signing_key
from gateway.devices import Issuer

AUDIENCE: Final = parts.AUDIENCE
_ISSUER_KEY: Final = new_signing_key()
ISSUER: Final = Issuer(name="id", keys=lambda: (_ISSUER_KEY.public,), require_jti=True)
"""Vouches for operators and services."""


@cache
def key_of(device: str) -> SigningKey:
    """The signing key of a device, for as long as the process lives."""
    return new_signing_key()


def token(sub: str, role: str = "simple-device", *, iss: str | None = None, **claims: Any) -> bytes:
    """A token of a device, signed by itself, or of somebody that the issuer `id` vouches for, in a role.

    Args:
        sub: Whose.
        role: Of a client of the issuer; a device's stands in the registry.
        iss: `id` for a client of the issuer.
        claims: `iat`, `exp` and `jti` that differ.
    """
    iat = int(claims.get("iat", time.time()))
    return tokens.mint(
        _ISSUER_KEY if iss else key_of(sub),
        audience=AUDIENCE,
        subject=sub,
        issuer=iss,
        issued_at=iat,
        expires_at=int(claims.get("exp", iat + 3600)),
        jti=claims.get("jti", uuid.uuid4().hex),
        roles=[role] if iss else (),
    ).encode()


def sealed(*events: bytes, device: str = "dev1", **changes: Any) -> bytes:
    """An envelope around events, by a device."""
    return parts.sealed(*events, device=device, **({"key": key_of(device), "issued_at": int(time.time())} | changes))
