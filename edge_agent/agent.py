"""`Agent`: how an application on the device emits events. It knows the outbox and the form of an event, no network."""

from __future__ import annotations

import json
import os
import time as clock
from collections.abc import Iterable, Mapping
from datetime import datetime
from types import TracebackType
from typing import Any, Self

import msgspec

from edge_agent.errors import EventInvalid
from edge_agent.home import Home, find_home
from edge_agent.outbox import Outbox
from edge_agent.settings import Settings
from edge_protocol.errors import EventRejected
from edge_protocol.events import Attribute, Event, Limits, decode_event, encode_event
from edge_protocol.ids import device_source, uuid7
from edge_protocol.times import rfc3339

OCTET_STREAM = "application/octet-stream"
CLOCK_OFFSET = "clock_offset_s"
"""Note in the outbox: what the daemon found the gateway's clock to be ahead of the device's."""


class Agent:
    """Takes events into the outbox; the daemon (`edge-agent run`) delivers them.

    Open one and share it between threads. It works with or without the daemon running.

    Example:
        >>> with Agent.open("~/.edge-agent") as agent:
        ...     agent.emit("cart_updated", {"cart": 7, "items": 3})
    """

    def __init__(self, settings: Settings, outbox: Outbox) -> None:
        self._source = device_source(settings.id)
        self._limits = Limits(event_bytes=settings.outbox.max_event_bytes)
        self._outbox = outbox

    @classmethod
    def open(cls, home: str | os.PathLike[str] | Home | None = None) -> Agent:
        """Open the agent of a folder that `edge-agent init` made.

        Args:
            home: The folder; None for `EDGE_AGENT_HOME` or `~/.edge-agent`.

        Raises:
            ConfigError: There is no agent, or its settings are wrong.
        """
        found = home if isinstance(home, Home) else find_home(home)
        settings = found.settings()
        return cls(settings, found.outbox(settings))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the outbox; what was emitted is on disk already."""
        self._outbox.close()

    def emit(
        self,
        type: str,  # noqa: A002  # the name the standard gives it (CloudEvents 1.0)
        data: Any = None,
        *,
        subject: str | None = None,
        time: datetime | str | None = None,
        content_type: str | None = None,
        extensions: Mapping[str, Attribute] | None = None,
    ) -> str:
        """Take one event: on disk, fsynced, when it returns (promise P1).

        Args:
            type: Dotted levels of `A-Z a-z 0-9 _ -`.
            data: A JSON value, `bytes`, or `msgspec.Raw`: JSON text, kept as written.
            subject: What it is about, within the device.
            time: When it happened, RFC 3339 or with a time zone; None for now.
            content_type: Of bytes; `application/octet-stream` if none is named.
            extensions: Further CloudEvents attributes.

        Returns:
            The event's id.

        Raises:
            EventInvalid: It breaks a rule or a limit; the message names it.
            OutboxFull: It was not taken; nothing older was dropped.
            OutboxUnavailable: The disk failed; it was not taken.
        """
        now_s = self._now_s()
        event = self._event(
            type, data, now_s, subject=subject, time=time, content_type=content_type, extensions=extensions
        )
        self._outbox.append([self._encoded(event)], now_ms=int(now_s * 1000))
        return event.id

    def emit_many(
        self,
        events: Iterable[tuple[str, Any]],
        *,
        subject: str | None = None,
        time: datetime | str | None = None,
        content_type: str | None = None,
    ) -> list[str]:
        """Take several events with one fsync, all or none, in order.

        Args:
            events: Type and data of each, as for `emit`.
            subject: Of all of them.
            time: Of all of them.
            content_type: Of all of them.

        Returns:
            Their ids.

        Raises:
            EventInvalid: One of them breaks a rule; none was taken.
            OutboxFull: None was taken.
            OutboxUnavailable: None was taken.
        """
        now_s = self._now_s()
        made = [
            self._event(kind, data, now_s, subject=subject, time=time, content_type=content_type)
            for kind, data in events
        ]
        self._outbox.append([self._encoded(event) for event in made], now_ms=int(now_s * 1000))
        return [event.id for event in made]

    def _now_s(self) -> float:
        return clock.time() + (self._outbox.noted(CLOCK_OFFSET) or 0.0)

    def _event(
        self,
        kind: str,
        data: Any,
        now_s: float,
        *,
        subject: str | None = None,
        time: datetime | str | None = None,
        content_type: str | None = None,
        extensions: Mapping[str, Attribute] | None = None,
    ) -> Event:
        payload = _payload(data)
        if isinstance(data, (bytes, bytearray, memoryview)):
            content_type = content_type or OCTET_STREAM
        return Event(
            id=uuid7(int(now_s * 1000), os.urandom(10)),
            source=self._source,
            type=kind,
            time=_rfc3339(time, now_s),
            subject=subject,
            datacontenttype=content_type,
            payload=payload,
            extensions=extensions or {},
        )

    def _encoded(self, event: Event) -> bytes:
        """The text that will be sent, checked by the rules that the gateway checks it by."""
        try:
            text = encode_event(event)
            decode_event(text, limits=self._limits, source=self._source)
        except (EventRejected, msgspec.MsgspecError, TypeError, ValueError, RecursionError) as exc:
            raise EventInvalid(f"event {str(event.type)[:80]!r}: {_reason(event, exc)}") from exc
        return text


def _reason(event: Event, exc: Exception) -> str:
    """Why an event cannot be; of JSON that is none, where in the data, which is all that the caller knows."""
    if isinstance(exc, EventRejected) and exc.rule == "bad-json":
        try:
            msgspec.json.decode(event.payload)
        except (msgspec.DecodeError, RecursionError) as bad:
            return f"bad-json: data is not JSON: {bad}"
    return str(exc)


def _payload(data: Any) -> bytes:
    if data is None:
        return b""
    if isinstance(data, (bytes, bytearray, memoryview, msgspec.Raw)):
        return bytes(data)
    try:  # not msgspec: it writes NaN as null and accepts what is no JSON value
        return json.dumps(data, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError) as exc:
        raise EventInvalid(f"data: {exc}; expected a JSON value or bytes") from exc


def _rfc3339(time: datetime | str | None, now_s: float) -> str:
    if isinstance(time, str):
        return time
    if time is not None and time.tzinfo is None:
        raise EventInvalid("time: expected a datetime with a time zone, or RFC 3339 text")
    return rfc3339(time.timestamp() if time is not None else now_s)
