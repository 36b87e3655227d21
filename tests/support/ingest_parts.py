"""Parts that tests of ingest share: keys, publishes as they arrive, how a bus fails."""

import asyncio
import json
from collections.abc import Sequence
from itertools import count

from edge_protocol.envelope import Place, seal
from edge_protocol.envelope_keys import OpenKey, Suite, new_open_key
from edge_protocol.event import Event, encode_batch, encode_event
from edge_protocol.events import decode_stored
from edge_protocol.keys import SigningKey, new_signing_key
from gateway.errors import BusFull, BusUnavailable
from gateway.ingest import Pipeline
from gateway.ports.bus import Position
from gateway.ports.identity import Principal, PrincipalKind
from gateway.ports.ingest import Arrival, Lane, Receipt
from gateway.rules.policy import Policy, PolicyRule
from gateway.storage import Storage, open_storage

AUDIENCE = "lockgate-test"
NOW_MS = 1_800_000_000_000
NOW_S = NOW_MS // 1000
POLICY = Policy(
    [
        PolicyRule(role="simple", publish=("devices/{device}/events/#",), require_envelope=False),
        PolicyRule(role="sealed", publish=("devices/{device}/events/#",)),
        PolicyRule(role="narrow", publish=("devices/{device}/events/cart/#",), require_envelope=False),
    ]
)
ENVELOPE_KEY: OpenKey = new_open_key(Suite.X25519_AES128)
DEVICE_KEY: SigningKey = new_signing_key()
_ids = count(1)


class Keys:
    """`DeviceKeys`: every device has these keys, unless it is named otherwise."""

    def __init__(self, *keys: SigningKey, unknown: Sequence[str] = ()) -> None:
        self._keys = {key.public.kid: key.public for key in keys or (DEVICE_KEY,)}
        self._unknown = unknown

    def signing_keys(self, device: str, *, now_s: float):
        return {} if device in self._unknown else self._keys


def unavailable() -> BusUnavailable:
    return BusUnavailable("the disk is gone")


def full(retry_after_s: float = 12.2) -> BusFull:
    return BusFull("no room", retry_after_s=retry_after_s)


def event(n: int = 0, *, type_: str = "cart_updated", id_: str | None = None, **attributes) -> bytes:
    data = attributes.pop("data", {"n": n})
    return encode_event(
        Event(
            id=id_ or f"id-{next(_ids)}",
            source="/devices/dev1",
            type=type_,
            payload=json.dumps(data).encode(),
            extensions=attributes,
        )
    ).replace(b'"source":"/devices/dev1",', b"")


def sealed(
    *events: bytes,
    device: str = "dev1",
    audience: str = AUDIENCE,
    place: Place | None = None,
    key: SigningKey = DEVICE_KEY,
    to: OpenKey = ENVELOPE_KEY,
    issued_at: int = NOW_S,
) -> bytes:
    batch = encode_batch(events or (event(),))
    return seal(batch, key=key, to=to.public, audience=audience, device=device, issued_at=issued_at, place=place)


def arrival(payload: bytes, device: str = "dev1", *, role: str = "simple", lane: Lane | None = None, **more) -> Arrival:
    principal = more.pop("principal", Principal(PrincipalKind.DEVICE, "", device))
    return Arrival(
        principal=principal,
        permissions=POLICY.permissions([role], device=device),
        device=device,
        event_type=more.pop("event_type", None),
        payload=payload,
        received_ms=more.pop("received_ms", NOW_MS),
        lane=lane or Lane(),
        **more,
    )


class Ledger:
    """What every publish was told, by its number; a second answer fails the test."""

    def __init__(self) -> None:
        self.receipts: dict[int, Receipt] = {}

    def settle(self, number: int):
        def settle(receipt: Receipt) -> None:
            assert number not in self.receipts, f"publish {number} was settled twice"
            self.receipts[number] = receipt

        return settle


async def publish(pipeline: Pipeline, *arrivals: Arrival) -> list[Receipt]:
    """Submit in order, wait until all are settled."""
    ledger = Ledger()
    for number, each in enumerate(arrivals):
        pipeline.submit(each, ledger.settle(number))
    async with asyncio.timeout(30):
        await pipeline.drain()
    return [ledger.receipts[number] for number in range(len(arrivals))]


def pipeline_on(bus, **settings) -> Pipeline:
    settings = {"audience": AUDIENCE, "open_keys": [ENVELOPE_KEY], "processes": 1, **settings}
    return Pipeline(bus, settings.pop("keys", Keys()), **settings)


async def memory() -> Storage:
    return await open_storage("memory://", clock=lambda: NOW_S)


async def stored(bus) -> list[Event]:
    """All events of a bus, in its order."""
    events, after = [], Position(0)
    while batches := (page := await bus.read(0, after, max_bytes=1 << 30)).batches:
        for each in batches:
            events += decode_stored(each.body, each.encoding, source=each.source, stream=each.stream, first=each.first)
        after = page.next
    return events
