"""Events: a CloudEvents JSON batch, or one event, read strictly (wire protocol, section 4).

Strategy: a batch is decoded once into typed structs (which names a wrong type and stops at the first member that is no
event) and once into the text of each event, which tells sizes and keeps data verbatim. The quotes in that text tell,
without a look at the members, whether there are others than the core attributes, or one twice. Unknown extension
attributes survive. What one event is stands in `event`, what a publish may weigh in `payload`; both are offered here.
"""

from __future__ import annotations

import base64
import re
import zlib
from collections.abc import Mapping, Sequence
from datetime import date
from functools import lru_cache
from typing import Final, TypeVar

import msgspec

from edge_protocol.errors import EventRejected
from edge_protocol.event import (
    BATCH_TYPE,
    EVENT_TYPE,
    JSON_TYPE,
    Attribute,
    Event,
    encode_batch,
    encode_event,
    is_event_type,
    is_json_type,
)
from edge_protocol.payload import Encoding, Limits, check_depth, deflate, inflate, too_deep

__all__ = [
    "BATCH_TYPE",
    "EVENT_TYPE",
    "JSON_TYPE",
    "Attribute",
    "Encoding",
    "Event",
    "Limits",
    "check_depth",
    "check_size",
    "decode_batch",
    "decode_event",
    "decode_stored",
    "deflate",
    "encode_batch",
    "encode_event",
    "event_ids",
    "inflate",
    "is_event_type",
    "is_json_type",
    "split_batch",
]

_NAME = re.compile(r"[a-z0-9]{1,20}")
_TIME = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt]([01][0-9]|2[0-3]):[0-5][0-9]:([0-5][0-9]|60)(\.[0-9]{1,9})?"
    r"([Zz]|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
)
# CloudEvents 1.0.2, section 3.1, String: neither control characters nor noncharacters nor surrogates.
_NONCHARACTERS: Final = "".join(chr(plane << 16 | last) for plane in range(17) for last in (0xFFFE, 0xFFFF))
_FORBIDDEN = re.compile(rf"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef{_NONCHARACTERS}]")
_SET_BY_GATEWAY = frozenset(("stream", "sequence"))
_BLANKS: Final = b" \t\n\r"
_UNSET: Final = b"null"  # a null member is an unset one (CloudEvents JSON format, section 2.2)
_MISSING = re.compile(r"Object missing required field `(\w+)`")
_PATH = re.compile(r"(?:\[(\d+)\])?\.?(\w*)`")

_is_known_type = lru_cache(maxsize=1024)(is_event_type)  # a fleet has few types; bounded for those it has not


class _Wire(msgspec.Struct, gc=False):
    """The core attributes, as the standard types them."""

    specversion: str
    id: str
    type: str
    source: str | None = None
    time: str | None = None
    subject: str | None = None
    datacontenttype: str | None = None
    dataschema: str | None = None
    data_base64: str | None = None
    data: msgspec.Raw = msgspec.Raw(_UNSET)


class _Id(msgspec.Struct):
    id: str


_CORE = frozenset(_Wire.__struct_fields__)
_USUAL_BYTES: Final = len('{"specversion":"1.0","id":"","type":"","data":}')
_SOURCE_BYTES: Final = len(',"source":""')
_TIME_BYTES: Final = len(',"time":""')
_raw_batch = msgspec.json.Decoder(list[msgspec.Raw])
_wire_batch = msgspec.json.Decoder(list[_Wire])
_wire_event = msgspec.json.Decoder(_Wire)
_id_batch = msgspec.json.Decoder(list[_Id])
_members = msgspec.json.Decoder(dict[str, msgspec.Raw])
_attribute = msgspec.json.Decoder(str | int | bool)
_anything = msgspec.json.Decoder()


def decode_batch(text: bytes, *, limits: Limits, source: str) -> list[Event]:
    """Read a JSON batch, checking every rule of section 4.

    Args:
        text: The JSON array.
        limits: What is too much.
        source: What every event's `source` must be, if it names one; it is set where it does not.

    Raises:
        EventRejected: The rule names what is wrong, the detail which event (counted from 0).
    """
    _check_unicode(text)
    wires = _decode(_wire_batch, text, limits)
    if not 1 <= len(wires) <= limits.events:
        rule = "too-many-events" if wires else "empty-batch"
        raise EventRejected(rule, f"{len(wires)} events in a batch, expected 1 to {limits.events}")
    events = []
    for n, (wire, raw) in enumerate(zip(wires, _raw_batch.decode(text), strict=True)):
        try:
            events.append(_usual(wire, len(raw), limits, source) or _checked(wire, bytes(raw), limits, source))
        except EventRejected as exc:
            raise EventRejected(exc.rule, f"event {n}: {exc.detail}") from exc
    return events


def decode_event(text: bytes, *, limits: Limits, source: str) -> Event:
    """Read one event in the CloudEvents JSON format, checking every rule of section 4.

    Raises:
        EventRejected: The rule names what is wrong.
    """
    text = text.strip(_BLANKS)
    check_size(text, limits)
    _check_unicode(text)
    wire = _decode(_wire_event, text, limits)
    return _usual(wire, len(text), limits, source) or _checked(wire, text, limits, source)


