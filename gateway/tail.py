"""The live tail: stored events, shown to MQTT subscribers who listen without a cursor of their own."""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from gateway.errors import GatewayError
from gateway.mqtt.router import Router
from gateway.operations.events import decode
from gateway.ports.bus import End, EventBus, Position, StoredBatch

log = structlog.get_logger()

_PAUSE_S: Final = 0.2
_PAGE_BYTES: Final = 1 << 20


async def show_events(bus: EventBus, router: Router) -> None:
    """Publish events as they are stored, for ever; the bus is read only while somebody listens.

    A bus that cannot be read, or has removed what was to come next, costs the listeners what was stored meanwhile: who
    must have every event subscribes durably.
    """
    at: Position | None = None
    while True:
        try:
            if at is None or not router.wants_events:
                at = (await bus.locate(End()))[0]
            if not router.wants_events:
                await asyncio.sleep(_PAUSE_S)
                continue
            page = await bus.read(0, at, max_bytes=_PAGE_BYTES, wait_s=1.0)
        except GatewayError as exc:
            log.warning("live_tail_skips", reason=str(exc))
            at = None
            await asyncio.sleep(_PAUSE_S)
            continue
        for batch in page.batches:
            _show(batch, router)
        at = page.next


def _show(batch: StoredBatch, router: Router) -> None:
    try:
        for event in decode(batch):
            router.publish_event(event)
    except Exception:  # the worker's top: what one batch breaks must not end the gateway
        log.exception("live_tail_failed", row=batch.row)
