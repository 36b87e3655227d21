"""The packets of one connection, written before the clock starts.

Publish number n has packet identifier n modulo window, plus one: at most a window of them is unacknowledged, so no
identifier is used twice at a time, and which acknowledgements come next is known byte for byte.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import msgspec

from edge_protocol.envelope import Place, seal
from edge_protocol.envelope_keys import SealKey
from edge_protocol.event import Event, encode_batch, encode_event
from edge_protocol.ids import device_source, uuid7
from gateway.bench.fleet import BenchDevice
from gateway.bench.load import EVENT_TYPE, Load
from gateway.mqtt.codec import Publish, encode, puback_ok


class Packets:
    """An endless ring of packets, or a list that is used up.

    Attributes:
        taken: How many were taken so far.
        total: How many there are; None for an endless ring.
    """

    __slots__ = ("_acks", "_packets", "_size", "acknowledged", "taken", "total")

    def __init__(self, packets: list[bytes], *, window: int, total: int | None) -> None:
        self._packets, self._size = packets, len(packets)
        self._acks = b"".join(puback_ok(1 + n % window) for n in range(2 * window))
        self.total = total
        self.taken = 0
        self.acknowledged = 0

    @property
    def left(self) -> int:
        """How many can be taken."""
        return 1 << 62 if self.total is None else self.total - self.taken

    def take(self, count: int) -> bytes:
        """The next packets, at most a window of them and no more than are left, as one piece."""
        start = self.taken % self._size
        self.taken += count
        taken = self._packets[start : start + count]
        return b"".join(taken if len(taken) == count else taken + self._packets[: count - len(taken)])

    def are_next(self, acks: bytes) -> bool:
        """Tell whether these bytes are the acknowledgements due next, all of success."""
        start = self.acknowledged * 4 % (len(self._acks) // 2)
        return self._acks[start : start + len(acks)] == acks

    @property
    def next_id(self) -> int:
        """Packet identifier whose acknowledgement is due next."""
        return 1 + self.acknowledged % (len(self._acks) // 8)


@dataclass(frozen=True)
class Stream:
    """Where a device's stream of envelopes stands: the sequence of its last stored event."""

    id: str
    stored_through: int


def stream_of(device: BenchDevice) -> str:
    """The one stream of a device, the same in every run: a device may have but a few."""
    return f"bench-{device.id[:50]}"


def prepare(device: BenchDevice, load: Load, count: int | None, seal_key: SealKey | None, stream: Stream) -> Packets:
    """Write a device's packets.

    Args:
        device: Who sends.
        load: What.
        count: How many publishes; None for any number of bare ones.
        seal_key: What to seal to; None for plain events.
        stream: Where its events continue.
    """
    if seal_key is not None and count is not None:
        topic, payloads = f"devices/{device.id}/events", envelopes(device, load, count, seal_key, stream)
    elif load.structured and count is not None:
        topic, payloads = f"devices/{device.id}/events", _cloud_events(load, device_source(device.id), count)
    else:
        topic = load.topic or f"devices/{device.id}/events/{EVENT_TYPE}"
        payloads = iter([_data(load.size)] * load.window)
    return Packets(list(_written(topic, payloads, load)), window=load.window, total=count)


def _written(topic: str, payloads: Iterable[bytes], load: Load) -> Iterator[bytes]:
    for n, payload in enumerate(payloads):
        packet_id = 1 + n % load.window if load.qos else 0
        yield encode(Publish(topic=topic, payload=payload, qos=load.qos, packet_id=packet_id), load.version)


def envelopes(device: BenchDevice, load: Load, count: int, seal_key: SealKey, stream: Stream) -> Iterator[bytes]:
    """Seal a device's next envelopes, as an agent would."""
    key, now_s, first = device.key(), int(time.time()), stream.stored_through + 1
    for n in range(count):
        place = Place(stream.id, first + n * load.events, stream.stored_through)
        yield seal(
            _batch(load, device_source(device.id)),
            key=key,
            to=seal_key,
            audience=device.audience,
            device=device.id,
            issued_at=now_s,
            place=place,
        )


def _batch(load: Load, source: str) -> bytes:
    return encode_batch(_cloud_events(load, source, load.events))


def _cloud_events(load: Load, source: str, count: int) -> Iterator[bytes]:
    now_ms = int(time.time() * 1000)
    for _ in range(count):
        id_ = uuid7(now_ms, secrets.token_bytes(10))
        yield encode_event(Event(id=id_, source=source, type=EVENT_TYPE, payload=_data(load.size)))


def _data(size: int) -> bytes:
    """A JSON object of so many bytes (at least 11), half of it random: it compresses as readings do."""
    room = max(0, size - len(b'{"value":""}'))
    text = secrets.token_hex(room // 4 + 1)[: room // 2].ljust(room, "x")
    return msgspec.json.encode({"value": text})
