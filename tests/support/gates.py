"""Gates around real parts: each hands on what it is given, and holds or fails a call only while a test says so."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from typing import Any

from gateway.ports.bus import Batch, EventBus, Outcome
from gateway.ports.identity import Authenticator, Credentials, Grant
from gateway.ports.ingest import Arrival, Ingest, Receipt
from gateway.ports.state import Change, Entry, Revision, StateStore


class StateGate:
    """A store whose writes fail, or wait.

    Attributes:
        failure: Raised by every write while it is set.
        is_open: While it is cleared writes wait.
        writes: What was written last, call by call.
    """

    def __init__(self, inner: StateStore) -> None:
        self._inner = inner
        self.failure: Exception | None = None
        self.is_open = asyncio.Event()
        self.is_open.set()
        self.writes: deque[Mapping[str, bytes | None]] = deque(maxlen=1000)

    async def get(self, key: str) -> Entry | None:
        return await self._inner.get(key)

    async def put(self, key: str, value: bytes, *, expect: Revision | None) -> Revision:
        await self._pass()
        revision = await self._inner.put(key, value, expect=expect)
        self.writes.append({key: value})
        return revision

    async def delete(self, key: str, *, expect: Revision | None = None) -> None:
        await self._pass()
        await self._inner.delete(key, expect=expect)
        self.writes.append({key: None})

    async def write(self, changes: Mapping[str, bytes | None]) -> None:
        await self._pass()
        await self._inner.write(changes)
        self.writes.append(dict(changes))

    async def scan(self, prefix: str, after: str, limit: int) -> Sequence[Entry]:
        return await self._inner.scan(prefix, after, limit)

    def watch(self, prefix: str) -> AsyncIterator[Change]:
        return self._inner.watch(prefix)

    async def kept(self, prefix: str = "") -> dict[str, bytes]:
        """What is stored under a prefix."""
        return {entry.key: entry.value for entry in await self._inner.scan(prefix, "", 100_000)}

    async def _pass(self) -> None:
        await asyncio.sleep(0)  # no disk is done within the turn, though memory is
        await self.is_open.wait()
        if self.failure:
            raise self.failure


class BusGate:
    """A bus that fails, or waits.

    Attributes:
        failure: Raised by every append while it is set.
        failures: Of the next appends, in their order; None for one that shall not fail.
        is_stored_first: An append that fails has stored all the same.
        is_open: While it is cleared calls wait.
        appends: How many batches each append was asked for.
    """

    def __init__(self, inner: EventBus | None = None) -> None:
        self.inner = inner
        self.failure: Exception | None = None
        self.failures: list[Exception | None] = []
        self.is_stored_first = False
        self.is_open = asyncio.Event()
        self.is_open.set()
        self.appends: list[int] = []

    async def append(self, batches: Sequence[Batch]) -> list[Outcome]:
        self.appends.append(len(batches))
        await asyncio.sleep(0)  # as above
        await self.is_open.wait()
        failure = self.failures.pop(0) if self.failures else self.failure
        if failure and not self.is_stored_first:
            raise failure
        outcomes = await self.inner.append(batches)
        if failure:
            raise failure
        return outcomes

    async def stored_through(self, source: str, streams: Sequence[str]) -> Mapping[str, int]:
        await self.is_open.wait()
        return await self.inner.stored_through(source, streams)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class IngestGate:
    """An ingest whose receipts wait until the test lets them out, in whatever order.

    Attributes:
        failure: Raised by every call of `submit` while it is set: a bug.
        is_holding: Receipts of what is submitted from now on wait; publishes then come one by one.
        held: Receipts that wait, in the order of the publishes.
        takes_runs: False: every publish comes for itself.
        submitted: Publishes that came for themselves.
        runs: Runs that were taken.
    """

    def __init__(self, inner: Ingest) -> None:
        self._inner = inner
        self.failure: Exception | None = None
        self.is_holding = False
        self.held: list[Callable[[], None]] = []
        self.takes_runs = True
        self.submitted = self.runs = 0

    def submit(self, arrival: Arrival, settle: Callable[[Receipt], None]) -> None:
        if self.failure:
            raise self.failure
        self.submitted += 1
        self._inner.submit(arrival, partial(self._hold, settle) if self.is_holding else settle)

    def submit_run(self, arrival: Arrival, payloads: Sequence[bytes], settle: Callable[[Receipt], None]) -> bool:
        may_take = self.takes_runs and not self.is_holding and not self.failure
        is_taken = may_take and self._inner.submit_run(arrival, payloads, settle)
        self.runs += is_taken
        return is_taken

    def flush(self) -> None:
        self._inner.flush()

    def settle(self, index: int = 0) -> None:
        """Let one receipt out."""
        self.held.pop(index)()

    def _hold(self, settle: Callable[[Receipt], None], receipt: Receipt) -> None:
        self.held.append(partial(settle, receipt))


class AuthenticatorGate:
    """An authenticator whose decisions wait.

    Attributes:
        is_open: While it is cleared, CONNECTs and renewals wait.
        calls: CONNECTs that it was asked about.
    """

    def __init__(self, inner: Authenticator) -> None:
        self._inner = inner
        self.is_open = asyncio.Event()
        self.is_open.set()
        self.calls = 0

    async def authenticate(self, credentials: Credentials) -> Grant:
        self.calls += 1
        await self.is_open.wait()
        return await self._inner.authenticate(credentials)

    async def renew(self, grant: Grant, token: bytes) -> Grant:
        await self.is_open.wait()
        return await self._inner.renew(grant, token)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)
