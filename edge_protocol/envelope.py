"""The envelope: a batch of events, signed, then encrypted (wire protocol, section 5).

COSE_Encrypt0 (RFC 9052) by HPKE (RFC 9180) around COSE_Sign1 around a CloudEvents batch. `seal` is the device's half,
`open_envelope` the gateway's: a pure function of bytes and keys, so that it can run in a process pool.

Strategy of reading: each layer is decoded, re-encoded and compared, so only the deterministic encoding passes (cbor2
alone accepts duplicate labels, trailing bytes and shared references); the bytes authenticated are the bytes received;
nothing is parsed deeper than what has been authenticated; the first check that fails names its rule.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import cbor2

from edge_protocol.envelope_keys import OpenKey, SealKey, Suite
from edge_protocol.errors import EnvelopeRejected, ResealNeeded
from edge_protocol.events import BATCH_TYPE, Encoding, Event, Limits, decode_batch, deflate, inflate
from edge_protocol.ids import device_source
from edge_protocol.keys import SigningKey, VerifyKey

FIRST_BYTES: Final = b"\xd0\x83"
"""How every envelope begins: tag 16, an array of 3."""

_ENCRYPT0, _SIGN1 = 16, 18
_ALG, _CONTENT_TYPE, _KID, _TYP = 1, 3, 4, 16  # COSE header labels (RFC 9052, table 3; RFC 9596)
_MEDIA_TYPE: Final = "application/lockgate-events"
_COSE_ALG: Final = {"EdDSA": -8, "ES256": -7}
_KID_BYTES, _SIGNATURE_BYTES = 32, 64
_MAX_DEPTH: Final = 4  # tag, array, map, value: deeper is refused while reading
_SPAN: Final = ("stream", "first", "settled")
_LABELS: Final = {
    label: cbor2.dumps(label) for label in (_ALG, _CONTENT_TYPE, _KID, _TYP, "enc", "iat", "first", "stream", "settled")
}
_MAX_STREAM_CHARS: Final = 64
_UINT: Final = 1 << 53


@dataclass(frozen=True, slots=True)
class Place:
    """Where an envelope's events stand in their stream (section 4).

    Attributes:
        stream: Its id, 1 to 64 characters.
        first: Sequence of the first event, from 1; the others follow.
        settled: Nothing at or below it will be sent again; below `first`.
    """

    stream: str
    first: int
    settled: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """What an envelope held, everything checked but age against storage and policy.

    Attributes:
        events: In order; `source` set.
        body: The payload as the device compressed it: what is stored.
        encoding: How `body` is encoded.
        place: None for events without a stream.
        issued_at: `iat`, Unix seconds.
        kid: Thumbprint of the device key that signed it.
    """

    events: list[Event]
    body: bytes
    encoding: Encoding
    place: Place | None
    issued_at: int
    kid: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class AgeLimits:
    """When an envelope without a stream is too old to be deduplicated, or from the future (section 4, rule 3).

    Attributes:
        window_s: Deduplication window, in seconds.
        skew_s: How far clocks may differ, in seconds.
    """

    window_s: int = 72 * 3600
    skew_s: int = 60


def seal(
    batch: bytes,
    *,
    key: SigningKey,
    to: SealKey,
    audience: str,
    device: str,
    issued_at: int,
    place: Place | None = None,
    compress: bool = True,
) -> bytes:
    """Sign and encrypt a batch.

    Args:
        batch: CloudEvents JSON batch (UTF-8).
        key: The device's signing key.
        to: The gateway's envelope key; it decides the suite.
        audience: The gateway's audience.
        device: The device's id.
        issued_at: Unix seconds.
        place: Where the events stand in their stream, or None.
        compress: Whether to deflate; not done where it would not save anything.
    """
    body, packed = batch, deflate(batch) if compress else batch
    header: dict[int | str, Any] = {
        _ALG: _COSE_ALG[key.alg],
        _CONTENT_TYPE: BATCH_TYPE,
        _KID: key.public.kid,
        _TYP: _MEDIA_TYPE,
    }
    if len(packed) < len(batch):
        body = packed
        header["enc"] = "deflate"
    header["iat"] = issued_at
    if place is not None:
        header |= {"first": place.first, "stream": place.stream, "settled": place.settled}
    aad = _external_aad(audience, device)
    protected = cbor2.dumps(header)  # the labels above stand in bytewise order of their encoding (RFC 8949, 4.2.1)
    signature = key.sign(_to_be_signed(protected, aad, body))
    signed = cbor2.dumps(cbor2.CBORTag(_SIGN1, [protected, {}, body, signature]))
    outer = cbor2.dumps({_ALG: to.suite.value, _KID: to.kid})
    return cbor2.dumps(cbor2.CBORTag(_ENCRYPT0, [outer, {}, to.seal(signed, info=_info(outer, aad))]))


def open_envelope(
    data: bytes,
    *,
    audience: str,
    device: str,
    open_key: Callable[[bytes], OpenKey | None],
    signing_key: Callable[[bytes], VerifyKey | None],
    limits: Limits,
    ages: AgeLimits,
    now_s: float,
) -> Opened:
    """Decrypt, verify and read an envelope, in the order of section 5.

    Args:
        data: The payload as received.
        audience: The gateway's audience.
        device: Id that the topic names: owner of the signing key and source of the events.
        open_key: The gateway's envelope key of a thumbprint, current or retired, or None.
        signing_key: The valid signing key of this device of a thumbprint, or None.
        limits: What is too much.
        ages: What is too old, for an envelope without a stream.
        now_s: Unix time in seconds.

    Raises:
        ResealNeeded: The envelope key or the signing key is unknown or expired.
        EnvelopeRejected: Any other rule of section 5.
        EventRejected: A rule of section 4 about the batch or one of its events.
    """
    if len(data) > limits.envelope_bytes:
        raise EnvelopeRejected("envelope-too-large", f"{len(data)} bytes, at most {limits.envelope_bytes} are allowed")
    aad = _external_aad(audience, device)
    signed = _decrypt(data, aad, open_key)
    protected, body, signature = _parts(signed, _SIGN1, 4)
    header = _signed_header(protected)
    key = signing_key(header[_KID])
    if key is None or _COSE_ALG.get(key.alg) != header[_ALG]:
        raise ResealNeeded("unknown-signing-key", "no valid key of this device has this kid and algorithm")
    if not key.verify(signature, _to_be_signed(protected, aad, body)):
        raise EnvelopeRejected("bad-signature", "the signature does not verify")
    place = _place(header)
    if place is None:
        _check_age(header["iat"], ages, now_s)
    encoding: Encoding = header.get("enc", "")
    text = inflate(body, encoding, limit=limits.inflated_bytes)
    events = decode_batch(text, limits=limits, source=device_source(device))
    return Opened(events=events, body=body, encoding=encoding, place=place, issued_at=header["iat"], kid=key.kid)


def _decrypt(data: bytes, aad: bytes, open_key: Callable[[bytes], OpenKey | None]) -> bytes:
    protected, ciphertext = _parts(data, _ENCRYPT0, 3)
    header = _header(protected)
    if header.keys() != {_ALG, _KID}:
        raise EnvelopeRejected("bad-shape", "outer header: expected exactly alg (1) and kid (4)")
    suite, kid = header[_ALG], header[_KID]
    if type(suite) is not int or suite not in Suite.__members__.values():
        expected = ", ".join(str(known.value) for known in Suite)
        raise EnvelopeRejected("unknown-suite", f"outer alg: expected one of {expected}")
    _check_kid(kid, "outer")
    key = open_key(kid)
    if key is None or key.suite != suite:
        raise ResealNeeded("unknown-envelope-key", "no envelope key of this gateway has this kid and suite")
    plaintext = key.open(ciphertext, info=_info(protected, aad))
    if plaintext is None:
        raise EnvelopeRejected("cannot-decrypt", "not sealed to this key for this audience and device, or altered")
    return plaintext


def _parts(data: bytes, tag: int, size: int) -> tuple[bytes, ...]:
    """Take a COSE structure apart: its byte strings, without the empty unprotected map."""
    what = "COSE_Encrypt0" if tag == _ENCRYPT0 else "COSE_Sign1"
    value = _deterministic(data, what)
    if type(value) is not cbor2.CBORTag or value.tag != tag or not isinstance(value.value, (list, tuple)):
        raise EnvelopeRejected("bad-shape", f"expected {what}: tag {tag} around an array of {size}")
    if len(value.value) != size or not isinstance(value.value[1], Mapping) or value.value[1]:
        raise EnvelopeRejected("bad-shape", f"{what}: expected {size} members, the second an empty map")
    strings = (value.value[0], *value.value[2:])
    if not all(type(item) is bytes for item in strings):
        raise EnvelopeRejected("bad-shape", f"{what}: expected byte strings around the empty map")
    return strings


def _header(protected: bytes) -> dict[int | str, Any]:
    header = _deterministic(protected, "protected header")
    if type(header) is not dict or not all(type(label) in (int, str) for label in header):  # 1 == 1.0 == True
        raise EnvelopeRejected("bad-shape", "protected header: expected a map with integers and texts as labels")
    labels = [_LABELS.get(label) or cbor2.dumps(label) for label in header]
    if labels != sorted(labels):
        raise EnvelopeRejected(
            "not-deterministic", "protected header: expected labels in bytewise order (RFC 8949, 4.2.1)"
        )
    return header


def _deterministic(data: bytes, what: str) -> Any:
    try:
        value = cbor2.loads(data, max_depth=_MAX_DEPTH, allow_indefinite=False, allow_duplicate_keys=False)
        again = cbor2.dumps(value)
    except Exception as exc:  # a decoder fed by strangers: whatever it raises, this one payload is at fault
        raise EnvelopeRejected("bad-cbor", f"{what}: not CBOR of at most {_MAX_DEPTH} levels") from exc
    if again != data:
        raise EnvelopeRejected("not-deterministic", f"{what}: expected the deterministic encoding (RFC 8949, 4.2.1)")
    return value


def _signed_header(protected: bytes) -> dict[int | str, Any]:
    header = _header(protected)
    labels = set(header) - {"enc"} - set(_SPAN)
    if labels != {_ALG, _CONTENT_TYPE, _KID, _TYP, "iat"}:
        raise EnvelopeRejected("bad-shape", "signed header: expected exactly the labels of section 5")
    if header[_ALG] not in _COSE_ALG.values() or type(header[_ALG]) is not int:
        raise EnvelopeRejected("bad-shape", "signed header: expected alg -8 (Ed25519) or -7 (ES256)")
    if header[_CONTENT_TYPE] != BATCH_TYPE or header[_TYP] != _MEDIA_TYPE:
        raise EnvelopeRejected("bad-shape", f"signed header: expected content type {BATCH_TYPE} and typ {_MEDIA_TYPE}")
    _check_kid(header[_KID], "signed")
    if header.get("enc", "deflate") != "deflate":
        raise EnvelopeRejected("bad-shape", 'signed header: expected enc "deflate" or none')
    _check_uint(header["iat"], "iat")
    return header


def _place(header: dict[int | str, Any]) -> Place | None:
    present = [name for name in _SPAN if name in header]
    if not present:
        return None
    if len(present) < len(_SPAN):
        raise EnvelopeRejected("bad-shape", "signed header: expected stream, first and settled, or none of them")
    stream, first, settled = (header[name] for name in _SPAN)
    if type(stream) is not str or not 1 <= len(stream) <= _MAX_STREAM_CHARS or not stream.isprintable():
        raise EnvelopeRejected("bad-shape", f"stream: expected 1 to {_MAX_STREAM_CHARS} printable characters")
    _check_uint(first, "first")
    _check_uint(settled, "settled")
    if not settled < first:
        raise EnvelopeRejected("bad-shape", "expected settled < first, and first from 1")
    return Place(stream, first, settled)


def _check_kid(kid: object, where: str) -> None:
    if type(kid) is not bytes or len(kid) != _KID_BYTES:
        raise EnvelopeRejected("bad-shape", f"{where} header: expected kid of {_KID_BYTES} bytes")


def _check_uint(value: object, name: str) -> None:
    if type(value) is not int or not 0 <= value < _UINT:
        raise EnvelopeRejected("bad-shape", f"{name}: expected an unsigned integer below 2^53")


def _check_age(issued_at: int, ages: AgeLimits, now_s: float) -> None:
    oldest = now_s - (ages.window_s - 2 * ages.skew_s)
    if not oldest <= issued_at <= now_s + ages.skew_s:
        raise EnvelopeRejected(
            "outside-window", f"iat {issued_at}: expected {int(oldest)} to {int(now_s + ages.skew_s)} without a stream"
        )


def _external_aad(audience: str, device: str) -> bytes:
    return b"\0".join((b"lockgate/1/up", audience.encode(), device.encode()))


def _info(protected: bytes, aad: bytes) -> bytes:
    """HPKE info: the Enc_structure (RFC 9052, 5.3), hashed, since the library takes no aad."""
    return hashlib.sha256(cbor2.dumps(["Encrypt0", protected, aad])).digest()


def _to_be_signed(protected: bytes, aad: bytes, payload: bytes) -> bytes:
    """Sig_structure (RFC 9052, 4.4)."""
    return cbor2.dumps(["Signature1", protected, aad, payload])
