"""The outbox: events on disk until the gateway has said that it stored them, or why it will not.

Owns numbering, `settled`, the bound on bytes and the quarantine. It does not know what is in flight (`window`) nor what
an event means: a body is the JSON text that will be sent.

Strategy. An event has a *position*, given once and never again; its number in the stream is `position - base`. So a
new stream (a fork) is one changed row, however many events wait: they are numbered from 1 again and nothing is moved.
Only class `normal` exists; another would be another row of `stream`, with positions from its own base.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import apsw
import msgspec

from edge_agent.bell import ring
from edge_agent.errors import OutboxFull, OutboxUnavailable
from edge_agent.rows import Cut, Depth, Quarantined, Row, Stream, consecutive
from edge_agent.store import Store, new_stream_id
from edge_agent.window import Span

NORMAL: Final = "normal"
_SETTLE_ROWS: Final = 10_000  # a transaction: other processes wait for it


class Outbox:
    """Events of one agent, in the file `path`; usable by several processes and threads at once.

    Attributes:
        bell: What `append` rings (see `bell`).
    """

    def __init__(self, path: Path, *, max_bytes: int, durable: bool = True, vfs: str | None = None) -> None:
        """Use the outbox that `create` made.

        Args:
            path: The SQLite file.
            max_bytes: Bound on the bodies of all events, waiting and in quarantine.
            durable: See `Store`; False only for the daemon.
            vfs: See `Store`.
        """
        self.store = Store(path, durable=durable, vfs=vfs)
        self.bell = path.with_suffix(".bell")
        self._max_bytes = max_bytes

    @staticmethod
    def create(path: Path, *, vfs: str | None = None) -> None:
        """Make an empty outbox; one that is there already is left alone."""
        Store.create(path, stream_class=NORMAL, vfs=vfs)

    def close(self) -> None:
        """Close the file."""
        self.store.close()

    def append(self, bodies: Sequence[bytes], *, now_ms: int) -> None:
        """Take events, all or none: on disk, fsynced, when it returns (promise P1).

        Raises:
            OutboxFull: The bound or the disk; nothing was taken, nothing older was dropped.
            OutboxUnavailable: The disk failed or was locked for long; nothing was taken.
        """
        size = sum(map(len, bodies))
        with self.store.transaction() as db:
            last, used = _one(db, "SELECT last, bytes FROM stream WHERE class = ?", NORMAL)
            if used + size > self._max_bytes:
                raise OutboxFull(
                    f"outbox: {used} of {self._max_bytes} bytes are taken (outbox.max_bytes), {size} more do not fit; "
                    "it empties when the gateway is reached, see `edge-agent status` and `edge-agent quarantine list`"
                )
            db.executemany(
                "INSERT INTO event VALUES (?, ?, ?)", [(n, now_ms, b) for n, b in enumerate(bodies, last + 1)]
            )
            _count(db, events=len(bodies), size=size, given=len(bodies))
        ring(self.bell)

    def stream(self) -> Stream:
        """The stream of class `normal`."""
        return Stream(*self.store.rows("SELECT id, base, last, sent FROM stream WHERE class = ?", NORMAL)[0])

    def cut(self, first: int, last: int | None, *, events: int, size: int) -> Cut | None:
        """Read consecutive events.

        Args:
            first: Position to begin at; the next one there is, if there is none.
            last: Position not to pass, or None.
            events: At most so many.
            size: At most so many bytes of bodies, but one event always.
        """
        bound = 2**62 if last is None else last
        rows = self.store.rows(
            "SELECT position, body FROM event WHERE position BETWEEN ? AND ? ORDER BY position LIMIT ?",
            first, bound, events + 1,
        )  # fmt: skip
        if not rows:
            return None
        taken = consecutive((Row(*row) for row in rows), events, size)
        settled = self.store.rows("SELECT min(position) - 1 FROM event")[0][0]
        is_full = len(taken) < len(rows) or len(taken) == events or taken[-1].position == last
        return Cut(taken, settled, is_full)

    def mark_sent(self, position: int) -> None:
        """Note that everything up to a position was handed to the network."""
        with self.store.transaction() as db:
            db.execute("UPDATE stream SET sent = max(sent, ?) WHERE class = ?", (position, NORMAL))

    def settle(self, spans: Iterable[Span], *, now_ms: int | None = None) -> None:
        """Forget events that the gateway has stored; positions without an event are no error.

        Args:
            spans: What was stored.
            now_ms: When the receipt came, Unix milliseconds; noted for `status`.
        """
        for span in spans:
            while self._settle_some(span, now_ms) == _SETTLE_ROWS:
                pass

    def _settle_some(self, span: Span, now_ms: int | None) -> int:
        with self.store.transaction() as db:
            top, rows, size = _one(
                db,
                "SELECT max(position), count(*), coalesce(sum(length(body)), 0) FROM "
                "(SELECT position, body FROM event WHERE position BETWEEN ? AND ? ORDER BY position LIMIT ?)",
                *span,
                _SETTLE_ROWS,
            )
            if rows:
                db.execute("DELETE FROM event WHERE position BETWEEN ? AND ?", (span.first, top))
                _count(db, events=-rows, size=-size)
            if now_ms is not None:
                _note(db, "last_receipt_ms", now_ms)
        return int(rows)

    def set_aside(self, span: Span, *, code: int, reason: str, now_ms: int) -> list[str]:
        """Move refused events to the quarantine: they will not be sent under their numbers again.

        Returns:
            Their ids.
        """
        with self.store.transaction() as db:
            moved = db.execute(
                "INSERT INTO quarantine SELECT position, json_extract(CAST(body AS TEXT), '$.id'), emitted_ms, ?, ?, ?, body "
                "FROM event WHERE position BETWEEN ? AND ? RETURNING id",
                (now_ms, code, reason, *span),
            ).fetchall()
            db.execute("DELETE FROM event WHERE position BETWEEN ? AND ?", span)
            _count(db, events=-len(moved))
        return [str(row[0]) for row in moved]

    def fork(self) -> Stream:
        """Start a new stream for everything that waits: the gateway's record of the old one is not of this disk."""
        with self.store.transaction() as db:
            db.execute(
                "UPDATE stream SET id = ?, base = coalesce((SELECT min(position) - 1 FROM event), last), "
                "sent = coalesce((SELECT min(position) - 1 FROM event), last) WHERE class = ?",
                (new_stream_id(), NORMAL),
            )
        return self.stream()

    def depth(self) -> Depth:
        """Tell how full it is."""
        events, size = self.store.rows("SELECT events, bytes FROM stream WHERE class = ?", NORMAL)[0]
        oldest = self.store.rows("SELECT emitted_ms FROM event ORDER BY position LIMIT 1")
        (quarantined,) = self.store.rows("SELECT count(*) FROM quarantine")[0]
        return Depth(events, size, oldest[0][0] if oldest else None, quarantined)

    def quarantined(self) -> list[Quarantined]:
        """What was set aside, oldest first."""
        return [
            Quarantined(*row)
            for row in self.store.rows(
                "SELECT id, emitted_ms, refused_ms, code, reason, body FROM quarantine ORDER BY position"
            )
        ]

    def retry(self, ids: Sequence[str] | None = None) -> list[str]:
        """Put events from the quarantine back at the end of the outbox, under new numbers; None means all.

        Returns:
            The ids of those that were there.
        """
        with self.store.transaction() as db:
            rows = _taken(db, ids)
            last, _ = _one(db, "SELECT last, bytes FROM stream WHERE class = ?", NORMAL)
            db.executemany(
                "INSERT INTO event VALUES (?, ?, ?)",
                [(n, emitted_ms, body) for n, (_, emitted_ms, body) in enumerate(rows, last + 1)],
            )
            _count(db, events=len(rows), given=len(rows))
        return [row[0] for row in rows]

    def discard(self, ids: Sequence[str] | None = None) -> list[str]:
        """Delete events from the quarantine for good; None means all.

        Returns:
            The ids of those that were there.
        """
        with self.store.transaction() as db:
            rows = _taken(db, ids)
            _count(db, size=-sum(len(body) for _, _, body in rows))
        return [row[0] for row in rows]

    def note(self, name: str, value: Any) -> None:
        """Keep a small JSON value, such as the clock offset or the state of the connection."""
        with self.store.transaction() as db:
            _note(db, name, value)

    def noted(self, name: str) -> Any:
        """Read it back; None if there is none."""
        rows = self.store.rows("SELECT value FROM note WHERE name = ?", name)
        return msgspec.json.decode(rows[0][0]) if rows else None


