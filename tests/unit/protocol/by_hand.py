"""The envelope once more, written from docs/reference/wire-protocol.md alone: no cbor2, no HPKE of a library.

Strategy: a CBOR writer of a few lines, HPKE (RFC 9180, base mode, single shot) over bare curve operations, HMAC and
AES-GCM, and X-Wing (draft-connolly-cfrg-xwing-kem) over bare ML-KEM, X25519 and SHA3-256. Slow, and clear.
"""

from __future__ import annotations

import hashlib
import hmac
import zlib
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, mlkem, x25519
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

BATCH = "application/cloudevents-batch+json"
TYP = "application/lockgate-events"


class Tag:
    def __init__(self, number: int, value: Any) -> None:
        self.number, self.value = number, value


def head(major: int, argument: int) -> bytes:
    if argument < 24:
        return bytes([major << 5 | argument])
    size = next(size for size in (1, 2, 4, 8) if argument < 1 << 8 * size)
    return bytes([major << 5 | {1: 24, 2: 25, 4: 26, 8: 27}[size]]) + argument.to_bytes(size, "big")


def cbor(value: Any) -> bytes:
    """Deterministic CBOR (RFC 8949, 4.2.1) of the few kinds an envelope needs."""
    match value:
        case int():
            return head(0, value) if value >= 0 else head(1, -1 - value)
        case bytes():
            return head(2, len(value)) + value
        case str():
            return head(3, len(value.encode())) + value.encode()
        case list():
            return head(4, len(value)) + b"".join(map(cbor, value))
        case dict():
            return head(5, len(value)) + b"".join(sorted(cbor(key) + cbor(item) for key, item in value.items()))
        case Tag():
            return head(6, value.number) + cbor(value.value)
    raise TypeError(value)


def hkdf_extract(salt: bytes, secret: bytes) -> bytes:
    return hmac.digest(salt or bytes(32), secret, "sha256")


def hkdf_expand(key: bytes, info: bytes, size: int) -> bytes:
    blocks, block = b"", b""
    for n in range(1, 1 + -(-size // 32)):
        block = hmac.digest(key, block + info + bytes([n]), "sha256")
        blocks += block
    return blocks[:size]


class Labeled:
    """LabeledExtract and LabeledExpand of RFC 9180, section 4."""

    def __init__(self, suite_id: bytes) -> None:
        self.suite_id = suite_id

    def extract(self, salt: bytes, label: bytes, secret: bytes) -> bytes:
        return hkdf_extract(salt, b"HPKE-v1" + self.suite_id + label + secret)

    def expand(self, key: bytes, label: bytes, info: bytes, size: int) -> bytes:
        return hkdf_expand(key, size.to_bytes(2, "big") + b"HPKE-v1" + self.suite_id + label + info, size)


class DhKem:
    """DHKEM(curve, HKDF-SHA256) of RFC 9180, section 4.1."""

    def __init__(self, curve: str) -> None:
        self.curve = curve
        self.id = {"X25519": 0x20, "P-256": 0x10}[curve]
        self.enc_bytes = {"X25519": 32, "P-256": 65}[curve]

    def public(self, private: bytes) -> bytes:
        if self.curve == "X25519":
            return x25519.X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()
        key = ec.derive_private_key(int.from_bytes(private, "big"), ec.SECP256R1())
        return key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)

    def dh(self, private: bytes, public: bytes) -> bytes:
        if self.curve == "X25519":
            ours = x25519.X25519PrivateKey.from_private_bytes(private)
            return ours.exchange(x25519.X25519PublicKey.from_public_bytes(public))
        key = ec.derive_private_key(int.from_bytes(private, "big"), ec.SECP256R1())
        return key.exchange(ec.ECDH(), ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), public))

    def _secret(self, dh: bytes, context: bytes) -> bytes:
        labeled = Labeled(b"KEM" + self.id.to_bytes(2, "big"))
        return labeled.expand(labeled.extract(b"", b"eae_prk", dh), b"shared_secret", context, 32)

    def encap(self, to: bytes, ephemeral: bytes) -> tuple[bytes, bytes]:
        enc = self.public(ephemeral)
        return self._secret(self.dh(ephemeral, to), enc + to), enc

    def decap(self, enc: bytes, private: bytes) -> bytes:
        return self._secret(self.dh(private, enc), enc + self.public(private))


class XWing:
    """X-Wing: SHA3-256(ss_M || ss_X || ct_X || pk_X || label), with the key pair as wire-protocol section 1 lays it out."""

    id, enc_bytes = 0x647A, 1088 + 32
    label = b"\\.//^\\"

    def public(self, private: bytes) -> bytes:
        seed = mlkem.MLKEM768PrivateKey.from_seed_bytes(private[:64])
        return seed.public_key().public_bytes_raw() + self._public_x(private[64:])

    def _public_x(self, scalar: bytes) -> bytes:
        return x25519.X25519PrivateKey.from_private_bytes(scalar).public_key().public_bytes_raw()

    def _combine(self, ss_m: bytes, ss_x: bytes, ct_x: bytes, pk_x: bytes) -> bytes:
        return hashlib.sha3_256(ss_m + ss_x + ct_x + pk_x + self.label).digest()

    def encap(self, to: bytes, ephemeral: bytes) -> tuple[bytes, bytes]:
        ss_m, ct_m = mlkem.MLKEM768PublicKey.from_public_bytes(to[:1184]).encapsulate()
        pk_x, ct_x = to[1184:], self._public_x(ephemeral)
        ours = x25519.X25519PrivateKey.from_private_bytes(ephemeral)
        ss_x = ours.exchange(x25519.X25519PublicKey.from_public_bytes(pk_x))
        return self._combine(ss_m, ss_x, ct_x, pk_x), ct_m + ct_x

    def decap(self, enc: bytes, private: bytes) -> bytes:
        ct_m, ct_x = enc[:1088], enc[1088:]
        ss_m = mlkem.MLKEM768PrivateKey.from_seed_bytes(private[:64]).decapsulate(ct_m)
        ours = x25519.X25519PrivateKey.from_private_bytes(private[64:])
        ss_x = ours.exchange(x25519.X25519PublicKey.from_public_bytes(ct_x))
        return self._combine(ss_m, ss_x, ct_x, self._public_x(private[64:]))


