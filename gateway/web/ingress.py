"""CloudEvents over HTTP: a request of a cloud service to checked events (CloudEvents HTTP protocol binding 1.0.2).

Pure: bytes and headers in, events out. The three content modes are told apart by Content Type. `source`, `stream` and
`sequence` are the gateway's to say: what the sender wrote there is dropped, never trusted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final
from urllib.parse import unquote_to_bytes

import msgspec

from edge_protocol.errors import EventRejected
from edge_protocol.events import (
    BATCH_TYPE,
    EVENT_TYPE,
    Event,
    Limits,
    check_depth,
    decode_batch,
    decode_event,
    encode_batch,
    is_json_type,
)

HEADER_PREFIX: Final = "ce-"
_OURS: Final = frozenset(("source", "stream", "sequence"))
_raw_batch = msgspec.json.Decoder(list[msgspec.Raw])
_members = msgspec.json.Decoder(dict[str, msgspec.Raw])
_encode = msgspec.json.Encoder().encode
_UNREADABLE: Final = (msgspec.DecodeError, RecursionError, UnicodeDecodeError)


def event_headers(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Pick the `ce-` headers, by lower-case name; a repeated one is joined with a comma (RFC 9110, section 5.3)."""
    picked: dict[str, str] = {}
    for name, value in headers:
        key = name.lower()
        if key.startswith(HEADER_PREFIX):
            picked[key] = f"{picked[key]},{value}" if key in picked else value
    return picked


def read_events(
    body: bytes, *, content_type: str | None, headers: Mapping[str, str], limits: Limits, source: str
) -> list[Event]:
    """Read the events of one request, at least one, each checked by every rule of wire protocol section 4.

    Args:
        body: As received.
        content_type: The Content-Type header, parameters included, or None.
        headers: The `ce-` headers, by lower-case name (`event_headers`); they matter in binary mode only.
        limits: What is too much.
        source: `source` of every event: the principal's.

    Raises:
        EventRejected: The rule names what is wrong; `unsupported-content-type` if no mode can be told.
    """
    media = (content_type or "").partition(";")[0].strip().lower()
    if media == BATCH_TYPE:
        return decode_batch(_batch_without_ours(body), limits=limits, source=source)
    if media == EVENT_TYPE:
        return [decode_event(_without_ours(body), limits=limits, source=source)]
    if media.startswith("application/cloudevents"):
        raise EventRejected("unsupported-content-type", f"{media[:100]!r}: expected {EVENT_TYPE} or {BATCH_TYPE}")
    if not headers:
        raise EventRejected(
            "unsupported-content-type",
            f"expected Content-Type {EVENT_TYPE} or {BATCH_TYPE}, or ce- headers (CloudEvents binary mode)",
        )
    return [_read_binary(body, content_type, headers, limits, source)]


def _batch_without_ours(body: bytes) -> bytes:
    try:
        raws = _raw_batch.decode(body)
    except _UNREADABLE:
        return body  # decode_batch says what is wrong with it
    return encode_batch(_without_ours(bytes(raw)) for raw in raws)


def _without_ours(text: bytes) -> bytes:
    try:
        members = _members.decode(text)
    except _UNREADABLE:
        return text
    if members.keys().isdisjoint(_OURS):
        return text
    return _encode({name: raw for name, raw in members.items() if name not in _OURS})


def _read_binary(
    body: bytes, content_type: str | None, headers: Mapping[str, str], limits: Limits, source: str
) -> Event:
    members: dict[str, Any] = {}
    for header, value in headers.items():
        name = header.removeprefix(HEADER_PREFIX)
        if name not in _OURS:
            members[name] = _attribute(name, value)
    if wrong := members.keys() & {"data", "data_base64", "datacontenttype"}:
        raise EventRejected("bad-attribute", f"header ce-{min(wrong)}: expected the body and Content-Type instead")
    if content_type is not None:
        members["datacontenttype"] = content_type
    checked = decode_event(_encode(members), limits=limits, source=source)
    if len(body) > limits.event_bytes:
        raise EventRejected("event-too-large", f"{len(body)} bytes, at most {limits.event_bytes} are allowed")
    if body and is_json_type(content_type):
        _check_json(body, limits)
    return msgspec.structs.replace(checked, payload=body)


def _attribute(name: str, value: str) -> str:
    """Undo the percent-encoding of a header (HTTP binding, section 3.1.3.2)."""
    try:
        return unquote_to_bytes(value).decode()
    except UnicodeDecodeError as exc:
        raise EventRejected("bad-utf8", f"header ce-{name[:40]}: expected percent-encoded UTF-8") from exc


def _check_json(body: bytes, limits: Limits) -> None:
    check_depth(body, limits.json_depth - 1)  # the event itself is the first level
    try:
        body.decode()
        msgspec.json.decode(body)
    except _UNREADABLE as exc:
        raise EventRejected("bad-json", "the body: expected JSON text, as Content-Type says") from exc
