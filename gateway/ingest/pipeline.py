"""The ingest pipeline: open, append, acknowledge, in the order of arrival (architecture, "Ingest, in one picture").

Every publish takes a slot in a chunk, every chunk a place in one queue. Chunks are opened in parallel; one appender
takes the opened head of the queue, never past a chunk that is still being opened, and hands all of it to the bus at
once. While that commit runs, the next head gathers: the slower the disk, the larger the commits.

Strategy of chunks: a chunk leaves at the end of the loop turn, or when it is full. While every process has work queued
already, one that is not full keeps gathering, since it could only wait: so an idle gateway answers at once, and a busy
one pays the executor's round trip (90 us) once for 16 publishes. Small plain events are opened right here.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Final

import structlog

from edge_protocol.envelope import AgeLimits
from edge_protocol.envelope_keys import OpenKey
from edge_protocol.ids import uuid7
from edge_protocol.payload import Limits
from gateway.errors import BusFull, BusUnavailable
from gateway.ingest import receipts
from gateway.ingest.chunks import Chunk, Slot, take_opened
from gateway.ingest.opener import Job, Terms, VerifyBytes, is_envelope, open_publish, open_run
from gateway.ingest.openings import Opening
from gateway.ingest.pool import OpenerPool, default_processes
from gateway.ingest.stats import IngestStats
from gateway.ports.bus import Batch, EventBus, Outcome, Stored
from gateway.ports.identity import DeviceKeys
from gateway.ports.ingest import SUCCESS, Arrival, Lane, Receipt

log = structlog.get_logger()

MAX_INLINE_BYTES: Final = 4096
"""Larger plain payloads are opened in the pool: 4 KiB take the loop's thread about as long as the round trip would."""
_RANDOM_BYTES: Final = 10  # of a UUIDv7

Settle = Callable[[Receipt], None]


