"""Hypothesis strategies and fixed test keys for the contract package. The keys are for tests only: they are public."""

from __future__ import annotations

import hashlib
import string
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import strategies as st

from edge_protocol.envelope_keys import OpenKey, Suite
from edge_protocol.events import Event
from edge_protocol.keys import SigningKey

AUDIENCE = "lockgate-test"
DEVICE = "dev-1"
SOURCE = f"/devices/{DEVICE}"
NOW = 1_795_000_000


def fixed(name: str, size: int = 32) -> bytes:
    """Bytes that look random and are the same in every run."""
    return hashlib.shake_256(f"lockgate test only: {name}".encode()).digest(size)


def signing_key(alg: str, name: str = "device") -> SigningKey:
    """A fixed test key."""
    if alg == "EdDSA":
        return SigningKey(ed25519.Ed25519PrivateKey.from_private_bytes(fixed(f"{name} EdDSA")))
    scalar = int.from_bytes(fixed(f"{name} ES256"), "big") >> 1
    return SigningKey(ec.derive_private_key(scalar, ec.SECP256R1()))


def open_key(suite: Suite, name: str = "gateway") -> OpenKey:
    """A fixed test key."""
    raw = fixed(f"{name} {suite.value}", 96 if suite is Suite.XWING_AES256 else 32)
    return OpenKey(suite, b"\x01" + raw[1:] if suite is Suite.P256_AES128 else raw)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)

_FORBIDDEN = ("Cc", "Cs", "Cn")
attribute_texts = st.text(st.characters(exclude_categories=_FORBIDDEN), min_size=1, max_size=30)
event_types = st.from_regex(r"[A-Za-z0-9_-]{1,8}(\.[A-Za-z0-9_-]{1,8}){0,3}", fullmatch=True)
_RESERVED = {"specversion", "id", "source", "type", "time", "subject", "datacontenttype", "dataschema", "data"}
extension_names = st.text(string.ascii_lowercase + string.digits, min_size=1, max_size=20).filter(
    lambda name: name not in _RESERVED | {"stream", "sequence"}
)
extensions = st.dictionaries(
    extension_names, attribute_texts | st.booleans() | st.integers(-(2**31), 2**31 - 1), max_size=4
)
times = st.datetimes().map(lambda time: time.isoformat() + "Z")


@st.composite
def events(draw: Any, source: str = SOURCE) -> Event:
    """Any event a device may send."""
    binary = draw(st.booleans())
    payload = draw(st.binary(min_size=1, max_size=50)) if binary else msgspec.json.encode(draw(json_values))
    return Event(
        id=draw(attribute_texts),
        source=source,
        type=draw(event_types),
        time=draw(st.none() | times),
        subject=draw(st.none() | attribute_texts),
        datacontenttype="application/octet-stream" if binary else draw(st.sampled_from([None, "application/json"])),
        dataschema=draw(st.none() | attribute_texts),
        payload=b"" if payload == b"null" else payload,
        extensions=draw(extensions),
    )
