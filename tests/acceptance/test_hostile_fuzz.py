"""Thousands of mutated packet streams over real sockets: nobody else notices, nothing leaks, nothing breaks."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import mqtt_strategies
import pytest
from besieged import Site, besieged
from fleet import event
from hypothesis import HealthCheck, Phase, given, settings
from mqtt_kit import eventually
from soak import SOAK

from gateway.mqtt.codec import Pingreq, Publish, Version, encode

STREAMS = 5000 * SOAK
WORKERS = 12
TLS_WORKERS = 2
QUIET_S = 0.05  # a gateway that says nothing for so long waits for the rest of a packet
GROWTH = 1.05
CACHED = 10_000  # more than any cache holds of what a client names
PACKETS = 300  # valid ones of each version, to begin from
PINGREQ, PINGRESP = encode(Pingreq(), Version.V5), b"\xd0\x00"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    roles = {f"fuzz{n}": "device" if n % 2 else "simple-device" for n in range(WORKERS)}
    with besieged(tmp_path_factory.mktemp("fuzz"), roles, LOG__LEVEL="warning") as served:
        yield served


def valid_packets(version: Version) -> list[bytes]:
    """What a client may send, found by hypothesis."""
    found: list[bytes] = []

    @settings(max_examples=PACKETS, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(mqtt_strategies.packets(version, "client"))
    def gather(packet: object) -> None:
        found.append(encode(packet, version))

    gather()
    return found


@dataclass
class Mutator:
    """Makes streams of packets, most of them broken somewhere, from a seed."""

    site: Site
    chance: random.Random
    packets: dict[Version, list[bytes]] = field(default_factory=dict)
    tokens: dict[str, bytes] = field(default_factory=dict)

    def stream(self, device: str) -> bytes:
        version = self.chance.choice(list(Version))
        token = self.tokens.setdefault(device, self.site.devices[device].token())
        keep_alive_s = self.chance.choice((0, 1, 60))
        connect = encode(self.site.connect(device, version, keep_alive_s=keep_alive_s, password=token), version)
        if self.chance.random() < 0.15:
            connect = self.mutated(connect)
        parts = [connect] if self.chance.random() < 0.95 else []
        for _ in range(self.chance.randrange(1, 7)):
            part = (
                self.event(device, version) if self.chance.random() < 0.4 else self.chance.choice(self.packets[version])
            )
            parts.append(self.mutated(part) if self.chance.random() < 0.4 else part)
        return b"".join((*parts, PINGREQ))

    def event(self, device: str, version: Version) -> bytes:
        """A publish of an event, sealed or plain, its payload sometimes broken."""
        sender = self.site.devices[device]
        number = f"{device}-{self.chance.getrandbits(64):x}"
        payload = sender.seal(event(number, 1)) if self.chance.random() < 0.3 else event(number, {"a": [number] * 9})
        if self.chance.random() < 0.3:
            payload = self.mutated(payload)
        topic = sender.events_topic if self.chance.random() < 0.7 else f"{sender.events_topic}/a/{number}"
        packet_id = self.chance.randrange(1, 65536)
        return encode(Publish(topic=topic, payload=payload, qos=1, packet_id=packet_id), version)

    def mutated(self, data: bytes) -> bytes:
        """Change a few places: bits, bytes, lengths; cut, repeat, insert, splice."""
        found = bytearray(data)
        for _ in range(self.chance.choice((1, 1, 1, 2, 5))):
            at = self.chance.randrange(len(found)) if found else 0
            match self.chance.randrange(7):
                case 0 if found:
                    found[at] ^= 1 << self.chance.randrange(8)
                case 1 if found:
                    found[at] = self.chance.choice((0, 1, 0x7F, 0x80, 0xFF, self.chance.randrange(256)))
                case 2:
                    del found[at : at + self.chance.choice((1, 2, 100))]
                case 3:
                    found[at:at] = self.chance.randbytes(self.chance.choice((1, 2, 20)))
                case 4:
                    found[at:at] = found[at : at + 20] * self.chance.choice((1, 50))
                case 5:
                    found[at:at] = self.chance.choice(self.packets[Version.V5])
                case _:
                    found[at : at + 2] = self.chance.choice((b"\xff\xff", b"\0\0", b"\xed\xa0", b"\x80\x80"))
        return bytes(found)


async def send(site: Site, wire: bytes, *, tls: bool, chance: random.Random) -> bytes:
    """Send a stream, in one piece or two; what came back until it ended, or nothing more came."""
    client = await site.open(tls=tls)
    answer = b""
    with suppress(ConnectionError, TimeoutError):
        cut = chance.randrange(len(wire)) if chance.random() < 0.3 else len(wire)
        client.writer.write(wire[:cut])
        await asyncio.sleep(0)
        client.writer.write(wire[cut:])
        while not answer.endswith(PINGRESP):
            async with asyncio.timeout(QUIET_S):
                data = await client.reader.read(65536)
            if not data:
                break
            answer += data
    if chance.random() < 0.5:
        client.writer.transport.abort()
    await client.aclose()
    return answer


async def work(site: Site, mutator: Mutator, number: int, numbers: Iterator[int], tally: Counter[str]) -> None:
    for _ in numbers:
        wire = mutator.stream(f"fuzz{number}")
        answer = await send(site, wire, tls=number < TLS_WORKERS, chance=mutator.chance)
        outcome = "served" if answer.endswith(PINGRESP) else "refused" if answer else "silent"
        tally[outcome] += 1


async def served_throughout(site: Site, done: asyncio.Event, slowest: list[float]) -> None:
    """A well-behaved client, again and again; each time must take less than a second."""
    while not done.is_set():
        started = time.monotonic()
        await site.is_served("good1", tls=len(slowest) % 2 == 1)
        slowest.append(time.monotonic() - started)
        await asyncio.sleep(0.05)


async def storm(site: Site, mutator: Mutator, streams: int) -> tuple[Counter[str], list[float]]:
    numbers, tally, times, done = iter(range(streams)), Counter[str](), [], asyncio.Event()
    good = asyncio.create_task(served_throughout(site, done, times))
    await asyncio.gather(*(work(site, mutator, n, numbers, tally) for n in range(WORKERS)))
    done.set()
    await good
    return tally, times


async def settled(site: Site) -> tuple[int, float]:
    """Memory and descriptors of the gateway once everybody has left."""
    await eventually(lambda: site.metrics()["lockgate_connections"] == 0, timeout_s=10)
    await asyncio.sleep(1.2)  # lingering sockets: a second (limits.linger_s)
    return site.process.memory_info().rss, site.metrics()["process_open_fds"]


async def fill_caches(site: Site) -> None:
    """Topics, types and pages of the store, beyond the bound of every cache: what grows after that is a leak."""
    async with site.client("fuzz0", keep_alive_s=60) as client:
        for n in range(CACHED):
            topic = f"devices/fuzz0/events/some/level/and/another/number{n}"
            client.send(Publish(topic=topic, payload=bytes(1000)))
            await client.writer.drain()
        client.send(Publish(topic="devices/fuzz0/events/last", payload=b"1", qos=1, packet_id=1))
        assert (await client.read(30)).reason_code == 0


@pytest.mark.soak
@pytest.mark.timeout(180 * SOAK)
async def test_mutated_streams_harm_nobody(site: Site) -> None:
    """5,000 of them: a good client is served within a second throughout; memory within 5 %, no descriptor leaks."""
    seed = random.randrange(1 << 32)
    mutator = Mutator(site, random.Random(seed), {version: valid_packets(version) for version in Version})
    try:
        await fill_caches(site)
        await storm(site, mutator, STREAMS // 2)
        memory, descriptors = await settled(site)
        tally, times = await storm(site, mutator, STREAMS)
        after, descriptors_after = await settled(site)
        assert min(tally[outcome] for outcome in ("served", "refused", "silent")) > STREAMS // 50, tally
        assert max(times) < 1.0
        assert descriptors_after <= descriptors + 2, "descriptors leak"
        assert after <= memory * GROWTH, f"memory grew from {memory} to {after} bytes"
    except BaseException as exc:
        exc.add_note(f"seed {seed}")
        raise


def whole_memory(site: Site) -> int:
    """Bytes of the gateway and the processes of its pool."""
    return sum(each.memory_info().rss for each in (site.process, *site.process.children(recursive=True)))


async def test_names_that_strangers_choose_are_not_kept(site: Site) -> None:
    """Thousands of different long topics, event types and tokens, allowed or not, leave nothing behind."""

    async def send_names(first: int, count: int) -> None:
        async with site.client("fuzz0") as client:
            for n in range(first, first + count):
                topics = (f"a/{n}/{'x' * 60_000}", f"devices/fuzz0/events/{n}{'x' * 60_000}")
                typed = event(f"{n}", type_=f"{n}{'x' * 250_000}")
                packets = [Publish(topic=topic, payload=b"1") for topic in topics]
                client.send(*packets, Publish(topic="devices/fuzz0/events", payload=typed, qos=1, packet_id=1))
                assert (await client.read()).reason_code == 0x99
        for n in range(first, first + count):
            token = site.devices["fuzz0"].token(jti=f"{n}{'x' * 5500}")
            async with site.client("fuzz0", password=token):
                pass

    await send_names(0, 40)
    memory = whole_memory(site)
    await send_names(1000, 160)  # 59 MB of names
    assert whole_memory(site) - memory < 16 << 20
    await site.is_served()
