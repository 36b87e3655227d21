"""Which receipt a publish gets (wire protocol, section 6): openings, policy and outcomes of the bus, as pure functions."""

from __future__ import annotations

import math
from typing import Final

from edge_protocol.ids import device_source
from gateway.errors import BusFull
from gateway.ingest.opener import is_envelope
from gateway.ingest.openings import Opening, Refusal, Summary
from gateway.ports.bus import Batch, Forked, Outcome, Span
from gateway.ports.ingest import (
    NOT_AUTHORIZED,
    PAYLOAD_FORMAT_INVALID,
    QUOTA_EXCEEDED,
    STORED,
    UNAVAILABLE,
    Arrival,
    Receipt,
)

BUS_UNAVAILABLE: Final = Receipt(UNAVAILABLE, "bus-unavailable: events cannot be stored now, send them again")
NOT_OPENED: Final = Receipt(UNAVAILABLE, "opener-unavailable: the payload could not be opened now, send it again")
_PLAIN_BYTES: Final = (b"{", b"[")


def before_opening(arrival: Arrival) -> Receipt | None:
    """Refuse what need not be opened: another device's topic, a plain event where an envelope is required."""
    if arrival.principal.device not in (None, arrival.device):
        return Receipt(NOT_AUTHORIZED, "not-authorized: this is another device's topic")
    if not arrival.permissions.require_envelope or is_envelope(arrival.payload, arrival.event_type):
        return None
    if arrival.event_type is None and arrival.payload[:1] not in _PLAIN_BYTES:
        return None  # neither plain nor an envelope: malformed (0x99), which opening says better
    return Receipt(NOT_AUTHORIZED, "envelope-required: the role of this device sends events in envelopes only")


def of_opening(arrival: Arrival, opening: Opening | None) -> Batch | Receipt:
    """Turn what a publish held into a batch for the bus, or refuse it: it opened badly, or a type is not allowed."""
    if opening is None:
        return NOT_OPENED
    if isinstance(opening, Refusal):
        code = UNAVAILABLE if opening.reseal else PAYLOAD_FORMAT_INVALID
        return Receipt(code, f"{opening.rule}: {opening.detail}", reseal=opening.reseal)
    for event_type in opening.types:
        if not arrival.permissions.may_emit(arrival.device, event_type):
            return Receipt(NOT_AUTHORIZED, f"not-authorized: no role of this client may emit type {event_type[:80]!r}")
    return _batch(arrival, opening)


def of_outcome(outcome: Outcome) -> Receipt:
    """Tell what the bus made of a batch."""
    if isinstance(outcome, Forked):
        return Receipt(PAYLOAD_FORMAT_INVALID, f"{outcome.rule}: {outcome.detail}")
    return STORED


def of_full_bus(error: BusFull) -> Receipt:
    """Tell when there may be room again."""
    return Receipt(
        QUOTA_EXCEEDED,
        "bus-full: no room for events now, send them later",
        retry_after_s=math.ceil(error.retry_after_s),
    )


def rule_of(receipt: Receipt) -> str:
    """The rule that a receipt's reason begins with: what metrics count by."""
    return receipt.reason.partition(":")[0]


def _batch(arrival: Arrival, opening: Summary) -> Batch:
    span = None
    if opening.place is not None:
        stream, first, settled = opening.place
        span = Span(stream=stream, first=first, settled=settled, last_id=opening.last_id)
    return Batch(
        source=device_source(arrival.device),
        received_ms=arrival.received_ms,
        count=opening.events,
        types=opening.types,
        body=opening.body,
        encoding=opening.encoding,
        span=span,
        ids=opening.ids,
    )
