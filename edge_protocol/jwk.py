"""JSON Web Keys: members, thumbprints, base64url (RFC 7517, 7638, 8037; wire protocol, section 1)."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa, x25519

from edge_protocol.errors import KeyInvalid

Jwk = Mapping[str, Any]
P256_BYTES: Final = 32
_B64 = re.compile(r"[A-Za-z0-9_-]*")
_THUMBPRINT_MEMBERS: Final = {
    "OKP": ("crv", "kty", "x"),
    "EC": ("crv", "kty", "x", "y"),
    "RSA": ("e", "kty", "n"),
    "AKP": ("alg", "kty", "pub"),
}


def b64url(data: bytes) -> str:
    """Base64url without padding (RFC 7515, section 2)."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def unb64url(text: str) -> bytes:
    """Read canonical base64url: no padding, no blanks, no unused bits set.

    Raises:
        ValueError: It is anything else.
    """
    if not _B64.fullmatch(text) or len(text) % 4 == 1:
        raise ValueError("expected base64url without padding")
    data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if b64url(data) != text:
        raise ValueError("expected canonical base64url (unused bits must be zero)")
    return data


def thumbprint(jwk: Jwk) -> bytes:
    """SHA-256 thumbprint of a public key (RFC 7638): the raw 32 bytes of its `kid`.

    Raises:
        KeyInvalid: The key type is unknown or a member is missing.
    """
    names = _THUMBPRINT_MEMBERS.get(str(jwk.get("kty")))
    if names is None or not all(isinstance(jwk.get(name), str) for name in names):
        raise KeyInvalid(f"JWK kty {jwk.get('kty')!r}: expected OKP, EC, RSA or AKP with its required members")
    return hashlib.sha256(msgspec.json.encode({name: jwk[name] for name in names})).digest()


def p256_public(x: str, y: str) -> ec.EllipticCurvePublicKey:
    """The point of an EC P-256 JWK (RFC 7518, 6.2.1); ValueError if it is not on the curve or not of full length."""
    point = b"\x04" + unb64url(x) + unb64url(y)
    if {len(unb64url(x)), len(unb64url(y))} != {P256_BYTES}:
        raise ValueError(f"expected x and y of {P256_BYTES} bytes each")
    return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)


def integer(text: str) -> int:
    """A Base64urlUInt (RFC 7518, section 2)."""
    return int.from_bytes(unb64url(text), "big")


def public_members(key: object) -> dict[str, str]:
    """The required members of a public key's JWK."""
    match key:
        case ed25519.Ed25519PublicKey():
            return {"kty": "OKP", "crv": "Ed25519", "x": b64url(key.public_bytes_raw())}
        case x25519.X25519PublicKey():
            return {"kty": "OKP", "crv": "X25519", "x": b64url(key.public_bytes_raw())}
        case ec.EllipticCurvePublicKey():
            numbers = key.public_numbers()
            x, y = (b64url(n.to_bytes(P256_BYTES, "big")) for n in (numbers.x, numbers.y))
            return {"kty": "EC", "crv": "P-256", "x": x, "y": y}
        case rsa.RSAPublicKey():
            rsa_numbers = key.public_numbers()
            n, e = (b64url(i.to_bytes((i.bit_length() + 7) // 8, "big")) for i in (rsa_numbers.n, rsa_numbers.e))
            return {"kty": "RSA", "n": n, "e": e}
    raise KeyInvalid(f"no JWK form for {type(key).__name__}")
