"""Envelope keys: what devices seal to and the gateway opens with, one for each HPKE suite (wire protocol, sections 1, 5)."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from typing import Any, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric import ec, mlkem, x25519

from edge_protocol.errors import KeyInvalid
from edge_protocol.jwk import P256_BYTES, Jwk, b64url, p256_public, public_members, thumbprint, unb64url


class Suite(IntEnum):
    """HPKE suites an envelope may use, by their COSE numbers (wire protocol, section 5)."""

    XWING_AES256 = -70001
    X25519_AES128 = -70002
    P256_AES128 = -70003


DEFAULT_SUITE: Final = Suite.XWING_AES256

_HPKE: Final = {
    Suite.XWING_AES256: hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM),
    Suite.X25519_AES128: hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_128_GCM),
    Suite.P256_AES128: hpke.Suite(hpke.KEM.P256, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_128_GCM),
}
_MLKEM_PUBLIC_BYTES: Final = 1184
_MLKEM_SEED_BYTES: Final = 64
_PRIVATE: Final = {  # the private member of a JWK, and its size in bytes
    Suite.XWING_AES256: ("priv", _MLKEM_SEED_BYTES + 32),
    Suite.X25519_AES128: ("d", 32),
    Suite.P256_AES128: ("d", P256_BYTES),
}


_PUBLIC: Final = ("kty", "crv", "alg", "x", "y", "pub")


def _alg(suite: Suite) -> str:
    return f"LOCKGATE{suite.value}"


@dataclass(frozen=True)
class SealKey:
    """A gateway's public envelope key: what a device seals to.

    Attributes:
        suite: The suite it belongs to.
        jwk: Public JWK with `alg` and `kid`, as in the key set; never a private member.
        key: The library's key.
    """

    suite: Suite
    jwk: Jwk
    key: Any = field(repr=False, compare=False)

    @cached_property
    def kid(self) -> bytes:
        """Thumbprint, 32 bytes."""
        return thumbprint(self.jwk)

    def seal(self, plaintext: bytes, *, info: bytes) -> bytes:
        """HPKE single shot, base mode, no aad (RFC 9180, section 6.1): enc || ct."""
        return _HPKE[self.suite].encrypt(plaintext, self.key, info)


@dataclass(frozen=True)
class OpenKey:
    """A gateway's private envelope key.

    Attributes:
        suite: The suite it belongs to.
        raw: Private bytes: ML-KEM seed then X25519 (96); X25519 or P-256 scalar (32).
    """

    suite: Suite
    raw: bytes = field(repr=False)

    @cached_property
    def _key(self) -> Any:
        if self.suite is Suite.XWING_AES256:
            seed, scalar = self.raw[:_MLKEM_SEED_BYTES], self.raw[_MLKEM_SEED_BYTES:]
            return hpke.MLKEM768X25519PrivateKey(
                mlkem.MLKEM768PrivateKey.from_seed_bytes(seed), x25519.X25519PrivateKey.from_private_bytes(scalar)
            )
        if self.suite is Suite.X25519_AES128:
            return x25519.X25519PrivateKey.from_private_bytes(self.raw)
        return ec.derive_private_key(int.from_bytes(self.raw, "big"), ec.SECP256R1())

    def private_jwk(self) -> dict[str, Any]:
        """Private JWK: for a file with mode 0600."""
        return {**self.public.jwk, _PRIVATE[self.suite][0]: b64url(self.raw)}

    @cached_property
    def public(self) -> SealKey:
        """The public half."""
        if self.suite is Suite.XWING_AES256:
            seed, scalar = self.raw[:_MLKEM_SEED_BYTES], self.raw[_MLKEM_SEED_BYTES:]
            kem = mlkem.MLKEM768PrivateKey.from_seed_bytes(seed).public_key().public_bytes_raw()
            dh = x25519.X25519PrivateKey.from_private_bytes(scalar).public_key().public_bytes_raw()
            members = {"kty": "AKP", "alg": _alg(self.suite), "pub": b64url(kem + dh)}
        else:
            members = {**public_members(self._key.public_key()), "alg": _alg(self.suite)}
        jwk = {**members, "kid": b64url(thumbprint(members))}
        return SealKey(self.suite, jwk, self._key.public_key())

    @property
    def kid(self) -> bytes:
        """Thumbprint of the public half, 32 bytes."""
        return self.public.kid

    def open(self, ciphertext: bytes, *, info: bytes) -> bytes | None:
        """HPKE single shot, base mode; None if it was not sealed to this key with this info."""
        try:
            return _HPKE[self.suite].decrypt(ciphertext, self._key, info)
        except (InvalidTag, ValueError):  # ValueError: an encapsulated key that is no point, or too short
            return None


def new_open_key(suite: Suite = DEFAULT_SUITE) -> OpenKey:
    """Make an envelope key for a suite."""
    dh = x25519.X25519PrivateKey.generate().private_bytes_raw()
    if suite is Suite.XWING_AES256:
        return OpenKey(suite, mlkem.MLKEM768PrivateKey.generate().private_bytes_raw() + dh)
    if suite is Suite.X25519_AES128:
        return OpenKey(suite, dh)
    scalar = ec.generate_private_key(ec.SECP256R1()).private_numbers().private_value
    return OpenKey(suite, scalar.to_bytes(P256_BYTES, "big"))


def open_key_from_jwk(jwk: Jwk) -> OpenKey:
    """Read a private envelope key.

    Raises:
        KeyInvalid: Unknown suite, no private member, or public members of another key.
    """
    public = seal_key_from_jwk(jwk)
    name, size = _PRIVATE[public.suite]
    try:
        raw = unb64url(str(jwk.get(name, "")))
        if len(raw) != size:
            raise ValueError(f"{name}: expected {size} bytes, found {len(raw)}")
        key = OpenKey(public.suite, raw)
        matches = key.kid == public.kid
    except ValueError as exc:
        raise KeyInvalid(f"private JWK of suite {public.suite.value}: {exc}") from exc
    if not matches:
        raise KeyInvalid(f"private JWK of suite {public.suite.value}: its public members are another key's")
    return key


def seal_key_from_jwk(jwk: Jwk) -> SealKey:
    """Read a public envelope key; `alg` names the suite.

    Raises:
        KeyInvalid: Unknown suite, wrong size, or a `kid` that is not the thumbprint.
    """
    suite = _suite_of(jwk)
    try:
        key = _seal_public(suite, jwk)
    except ValueError as exc:
        raise KeyInvalid(f"JWK of suite {suite.value}: {exc}") from exc
    kid = b64url(thumbprint(jwk))
    if jwk.get("kid", kid) != kid:
        raise KeyInvalid(f"JWK kid: expected its RFC 7638 thumbprint {kid}")
    return SealKey(suite, {**{name: jwk[name] for name in _PUBLIC if name in jwk}, "kid": kid}, key)


def _suite_of(jwk: Jwk) -> Suite:
    for suite in Suite:
        if jwk.get("alg") == _alg(suite):
            return suite
    raise KeyInvalid(f"JWK alg {jwk.get('alg')!r}: expected one of {', '.join(_alg(suite) for suite in Suite)}")


def _seal_public(suite: Suite, jwk: Jwk) -> Any:
    match suite, jwk:
        case Suite.XWING_AES256, {"kty": "AKP", "pub": str(pub)}:
            raw = unb64url(pub)
            return hpke.MLKEM768X25519PublicKey(
                mlkem.MLKEM768PublicKey.from_public_bytes(raw[:_MLKEM_PUBLIC_BYTES]),
                x25519.X25519PublicKey.from_public_bytes(raw[_MLKEM_PUBLIC_BYTES:]),
            )
        case Suite.X25519_AES128, {"kty": "OKP", "crv": "X25519", "x": str(x)}:
            return x25519.X25519PublicKey.from_public_bytes(unb64url(x))
        case Suite.P256_AES128, {"kty": "EC", "crv": "P-256", "x": str(x), "y": str(y)}:
            return p256_public(x, y)
    raise ValueError("kty, crv and members do not belong to it")
