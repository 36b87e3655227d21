"""Events, handlers and dead letters: where is my event, what arrived, what could not be delivered, deliver it again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec
import structlog

from edge_protocol import events
from edge_protocol.errors import Rejected
from edge_protocol.events import Event, Limits
from edge_protocol.ids import service_source, uuid7
from edge_protocol.times import rfc3339
from gateway.config import Settings
from gateway.errors import ConfigError, Conflict, NotFound
from gateway.operations.live import Live
from gateway.ports.bus import (
    Batch,
    Beginning,
    End,
    EventBus,
    Forked,
    Position,
    Start,
    StoredBatch,
    position,
)
from gateway.ports.cursors import NAME_PREFIX
from gateway.ports.operations import Operations
from gateway.ports.subscriptions import (
    Deferred,
    DeferredState,
    Done,
    Key,
    Query,
    Subscriptions,
    SubscriptionState,
    Waiting,
)
from gateway.rules.selection import Selection

log = structlog.get_logger()

_PAGE_BYTES = 1 << 20
_PAGES = 16  # of them are looked through in one call; what follows waits for the next one
_UUID7_CLOCK_MARGIN_S = 86400.0  # a device's clock may have been this wrong when it made the id
OPERATOR_SUB = "operator"  # source of events published from the command line


@dataclass(frozen=True, kw_only=True)
class EventOperations:
    """Events, handlers and dead letters.

    Attributes:
        clock: Unix time in seconds.
        random: Gives so many random bytes.
    """

    settings: Settings
    bus: EventBus
    subscriptions: Subscriptions
    live: Live
    clock: Callable[[], float]
    random: Callable[[int], bytes]

    def table(self) -> Operations:
        """By the names of the interface."""
        names = (
            "events_show",
            "events_read",
            "events_publish",
            "handlers_list",
            "handlers_remove",
            "dead_letters_list",
            "dead_letters_show",
            "dead_letters_replay",
            "dead_letters_discard",
            "stats",
        )
        return {name: getattr(self, name) for name in names}

    # --- events

    async def events_show(self, *, id: str) -> dict[str, Any]:
        """Tell where an event is: stored, and for each handler delivered, waiting, blocked, dead or pending."""
        found = await self._find(id)
        if not found:
            return {"id": id, "state": "unknown", "events": []}
        states = await self.subscriptions.list()
        shown = [await self._whereabouts(batch, index, event, states) for batch, index, event in found]
        return {"id": id, "state": "stored", "events": shown}

    async def _find(self, event_id: str) -> list[tuple[StoredBatch, int, Event]]:
        wanted = event_id.encode()
        found = []
        after = (await self.bus.locate(_search_start(event_id)))[0]
        while True:
            page = await self.bus.read(0, after, max_bytes=_PAGE_BYTES)
            for batch in page.batches:
                body = events.inflate(batch.body, batch.encoding, limit=self.settings.limits.inflated_bytes)
                if wanted in body:
                    found += [(batch, n, event) for n, event in enumerate(decode(batch)) if event.id == event_id]
            if page.next == after:
                return found
            after = page.next
            await asyncio.sleep(0)  # a long search must not hold up the gateway

    async def _whereabouts(
        self, batch: StoredBatch, index: int, event: Event, states: Sequence[SubscriptionState]
    ) -> dict[str, Any]:
        at = position(batch.row, index)
        return {
            "position": at,
            "received_at": rfc3339(batch.received_ms / 1000),
            "source": event.source,
            "type": event.type,
            "stream": event.stream,
            "sequence": event.sequence,
            "handlers": [await self._delivery(state, at, event) for state in states],
        }

    async def _delivery(self, state: SubscriptionState, at: Position, event: Event) -> dict[str, Any]:
        name = state.spec.name
        for entry in await self.subscriptions.deferred(Query(subscription=name, event_id=event.id), limit=16):
            if entry.position == at:
                return {
                    "handler": name,
                    "state": entry.state.value,
                    "attempts": entry.attempts,
                    "cause": entry.cause,
                    "next_at": rfc3339(entry.next_ms / 1000) if entry.state is DeferredState.WAITING else None,
                }
        return {"handler": name, "state": await self._cursor_state(state, at, event), "attempts": None, "cause": ""}

    async def _cursor_state(self, state: SubscriptionState, at: Position, event: Event) -> str:
        if not _is_selected(state, event):
            return "not subscribed"
        query = Query(subscription=state.spec.name, source=event.source, state=DeferredState.BLOCKED)
        blocked = await self.subscriptions.deferred(query, limit=1)
        if blocked and blocked[0].position <= at:
            return "blocked"
        floor = state.floors[0]
        finished = at <= floor.position or any(first <= at <= last for first, last in floor.done)
        return "delivered" if finished else "pending"

    async def events_read(
        self,
        *,
        start: str | None = None,
        after: str | None = None,
        types: Sequence[str] = (),
        device: str | None = None,
        limit: int = 100,
        wait_s: float = 0,
    ) -> dict[str, Any]:
        """Read events from a start (`beginning`, `end`, a time, a position), or on from an earlier answer's `next`.

        An answer has less than `limit` events, or none, where much of the log is not wanted: go on until `next` stays.
        """
        at = Position(_integer(after, "after")) if after is not None else (await self.bus.locate(_start(start)))[0]
        shown: list[Any] = []
        for n_read in range(_PAGES):
            page = await self.bus.read(0, at, max_bytes=_PAGE_BYTES, wait_s=0 if n_read else wait_s)
            for batch in page.batches:
                for n, event in enumerate(decode(batch)):
                    here = position(batch.row, n)
                    if here <= at or not _is_wanted(event, types, device):
                        continue
                    if len(shown) == limit:
                        return {"events": shown, "next": str(here - 1)}
                    shown.append({**msgspec.json.decode(events.encode_event(event)), "position": here})
            if page.next == at:
                break
            at = page.next
        return {"events": shown, "next": str(at)}

    async def events_publish(
        self,
        *,
        type: str,
        data: Any = None,
        id: str | None = None,
        subject: str | None = None,
    ) -> dict[str, Any]:
        """Raise an event from the command line: source `/services/operator`."""
        event = Event(
            id=id or uuid7(int(self.clock() * 1000), self.random(10)),
            source=service_source(OPERATOR_SUB),
            type=type,
            time=rfc3339(self.clock()),
            subject=subject,
            datacontenttype=events.JSON_TYPE,
            payload=b"" if data is None else msgspec.json.encode(data),
        )
        at = await append_events(self.bus, [event], limits=limits_of(self.settings), now_s=self.clock())
        return {"id": event.id, "position": at}

    # --- handlers and dead letters

    async def handlers_list(self) -> list[dict[str, Any]]:
        """Every subscription with its lag, what it put aside, and how its target does."""
        urls = {handler.name: handler.url for handler in self.settings.handlers}
        return [
            {
                "name": state.spec.name,
                "url": urls.get(state.spec.name, ""),
                "lag": state.lag,
                "waiting": state.waiting,
                "blocked": state.blocked,
                "dead": state.dead,
                **self.live.handler(state.spec.name),
            }
            for state in await self.subscriptions.list()
        ]

    async def handlers_remove(self, *, name: str, dry_run: bool = False) -> dict[str, Any]:
        """Forget a subscription that nobody will go on with, its place in the log and what it put aside."""
        if any(handler.name == name for handler in self.settings.handlers):
            raise Conflict(
                f"handler {name!r} is in the configuration; take its table out and start the gateway anew first"
            )
        found = [state for state in await self.subscriptions.list() if state.spec.name == name]
        if not found:
            raise NotFound(f"no handler {name!r}; `gateway handlers list` shows those there are")
        sessions: Sequence[str] = ()
        if name.startswith(NAME_PREFIX):
            sessions = await self.live.remove_cursor(name, dry_run=dry_run)
        elif not dry_run:
            await self.subscriptions.remove(name)
        (state,) = found
        lost = {"name": name, "lag": state.lag, "waiting": state.waiting, "blocked": state.blocked, "dead": state.dead}
        if not dry_run:
            log.warning("handler_removed", handler=name, lag=state.lag, dead_letters=state.dead, sessions=len(sessions))
        return {**lost, "sessions": list(sessions)}

    async def dead_letters_list(
        self, *, handler: str | None = None, after: str | None = None, limit: int = 100
    ) -> dict[str, Any]:
        """Events that could not be delivered, with cause and attempts."""
        skip = _key(after) if after else None
        query = Query(
            subscription=handler,
            state=DeferredState.DEAD,
            after=skip.position if skip and handler else Position(0),
        )
        rows = [row for row in await self.subscriptions.deferred(query, limit=limit + 1) if not skip or row.key != skip]
        page = rows[:limit]
        more = len(rows) > limit and handler is not None
        return {"dead_letters": [_shown(row) for row in page], "next": _shown(page[-1])["id"] if more else None}

    async def dead_letters_show(self, *, id: str) -> dict[str, Any]:
        """One dead letter with its event."""
        row = await self._dead_letter(id)
        return {**_shown(row), "event": msgspec.json.decode(row.event) if row.event else None}

    async def dead_letters_replay(
        self, *, handler: str | None = None, ids: Sequence[str] = (), dry_run: bool = False
    ) -> dict[str, Any]:
        """Deliver dead letters again, to their own handler only, under the same idempotency key."""
        answer = await self._resolve(handler, ids, Waiting(int(self.clock() * 1000)), dry_run=dry_run)
        for name in {_key(each).subscription for each in answer["ids"]}:
            self.live.wake(name)
        return answer

    async def dead_letters_discard(
        self, *, handler: str | None = None, ids: Sequence[str] = (), dry_run: bool = False
    ) -> dict[str, Any]:
        """Forget dead letters for good."""
        return await self._resolve(handler, ids, Done(), dry_run=dry_run)

    async def _resolve(
        self, handler: str | None, ids: Sequence[str], to: Done | Waiting, *, dry_run: bool
    ) -> dict[str, Any]:
        if ids:
            keys = [(await self._dead_letter(each)).key for each in ids]
        elif handler is not None:
            query = Query(subscription=handler, state=DeferredState.DEAD)
            keys = [row.key for row in await self.subscriptions.deferred(query, limit=100_000)]
        else:
            raise NotFound("expected ids of dead letters, or --handler NAME for all of one handler")
        count = len(keys) if dry_run else await self.subscriptions.resolve(keys, to)
        return {"count": count, "ids": [f"{key.subscription}:{key.position}" for key in keys]}

    async def _dead_letter(self, text: str) -> Deferred:
        key = _key(text)
        query = Query(subscription=key.subscription, state=DeferredState.DEAD, after=Position(key.position - 1))
        rows = await self.subscriptions.deferred(query, limit=1)
        if not rows or rows[0].position != key.position:
            raise NotFound(f"dead letter {text!r}: there is none; `gateway dead-letters list` shows them")
        return rows[0]

    async def stats(self) -> dict[str, Any]:
        """What is stored, and the counters of a running gateway."""
        return {"bus": msgspec.to_builtins(await self.bus.stats()), **self.live.stats()}


def limits_of(settings: Settings) -> Limits:
    """The limits of one publish."""
    limits = settings.limits
    return Limits(
        event_bytes=limits.event_bytes,
        envelope_bytes=limits.envelope_bytes,
        inflated_bytes=limits.inflated_bytes,
        events=limits.events,
        json_depth=limits.json_depth,
    )


async def append_events(bus: EventBus, raised: Sequence[Event], *, limits: Limits, now_s: float) -> Position:
    """Store events of one cloud service; durable on return, deduplicated by (source, id).

    Raises:
        EventRejected: One of them breaks a rule of the wire protocol, section 4.
        BusUnavailable, BusFull: Repeat with the same events.
    """
    source = raised[0].source
    body = events.encode_batch(events.encode_event(event) for event in raised)
    checked = events.decode_batch(body, limits=limits, source=source)
    batch = Batch(
        source=source,
        received_ms=int(now_s * 1000),
        count=len(checked),
        types=tuple(sorted({event.type for event in checked})),
        body=body,
        ids=tuple(event.id for event in checked),
    )
    (outcome,) = await bus.append([batch])
    if isinstance(outcome, Forked):
        raise Rejected(outcome.rule, outcome.detail)
    return outcome.position


def decode(batch: StoredBatch) -> list[Event]:
    """Events of a row, with `source`, `stream` and `sequence` set."""
    return events.decode_stored(batch.body, batch.encoding, source=batch.source, stream=batch.stream, first=batch.first)


def _search_start(event_id: str) -> Start:
    """A UUIDv7 tells when it was made: no need to look at what was stored before."""
    hexadecimal = event_id.replace("-", "")
    if len(event_id) == 36 and len(hexadecimal) == 32 and hexadecimal[12] == "7":
        try:
            return datetime.fromtimestamp(int(hexadecimal[:12], 16) / 1000 - _UUID7_CLOCK_MARGIN_S, UTC)
        except (ValueError, OSError, OverflowError):
            pass
    return Beginning()


def _start(text: str | None) -> Start:
    if text is None or text == "end":
        return End()
    if text == "beginning":
        return Beginning()
    if text.isdigit():
        return Position(int(text))
    try:
        at = datetime.fromisoformat(text)
    except ValueError as exc:
        raise ConfigError("--from", text, "beginning, end, a time such as 2026-11-23T09:30:00Z, or a position") from exc
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def _integer(text: str, name: str) -> int:
    if not text.isdigit():
        raise ConfigError(name, text, "a position")
    return int(text)


def _is_wanted(event: Event, types: Sequence[str], device: str | None) -> bool:
    return Selection(types=tuple(types)).wants_type(event.type) and device in (None, event.device)


def _is_selected(state: SubscriptionState, event: Event) -> bool:
    spec = state.spec
    chosen = Selection(types=spec.types, devices=spec.devices)
    return chosen.wants_type(event.type) and chosen.wants_source(event.source, {})


def _key(text: str) -> Key:
    name, _, at = text.rpartition(":")
    if not name or not at.isdigit():
        raise NotFound(f"dead letter {text!r}: expected HANDLER:POSITION, as `gateway dead-letters list` shows it")
    return Key(name, Position(int(at)))


def _shown(row: Deferred) -> dict[str, Any]:
    return {
        "id": f"{row.subscription}:{row.position}",
        "handler": row.subscription,
        "event_id": row.event_id,
        "type": row.type,
        "source": row.source,
        "attempts": row.attempts,
        "cause": row.cause,
        "since": rfc3339(row.since_ms / 1000),
    }
