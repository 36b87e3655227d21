"""Plain payloads: events that are not in an envelope (wire protocol, section 3).

Pure: bytes in, checked events out. On `devices/{id}/events` a payload tells itself by its first byte; on a typed topic
it is the data of one event, or that event itself. A payload without an envelope has no `iat`, so the age rule of
section 4 (3) does not apply to it: it is as old as its connection.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from functools import lru_cache
from typing import Final, NamedTuple

import msgspec

from edge_protocol.envelope import FIRST_BYTES
from edge_protocol.errors import EventRejected
from edge_protocol.event import BATCH_TYPE, EVENT_TYPE, JSON_TYPE, Event, encode_event, is_json_type
from edge_protocol.events import check_size, decode_batch, decode_event
from edge_protocol.payload import Limits, check_depth
from edge_protocol.times import rfc3339
from gateway.ingest.openings import Summary, summary

OCTET_STREAM: Final = "application/octet-stream"
ENVELOPE_TYPES: Final = ("application/cose", "application/lockgate-events")
CLOUDEVENTS: Final = "application/cloudevents"
_SOME_ID: Final = "00000000-0000-7000-8000-000000000000"
_SOME_TIME: Final = "2026-01-01T00:00:00.000Z"
_CORE: Final = frozenset(
    ("specversion", "id", "source", "type", "time", "subject", "datacontenttype", "dataschema", "data", "data_base64")
)


class Arrived(NamedTuple):
    """What a bare payload lacks.

    Attributes:
        id: A fresh UUIDv7.
        time: Arrival, RFC 3339.
    """

    id: str
    time: str


def arrival_time(received_ms: int) -> str:
    """Write a time of arrival (RFC 3339); thousands of publishes arrive in one second."""
    second, millisecond = divmod(received_ms, 1000)
    return f"{_second(second)}.{millisecond:03d}Z"


@lru_cache(maxsize=8)
def _second(unix_s: int) -> str:
    return rfc3339(unix_s).partition(".")[0]


def media_type(content_type: str) -> str:
    """The media type without parameters, in lower case (RFC 9110, section 8.3.1)."""
    return content_type.partition(";")[0].strip().lower()


def check_content_type(content_type: str | None, expected: Sequence[str]) -> None:
    """Refuse a Content Type that contradicts the payload; one that is absent says nothing.

    Raises:
        EventRejected: `content-type`.
    """
    if content_type is not None and media_type(content_type) not in expected:
        raise EventRejected("content-type", f"{content_type[:80]!r}: this payload is {' or '.join(expected)}")


def read_untyped(payload: bytes, *, content_type: str | None, source: str, limits: Limits) -> Summary:
    """Read a plain payload of `devices/{id}/events`: one CloudEvent or a batch.

    Raises:
        EventRejected: `content-type`, `unknown-payload`, `payload-too-large`, or a rule of section 4.
    """
    _check_size(payload, limits)
    if payload[:1] == b"{":
        check_content_type(content_type, (EVENT_TYPE,))
        return _single(payload, decode_event(payload, limits=limits, source=source))
    if payload[:1] == b"[":
        check_content_type(content_type, (BATCH_TYPE,))
        return summary(decode_batch(payload, limits=limits, source=source), payload)
    found = f"first byte 0x{payload[0]:02X}" if payload else "nothing"
    raise EventRejected("unknown-payload", f"{found}: expected 0xD0 (envelope), '{{' (CloudEvent) or '[' (batch)")


def read_typed(
    payload: bytes,
    *,
    event_type: str,
    content_type: str | None,
    attributes: Sequence[tuple[str, str]],
    source: str,
    limits: Limits,
    arrived: Arrived,
) -> Summary:
    """Read the payload of `devices/{id}/events/{type...}`.

    It is a structured CloudEvent if Content Type says so; in binary mode if user properties bring a core attribute of
    CloudEvents (then all of them are attributes); else bare data, whose user properties mean nothing here.

    Raises:
        EventRejected: `envelope-on-typed-topic`, `content-type`, `wrong-type`, or a rule of section 4.
    """
    _check_size(payload, limits)
    if payload[:2] == FIRST_BYTES:
        raise EventRejected("envelope-on-typed-topic", "expected event data; envelopes go to devices/ID/events")
    if content_type is not None and media_type(content_type).startswith(CLOUDEVENTS):
        check_content_type(content_type, (EVENT_TYPE,))
        event = decode_event(payload, limits=limits, source=source)
        _check_type(event.type, event_type)
        return _single(payload, event)
    named = _attributes(attributes) if attributes else {}
    named_type = _content_type(payload, content_type, named)
    if not named:
        return _bare(
            payload, event_type=event_type, content_type=named_type, source=source, limits=limits, arrived=arrived
        )
    made = _event(payload, named, event_type=event_type, content_type=named_type, source=source, arrived=arrived)
    text = encode_event(made)
    return _single(text, decode_event(text, limits=limits, source=source), has_ids="id" in named)


def _single(text: bytes, event: Event, *, has_ids: bool = True) -> Summary:
    return summary([event], b"[" + text + b"]", has_ids=has_ids)


def _bare(
    payload: bytes, *, event_type: str, content_type: str, source: str, limits: Limits, arrived: Arrived
) -> Summary:
    """Write the event of a bare payload around it; its data, read once already, is checked for size and depth alone."""
    before, between, after, is_json = frame_of(source, event_type, content_type)
    head = b"".join((before, arrived.id.encode(), between, arrived.time.encode(), after))
    if not payload:
        text = head + b"}"
    elif is_json:
        text = b"".join((head, b',"data":', payload, b"}"))
    else:
        text = b"".join((head, b',"data_base64":"', base64.b64encode(payload), b'"}'))
    check_size(text, limits)
    check_depth(text, limits.json_depth)
    return Summary(b"[" + text + b"]", "", None, (event_type,), 1, arrived.id, ())


@lru_cache(maxsize=1024)
def frame_of(source: str, event_type: str, content_type: str) -> tuple[bytes, bytes, bytes, bool]:
    """What stands before the id of a bare payload's event, between id and time, after the time; and whether it is JSON.

    Checked like any event when it is made: a device sends few types, and each thousands of times.
    """
    event = Event(id=_SOME_ID, source=source, type=event_type, time=_SOME_TIME, datacontenttype=content_type)
    text = encode_event(event)
    decode_event(text, limits=Limits(), source=source)
    before, _, rest = text.removesuffix(b"}").partition(_SOME_ID.encode())
    between, _, after = rest.partition(_SOME_TIME.encode())  # no source and no type can hold a time
    return before, between, after, event.is_json


def _check_size(payload: bytes, limits: Limits) -> None:
    if len(payload) > limits.envelope_bytes:
        raise EventRejected("payload-too-large", f"{len(payload)} bytes, at most {limits.envelope_bytes} are allowed")


def _check_type(found: str, expected: str) -> None:
    if found != expected:
        raise EventRejected("wrong-type", f"type {found[:80]!r}: the topic says {expected!r}")


def _attributes(properties: Sequence[tuple[str, str]]) -> dict[str, str]:
    """User properties as CloudEvents attributes (MQTT binding, section 3.1); none of them for a bare payload."""
    named = dict(properties)
    if not named.keys() & _CORE:
        return {}
    if len(named) != len(properties):
        raise EventRejected("bad-attribute", "an attribute is named twice among the user properties")
    if named.keys() & {"data", "data_base64"}:
        raise EventRejected("bad-data", "data: expected as the payload, not as a user property")
    return named


def _event(
    payload: bytes, named: dict[str, str], *, event_type: str, content_type: str, source: str, arrived: Arrived
) -> Event:
    """Put an event together from what is known; `decode_event` then checks it like any other."""
    if named.get("specversion", "1.0") != "1.0":
        raise EventRejected("bad-specversion", 'specversion: expected "1.0"')
    if named.get("source", source) != source:
        raise EventRejected("wrong-source", f"source {named['source'][:200]!r}: expected {source!r}, or none")
    _check_type(named.get("type", event_type), event_type)
    return Event(
        id=named.get("id", arrived.id),
        source=source,
        type=event_type,
        time=named.get("time", arrived.time),
        subject=named.get("subject"),
        datacontenttype=content_type,
        dataschema=named.get("dataschema"),
        payload=payload,
        extensions={name: value for name, value in named.items() if name not in _CORE},
    )


def _content_type(payload: bytes, content_type: str | None, named: dict[str, str]) -> str:
    found = named.get("datacontenttype", content_type)
    if content_type not in (None, found):
        raise EventRejected("content-type", "Content Type and datacontenttype differ")
    if found is None:
        return JSON_TYPE if is_json_text(payload) else OCTET_STREAM
    if is_json_type(found) and payload and not is_json_text(payload):
        raise EventRejected("content-type", f"{found[:80]!r}: the payload is not JSON")
    return found


def is_json_text(payload: bytes) -> bool:
    """Tell whether a payload is JSON.

    Raises:
        EventRejected: `json-too-deep`: nobody can tell.
    """
    try:
        msgspec.json.decode(payload.decode())
    except RecursionError as exc:
        raise EventRejected("json-too-deep", "the data nests too deep") from exc
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return True
