"""Signing keys (wire protocol, section 1).

A key has one algorithm, fixed when it is made or registered; nothing is ever chosen from what a sender wrote. Private
keys do not show in a `repr`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, Literal

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from edge_protocol.errors import KeyInvalid
from edge_protocol.jwk import P256_BYTES, Jwk, b64url, integer, p256_public, public_members, thumbprint, unb64url

Alg = Literal["EdDSA", "ES256", "RS256", "PS256"]
MIN_RSA_BITS: Final = 2048

_SigningPublic = ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey | rsa.RSAPublicKey
_SigningPrivate = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey


@dataclass(frozen=True)
class VerifyKey:
    """A public signing key with its one algorithm.

    Attributes:
        alg: JOSE name of the algorithm.
        key: The library's key.
    """

    alg: Alg
    key: _SigningPublic

    @cached_property
    def jwk(self) -> dict[str, str]:
        """Public JWK, with `alg` and `kid`."""
        members = public_members(self.key)
        return {**members, "alg": self.alg, "kid": b64url(thumbprint(members))}

    @cached_property
    def kid(self) -> bytes:
        """Thumbprint, 32 bytes (COSE `kid`); base64url of it is the JOSE `kid`."""
        return thumbprint(self.jwk)

    def verify(self, signature: bytes, data: bytes) -> bool:
        """Tell whether a signature in its COSE form (Ed25519: 64 bytes; ES256: 64 bytes r||s) is by this key."""
        try:
            if isinstance(self.key, ed25519.Ed25519PublicKey):
                self.key.verify(signature, data)
            elif isinstance(self.key, ec.EllipticCurvePublicKey) and len(signature) == 2 * P256_BYTES:
                r, s = (int.from_bytes(half, "big") for half in (signature[:32], signature[32:]))
                self.key.verify(encode_dss_signature(r, s), data, ec.ECDSA(hashes.SHA256()))
            else:
                return False
        except InvalidSignature:
            return False
        return True


@dataclass(frozen=True)
class SigningKey:
    """A private signing key: Ed25519 (`EdDSA`) or ECDSA P-256 (`ES256`)."""

    key: _SigningPrivate = field(repr=False)

    @property
    def alg(self) -> Literal["EdDSA", "ES256"]:
        """JOSE name of its one algorithm."""
        return "EdDSA" if isinstance(self.key, ed25519.Ed25519PrivateKey) else "ES256"

    @cached_property
    def public(self) -> VerifyKey:
        """The public half."""
        return VerifyKey(self.alg, self.key.public_key())

    def sign(self, data: bytes) -> bytes:
        """Sign in the COSE form: 64 bytes for either algorithm."""
        if isinstance(self.key, ed25519.Ed25519PrivateKey):
            return self.key.sign(data)
        r, s = decode_dss_signature(self.key.sign(data, ec.ECDSA(hashes.SHA256())))
        return r.to_bytes(P256_BYTES, "big") + s.to_bytes(P256_BYTES, "big")

    def pem(self) -> bytes:
        """PKCS#8 PEM, not encrypted: for a file with mode 0600."""
        return self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )


def new_signing_key(alg: str = "EdDSA") -> SigningKey:
    """Make a signing key.

    Raises:
        KeyInvalid: The algorithm is not EdDSA or ES256.
    """
    if alg == "EdDSA":
        return SigningKey(ed25519.Ed25519PrivateKey.generate())
    if alg == "ES256":
        return SigningKey(ec.generate_private_key(ec.SECP256R1()))
    raise KeyInvalid(f"algorithm {alg!r}: expected EdDSA or ES256")


def load_signing_key(pem: bytes) -> SigningKey:
    """Read a private signing key from PEM.

    Raises:
        KeyInvalid: It is not PEM, is encrypted, or is not Ed25519 or P-256.
    """
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as exc:
        raise KeyInvalid(f"private key: expected PEM without a password ({_first(exc)})") from exc
    if isinstance(key, ed25519.Ed25519PrivateKey) or (
        isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1)
    ):
        return SigningKey(key)
    raise KeyInvalid(f"private key: expected Ed25519 or ECDSA P-256, found {type(key).__name__}")


def load_verify_key(data: bytes | str) -> VerifyKey:
    """Read a device's public key from PEM or JWK text; a private key is reduced to its public half.

    An RSA key verifies RS256, or PS256 if its JWK says so; it can sign tokens, not envelopes.

    Raises:
        KeyInvalid: It is neither, or of a kind or size that is not accepted.
    """
    raw = data.encode() if isinstance(data, str) else data
    if raw.lstrip().startswith(b"{"):
        return verify_key_from_jwk(_json_object(raw))
    try:
        if b"PRIVATE KEY-----" in raw:
            return _verify_key(serialization.load_pem_private_key(raw, password=None).public_key(), None)
        return _verify_key(serialization.load_pem_public_key(raw), None)
    except (ValueError, TypeError) as exc:
        raise KeyInvalid(f"key: expected PEM without a password, or a JWK ({_first(exc)})") from exc


def _first(exc: Exception) -> str:
    """The first sentence; what `cryptography` adds is for its own users."""
    return str(exc).partition(". ")[0]


def verify_key_from_jwk(jwk: Jwk) -> VerifyKey:
    """Read a public signing key from its JWK; a `kid`, if present, must be its thumbprint.

    Raises:
        KeyInvalid: Unknown kind, wrong size, or members that contradict one another.
    """
    try:
        key = _verify_key(_signing_public(jwk), jwk.get("alg"))
    except (ValueError, TypeError) as exc:
        raise KeyInvalid(f"JWK: {exc}") from exc
    if "kid" in jwk and jwk["kid"] != key.jwk["kid"]:
        raise KeyInvalid(f"JWK kid: expected its RFC 7638 thumbprint {key.jwk['kid']}")
    return key


def _verify_key(key: object, alg: str | None) -> VerifyKey:
    if isinstance(key, ed25519.Ed25519PublicKey):
        found: Alg = "EdDSA"
    elif isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        found = "ES256"
    elif isinstance(key, rsa.RSAPublicKey) and key.key_size >= MIN_RSA_BITS:
        found = "PS256" if alg == "PS256" else "RS256"
    else:
        raise KeyInvalid(f"key: expected Ed25519, ECDSA P-256, or RSA of at least {MIN_RSA_BITS} bits")
    if alg is not None and alg != found:
        raise KeyInvalid(f"JWK alg {alg!r}: expected {found} for this kind of key")
    return VerifyKey(found, key)


def _signing_public(jwk: Jwk) -> object:
    match jwk:
        case {"kty": "OKP", "crv": "Ed25519", "x": str(x)}:
            return ed25519.Ed25519PublicKey.from_public_bytes(unb64url(x))
        case {"kty": "EC", "crv": "P-256", "x": str(x), "y": str(y)}:
            return p256_public(x, y)
        case {"kty": "RSA", "n": str(n), "e": str(e)}:
            return rsa.RSAPublicNumbers(integer(e), integer(n)).public_key()
    raise KeyInvalid("JWK: expected OKP Ed25519, EC P-256, or RSA with all their members")


def _json_object(raw: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(raw, type=dict[str, Any])
    except msgspec.DecodeError as exc:
        raise KeyInvalid(f"key: expected a JWK object ({exc})") from exc
