"""What opening a publish gives: a summary of what is stored, or a refusal. Tuples, since they cross processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from edge_protocol.event import Event
from edge_protocol.payload import Encoding
from gateway.rules.framed import Packing


class Summary(NamedTuple):
    """A publish that was opened: what of it the bus needs.

    Attributes:
        place: Stream, first sequence, settled; None for events without a stream.
        types: The distinct types, sorted.
        events: How many there are.
        last_id: `id` of the last event.
        ids: Ids to deduplicate by: of events without a stream whose ids the sender made.
    """

    body: bytes
    encoding: Packing
    place: tuple[str, int, int] | None
    types: tuple[str, ...]
    events: int
    last_id: str
    ids: tuple[str, ...]


class Refusal(NamedTuple):
    """A publish that is refused (0x99), or must be sealed again (0x83)."""

    rule: str
    detail: str
    reseal: bool = False


Opening = Summary | Refusal


def summary(
    events: Sequence[Event],
    body: bytes,
    encoding: Encoding = "",
    place: tuple[str, int, int] | None = None,
    *,
    has_ids: bool = True,
) -> Summary:
    """Sum up checked events; `has_ids` says that the sender made their ids: what it repeats is found by them."""
    ids = tuple([event.id for event in events]) if place is None and has_ids else ()
    types = tuple(sorted({event.type for event in events}))
    return Summary(body, encoding, place, types, len(events), events[-1].id, ids)
