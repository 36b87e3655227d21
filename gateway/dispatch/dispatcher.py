"""Delivers one subscription to one target: workers around the plan, and the tasks that feed and save it.

A fixed set of workers takes deliveries from the plan and has the courier deliver them; no task is made for an event. Tasks wake
one another through events and futures only; all decisions are the plan's. Knows no scheme, no storage backend, no metrics.
"""

from __future__ import annotations

import asyncio
import random as _random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Final

import structlog

from edge_protocol.events import Event
from gateway.dispatch.courier import Courier, OnDelivered
from gateway.dispatch.keeping import Keeper
from gateway.dispatch.patience import Patience
from gateway.dispatch.reading import Decoder, Reader
from gateway.dispatch.stats import DispatchState, DispatchStats, Tally
from gateway.errors import Fenced, NotFound, Unavailable
from gateway.ports.bus import EventBus
from gateway.ports.subscriptions import Lease, Subscriptions, SubscriptionSpec
from gateway.ports.target import Deliverer
from gateway.rules.breaker import Health
from gateway.rules.handling import HandlerSettings
from gateway.rules.plan import Plan

log = structlog.get_logger()

_LEASE_S: Final = 60.0
_STREAK: Final = 32  # deliveries that never wait, before a worker lets others run: well below a millisecond
_TICK_S: Final = 1.0


def _no_labels(_device: str) -> Mapping[str, str]:
    return {}


def _ignore(_event: Event, _received_ms: int | None, _latency_s: float) -> None:
    return