def _taken(db: apsw.Connection, ids: Sequence[str] | None) -> list[tuple[str, int, bytes]]:
    """Remove rows from the quarantine and return them in order: id, emission, body."""
    wanted = {"ids": None if ids is None else _json(ids)}
    rows: list[Any] = db.execute(
        "SELECT id, emitted_ms, body FROM quarantine "
        "WHERE :ids IS NULL OR id IN (SELECT value FROM json_each(:ids)) ORDER BY position",
        wanted,
    ).fetchall()
    db.execute("DELETE FROM quarantine WHERE :ids IS NULL OR id IN (SELECT value FROM json_each(:ids))", wanted)
    return rows


def _count(db: apsw.Connection, *, events: int = 0, size: int = 0, given: int = 0) -> None:
    db.execute(
        "UPDATE stream SET events = events + ?, bytes = bytes + ?, last = last + ? WHERE class = ?",
        (events, size, given, NORMAL),
    )


def _note(db: apsw.Connection, name: str, value: Any) -> None:
    db.execute("INSERT OR REPLACE INTO note VALUES (?, ?)", (name, _json(value)))


def _one(db: apsw.Connection, sql: str, *bindings: Any) -> tuple[Any, ...]:
    row = db.execute(sql, bindings).fetchone()
    if row is None:
        raise OutboxUnavailable("outbox: its stream is missing; expected the file that `edge-agent init` makes")
    return tuple(row)


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
