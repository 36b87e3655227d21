"""Runs of plain payloads: opened as one where that gives what opening each alone gives, at a fraction of its cost.

Pure, and knows no refusal: a payload that would be refused, or is not like the others, makes the whole run one to be
opened payload by payload (docs/adr/0008-runs.md).
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Final

import msgspec

from edge_protocol.envelope import FIRST_BYTES
from edge_protocol.errors import EventRejected
from edge_protocol.event import EVENT_TYPE, JSON_TYPE
from edge_protocol.events import decode_event
from edge_protocol.payload import Limits
from gateway.ingest.openings import Summary, summary
from gateway.ingest.plain import (
    CLOUDEVENTS,
    OCTET_STREAM,
    Arrived,
    check_content_type,
    frame_of,
    is_json_text,
    media_type,
)
from gateway.rules.framed import MAX_EVENTS, MAX_FRAME_BYTES, Frame, digits, pack

_JSON_STARTS: Final = frozenset(bytes([byte]) for byte in b'{["-0123456789tfn \t\r\n')

_Scalar = str | int | float | bool | None
_Flat = dict[str, _Scalar] | list[_Scalar] | _Scalar
_Nested = dict[str, _Flat] | list[_Flat] | _Scalar
_shallow: Final = msgspec.json.Decoder(dict[str, _Nested] | list[_Nested] | _Scalar)
_SHALLOW_DEPTH: Final = 4  # of an event with such data; decoding to a type costs no more than decoding to any


def read_bare_run(
    payloads: Sequence[bytes],
    *,
    event_type: str,
    content_type: str | None,
    source: str,
    limits: Limits,
    arrived: Arrived,
) -> Summary | None:
    """Read bare payloads that came one behind the other on one typed topic, as `read_typed` would read each.

    Args:
        payloads: As received, at most 256.
        event_type: What the topic says.
        content_type: Of all.
        source: Of their events.
        limits: Of an event.
        arrived: Of all; the last 8 bits of the id count the events (RFC 9562, section 6.2, method 1).

    Returns:
        Their events as one batch; None if one would be refused or is no bare payload, or if they need a closer look.

    Raises:
        EventRejected: They would all be refused.
    """
    if len(payloads) > MAX_EVENTS or (content_type and media_type(content_type).startswith(CLOUDEVENTS)):
        return None
    guessed_type = JSON_TYPE if _may_be_json(payloads[0]) else OCTET_STREAM
    named_type = guessed_type if content_type is None else content_type
    before, between, after, is_json = frame_of(source, event_type, named_type)
    if not (_are_json(payloads, limits) if is_json else _are_octets(payloads, is_named=content_type is not None)):
        return None
    data: Sequence[bytes] = payloads if is_json else [base64.b64encode(payload) for payload in payloads]
    frame = Frame(
        start=before + arrived.id[:-2].encode(),
        middle=b"".join((between, arrived.time.encode(), after, b',"data":' if is_json else b',"data_base64":"')),
        stop=b"}" if is_json else b'"}',
    )
    largest = frame.size_bytes + 2 + max(map(len, data))
    is_large = largest > limits.event_bytes or max(map(len, payloads)) > limits.envelope_bytes
    if is_large or frame.size_bytes > MAX_FRAME_BYTES:
        return None
    last_id = arrived.id[:-2] + digits(len(payloads) - 1)
    return Summary(pack(frame, data), "framed", None, (event_type,), len(payloads), last_id, ())


def read_structured_run(
    payloads: Sequence[bytes], *, content_type: str | None, source: str, limits: Limits
) -> Summary | None:
    """Read CloudEvents that came one behind the other on `devices/{id}/events`, as `read_untyped` would read each.

    Returns:
        Their events as one batch; None if one is something else, or too large.

    Raises:
        EventRejected: One would be refused.
    """
    check_content_type(content_type, (EVENT_TYPE,))
    if any(payload[:1] != b"{" or len(payload) > limits.envelope_bytes for payload in payloads):
        return None
    events = [decode_event(payload, limits=limits, source=source) for payload in payloads]
    return summary(events, b"[" + b",".join(payloads) + b"]")


def _are_json(payloads: Sequence[bytes], limits: Limits) -> bool:
    """Whether all are JSON, and plainly not too deep: what nests deeper than most is looked at alone."""
    if limits.json_depth < _SHALLOW_DEPTH:
        return False
    try:
        for _ in map(_shallow.decode, payloads):
            pass
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return True


def _are_octets(payloads: Sequence[bytes], *, is_named: bool) -> bool:
    """Whether none is empty or an envelope, or, if nothing names their type, JSON."""
    if b"" in payloads or any(payload.startswith(FIRST_BYTES) for payload in payloads):
        return False
    return is_named or not any(map(_may_be_json, payloads))


def _may_be_json(payload: bytes) -> bool:
    """Whether it is JSON, or nests too deep to be told."""
    try:
        return payload[:1] in _JSON_STARTS and is_json_text(payload)
    except EventRejected:
        return True