def decode_stored(body: bytes, encoding: Encoding, *, source: str, stream: str, first: int) -> list[Event]:
    """Read back what the gateway has checked and stored; sets `source`, `stream` and `sequence`."""
    text = _stored_text(body, encoding)
    events = []
    for n, (wire, raw) in enumerate(zip(_wire_batch.decode(text), _raw_batch.decode(text), strict=True)):
        data = bytes(wire.data)
        extensions = _extensions(wire, data, bytes(raw))
        if stream:
            extensions |= {"stream": stream, "sequence": str(first + n)}
        events.append(_event(wire, data, source, extensions))
    return events


def split_batch(body: bytes, encoding: Encoding, keep: Sequence[tuple[int, int]]) -> list[bytes]:
    """Cut index ranges (first, last; inclusive) out of a checked batch: a JSON batch each, not compressed."""
    raws = _raw_batch.decode(_stored_text(body, encoding))
    return [encode_batch(bytes(raw) for raw in raws[first : last + 1]) for first, last in keep]


def event_ids(body: bytes, encoding: Encoding) -> list[str]:
    """Tell the ids of a checked batch, in order."""
    return [event.id for event in _id_batch.decode(_stored_text(body, encoding))]


def _stored_text(body: bytes, encoding: Encoding) -> bytes:
    return zlib.decompress(body, -zlib.MAX_WBITS) if encoding else body


def check_size(text: bytes, limits: Limits) -> None:
    """Refuse one event that is too large, as JSON text.

    Raises:
        EventRejected: `event-too-large`.
    """
    if len(text) > limits.event_bytes:
        raise EventRejected("event-too-large", f"{len(text)} bytes, at most {limits.event_bytes} are allowed")


def _check_unicode(text: bytes) -> None:
    try:
        text.decode()
    except UnicodeDecodeError as exc:
        raise EventRejected("bad-utf8", f"byte {exc.start} is not UTF-8") from exc


_T = TypeVar("_T")


def _decode(decoder: msgspec.json.Decoder[_T], text: bytes, limits: Limits) -> _T:
    try:
        return decoder.decode(text)
    except RecursionError as exc:  # msgspec counts levels as it reads and stops at Python's limit
        raise too_deep(limits.json_depth) from exc
    except msgspec.ValidationError as exc:
        raise _mistyped(str(exc)) from exc
    except msgspec.DecodeError as exc:
        raise EventRejected("bad-json", f"not JSON: {exc}") from exc


def _mistyped(message: str) -> EventRejected:
    """Name the attribute of which msgspec says: Expected `str`, got `int` - at `$[3].id`."""
    what, _, path = message.partition(" - at `$")
    place = _PATH.fullmatch(path)
    index, name = place.groups() if place else (None, None)
    where = f"event {index}: " if index else ""
    if missing := _MISSING.fullmatch(what):
        name = missing[1]
    if name in _CORE:
        found = "nothing" if missing or what.endswith("`null`") else "another type"
        return EventRejected(f"bad-{name}", f"{where}{name}: expected a string, found {found}")
    return EventRejected("bad-json", f"{where}not a CloudEvent: {what[:1].lower()}{what[1:]}")


def _usual(wire: _Wire, size: int, limits: Limits, source: str) -> Event | None:
    """Check the usual event in few steps; None for one that is unusual, or wrong, which `_checked` then says.

    Usual is: ASCII, no blanks between members, `data` in JSON, and beside what is required at most source and time. The
    size alone tells that: whatever else a text holds (another member, one twice, a blank, an escape) makes it longer.
    """
    id_, type_, time, data = wire.id, wire.type, wire.time, bytes(wire.data)
    least = _USUAL_BYTES + len(id_) + len(type_) + len(data)
    if wire.source is not None:
        least += _SOURCE_BYTES + len(source)
    if time is not None:
        least += _TIME_BYTES + len(time)
    is_usual = (
        size == least <= limits.event_bytes
        and data != _UNSET  # as if it were not there: its bytes may be another member's
        and wire.specversion == "1.0"
        and 1 <= len(id_) <= 1024
        and id_.isprintable()
        and len(type_) <= 255
        and _is_known_type(type_)
        and wire.source in (None, source)
        and (time is None or _is_time(time))
        and data.count(b"{") + data.count(b"[") < limits.json_depth
        and _is_json(data)
    )
    return Event(id=id_, source=source, type=type_, time=time, payload=data) if is_usual else None


def _is_json(data: bytes) -> bool:
    try:
        _anything.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


