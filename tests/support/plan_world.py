"""A world for plans: a log, a store, the shell's part of dispatch without waiting, and what must hold at each step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from edge_protocol.events import Event
from gateway.rules.delivery import Aside, Changes, Item, Row, Stage
from gateway.rules.handling import HandlerSettings
from gateway.rules.plan import Plan
from gateway.rules.retry import PausePolicy, RetryPolicy

WINDOW = 12


class World:
    """A log, a store that keeps what was saved, and the shell's part of dispatch, without waiting."""

    def __init__(
        self, rows: list[tuple[int, int]], *, ordering: str = "device", block: bool = False, batch: int = 1
    ) -> None:
        self.settings = HandlerSettings(
            ordering=ordering,  # type: ignore[arg-type]  # checked by the callers
            retry=RetryPolicy(max_attempts=5, first_s=1, max_s=8),
            pause=PausePolicy(first_s=1, max_s=8),
            give_up_after_s=1000,
            on_dead_letter="block" if block else "continue",
            window_events=WINDOW,
            batch=batch,
        )
        self.rows = [self._row(number, f"/devices/d{who}", count) for number, (who, count) in enumerate(rows, 1)]
        self.source_of = {at: row.source for row in self.rows for at, _ in row.events}
        self.entries: dict[int, Aside] = {}
        self.floors: dict[int, tuple[int, Any]] = {0: (0, ())}
        self.now_s = 0.0
        self.delivered: Counter[int] = Counter()
        self.since_save: set[int] = set()
        self.given_up: set[int] = set()  # dead once, or discarded
        self.replayed: set[int] = set()
        self.settled: set[int] = set()  # delivered when something was last saved
        self.restart()

    @staticmethod
    def _row(number: int, source: str, count: int) -> Row:
        first = number << 10
        events = [
            (first + n, Event(id=str(first + n), source=source, type="t" if n % 5 != 3 else "other", payload=b"1"))
            for n in range(count)
        ]
        events = [(at, event) for at, event in events if event.type == "t"]  # as the selection does
        return Row(row=number, source=source, received_ms=0, first=first, end=first + count - 1, events=events)

    def restart(self) -> None:
        self.plan = Plan(self.settings, self.floors)
        self.running: list[list[Item]] = []  # by request
        self.looking = self._look()
        assert len(self.since_save) <= WINDOW, "a crash delivers more than a window again"
        self.since_save = set()
        for at, entry in sorted(self.entries.items()):
            self.plan.recall(entry.source, at, entry.state)
        self.next_row = next((n for n, row in enumerate(self.rows) if row.end > self.floors[0][0]), len(self.rows))

    def read(self) -> None:
        if self.next_row >= len(self.rows) or not self.plan.has_room:
            return
        row = self.rows[self.next_row]
        self.next_row += 1
        if self.plan.blocks(row.source):
            self.plan.refer(0, row.source, row.first, row.end)
        else:
            self.plan.feed(0, row)

    def start(self) -> None:
        item = self.plan.start(self.now_s)
        if item is None:
            return
        batch = self.plan.join(item, self.now_s)
        request = batch.items if batch else [item]
        assert 1 <= len(request) <= self.settings.batch
        assert len(request) == 1 or not any(each.probe or each.attempts or each.home is None for each in request)
        if self.settings.ordering == "device":
            busy = {running.lane.source for others in self.running for running in others}
            assert len({each.lane.source for each in request} - busy) == 1, "two requests at a time for one source"
        for n, each in enumerate(request):
            self._check_turn(each, request[:n])
        self.running.append(request)
        assert self.plan.running == sum(map(len, self.running))
        assert self.plan.running + len(self.since_save) <= WINDOW, "a crash delivers more than a window again"

    def _check_turn(self, item: Item, before: list[Item]) -> None:
        at, source = item.position, self.source_of[item.position]
        assert item.event.id == str(at)
        assert at not in self.settled or at in self.replayed, f"{at} was delivered and saved"
        if self.settings.ordering == "none":
            return
        gone = self.given_up | {each.position for each in before}
        missing = {
            earlier
            for earlier, owner in self.source_of.items()
            if owner == source and earlier < at and not self.delivered[earlier] and earlier not in gone
        }
        assert at in self.replayed or missing <= self.replayed, f"{at} overtakes {missing}"

    def end(self, verdict: int, which: int) -> None:
        if not self.running:
            return
        request = self.running.pop(which % len(self.running))
        item, *others = request
        if verdict == 0:
            for each in request:
                self.plan.delivered(each)
                self.delivered[each.position] += 1
                self.since_save.add(each.position)
        elif verdict < 3 and others:
            self.plan.give_back(request, alone=True)
        elif verdict == 1:
            if self.plan.failed(item, "500", now_s=self.now_s, jitter=0.5) is Stage.DEAD:
                self._died(item.position)
        elif verdict == 2:
            self.plan.refused(item, "400")
            self._died(item.position)
        else:
            self.plan.give_back(others, alone=False)
            if self.plan.down(item, "503", now_s=self.now_s, jitter=0.5) is Stage.DEAD:
                self._died(item.position)

    def _died(self, at: int) -> None:
        if self.settings.on_dead_letter == "continue" or self.settings.ordering == "none":
            self.given_up.add(at)

    def save(self) -> None:
        """A whole look, whatever part of one is under way."""
        while self.step_look():
            pass
        while self.step_look():
            pass

    def step_look(self) -> bool:
        """Do one step of what the keeper does; other things happen between them. False after the last."""
        try:
            next(self.looking)
        except StopIteration:
            self.looking = self._look()
            return False
        return True

    def _look(self) -> Iterator[None]:
        sources = self.plan.wanted()
        covered = set(self.since_save)
        changes = self.plan.take()
        yield
        if changes is not None:
            self._commit(changes)
            self.plan.saved()
        self.since_save -= covered
        self.settled |= covered
        yield
        for source in sources:
            rows = self._read_back(source)
            yield
            self.plan.refill(source, rows)
        due = [e for _, e in sorted(self.entries.items()) if e.state == "waiting" and e.next_s <= self.now_s]
        yield
        for entry in due:
            assert entry.event is not None
            since_s = entry.since_s or 0.0
            self.plan.admit(entry.source, entry.position, entry.event, attempts=entry.attempts, first_s=since_s)
        gone = [(source, at) for source, at in self.plan.held() if at not in self.entries]
        yield
        for source, at in gone:
            self.plan.release(source, at)

    def _commit(self, changes: Changes) -> None:
        assert not {aside.position for aside in changes.asides} & set(changes.resolved)
        for aside in changes.asides:
            self.entries[aside.position] = aside
        for at in changes.resolved:
            self.entries.pop(at, None)
        self.floors = changes.floors
        self._check_saved()

    def _read_back(self, source: str) -> list[Row]:
        refs = [e for _, e in sorted(self.entries.items()) if e.source == source and e.state == "blocked"][:2]
        rows = []
        for at in (ref.position for ref in refs):
            row = self.rows[(at >> 10) - 1]
            events = [(position, event) for position, event in row.events if position >= at]
            rows.append(
                Row(row=row.row, source=source, received_ms=0, first=row.first, end=row.end, events=events, at=at)
            )
        return rows

    def _check_saved(self) -> None:
        floor, done = self.floors[0]
        blocked = {at >> 10: at for at, entry in self.entries.items() if entry.state == "blocked"}
        for at in self.source_of:
            if at <= floor or any(first <= at <= end for first, end in done):
                kept = at in self.entries or blocked.get(at >> 10, at + 1) <= at
                assert kept or self.delivered[at] or at in self.given_up, f"{at} is lost"

    def operate(self, which: int, *, discard: bool) -> None:
        """An operator replays or discards a dead letter."""
        dead = [at for at, entry in sorted(self.entries.items()) if entry.state == "dead"]
        if not dead:
            return
        at = dead[which % len(dead)]
        entry = self.entries[at]
        if discard:
            del self.entries[at]
            self.given_up.add(at)
        else:
            self.replayed.add(at)
            self.entries[at] = Aside(position=at, source=entry.source, state="waiting", event=entry.event)

    def finish(self) -> None:
        """From now on all goes well."""
        for _ in range(20 * len(self.source_of) + 200):
            self.read()
            self.start()
            self.end(0, 0)
            self.save()
            self.now_s += 10
            if self.settings.on_dead_letter == "block":
                self.operate(0, discard=False)
        self.save()


def fed(rows: list[tuple[int, int]], **how: Any) -> World:
    """A world whose rows have all been read."""
    world = World(rows, **how)
    for _ in rows:
        world.read()
    return world
