"""Watchers of state, for backends whose changes all come from this process, and what a value may be."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Final

from gateway.ports.state import Change

MAX_VALUE_BYTES: Final = 8 << 20


def check_value(key: str, value: bytes) -> None:
    """Refuse what the port does not take.

    Raises:
        ValueError: A value over 8 MiB, or a key with a NUL character.
    """
    if len(value) > MAX_VALUE_BYTES:
        raise ValueError(f"{key}: expected at most {MAX_VALUE_BYTES} bytes, found {len(value)}")
    if b"\0" in key.encode():
        raise ValueError(f"key {key!r}: expected no NUL character")


class Watchers:
    """Hands changes to everyone who watches. A queue holds what its watcher has not taken, without a bound."""

    def __init__(self) -> None:
        self._queues: dict[asyncio.Queue[Change | None], str] = {}
        self._closed = False

    def watch(self, prefix: str) -> AsyncIterator[Change]:
        """Collect changes from this call on; the iterator ends when the store is closed."""
        queue: asyncio.Queue[Change | None] = asyncio.Queue()
        if self._closed:
            queue.put_nowait(None)
        else:
            self._queues[queue] = prefix
        return self._iterate(queue)

    async def _iterate(self, queue: asyncio.Queue[Change | None]) -> AsyncIterator[Change]:
        try:
            while (change := await queue.get()) is not None:
                yield change
        finally:
            self._queues.pop(queue, None)

    def tell(self, changes: Iterable[Change]) -> None:
        """Hand out what was committed, in order."""
        for change in changes:
            for queue, prefix in self._queues.items():
                if change.key.startswith(prefix):
                    queue.put_nowait(change)

    def close(self) -> None:
        """End all iterators, after what they have not taken yet."""
        self._closed = True
        for queue in self._queues:
            queue.put_nowait(None)
