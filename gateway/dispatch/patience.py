"""Calls to storage that may fail for a while: repeated with the same values until they succeed or somebody stops us."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import structlog

from gateway.errors import Unavailable
from gateway.rules.retry import PausePolicy, next_probe

log = structlog.get_logger()
_T = TypeVar("_T")

_BACKOFF: Final = PausePolicy(first_s=0.1, max_s=5.0)


class Patience:
    """Repeats what is unavailable.

    Args:
        handler: For the log.
        stopping: When set, the next failure is raised.
        random: Uniform in [0, 1).
    """

    def __init__(self, handler: str, stopping: asyncio.Event, random: Callable[[], float]) -> None:
        self._handler = handler
        self._stopping = stopping
        self._random = random

    @property
    def is_over(self) -> bool:
        """Whether we are to stop. Loops ask: below Python 3.12 `asyncio.wait_for` may lose a cancellation in a race."""
        return self._stopping.is_set()

    async def again(self, call: Callable[[], Awaitable[_T]]) -> _T:
        """Call until it is not unavailable.

        Raises:
            Unavailable: It is, and we are to stop.
        """
        failures = 0
        while True:
            try:
                return await call()
            except Unavailable as exc:
                if self._stopping.is_set():
                    raise
                failures += 1
                if failures == 1:
                    log.warning("storage_unavailable", handler=self._handler, reason=str(exc))
            await self._sleep(next_probe(_BACKOFF, failures, jitter=self._random()))

    async def _sleep(self, delay_s: float) -> None:
        try:
            async with asyncio.timeout(delay_s):
                await self._stopping.wait()
        except TimeoutError:
            return