KEMS: dict[int, Any] = {-70001: XWing(), -70002: DhKem("X25519"), -70003: DhKem("P-256")}
AEADS = {-70001: (0x0002, 32), -70002: (0x0001, 16), -70003: (0x0001, 16)}


def key_schedule(suite: int, shared_secret: bytes, info: bytes) -> tuple[bytes, bytes]:
    """Key and base nonce of mode base (RFC 9180, section 5.1)."""
    aead, key_bytes = AEADS[suite]
    ids = (KEMS[suite].id, 0x0001, aead)
    labeled = Labeled(b"HPKE" + b"".join(number.to_bytes(2, "big") for number in ids))
    context = b"\0" + labeled.extract(b"", b"psk_id_hash", b"") + labeled.extract(b"", b"info_hash", info)
    secret = labeled.extract(shared_secret, b"secret", b"")
    return labeled.expand(secret, b"key", context, key_bytes), labeled.expand(secret, b"base_nonce", context, 12)


def hpke_seal(suite: int, to: bytes, info: bytes, plaintext: bytes, *, ephemeral: bytes, aad: bytes = b"") -> bytes:
    shared_secret, enc = KEMS[suite].encap(to, ephemeral)
    key, nonce = key_schedule(suite, shared_secret, info)
    return enc + AESGCM(key).encrypt(nonce, plaintext, aad)


def hpke_open(suite: int, private: bytes, info: bytes, sealed: bytes, *, aad: bytes = b"") -> bytes:
    enc, ct = sealed[: KEMS[suite].enc_bytes], sealed[KEMS[suite].enc_bytes :]
    key, nonce = key_schedule(suite, KEMS[suite].decap(enc, private), info)
    return AESGCM(key).decrypt(nonce, ct, aad)


def external_aad(audience: str, device: str) -> bytes:
    return b"lockgate/1/up\0" + audience.encode() + b"\0" + device.encode()


def info(outer: bytes, aad: bytes) -> bytes:
    return hashlib.sha256(cbor(["Encrypt0", outer, aad])).digest()


def to_be_signed(protected: bytes, aad: bytes, payload: bytes) -> bytes:
    return cbor(["Signature1", protected, aad, payload])


def deflate(text: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(text) + packer.flush()


def signed_header(alg: int, kid: bytes, iat: int, **more: Any) -> dict[int | str, Any]:
    return {1: alg, 3: BATCH, 4: kid, 16: TYP, "iat": iat, **more}


def sign1(header: dict[int | str, Any] | bytes, payload: bytes, sign: Any, aad: bytes) -> bytes:
    """COSE_Sign1; a header given as bytes is taken as it is."""
    protected = header if isinstance(header, bytes) else cbor(header)
    return cbor(Tag(18, [protected, {}, payload, sign(to_be_signed(protected, aad, payload))]))


def encrypt0(suite: int, kid: bytes, to: bytes, signed: bytes, aad: bytes, *, ephemeral: bytes) -> bytes:
    outer = cbor({1: suite, 4: kid})
    return cbor(Tag(16, [outer, {}, hpke_seal(suite, to, info(outer, aad), signed, ephemeral=ephemeral)]))


class Reader:
    """A CBOR reader that knows only what an envelope holds."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, size: int) -> bytes:
        self.at += size
        return self.data[self.at - size : self.at]

    def value(self) -> Any:
        first = self.take(1)[0]
        major, argument = first >> 5, first & 31
        if argument > 23:
            argument = int.from_bytes(self.take(1 << argument - 24), "big")
        match major:
            case 0:
                return argument
            case 1:
                return -1 - argument
            case 2:
                return self.take(argument)
            case 3:
                return self.take(argument).decode()
            case 4:
                return [self.value() for _ in range(argument)]
            case 5:
                return {self.value(): self.value() for _ in range(argument)}
            case 6:
                return Tag(argument, self.value())
        raise ValueError(first)


def open_signed(data: bytes, private: bytes, audience: str, device: str) -> tuple[dict[Any, Any], bytes, bytes, bytes]:
    """Decrypt an envelope: the signed header, its payload inflated, the signature, and what was signed."""
    aad = external_aad(audience, device)
    outer, unprotected, ciphertext = Reader(data).value().value
    assert unprotected == {}
    suite = Reader(outer).value()[1]
    protected, unprotected, payload, signature = (
        Reader(hpke_open(suite, private, info(outer, aad), ciphertext)).value().value
    )
    assert unprotected == {}
    header = Reader(protected).value()
    text = zlib.decompress(payload, -15) if header.get("enc") else payload
    return header, text, signature, to_be_signed(protected, aad, payload)
