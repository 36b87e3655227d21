"""Events that differ in little: what they have in common is kept once (`Batch.encoding` "framed").

A run of bare readings becomes events that are equal but for the end of their ids and their data. As JSON the rest is
200 bytes of each: written once instead of for every event, ingest of small readings costs a sixth less.

The layout, integers of 4 bytes, most significant first: number of events; sizes of `start`, `middle`, `stop`; size of
each event's data; then all of these one behind the other.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import accumulate, chain, pairwise, repeat
from typing import Final, Literal, NamedTuple

from edge_protocol.events import Encoding

MAX_EVENTS: Final = 256
MAX_FRAME_BYTES: Final = 400
"""Of what events have in common: readers, who get it once for each event, count so much against the size of a page."""

Packing = Encoding | Literal["framed"]
"""How a batch is appended. Readers never see "framed"."""

_DIGITS: Final = tuple(b"%02x" % n for n in range(MAX_EVENTS))
_INTEGER_BYTES: Final = 4


class Frame(NamedTuple):
    """What an event is beside its data: event n is `start`, n as two hexadecimal digits, `middle`, its data, `stop`."""

    start: bytes
    middle: bytes
    stop: bytes

    @property
    def size_bytes(self) -> int:
        """Of what is packed once."""
        return sum(map(len, self))


def digits(n: int) -> str:
    """What stands between `start` and `middle` of event n, counted from 0."""
    return _DIGITS[n].decode()


def pack(frame: Frame, data: Sequence[bytes]) -> bytes:
    """Pack events, 1 to 256."""
    sizes = (len(data), *map(len, frame), *map(len, data))
    return struct.pack(f">{len(sizes)}I", *sizes) + b"".join((*frame, *data))


def unpack(packed: bytes) -> bytes:
    """The events as a CloudEvents JSON batch.

    Args:
        packed: As `pack` wrote it; nothing is checked.
    """
    count = int.from_bytes(packed[:_INTEGER_BYTES])
    sizes = struct.unpack_from(f">{3 + count}I", packed, _INTEGER_BYTES)
    places = pairwise(accumulate(sizes, initial=_INTEGER_BYTES * (4 + count)))
    start, middle, stop, first, *others = [packed[begin:end] for begin, end in places]
    between = b"".join((stop, b",", start))
    rest = chain.from_iterable(zip(repeat(between), _DIGITS[1:], repeat(middle), others))  # as long as others
    return b"".join((b"[", start, _DIGITS[0], middle, first, *rest, stop, b"]"))


def unframed(body: bytes, packing: Packing) -> tuple[bytes, Encoding]:
    """A body as readers get it, and its encoding."""
    return (unpack(body), "") if packing == "framed" else (body, packing)
