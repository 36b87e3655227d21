"""What a publish may weigh: its limits, DEFLATE that stops at one, and the depth of JSON (wire protocol, sections 4, 5)."""

from __future__ import annotations

import re
import zlib
from itertools import accumulate
from typing import Final, Literal

import msgspec

from edge_protocol.errors import EventRejected

Encoding = Literal["", "deflate"]

_JSON_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)  # possessive, and an open one ends: linear
_BRACKETS: Final = b"[]{}"
_STEPS: Final = bytes.maketrans(_BRACKETS, b"\x01\xff\x01\xff")  # as signed bytes: one level in, one level out
_NO_BRACKET: Final = bytes(byte for byte in range(256) if byte not in _BRACKETS)


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of one publish (wire protocol, section 4), each settable.

    Attributes:
        event_bytes: One event, as JSON text.
        envelope_bytes: One payload as it travels.
        inflated_bytes: One payload, inflated.
        events: Events in one payload (1,000 at most, since a position has 10 bits for the place in a batch).
        json_depth: Nested arrays and objects, counting the event itself as 1.
    """

    event_bytes: int = 256 * 1024
    envelope_bytes: int = 1024 * 1024
    inflated_bytes: int = 8 * 1024 * 1024
    events: int = 1000
    json_depth: int = 32


def inflate(body: bytes, encoding: Encoding, *, limit: int) -> bytes:
    """Undo a payload's encoding, never producing more than `limit` bytes.

    Raises:
        EventRejected: `inflated-too-large`, `bad-deflate` (damaged, or something follows the stream: RFC 1951).
    """
    if not encoding:
        if len(body) > limit:
            raise EventRejected("inflated-too-large", f"{len(body)} bytes, at most {limit} are allowed")
        return body
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        text = inflater.decompress(body, limit + 1)
    except zlib.error as exc:
        raise EventRejected("bad-deflate", "the payload is not a raw DEFLATE stream (RFC 1951)") from exc
    if len(text) > limit:
        raise EventRejected("inflated-too-large", f"more than the {limit} bytes allowed")
    if not inflater.eof or inflater.unused_data:
        raise EventRejected("bad-deflate", "expected one complete raw DEFLATE stream and nothing after it")
    return text


def deflate(text: bytes) -> bytes:
    """Compress to a raw DEFLATE stream."""
    deflater = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS)
    return deflater.compress(text) + deflater.flush()


def check_depth(text: bytes, limit: int) -> None:
    """Refuse JSON that nests deeper than `limit`, in linear time, without recursion, building no values.

    Raises:
        EventRejected: `json-too-deep`.
    """
    if text.count(b"{") + text.count(b"[") <= limit:  # the usual case: it cannot be deeper than it has brackets
        return
    steps = _JSON_STRING.sub(b"", text).translate(_STEPS, _NO_BRACKET)
    if max(accumulate(memoryview(steps).cast("b"))) > limit:
        raise too_deep(limit)


def too_deep(limit: int) -> EventRejected:
    """The refusal of JSON that nests deeper than `limit`."""
    return EventRejected("json-too-deep", f"nests deeper than the {limit} levels allowed")
