"""Which devices are there, as events: `device.connected` and `device.disconnected` on the bus.

The gateway raises them with the device's `source`, so that they stand in one order with the device's own events and are
selected like them; no policy lets anyone else use these types (`rules.selection.PRESENCE_TYPES`). Each connection has an
`epoch` that only grows, kept on disk before the event is raised: of two events the one with the higher epoch is the
truth, so a late `device.disconnected` never wins. After a crash those who were connected are reported gone.

Strategy: connections only append to a list for their device. One task works it off: epochs of all that waits in one write,
events in one append a device; while the bus is unavailable it tries again with the same ids, and of each device only the
last changes are kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec
import structlog

from edge_protocol.errors import Rejected
from edge_protocol.events import JSON_TYPE, Event
from edge_protocol.ids import device_source
from edge_protocol.times import rfc3339
from gateway.errors import GatewayError
from gateway.mqtt.turns import Tasks
from gateway.ports.identity import Principal
from gateway.ports.state import Entry, StateStore
from gateway.rules.selection import CONNECTED, DISCONNECTED

if TYPE_CHECKING:
    from gateway.mqtt.connection import Connection

log = structlog.get_logger()

PREFIX: Final = "presence/"
RETRY_S: Final = 0.5
WRITE_S: Final = 10.0
KEPT_CHANGES: Final = 4
"""Changes of one device that wait; of more the oldest are not reported. Even, so that pairs stay pairs."""
_AT_ONCE: Final = 256
_PAGE: Final = 256
_CLOSE_S: Final = 2.0

Announce = Callable[[Sequence[Event]], Awaitable[object]]
"""Stores events of one source; raises GatewayError if it must be called again with the same."""


class _Record(msgspec.Struct, frozen=True, array_like=True):
    """Of a device: its last epoch, and whether that connection lives."""

    epoch: int
    is_connected: bool


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Record).decode


@dataclass(frozen=True, slots=True)
class _Change:
    """A connection began (`reason` None) or ended; `connection` only tells which."""

    connection: object
    at_s: float
    address: str
    reason: str | None


class Presence:
    """Told by connections (`Watcher`), tells the bus."""

    def __init__(
        self,
        store: StateStore,
        announce: Announce,
        tasks: Tasks,
        *,
        clock: Callable[[], float],
        make_id: Callable[[float], str],
    ) -> None:
        """Report nothing yet.

        Args:
            store: Keeps epochs.
            announce: Stores events on the bus.
            tasks: Run the one worker.
            clock: Unix time in seconds.
            make_id: Makes a UUIDv7 of a time.
        """
        self._store = store
        self._announce = announce
        self._tasks = tasks
        self._clock = clock
        self._make_id = make_id
        self._waiting: dict[str, list[_Change]] = {}
        self._unsent: dict[str, list[Event]] = {}
        self._epochs: dict[object, tuple[int, str]] = {}
        self._is_running = False

    async def load(self) -> None:
        """Report those gone who were connected when the gateway ended without a word."""
        after = ""
        while entries := await self._store.scan(PREFIX, after, _PAGE):
            for entry in entries:
                record = self._read(entry)
                if record.is_connected:
                    device = entry.key.removeprefix(PREFIX)
                    lost = object()
                    self._epochs[lost] = record.epoch, ""
                    self._note(device, _Change(lost, self._clock(), "", "gateway restarted"))
            after = entries[-1].key

    def session_began(self, principal: Principal, _client_id: str, connection: Connection) -> None:
        """A client was let in (`Watcher`)."""
        if principal.device is not None:
            self._note(principal.device, _Change(connection, self._clock(), connection.peer, None))

    def session_ended(self, principal: Principal, _client_id: str, connection: Connection, reason: str) -> None:
        """Its connection is gone (`Watcher`)."""
        if principal.device is not None:
            self._note(principal.device, _Change(connection, self._clock(), "", reason))

    async def aclose(self) -> None:
        """Report what waits, as far as that can be done in a moment."""
        give_up_s = asyncio.get_running_loop().time() + _CLOSE_S
        while self._is_running and asyncio.get_running_loop().time() < give_up_s:  # noqa: ASYNC110 - bounded above
            await asyncio.sleep(0.01)

    def _note(self, device: str, change: _Change) -> None:
        waiting = self._waiting.setdefault(device, [])
        waiting.append(change)
        if len(waiting) > KEPT_CHANGES:
            log.warning("presence_skipped", device=device, changes=2)
            _skip_one(waiting)
        if not self._is_running:
            self._is_running = True
            self._tasks.start(self._run(), name="presence")

    async def _run(self) -> None:
        try:
            while self._waiting or self._unsent:
                try:
                    await self._report()
                except (GatewayError, TimeoutError) as error:
                    log.warning("presence_delayed", devices=len(self._waiting), error=type(error).__name__)
                    await asyncio.sleep(RETRY_S)
        finally:
            self._is_running = False

    async def _report(self) -> None:
        if not self._unsent:
            await self._number()
        unsent = self._unsent
        results = await asyncio.gather(*map(self._send, unsent.values()), return_exceptions=True)
        self._unsent = {
            device: unsent[device] for device, done in zip(unsent, results, strict=True) if done is not True
        }
        for error in results:
            if isinstance(error, BaseException):
                raise error

    async def _send(self, events: list[Event]) -> bool:
        """Store events; those that never can be are given up, loudly."""
        try:
            async with asyncio.timeout(WRITE_S):
                await self._announce(events)
        except Rejected as error:
            log.exception("presence_refused", source=events[0].source, rule=error.rule)
        return True

    async def _number(self) -> None:
        """Give what waits its epochs, on disk before anybody hears of them; what fails is numbered anew."""
        devices = list(self._waiting)[:_AT_ONCE]
        entries = await asyncio.gather(*(self._store.get(PREFIX + device) for device in devices))
        taken = {device: self._waiting.pop(device) for device in devices}
        epochs, unsent, writes = dict(self._epochs), {}, {}
        for device, entry in zip(devices, entries, strict=True):
            record = self._read(entry) if entry else _Record(0, False)
            unsent[device], after = self._numbered(device, taken[device], record, epochs)
            writes[PREFIX + device] = _encode(after)
        try:
            await self._store.write(writes)
        except BaseException:
            for device in devices:
                self._waiting[device] = again = taken[device] + self._waiting.get(device, [])
                while len(again) > KEPT_CHANGES and _skip_one(again):
                    pass
            raise
        self._epochs = epochs
        self._unsent = {device: events for device, events in unsent.items() if events}

    def _read(self, entry: Entry) -> _Record:
        """What is kept of a device; if it cannot be read, an epoch above all that were counted: they only grow."""
        try:
            return _decode(entry.value)
        except msgspec.DecodeError as error:
            log.warning("presence_not_read", key=entry.key, error=type(error).__name__)
            return _Record(int(self._clock()), False)

    def _numbered(
        self, device: str, changes: list[_Change], record: _Record, epochs: dict[object, tuple[int, str]]
    ) -> tuple[list[Event], _Record]:
        found = []
        for change in changes:
            if change.reason is None:
                record = _Record(record.epoch + 1, True)
                epochs[change.connection] = record.epoch, change.address
                found.append(self._event(device, CONNECTED, change, record.epoch, change.address))
            elif (began := epochs.pop(change.connection, None)) is not None:  # else its beginning was skipped
                if began[0] == record.epoch:
                    record = _Record(record.epoch, False)
                found.append(self._event(device, DISCONNECTED, change, *began))
        return found, record

    def _event(self, device: str, type_: str, change: _Change, epoch: int, address: str) -> Event:
        data: dict[str, Any] = {"epoch": epoch}
        data |= {"address": address} if address else {}
        data |= {} if change.reason is None else {"reason": change.reason}
        at = rfc3339(change.at_s)
        return Event(
            id=self._make_id(change.at_s),
            source=device_source(device),
            type=type_,
            time=at,
            datacontenttype=JSON_TYPE,
            payload=msgspec.json.encode(data),
        )


def _skip_one(waiting: list[_Change]) -> bool:
    """Drop the oldest connection that both began and ended unheard; never an end alone, since its beginning is remembered."""
    ended = {change.connection for change in waiting if change.reason is not None}
    skipped = next((each.connection for each in waiting if each.reason is None and each.connection in ended), None)
    waiting[:] = [change for change in waiting if change.connection is not skipped]
    return skipped is not None
