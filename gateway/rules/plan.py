"""The dispatch plan of one subscription: what may be delivered next, what a verdict leads to, what must be saved.

Owns the window: lanes (one FIFO per source), floors, events put aside. Knows no bus, no target, no clock, no random
number; `gateway/dispatch` reads, delivers and saves for it. When a lane's turn comes is the agenda's business, what may
share a request that of `batching`. Not thread-safe, and needs not be: no method waits.

Strategy. Every event in memory can be delivered: behind one that is put aside nothing of its lane stays in memory, each
row becomes a reference in the store, the floor moves on, and the rows are read back in order once nothing is held. So a
source that is stuck costs one row a batch and never stops the others. Entries put aside (due retries, replays) come
back by `admit`. Changes are collected under the position that names them, so the last word about an entry wins and one
transaction holds them all.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from edge_protocol.events import Event
from gateway.rules.agenda import Agenda
from gateway.rules.batching import Batch, gather
from gateway.rules.breaker import Breaker, Health
from gateway.rules.cursor import Cursor, Interval
from gateway.rules.delivery import Act, Aside, Changes, Item, Lane, Reference, Row, Stage
from gateway.rules.handling import HandlerSettings
from gateway.rules.ledger import Ledger
from gateway.rules.retry import GiveUp, next_try


class Plan:
    """See the module.

    Attributes:
        breaker: Whether the target is there.
        paused: An operator stopped deliveries.
        running: Events with the target.
        events: Events in memory.
        cursors: Where it stands in each partition.
    """

    def __init__(self, settings: HandlerSettings, floors: Mapping[int, tuple[int, Sequence[Interval]]]) -> None:
        self.breaker = Breaker(settings.pause)
        self.paused = False
        self.running = 0
        self.events = 0
        self._settings = settings
        self._ordered = settings.ordering == "device"
        self._blocks = self._ordered and settings.on_dead_letter == "block"
        self._size = 0
        self._agenda = Agenda()
        self._admitted: set[int] = set()
        self._ledger = Ledger(floors)
        self.cursors = self._ledger.cursors

    # ---- what comes in

    def recall(self, source: str, position: int, state: Literal["waiting", "blocked", "dead"]) -> None:
        """Learn of an entry that an earlier run put aside; before anything else."""
        if state == "blocked":
            lane = self._agenda.lane(source, source)
            lane.refs += 1
            self._agenda.wanting[source] = lane
        elif self._ordered and (state == "waiting" or self._blocks):
            self._agenda.lane(source, source).held.add(position)

    def blocks(self, source: str) -> bool:
        """Tell whether events of a source must wait in the store: give its rows to `refer`, not to `feed`."""
        lane = self._agenda.lanes.get(source) if self._ordered else None
        return lane is not None and lane.blocked

    def refer(self, partition: int, source: str, first: int, end: int) -> None:
        """Take a row of a source that is blocked: only a reference is kept.

        Args:
            partition: Where it was read.
            source: For which `blocks` is true.
            first: Position of its first event.
            end: Position of its last event.
        """
        cursor = self.cursors[partition]
        at = next((at for at in range(first, end + 1) if not cursor.is_done(at)), None)
        if at is not None:
            self._add_reference(self._agenda.lanes[source], at)
        self.skip(partition, end)

    def feed(self, partition: int, row: Row) -> None:
        """Take a row read from the log, whose source is not blocked."""
        cursor = self.cursors[partition]
        for position, event in row.events:
            if cursor.is_done(position):
                continue
            if position > row.first:
                cursor.reach(position - 1)
            cursor.open(position)
            lane = self._agenda.lane(row.source if self._ordered else (row.source, position), row.source)
            self._enter(lane, Item(lane, cursor, position, event, row.row, received_ms=row.received_ms))
        self.skip(partition, row.end)
        if self._ordered and row.source in self._agenda.lanes:
            self._relieve(self._agenda.lanes[row.source])

    def skip(self, partition: int, end: int) -> None:
        """Note that nothing up to here is left to be delivered but what was fed or referred."""
        if end > self.cursors[partition].reached:
            self.cursors[partition].reach(end)
            self._ledger.moved = True

    def lose(self, source: str, position: int, cause: str) -> None:
        """Make a dead letter of what cannot be read; `source` may be unknown ("")."""
        self._ledger.put(Aside(position=position, source=source, state="dead", cause=cause))
        if self._blocks and source:
            self._hold(self._agenda.lane(source, source), position)

    def admit(self, source: str, position: int, event: Event, *, attempts: int, first_s: float) -> None:
        """Take an entry that is due again, unless it is here already or what became of it is not saved yet.

        It goes before what its lane holds, behind other such entries.
        """
        if self._is_known(position):
            return
        lane = self._agenda.lane(source if self._ordered else (source, position), source)
        item = Item(lane, None, position, event, 0, received_ms=None)
        item.attempts = attempts
        item.first_s = first_s if attempts else None
        item.shares = 0
        self._admitted.add(position)
        entries = sum(1 for queued in lane.queue if queued.home is None)
        self._enter(lane, item, at=entries)

    def refill(self, source: str, rows: Sequence[Row]) -> None:
        """Take rows read back for a source that `wanted` named, oldest first; none if the store has none of it."""
        lane = self._agenda.lanes[source]
        if not rows and not self._ledger.concerns(source):
            lane.refs = 0
        for row in rows:
            if lane.held:
                break  # an entry of this source was put aside meanwhile: what follows stays in the store
            self._read_back(lane, row)
        self._agenda.go_on(lane)

    def release(self, source: str, position: int) -> None:
        """Learn that an operator discarded an entry."""
        lane = self._agenda.lanes.get(source)
        if lane is not None and not self._is_known(position):
            lane.held.discard(position)
            self._agenda.go_on(lane)

    # ---- what to do

    @property
    def has_room(self) -> bool:
        """Whether more of the log may be read into the window."""
        return self.events < self._settings.window_events and self._size < self._settings.window_bytes

    @property
    def admitted(self) -> int:
        """How many entries that had been put aside are in memory."""
        return len(self._admitted)

    def wanted(self) -> list[str]:
        """Name the sources whose references are to be read back now: save, read the store, `refill`, then ask again."""
        if self.events >= self._settings.window_events * 5 // 4 or self._size >= self._settings.window_bytes * 5 // 4:
            return []  # a quarter more than the window, or a full window would starve those who wait longest
        return self._agenda.wanted()

    def held(self) -> Iterator[tuple[str, int]]:
        """Name the entries in the store that later events wait for: they may have been discarded."""
        for lane in self._agenda.lanes.values():
            yield from ((lane.source, position) for position in lane.held if not self._is_known(position))

    def startable(self, now_s: float) -> int:
        """Tell how many deliveries `start` would give now, at most (0 only if none)."""
        self._agenda.ripen(now_s)
        full = self.running + self._ledger.unsaved >= self._settings.window_events
        if self.paused or full or not self.breaker.allows(now_s):
            return 0
        ready = len(self._agenda.ready)
        return ready if self.breaker.health is Health.UP else min(1, ready)

    def next_due_s(self, now_s: float) -> float | None:
        """Tell when `start` should be asked again though nothing else happens; later than now, on the caller's clock."""
        due_s = self._agenda.due_s(now_s)
        if self.breaker.health is not Health.DOWN or self.breaker.probe_s <= now_s:
            return due_s
        return self.breaker.probe_s if due_s is None else min(due_s, self.breaker.probe_s)

    def start(self, now_s: float) -> Item | None:
        """Give the next delivery, or None if there is nothing to start now. Its verdict must follow."""
        item = self._agenda.take(now_s) if self.startable(now_s) else None
        if item is not None:
            self._begin(item, now_s)
        return item

    def join(self, first: Item, now_s: float) -> Batch | None:
        """Start what may share the request of a delivery that `start` just gave; None if it goes alone.

        That is what is ready behind it: of its source where order matters, of any source else.
        """
        if first.probe:
            return None
        lane = first.lane
        next_lane = (lambda: lane if lane.queue else None) if self._ordered else self._agenda.first
        room = self._settings.window_events - self.running - self._ledger.unsaved
        batch = gather(first, next_lane, min(self._settings.batch, 1 + room))
        for item in batch.items[1:] if batch else ():
            self._begin(item, now_s)
        return batch

    # ---- verdicts

    def delivered(self, item: Item) -> None:
        """The service has it."""
        self._stop(item)
        self.breaker.answered(probe=item.probe)
        item.move(Act.DELIVER)
        self._forget(item)
        if item.home is None:
            self._ledger.resolve(item.position)
            item.lane.held.discard(item.position)
        self._ledger.unsaved += 1
        self._agenda.go_on(item.lane)

    def failed(
        self, item: Item, cause: str, *, now_s: float, jitter: float, retry_after_s: float | None = None
    ) -> Stage:
        """It failed this time: retry in place, put aside, or bury; tell which."""
        self._stop(item)
        self.breaker.answered(probe=item.probe)
        item.attempts += 1
        item.shares = 0
        item.cause = cause
        delay_s = next_try(self._settings.retry, item.attempts, jitter=jitter, retry_after_s=retry_after_s)
        if isinstance(delay_s, GiveUp):
            return self._bury(item, f"{delay_s.reason}: {cause}")
        item.due_s = now_s + delay_s
        if item.attempts >= self._settings.defer_at or item.home is None or self._hogs(item.lane):
            self._defer(item)
        else:
            item.move(Act.RETRY)
            item.lane.queue.appendleft(item)
        self._agenda.go_on(item.lane)
        return item.stage

    def refused(self, item: Item, cause: str) -> Stage:
        """The service will never take it: bury."""
        self._stop(item)
        self.breaker.answered(probe=item.probe)
        item.attempts += 1
        return self._bury(item, cause)

    def down(self, item: Item, cause: str, *, now_s: float, jitter: float, retry_after_s: float | None = None) -> Stage:
        """The target is not there: pause all, count no attempt; bury only what has been tried for too long.

        For the first of a batch, once the others were given back: it stands for them all.
        """
        self._stop(item)
        self.breaker.absent(cause, probe=item.probe, now_s=now_s, jitter=jitter, retry_after_s=retry_after_s)
        tried_s = now_s - (now_s if item.first_s is None else item.first_s)
        if tried_s >= self._settings.give_up_after_s:
            return self._bury(item, f"gave up after the target was down for {tried_s:.0f} s: {cause}")
        self._return(item)
        return item.stage

    def give_back(self, items: Sequence[Item], *, alone: bool) -> None:
        """Take back, in order, what shared a request, whose verdict says nothing about any one of them.

        Args:
            items: In the order in which they were started.
            alone: Whether each is to be delivered alone from now on: the request failed or was refused.
        """
        for item in reversed(items):
            self._stop(item)
            if alone:
                item.shares = 0
            self._return(item)

    # ---- what to save

    @property
    def is_save_due(self) -> bool:
        """Whether to save now rather than soon: half the window is delivered and not saved."""
        return self._ledger.unsaved * 2 >= self._settings.window_events

    @property
    def is_look_due(self) -> bool:
        """Whether to look at what is to be saved or read back now rather than soon: or `wanted` may name a source."""
        return self._ledger.unsaved * 2 >= self._settings.window_events or bool(self._agenda.wanting)

    def take(self) -> Changes | None:
        """Give all changes since the last time, to be saved in one transaction until it succeeds; None without any."""
        return self._ledger.take()

    def saved(self) -> None:
        """Note that what `take` gave is durable."""
        self._ledger.saved()

    # ---- inside

    def _is_known(self, position: int) -> bool:
        return position in self._admitted or self._ledger.knows(position)

    def _enter(self, lane: Lane, item: Item, *, at: int | None = None) -> None:
        if at is None:
            lane.queue.append(item)
        else:
            lane.queue.insert(at, item)
        lane.size += item.size
        self.events += 1
        self._size += item.size
        if not lane.running:
            self._agenda.ready.append(lane)

    def _leave(self, item: Item) -> None:
        item.lane.size -= item.size
        self.events -= 1
        self._size -= item.size

    def _begin(self, item: Item, now_s: float) -> None:
        item.move(Act.START)
        item.probe = self.breaker.begin()
        item.first_s = now_s if item.first_s is None else item.first_s
        item.lane.running += 1
        self.running += 1

    def _stop(self, item: Item) -> None:
        item.lane.running -= 1
        self.running -= 1

    def _return(self, item: Item) -> None:
        item.move(Act.RETURN)
        item.shares = max(0, item.shares - 1)
        item.lane.queue.appendleft(item)
        if not item.lane.running:
            self._agenda.ready.appendleft(item.lane)  # before all others: after an outage it is the probe

    def _forget(self, item: Item) -> None:
        """It leaves memory: note where it came from that it is finished."""
        self._leave(item)
        if item.home is None:
            self._admitted.discard(item.position)
            return
        item.home.finish(item.position)
        self._ledger.moved = True
        if isinstance(item.home, Reference):
            if not item.home.open:
                item.lane.loaded.pop(item.home, None)  # gone if the lane was told to wait meanwhile
                item.lane.refs -= 1
            self._ledger.progress(item.home, item.lane.source)

    def _read_back(self, lane: Lane, row: Row) -> None:
        if row.lost or not row.events:
            lane.refs -= 1
            self._ledger.resolve(row.at)
            if row.lost:
                self.lose(lane.source, row.at, row.lost)
            return
        reference = Reference(row.at, [position for position, _ in row.events])
        lane.loaded[reference] = None
        for position, event in row.events:
            self._enter(lane, Item(lane, reference, position, event, row.row, received_ms=row.received_ms))

    def _add_reference(self, lane: Lane, at: int) -> None:
        self._ledger.put(Aside(position=at, source=lane.source, state="blocked"))
        lane.refs += 1
        self._agenda.go_on(lane)

    def _hogs(self, lane: Lane) -> bool:
        """Whether a lane holds half the window."""
        settings = self._settings
        return len(lane.queue) * 2 >= settings.window_events or lane.size * 2 >= settings.window_bytes

    def _relieve(self, lane: Lane) -> None:
        """Put the head of a lane aside if it waits for a retry while its lane fills half the window."""
        if lane.running or not lane.queue or lane.queue[0].stage is not Stage.RETRYING or not self._hogs(lane):
            return
        self._defer(lane.queue.popleft())
        self._agenda.go_on(lane)

    def _defer(self, item: Item) -> None:
        item.move(Act.DEFER)
        self._put_aside(item, "waiting", item.cause)
        if self._ordered:
            self._hold(item.lane, item.position)

    def _bury(self, item: Item, cause: str) -> Stage:
        item.move(Act.BURY)
        self._put_aside(item, "dead", cause)
        if self._blocks:
            self._hold(item.lane, item.position)
        else:
            item.lane.held.discard(item.position)
        self._agenda.go_on(item.lane)
        return item.stage

    def _put_aside(self, item: Item, state: Literal["waiting", "dead"], cause: str) -> None:
        self._forget(item)
        if isinstance(item.home, Reference):
            self._ledger.advance(item.home, item.lane.source)
        self._ledger.put(item.aside(state, cause))

    def _hold(self, lane: Lane, position: int) -> None:
        """Let a lane wait for an entry: nothing of it stays in memory but other entries."""
        lane.held.add(position)
        queued, lane.queue = lane.queue, deque(item for item in lane.queue if item.home is None)
        rows: set[int] = set()
        for item in queued:
            if item.home is not None:
                self._shed(item, rows)
        lane.loaded.clear()  # what was read back stays in the store, as far as it has come

    def _shed(self, item: Item, rows: set[int]) -> None:
        item.move(Act.SHED)
        self._leave(item)
        if isinstance(item.home, Cursor):
            item.home.finish(item.position)
            self._ledger.moved = True
            if item.row not in rows:
                rows.add(item.row)
                self._add_reference(item.lane, item.position)