class Pipeline:
    """Implements the `Ingest` port; used from one event loop's thread.

    Attributes:
        stats: What it counted so far.
    """

    def __init__(
        self,
        bus: EventBus,
        keys: DeviceKeys,
        *,
        audience: str,
        open_keys: Iterable[OpenKey],
        limits: Limits | None = None,
        ages: AgeLimits | None = None,
        processes: int | None = None,
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self.stats = IngestStats()
        self._bus, self._keys, self._random_bytes = bus, keys, random_bytes
        self._terms = Terms(audience, (), limits or Limits(), ages or AgeLimits())
        self.use_open_keys(open_keys)
        self._processes = processes or default_processes()
        self._pool: OpenerPool | None = None
        self._appender: asyncio.Task[None] | None = None
        self._gathering = Chunk()
        self._queue: deque[Chunk] = deque()
        self._unsettled = 0
        self._is_flush_due = False
        self._opened_some = asyncio.Event()
        self._settled_all = asyncio.Event()
        self._settled_all.set()

    async def start(self) -> None:
        """Start and warm the processes, and the appender. Call it before any socket is opened."""
        self._pool = OpenerPool(self._processes, self.stats)
        await self._pool.start()
        self._appender = asyncio.create_task(self._append_forever(), name="ingest-appender")

    def use_open_keys(self, keys: Iterable[OpenKey]) -> None:
        """Open later chunks with these envelope keys, current and retired (after a rotation)."""
        self._terms = self._terms._replace(open_keys=tuple((int(key.suite), key.raw) for key in keys))

    def submit(self, arrival: Arrival, settle: Settle) -> None:
        """Take a publish over (see `Ingest.submit`)."""
        pool = self._started()
        slot = Slot(arrival, settle, needs_pool=_needs_pool(arrival))
        self._unsettled += 1
        self._settled_all.clear()
        if refusal := arrival.lane.broken or receipts.before_opening(arrival):
            self._settle(slot, refusal)
            return
        self._gathering.add(slot)
        if self._gathering.is_full:
            self._hand_over(pool)
        elif not self._is_flush_due:
            self._is_flush_due = True
            asyncio.get_running_loop().call_soon(self.flush)

    def submit_run(self, arrival: Arrival, payloads: Sequence[bytes], settle: Settle) -> bool:
        """Take plain payloads over as one (see `Ingest.submit_run`): opened here, stored in one row."""
        pool = self._started()
        is_small = all(len(payload) <= MAX_INLINE_BYTES for payload in payloads)
        if not is_small or arrival.lane.broken or receipts.before_opening(arrival):
            return False
        opening = open_run(self._terms, arrival, payloads, self._random_bytes(_RANDOM_BYTES))
        if opening is None or not all(arrival.permissions.may_emit(arrival.device, each) for each in opening.types):
            return False
        if self._gathering.slots:
            self._hand_over(pool)
        slot = Slot(arrival, settle, needs_pool=False)
        slot.opening, slot.publishes, slot.size_bytes = opening, len(payloads), sum(map(len, payloads))
        self._unsettled += 1
        self._settled_all.clear()
        chunk = Chunk()
        chunk.add(slot)
        self._queue.append(chunk)
        self._chunk_opened(chunk)
        return True

    def flush(self) -> None:
        """Hand over what this loop turn gathered (see `Ingest.flush`); every turn that took something ends with it."""
        self._is_flush_due = False
        if self._pool is None or not self._gathering.slots:
            return
        is_pool_busy = self._pool.in_flight >= 2 * self._processes
        if not (is_pool_busy and self._gathering.needs_pool):
            self._hand_over(self._pool)

    async def drain(self) -> None:
        """Wait until everything submitted is settled."""
        self.flush()
        await self._settled_all.wait()

    async def aclose(self) -> None:
        """Settle everything, then end the processes. The bus stays open; a second call does nothing."""
        if self._pool is None or self._appender is None:
            return
        await self.drain()
        self._appender.cancel()
        await asyncio.gather(self._appender, return_exceptions=True)
        await self._pool.aclose()
        self._pool = self._appender = None

    def _started(self) -> OpenerPool:
        if self._pool is None:
            raise RuntimeError("the pipeline is not started, or closed")
        return self._pool

    def _hand_over(self, pool: OpenerPool) -> None:
        chunk, self._gathering = self._gathering, Chunk()
        self._queue.append(chunk)
        pooled, jobs = [], []
        for slot in chunk.slots:
            job = self._job(slot.arrival)
            if slot.needs_pool:
                pooled.append(slot)
                jobs.append(job)
            else:
                slot.opening = open_publish(self._terms, job)
        if not pooled:
            self._chunk_opened(chunk)
            return
        self.stats.chunks += 1
        pool.submit(self._terms, jobs, partial(self._pool_done, chunk, pooled, time.perf_counter()))

    def _pool_done(self, chunk: Chunk, slots: Sequence[Slot], since_s: float, openings: list[Opening] | None) -> None:
        self.stats.open_s += time.perf_counter() - since_s
        for slot, opening in zip(slots, openings or (), strict=openings is not None):
            slot.opening = opening
        self._chunk_opened(chunk)
        self.flush()

    def _chunk_opened(self, chunk: Chunk) -> None:
        chunk.is_opened = True
        if self._queue[0] is chunk:
            self._opened_some.set()

    def _job(self, arrival: Arrival) -> Job:
        is_sealed = is_envelope(arrival.payload, arrival.event_type)
        return Job(
            arrival.payload,
            arrival.device,
            arrival.received_ms,
            "" if arrival.event_type is None else uuid7(arrival.received_ms, self._random_bytes(_RANDOM_BYTES)),
            arrival.event_type,
            arrival.content_type,
            arrival.attributes,
            self._verify_keys(arrival) if is_sealed else (),
        )

    def _verify_keys(self, arrival: Arrival) -> tuple[VerifyBytes, ...]:
        keys = self._keys.signing_keys(arrival.device, now_s=arrival.received_ms / 1000).values()
        return tuple(  # RSA signs tokens only (wire protocol, section 1)
            (key.alg, key.jwk["x"], key.jwk.get("y", "")) for key in keys if key.alg in ("EdDSA", "ES256")
        )

    async def _append_forever(self) -> None:
        while True:
            await self._opened_some.wait()
            self._opened_some.clear()
            while slots := take_opened(self._queue):
                await self._append(slots)

    async def _append(self, slots: Sequence[Slot]) -> None:
        verdicts = _verdicts(slots)
        batches = [verdict for verdict in verdicts if isinstance(verdict, Batch)]
        ends = iter(await self._store(batches) if batches else ())
        for slot, verdict in zip(slots, verdicts, strict=True):
            end = next(ends) if isinstance(verdict, Batch) else verdict
            if isinstance(verdict, Batch) and isinstance(end, Stored):
                self._count(slot, verdict, end)
            receipt = end if isinstance(end, Receipt) else receipts.of_outcome(end)
            self._settle(slot, slot.arrival.lane.broken or receipt)

    async def _store(self, batches: Sequence[Batch]) -> Sequence[Outcome | Receipt]:
        try:
            return await self._bus.append(batches)
        except BusFull as exc:
            receipt = receipts.of_full_bus(exc)
            log.warning("append_refused", batches=len(batches), reason=str(exc))
        except BusUnavailable as exc:
            receipt = receipts.BUS_UNAVAILABLE
            log.warning("append_failed", batches=len(batches), reason=str(exc))
        except Exception:
            receipt = receipts.BUS_UNAVAILABLE  # whatever it is: nothing is acknowledged, and the appender goes on
            log.exception("append_failed", batches=len(batches))
        return [receipt] * len(batches)

    def _count(self, slot: Slot, batch: Batch, stored: Stored) -> None:
        self.stats.publishes += slot.publishes
        self.stats.events += batch.count - stored.duplicates
        self.stats.duplicates += stored.duplicates
        self.stats.bytes += slot.size_bytes

    def _settle(self, slot: Slot, receipt: Receipt) -> None:
        arrival = slot.arrival
        if not receipt.is_final:
            arrival.lane.broken = arrival.lane.broken or receipt
            self.stats.deferred[receipts.rule_of(receipt)] += slot.publishes
        elif receipt.code != SUCCESS:
            self.stats.refused[receipts.rule_of(receipt)] += slot.publishes
            log.info("event_rejected", device=arrival.device, reason=receipt.reason, size_bytes=slot.size_bytes)
        try:
            slot.settle(receipt)
        except Exception:  # one listener's mistake must not cost the others their receipts
            log.exception("settle_failed", device=arrival.device)
        self._unsettled -= 1
        if self._unsettled == 0:
            self._settled_all.set()


def _verdicts(slots: Sequence[Slot]) -> list[Batch | Receipt]:
    """What to append and what to refuse, in order; nothing of a lane is appended behind what stops it."""
    verdicts: list[Batch | Receipt] = []
    stopped: dict[Lane, Receipt] = {}
    for slot in slots:
        lane = slot.arrival.lane
        verdict = lane.broken or stopped.get(lane) or receipts.of_opening(slot.arrival, slot.opening)
        if isinstance(verdict, Receipt) and not verdict.is_final:
            stopped[lane] = verdict
        verdicts.append(verdict)
    return verdicts


def _needs_pool(arrival: Arrival) -> bool:
    return is_envelope(arrival.payload, arrival.event_type) or len(arrival.payload) > MAX_INLINE_BYTES
