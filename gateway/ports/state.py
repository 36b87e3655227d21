"""Small durable values with optimistic revisions: device registry, sessions, retained messages, documents."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NewType, Protocol

Revision = NewType("Revision", int)

ABSENT = Revision(0)
"""Given as `expect`: the key must not exist yet."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A value and the revision that wrote it. Revisions grow over the whole store."""

    key: str
    value: bytes
    revision: Revision


@dataclass(frozen=True, slots=True)
class Change:
    """A key was written, or deleted (`value` None)."""

    key: str
    value: bytes | None
    revision: Revision


class StateStore(Protocol):
    """Key-value store. Keys are UTF-8 text, compared as bytes; values are at most 8 MiB."""

    async def get(self, key: str) -> Entry | None:
        """Read one value; None if there is none."""
        ...

    async def put(self, key: str, value: bytes, *, expect: Revision | None) -> Revision:
        """Write one value; durable on return.

        Args:
            key: Which.
            value: What.
            expect: The revision it must still have; ABSENT for a new key; None to write whatever is there.

        Raises:
            RevisionDiffers: It has another revision; nothing was written.
            BusUnavailable: Repeat.
        """
        ...

    async def delete(self, key: str, *, expect: Revision | None = None) -> None:
        """Remove a key; durable on return. One that does not exist is no error (unless `expect` names a revision).

        Raises:
            RevisionDiffers: It has another revision; nothing was removed.
        """
        ...

    async def write(self, changes: Mapping[str, bytes | None]) -> None:
        """Write and remove (None) several keys at once, whatever is there: all or nothing, also in a crash; durable on return.

        Calls that overlap may be applied in any order.

        Raises:
            BusUnavailable: Repeat; it may have been written.
        """
        ...

    async def scan(self, prefix: str, after: str, limit: int) -> Sequence[Entry]:
        """List entries whose key starts with `prefix` and is above `after`, ascending."""
        ...

    def watch(self, prefix: str) -> AsyncIterator[Change]:
        """Yield every change below a prefix that is made after this call, in order, within a second of its commit.

        The first change is awaited from the call on, not from the first `anext`. Ends when the store is closed.
        """
        ...