class Dispatcher:
    """Runs one handler.

    Args:
        spec: The subscription, which must exist (`Subscriptions.open`).
        settings: How to deliver.
        bus: What is delivered.
        subscriptions: Where it stands.
        deliverer: The open target, a `BatchDeliverer` where settings ask for batches; closing it is the caller's.
        labels_of: Labels of a device, by id.
        clock: Unix time in seconds.
        monotonic: Seconds on a clock that is never set.
        random: Uniform in [0, 1).
        on_delivered: Called after each success with the event, its arrival in Unix milliseconds (None for an event that
            had been put aside) and how long the delivery took, in seconds. Must not raise.
    """

    def __init__(
        self,
        spec: SubscriptionSpec,
        settings: HandlerSettings,
        *,
        bus: EventBus,
        subscriptions: Subscriptions,
        deliverer: Deliverer,
        labels_of: Callable[[str], Mapping[str, str]] = _no_labels,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        random: Callable[[], float] = _random.random,
        on_delivered: OnDelivered = _ignore,
    ) -> None:
        self._spec = spec
        self._settings = settings
        self._bus = bus
        self._subscriptions = subscriptions
        self._deliverer = deliverer
        self._decoder = Decoder(spec, labels_of)
        self._clock = clock
        self._monotonic = monotonic
        self._random = random
        self._on_delivered = on_delivered
        self._tally = Tally()
        self._stopping = asyncio.Event()
        self._ended = asyncio.Event()
        self._ended.set()
        self._stop_timeout_s = 0.0
        self._end_cause = ""
        self._patience = Patience(spec.name, self._stopping, random)
        self._idle: deque[asyncio.Future[None]] = deque()
        self._tick = asyncio.Event()
        self._plan: Plan | None = None
        self._reader: Reader | None = None
        self._keeper: Keeper | None = None

    async def run(self) -> None:
        """Deliver until `stop`, or until the subscription is claimed or removed by somebody else.

        Cancelling it stops at once and saves nothing, as a crash would: at most a window is delivered again.

        Raises:
            NotFound: There is no such subscription.
        """
        self._ended.clear()
        try:
            lease = await self._patience.again(lambda: self._subscriptions.claim(self._spec.name, ttl_s=_LEASE_S))
            keeper = self._assemble(lease)
            await keeper.recall()
            log.info("dispatch_started", handler=self._spec.name)
            await self._run_tasks(lease, keeper)
            await self._save_last(keeper)
        except Unavailable as exc:
            log.warning("dispatch_not_started", handler=self._spec.name, reason=str(exc))
        finally:
            self._stopping.set()
            self._ended.set()
        log.info("dispatch_stopped", handler=self._spec.name, reason=self._end_cause or "stop")

    async def stop(self, timeout_s: float = 10.0) -> None:
        """Start nothing more, wait for what is with the target, save floors; returns when `run` has ended.

        Args:
            timeout_s: After this many seconds what still runs is cancelled (it will be delivered again).
        """
        self._stop_timeout_s = timeout_s
        self._stopping.set()
        self._rouse_all()
        await self._ended.wait()

    def wake(self) -> None:
        """An operator replayed, discarded, paused or resumed: look now (else it takes up to a second, pauses more)."""
        if self._keeper is not None:
            self._keeper.ask()
        self._tick.set()

    def end_pause(self) -> None:
        """The target is known to be there again: deliver now, without waiting for the next probe."""
        if self._plan is not None:
            self._plan.breaker.expect(self._monotonic())
        self._tick.set()

    def stats(self) -> DispatchStats:
        """Tell counters and state."""
        plan = self._plan
        if plan is None or self._keeper is None:
            state, cause = DispatchState.STOPPED, self._end_cause
            return DispatchStats(handler=self._spec.name, state=state, tally=self._tally, cause=cause)
        down = plan.breaker.health is not Health.UP
        since_ms = int((self._clock() + plan.breaker.since_s - self._monotonic()) * 1000)
        return DispatchStats(
            handler=self._spec.name,
            state=self._state(plan, down=down),
            tally=self._tally,
            inflight=plan.running,
            window=plan.events,
            rate_per_s=self._keeper.rate.per_s(self._monotonic(), self._tally.delivered),
            cause=self._end_cause or plan.breaker.cause,
            since_ms=since_ms if down else None,
        )

    def _state(self, plan: Plan, *, down: bool) -> DispatchState:
        if self._stopping.is_set():
            return DispatchState.STOPPED
        if plan.paused:
            return DispatchState.PAUSED
        return DispatchState.DOWN if down else DispatchState.RUNNING

    def _assemble(self, lease: Lease) -> Keeper:
        floors = {partition: (floor.position, floor.done) for partition, floor in lease.floors.items()}
        plan = Plan(self._settings, floors)
        reader = Reader(self._spec.name, self._bus, plan, self._decoder, patience=self._patience, tally=self._tally)
        keeper = Keeper(
            lease,
            self._subscriptions,
            plan,
            reader,
            partitions=self._bus.partitions,
            patience=self._patience,
            clock=self._clock,
            monotonic=self._monotonic,
            tally=self._tally,
        )
        self._plan, self._reader, self._keeper = plan, reader, keeper
        return keeper

    def _courier(self, plan: Plan) -> Courier:
        return Courier(
            self._spec.name,
            self._deliverer,
            plan,
            tally=self._tally,
            monotonic=self._monotonic,
            random=self._random,
            on_delivered=self._on_delivered,
            on_trouble=self._tick.set,
            on_answer=self._rouse,
        )

    async def _run_tasks(self, lease: Lease, keeper: Keeper) -> None:
        assert self._plan is not None
        assert self._reader is not None
        plan, reader, name = self._plan, self._reader, self._spec.name
        courier = self._courier(plan)
        async with asyncio.TaskGroup() as group:
            feeders = [
                group.create_task(
                    self._patiently(partial(reader.run, partition, self._rouse)), name=f"{name}-read-{partition}"
                )
                for partition in lease.floors
            ]
            feeders.append(group.create_task(self._patiently(partial(keeper.run, self._rouse)), name=f"{name}-keep"))
            feeders.append(group.create_task(self._run_timers(plan), name=f"{name}-timers"))
            workers = [
                group.create_task(self._work(plan, courier, reader, keeper), name=f"{name}-deliver-{n}")
                for n in range(self._settings.concurrency)
            ]
            await self._stopping.wait()
            for task in feeders:
                task.cancel()
            self._rouse_all()
            await asyncio.wait(workers, timeout=self._stop_timeout_s)
            for task in workers:
                task.cancel()

    async def _patiently(self, feeder: Callable[[], Awaitable[None]]) -> None:
        try:
            await feeder()
        except Unavailable:
            return  # only when stopping
        except (Fenced, NotFound) as exc:
            log.warning("dispatch_fenced", handler=self._spec.name, reason=str(exc))
            self._end_cause = f"fenced: {exc}"
            self._stopping.set()

    async def _save_last(self, keeper: Keeper) -> None:
        if self._end_cause:
            return
        try:
            await keeper.save()  # what was under way when the keeper was stopped
            await keeper.save()
        except (Unavailable, Fenced, NotFound) as exc:
            log.warning("floors_not_saved", handler=self._spec.name, reason=str(exc))

    # ---- waking one another

    def _rouse(self) -> None:
        """Wake as many idle workers as there may be deliveries to start, and the reader if there is room."""
        if self._reader is not None:
            self._reader.go_on()  # the keeper makes room too
        if self._plan is None or not self._idle:
            return
        for _ in range(min(self._plan.startable(self._monotonic()), len(self._idle))):
            waiting = self._idle.popleft()
            if not waiting.done():
                waiting.set_result(None)

    def _rouse_all(self) -> None:
        while self._idle:
            waiting = self._idle.popleft()
            if not waiting.done():
                waiting.set_result(None)

    async def _run_timers(self, plan: Plan) -> None:
        while not self._stopping.is_set():
            now_s = self._monotonic()
            due_s = plan.next_due_s(now_s)
            delay_s = _TICK_S if due_s is None else min(due_s - now_s, _TICK_S)
            try:
                async with asyncio.timeout(delay_s):
                    await self._tick.wait()
            except TimeoutError:
                pass
            self._tick.clear()
            self._rouse()

    # ---- delivering

    async def _work(self, plan: Plan, courier: Courier, reader: Reader, keeper: Keeper) -> None:
        batches = self._settings.batch > 1
        streak = 0
        while not self._stopping.is_set():
            now_s = self._monotonic()
            item = plan.start(now_s)
            if item is None:
                waiting = asyncio.get_running_loop().create_future()
                self._idle.append(waiting)
                await waiting
                continue
            batch = plan.join(item, now_s) if batches else None
            await (courier.deliver(item, now_s) if batch is None else courier.deliver_batch(batch, now_s))
            reader.go_on()
            if plan.is_look_due:
                keeper.bell.set()
            streak += 1
            if streak % _STREAK == 0:
                await asyncio.sleep(0)
