"""Takes to the target what the plan started, and tells the plan, the counters and the log what came of it.

Knows no scheme and decides nothing: what a verdict leads to is the plan's business.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog

from edge_protocol.events import Event
from gateway.dispatch.stats import Tally
from gateway.ports.target import BatchDeliverer, Delivered, Deliverer, Down, Failed, Refused, Verdict
from gateway.rules.batching import Batch
from gateway.rules.breaker import Health
from gateway.rules.delivery import Item, Stage
from gateway.rules.idempotency import batch_key, idempotency_key
from gateway.rules.plan import Plan

log = structlog.get_logger()

OnDelivered = Callable[[Event, int | None, float], None]


class Courier:
    """Delivers for one plan.

    Args:
        handler: For the log.
        deliverer: The open target.
        plan: Gets the verdicts.
        tally: Counters.
        monotonic: Seconds on a clock that is never set.
        random: Uniform in [0, 1).
        on_delivered: See `Dispatcher`.
        on_trouble: Called after each verdict but success: there may be another time to wake at.
        on_answer: Called after the verdict about a probe.
    """

    def __init__(
        self,
        handler: str,
        deliverer: Deliverer,
        plan: Plan,
        *,
        tally: Tally,
        monotonic: Callable[[], float],
        random: Callable[[], float],
        on_delivered: OnDelivered,
        on_trouble: Callable[[], None],
        on_answer: Callable[[], None],
    ) -> None:
        self._handler = handler
        self._deliverer = deliverer
        self._plan = plan
        self._tally = tally
        self._monotonic = monotonic
        self._random = random
        self._on_delivered = on_delivered
        self._on_trouble = on_trouble
        self._on_answer = on_answer

    async def deliver(self, item: Item, begun_s: float) -> None:
        """Deliver one event, started at a time on the monotonic clock."""
        if item.attempts:
            self._tally.retried += 1
        verdict = await self._attempt(item.event, item.attempts + 1)
        if isinstance(verdict, Delivered):
            self._took(item, begun_s)
        else:
            self._judge(item, verdict)
        if item.probe:
            self._answered()

    async def deliver_batch(self, batch: Batch, begun_s: float) -> None:
        """Deliver several events in one request, whose verdict is about all of them."""
        verdict = await self._attempt_batch(batch)
        first, *others = batch.items
        if isinstance(verdict, Delivered):
            for item in batch.items:
                self._took(item, begun_s)
        elif isinstance(verdict, Down):
            self._plan.give_back(others, alone=False)
            self._judge(first, verdict)
        else:
            self._split(batch)

    async def _attempt(self, event: Event, attempt: int) -> Verdict:
        try:
            key = idempotency_key(event.source, event.id)
            return await self._deliverer.deliver(event, key=key, attempt=attempt)
        except Exception as exc:  # a target must not raise; if one does, no worker dies of it
            log.exception("target_raised", handler=self._handler, event_id=event.id)
            return Failed(f"the target raised {type(exc).__name__}")

    async def _attempt_batch(self, batch: Batch) -> Verdict:
        assert isinstance(self._deliverer, BatchDeliverer)  # `batch` is 1 for any other
        try:
            key = batch_key(idempotency_key(item.event.source, item.event.id) for item in batch.items)
            return await self._deliverer.deliver_batch(batch.texts, key=key)
        except Exception as exc:  # likewise
            log.exception("target_raised", handler=self._handler, events=len(batch.items))
            return Failed(f"the target raised {type(exc).__name__}")

    def _took(self, item: Item, begun_s: float) -> None:
        self._plan.delivered(item)
        self._tally.delivered += 1
        self._on_delivered(item.event, item.received_ms, self._monotonic() - begun_s)

    def _split(self, batch: Batch) -> None:
        self._plan.give_back(batch.items, alone=True)
        self._tally.failed += 1
        log.warning("batch_split", handler=self._handler, events=len(batch.items))
        self._on_trouble()

    def _judge(self, item: Item, verdict: Failed | Refused | Down) -> None:
        plan = self._plan
        now_s, jitter = self._monotonic(), self._random()
        if isinstance(verdict, Down):
            was_up = plan.breaker.health is Health.UP
            stage = plan.down(item, verdict.cause, now_s=now_s, jitter=jitter, retry_after_s=verdict.retry_after_s)
            self._tally.down += was_up
            if was_up:
                log.warning("target_down", handler=self._handler, reason=verdict.cause)
        else:
            self._tally.failed += 1
            if isinstance(verdict, Failed):
                retry_after_s = verdict.retry_after_s
                stage = plan.failed(item, verdict.cause, now_s=now_s, jitter=jitter, retry_after_s=retry_after_s)
            else:
                stage = plan.refused(item, verdict.cause)
        self._note(item, stage)
        self._on_trouble()

    def _note(self, item: Item, stage: Stage) -> None:
        event = item.event
        if stage is Stage.DEAD:
            self._tally.dead += 1
        elif stage is Stage.WAITING:
            self._tally.deferred += 1
        else:
            return
        log.warning(  # without the cause: it may quote what the service answered; the dead letter has it
            "event_dead_lettered" if stage is Stage.DEAD else "event_deferred",
            handler=self._handler,
            source=event.source,
            event_id=event.id,
            type=event.type,
            attempts=item.attempts,
        )

    def _answered(self) -> None:
        if self._plan.breaker.health is Health.UP:
            log.info("target_up", handler=self._handler)
        self._on_answer()
