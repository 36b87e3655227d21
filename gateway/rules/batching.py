"""Deliveries that share one request: which, and how many.

What shares a request shares its verdict. If that is not "delivered" it says nothing about any one event, so each is
delivered alone then; an event that came back from two requests because the target was down goes alone too. So a service
that does not take what is large, however it says so, costs a bounded number of useless requests.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from edge_protocol.events import encode_batch, encode_event
from gateway.rules.delivery import Item, Lane

MAX_BATCH_BYTES: Final = 1 << 20  # the largest body that common servers take unasked (nginx, aiohttp)
_BRACKETS_BYTES: Final = len(encode_batch(()))


class Batch:
    """Deliveries that share a request.

    Attributes:
        items: In the order of delivery, one at least.
        texts: Their events in the CloudEvents JSON format.
    """

    __slots__ = ("_size_bytes", "items", "texts")

    def __init__(self, first: Item) -> None:
        self.items = [first]
        self.texts = [encode_event(first.event)]
        self._size_bytes = _BRACKETS_BYTES + len(self.texts[0])

    def add(self, item: Item) -> bool:
        """Take one more; False, and nothing is changed, if the JSON batch would be too large."""
        text = encode_event(item.event)
        size_bytes = self._size_bytes + len(b",") + len(text)
        if size_bytes > MAX_BATCH_BYTES:
            return False
        self.items.append(item)
        self.texts.append(text)
        self._size_bytes = size_bytes
        return True


def gather(first: Item, next_lane: Callable[[], Lane | None], most: int) -> Batch | None:
    """Take what may share a request with a delivery out of the queues; None if it goes alone.

    Args:
        first: It leads.
        next_lane: Names the lane whose head is next, None if there is none; asked anew after each that was taken.
        most: Deliveries in all.
    """
    lane = next_lane()
    if lane is None or not first.shares:
        return None
    batch = Batch(first)
    while lane is not None and len(batch.items) < most and lane.queue[0].shares and batch.add(lane.queue[0]):
        lane.queue.popleft()
        lane = next_lane()
    return batch if len(batch.items) > 1 else None
