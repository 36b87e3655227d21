"""One event: CloudEvents 1.0.2 as a value, and how it is written (wire protocol, section 4).

An event's data stays the JSON text (or the bytes) that the producer wrote; it is decoded only when somebody asks.
Reading, with every check, is the business of `events`.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

Attribute = str | int | bool

JSON_TYPE: Final = "application/json"
BATCH_TYPE: Final = "application/cloudevents-batch+json"
EVENT_TYPE: Final = "application/cloudevents+json"

_TYPE = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One CloudEvent.

    Attributes:
        id: Unique within the source.
        source: Who raised it: `/devices/{id}` or `/services/{sub}`.
        type: Dotted name, such as `cart_updated`.
        time: RFC 3339, as the producer wrote it, or None.
        payload: The data as written: JSON text if `is_json`, else the bytes themselves; empty for no data.
        extensions: All other attributes, by name.
    """

    id: str
    source: str
    type: str
    time: str | None = None
    subject: str | None = None
    datacontenttype: str | None = None
    dataschema: str | None = None
    payload: bytes = b""
    extensions: Mapping[str, Attribute] = {}

    @property
    def is_json(self) -> bool:
        """Whether `payload` is JSON text (CloudEvents JSON format 3.1: also when no content type is named)."""
        return is_json_type(self.datacontenttype)

    @property
    def data(self) -> Any:
        """The data, decoded: a JSON value, else bytes; None without data."""
        if not self.payload:
            return None
        return msgspec.json.decode(self.payload) if self.is_json else self.payload

    @property
    def device(self) -> str | None:
        """Id of the device that raised it; None for a service's event."""
        return self.source.removeprefix("/devices/") if self.source.startswith("/devices/") else None

    @property
    def stream(self) -> str | None:
        """The stream the gateway read it from, if any."""
        return _text(self.extensions.get("stream"))

    @property
    def sequence(self) -> int | None:
        """Its number in the stream, if any."""
        text = _text(self.extensions.get("sequence"))
        return int(text) if text else None


def _text(value: Attribute | None) -> str | None:
    return None if value is None else str(value)


def is_json_type(content_type: str | None) -> bool:
    """Tell whether a media type means JSON (`application/json`, `.../...+json`, or none named)."""
    if content_type is None:
        return True
    media = content_type.partition(";")[0].strip().lower()
    return media == JSON_TYPE or media.endswith("+json") or media == "text/json"


def is_event_type(text: str) -> bool:
    """Tell whether a text may be an event type: dotted levels of `A-Z a-z 0-9 _ -`, at most 255."""
    return len(text) <= 255 and _TYPE.fullmatch(text) is not None


def encode_event(event: Event) -> bytes:
    """Write one event in the CloudEvents JSON format (data verbatim)."""
    members: dict[str, Any] = {"specversion": "1.0", "id": event.id, "source": event.source, "type": event.type}
    for name in ("time", "subject", "datacontenttype", "dataschema"):
        if (value := getattr(event, name)) is not None:
            members[name] = value
    members.update(event.extensions)
    if event.payload:
        if event.is_json:
            members["data"] = msgspec.Raw(event.payload)
        else:
            members["data_base64"] = base64.b64encode(event.payload).decode()
    return msgspec.json.encode(members)


def encode_batch(events: Iterable[bytes]) -> bytes:
    """Join encoded events to a JSON batch."""
    return b"[" + b",".join(events) + b"]"
