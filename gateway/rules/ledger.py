"""What a subscription has to save: floors, entries put aside, entries to forget, all for one transaction.

Changes stand under the position that names an entry, so the last word about it wins, however often it changed since the
last save.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gateway.rules.cursor import Cursor, Interval
from gateway.rules.delivery import Aside, Changes, Reference


class Ledger:
    """Collects changes between two saves.

    Attributes:
        cursors: Where the subscription stands in each partition.
        moved: A cursor moved since the last `take`.
        unsaved: Events delivered since the last save: what a crash now would deliver again.
    """

    def __init__(self, floors: Mapping[int, tuple[int, Sequence[Interval]]]) -> None:
        self.cursors = {partition: Cursor(floor, done) for partition, (floor, done) in floors.items()}
        self.moved = False
        self.unsaved = 0
        self._taken = 0
        self._progressed: dict[Reference, str] = {}
        self._changes: dict[int, Aside | None] = {}

    def put(self, aside: Aside) -> None:
        """Store an entry."""
        self._changes[aside.position] = aside

    def resolve(self, position: int) -> None:
        """Forget an entry."""
        self._changes[position] = None

    def progress(self, reference: Reference, source: str) -> None:
        """Note that an event of a reference is finished; the reference moves with the next `take`."""
        if reference.open:
            self._progressed[reference] = source
        else:
            self._progressed.pop(reference, None)
            self.resolve(reference.at)

    def advance(self, reference: Reference, source: str) -> None:
        """Let a reference move to its first unfinished event now: its old position is needed for that very event."""
        self._progressed.pop(reference, None)
        if reference.open and reference.first != reference.at:
            self.resolve(reference.at)
            reference.at = reference.first
            self.put(Aside(position=reference.at, source=source, state="blocked"))

    def knows(self, position: int) -> bool:
        """Tell whether an entry has changed since the last `take`: what the store says of it is old.

        Who reads the store after `take` waits until that is saved.
        """
        return position in self._changes

    def concerns(self, source: str) -> bool:
        """Tell whether an entry of a source waits to be stored."""
        return any(aside is not None and aside.source == source for aside in self._changes.values())

    def take(self) -> Changes | None:
        """Give all changes since the last time; None if there are none."""
        for reference, source in list(self._progressed.items()):
            self.advance(reference, source)
        if not (self.moved or self._changes):
            return None
        changes, self._changes, self.moved = self._changes, {}, False
        self._taken = self.unsaved
        return Changes(
            {partition: (cursor.floor, cursor.done()) for partition, cursor in self.cursors.items()},
            tuple(aside for aside in changes.values() if aside),
            tuple(position for position, aside in changes.items() if aside is None),
        )

    def saved(self) -> None:
        """Note that what `take` gave is durable."""
        self.unsaved -= self._taken
        self._taken = 0