def _checked(wire: _Wire, text: bytes, limits: Limits, source: str) -> Event:
    check_size(text, limits)
    check_depth(text, limits.json_depth)
    if wire.specversion != "1.0":
        raise EventRejected("bad-specversion", 'specversion: expected "1.0"')
    _check_text("id", wire.id)
    if len(wire.type) > 255 or not _is_known_type(wire.type):  # an over-long one must not stay in the cache
        raise EventRejected(
            "bad-type", f"type {wire.type[:80]!r}: expected dotted levels of A-Z a-z 0-9 _ -, at most 255"
        )
    if wire.source is not None and wire.source != source:
        raise EventRejected("wrong-source", f"source {wire.source[:200]!r}: expected {source!r}, or none")
    if wire.time is not None and not _is_time(wire.time):
        raise EventRejected("bad-time", "time: expected RFC 3339, such as 2026-11-23T09:30:00Z")
    _check_text("subject", wire.subject)
    _check_text("datacontenttype", wire.datacontenttype)
    _check_text("dataschema", wire.dataschema)
    data = bytes(wire.data)
    extensions = _extensions(wire, data, text)
    for name, value in extensions.items():
        _check_extension(name, value)
    _check_data(wire, data, limits)
    return _event(wire, data, source, extensions)


def _check_text(name: str, value: str | None) -> None:
    if value is not None and (not 1 <= len(value) <= 1024 or _has_forbidden(value)):
        raise EventRejected(f"bad-{name}", f"{name}: expected 1 to 1024 characters without control characters")


def _has_forbidden(value: str) -> bool:
    return not value.isprintable() and _FORBIDDEN.search(value) is not None


def _is_time(text: str) -> bool:
    try:
        return _TIME.fullmatch(text) is not None and bool(date.fromisoformat(text[:10]))
    except ValueError:  # a day that its month has not
        return False


def _check_extension(name: str, value: Attribute) -> None:
    if not _NAME.fullmatch(name):
        raise EventRejected("bad-attribute", f"attribute {name[:40]!r}: expected 1 to 20 of a-z 0-9")
    if name in _SET_BY_GATEWAY:
        raise EventRejected("bad-attribute", f"{name}: set by the gateway from the envelope, expected none")
    if isinstance(value, str):
        if _has_forbidden(value):
            raise EventRejected("bad-attribute", f"{name}: expected no control characters")
    elif not isinstance(value, bool) and not -(2**31) <= value < 2**31:
        raise EventRejected("bad-attribute", f"{name}: expected an integer of 32 bits (CloudEvents 1.0, section 3.1)")


def _check_data(wire: _Wire, data: bytes, limits: Limits) -> None:
    """A handler must never be the first to find that data is not what it says."""
    if data != _UNSET:
        _check_json(data, "data: expected JSON that can be read")
        if wire.data_base64 is not None:
            raise EventRejected("bad-data", "expected data or data_base64, found both")
    elif wire.data_base64 is not None:
        try:
            decoded = base64.b64decode(wire.data_base64, validate=True)
        except ValueError as exc:
            raise EventRejected("bad-data", "data_base64: expected standard base64") from exc
        if decoded and is_json_type(wire.datacontenttype):
            _check_json(decoded, "data_base64: expected JSON, as datacontenttype says")
            check_depth(b"[" + decoded + b"]", limits.json_depth)  # as deep as it would stand in `data`


def _check_json(data: bytes, expected: str) -> None:
    try:
        _anything.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise EventRejected("bad-data", f"{expected} ({exc})") from exc


def _extensions(wire: _Wire, data: bytes, text: bytes) -> dict[str, Attribute]:
    """The members beyond the core ones.

    Each string member brings four quotes, `data` two and its own: if these are all there are, there is no other member,
    and none stands twice. A name that holds a quote is no attribute's, so the count tells duplicates from the rest too.
    """
    quotes = text.count(b'"')
    if quotes == _core_quotes(wire, data):
        return {}
    members = _members.decode(text)
    if quotes != 2 * len(members) + b"".join(members.values()).count(b'"'):
        raise EventRejected("bad-json", "expected each member once, and no quote in its name")
    return {
        name: _attribute_of(name, raw) for name, raw in members.items() if name not in _CORE and bytes(raw) != _UNSET
    }


def _core_quotes(wire: _Wire, data: bytes) -> int:
    optional = (wire.source, wire.time, wire.subject, wire.datacontenttype, wire.dataschema, wire.data_base64)
    strings = 3 + len(optional) - optional.count(None)
    return 4 * strings + (2 + data.count(b'"') if data != _UNSET else 0)


def _attribute_of(name: str, raw: msgspec.Raw) -> Attribute:
    try:
        value: Attribute = _attribute.decode(raw)
    except msgspec.DecodeError as exc:
        raise EventRejected("bad-attribute", f"{name[:40]}: expected a string, an integer or a boolean") from exc
    return value


def _event(wire: _Wire, data: bytes, source: str, extensions: Mapping[str, Attribute]) -> Event:
    return Event(
        id=wire.id,
        source=source,
        type=wire.type,
        time=wire.time,
        subject=wire.subject,
        datacontenttype=wire.datacontenttype,
        dataschema=wire.dataschema,
        payload=_payload(wire, data),
        extensions=extensions,
    )


def _payload(wire: _Wire, data: bytes) -> bytes:
    if wire.data_base64 is not None:
        return base64.b64decode(wire.data_base64)
    if data == _UNSET:
        return b""
    if is_json_type(wire.datacontenttype) or not data.startswith(b'"'):
        return data
    return str(_anything.decode(data)).encode()  # text of another media type
