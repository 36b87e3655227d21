"""Bursts of small readings at a real gateway: what is acknowledged, what is read back, what readers get, and SIGKILL."""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from fleet import Device, register, stored_events
from mqtt_wire import Wire
from paho_client import Client
from sink import Received, Sink
from soak import SOAK
from system import System, eventually

from gateway.cli.client import call
from gateway.config import load
from gateway.demo.stage import free_port
from gateway.mqtt.codec import Puback, Publish, Version

TOPIC = "devices/dev1/events/measured"
N = 300
KILLS = 5
BURST = 100


class Site:
    """A gateway with a plain listener, a handler, and one simple device whose key the test holds."""

    def __init__(self, system: System, sink: Sink) -> None:
        self.system = system
        self.plain_port = free_port()
        listen = [f"mqtts://127.0.0.1:{system.mqtt_port}", f"mqtt://127.0.0.1:{self.plain_port}"]
        system.environ |= {
            "LOCKGATE_MQTT__LISTEN": json.dumps(listen),
            "LOCKGATE_AUTH__ANONYMOUS_ROLE": "service",
            "LOCKGATE_LIMITS__RECEIVE_MAXIMUM": "1000",
            "LOCKGATE_BUS__MIN_FREE_DISK": "1",
        }
        system.add_handlers(f'name = "ledger"\nurl = "{sink.url}"')
        self.settings = load(system.folder / "configs" / "gateway.toml", system.environ)
        self.device: Device = asyncio.run(register(self.settings, {"dev1": "simple-device"}))["dev1"]

    def wire(self, version: Version = Version.V5) -> Wire:
        """The device, let in."""
        wire = Wire(self.plain_port, version)
        connack = wire.connect("dev1", user_name="", password=self.device.token())
        assert connack.reason_code == 0, connack
        return wire

    def reader(self) -> Wire:
        """A service that subscribed to all events."""
        wire = Wire(self.plain_port)
        assert wire.connect("reader").reason_code == 0
        assert wire.subscribe("devices/+/events/#", qos=1) == (1,)
        return wire

    def events(self) -> list[dict[str, Any]]:
        return asyncio.run(stored_events(self.settings, "measured"))

    def dead(self, handler: str) -> int:
        """How many dead letters a handler has."""
        (row,) = [row for row in asyncio.run(call(self.settings, "handlers_list")) if row["name"] == handler]
        return int(row["dead"])

    def numbers(self) -> list[int]:
        """Data of all events in the order of the bus; their ids must differ."""
        events = self.events()
        assert len({event["id"] for event in events}) == len(events)
        return [event["data"]["n"] for event in events]


@pytest.fixture
def site(system: System, sink: Sink) -> Site:
    return Site(system, sink)


def burst(numbers: range, qos: int = 1) -> list[Publish]:
    """Readings; identifiers count from 1."""
    return [
        Publish(topic=TOPIC, payload=b'{"n": %d}' % n, qos=qos, packet_id=index if qos else 0)
        for index, n in enumerate(numbers, 1)
    ]


def test_a_burst_is_acknowledged_stored_and_delivered_one_by_one(site: Site, sink: Sink) -> None:
    """300 readings in one write, at both QoS of both versions: a PUBACK each, an event each, a delivery each, in order."""
    site.system.start_gateway()
    reader, first = site.reader(), 0
    for version in Version:
        for qos in (0, 1):
            wire = site.wire(version)
            wire.send(*burst(range(first, first + N), qos))
            for packet_id in range(1, N + 1) if qos else ():
                assert wire.read() == Puback(packet_id=packet_id)
            wire.ping()
            assert not wire.packets
            wire.close()
            first += N
            eventually(lambda: len(site.events()) == first)  # noqa: B023  # asked before it changes
    assert site.numbers() == list(range(first))
    messages = [reader.receive() for _ in range(first)]
    assert [json.loads(message.payload)["n"] for message in messages] == list(range(first))
    assert {message.topic for message in messages} == {TOPIC}
    assert not reader.received()
    reader.close()
    eventually(lambda: sink.count >= first, what=f"{sink.count} of {first} deliveries")
    applied = sink.applied["/devices/dev1"]
    assert [received.data["n"] for received in applied] == list(range(first))
    assert [received.id for received in applied] == [event["id"] for event in site.events()]


@pytest.mark.parametrize("version", [5, 311])
def test_a_burst_of_paho(site: Site, version: int) -> None:
    """A client library that publishes without waiting, over TLS, sees every publish acknowledged."""
    site.system.start_gateway()
    ca = site.system.folder / "certs" / "ca.pem"
    client = Client(site.system.mqtt_port, "dev1", site.device.token().decode(), ca=ca, version=version)
    client.paho.max_inflight_messages_set(N)
    with client:
        assert client.code == 0
        mids = [client.paho.publish(TOPIC, b'{"n": %d}' % n, qos=1).mid for n in range(N)]
        assert [client._await(mid) for mid in mids] == [0] * N
    assert site.numbers() == list(range(N))
    shown = site.system.gateway(
        "events", "tail", "--from", "beginning", "--type", "measured", "--limit", f"{N}", "--json"
    )
    assert [json.loads(line)["data"]["n"] for line in shown.stdout.splitlines()] == list(range(N))


def test_one_bad_reading_is_refused_with_its_reason(site: Site) -> None:
    """The first bytes of an envelope among readings: 0x99 for that one, its neighbours are stored in order."""
    site.system.start_gateway()
    wire, packets = site.wire(), burst(range(N))
    packets[150] = Publish(topic=TOPIC, payload=b"\xd0\x83\x00", qos=1, packet_id=151)
    wire.send(*packets)
    found = [wire.take(Puback) for _ in range(N)]
    wire.close()
    assert [packet.packet_id for packet in found] == list(range(1, N + 1))
    assert [packet.packet_id for packet in found if packet.reason_code] == [151]
    assert found[150].properties.reason_string.startswith("envelope-on-typed-topic: ")
    assert site.numbers() == [n for n in range(N) if n != 150]


class Talker(threading.Thread):
    """Sends bursts, two of them on the way at a time, until the gateway is gone; notes what was acknowledged."""

    def __init__(self, wire: Wire, first: int) -> None:
        super().__init__()
        self.wire, self.sent, self.acknowledged = wire, first, list[int]()
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            self._send()
            while self._send() and self._read():
                pass
        except OSError:
            pass  # the plug was pulled
        except BaseException as exc:  # noqa: BLE001  # told to the test
            self.failure = exc
        self.wire.close()

    def _send(self) -> bool:
        numbers = range(self.sent, self.sent + BURST)
        self.sent += BURST
        self.wire.send(*burst(numbers))
        return True

    def _read(self) -> bool:
        begin = self.sent - 2 * BURST
        for index in range(BURST):
            packet = self.wire.read()
            if packet is None:
                return False
            assert packet == Puback(packet_id=index + 1)
            self.acknowledged.append(begin + index)
        return True


def is_poisoned(n: object) -> bool:
    return isinstance(n, int) and n % 97 == 50


@pytest.fixture
def archive(site: Site) -> Iterator[Sink]:
    """A service that takes many events a request; some it never takes, and now and then it fails, or says it is down."""
    chance = random.Random()

    def answer(received: Received) -> int:
        assert isinstance(received.data, dict)
        if is_poisoned(received.data["n"]):
            return 400
        return chance.choice((500, 503)) if chance.random() < 0.001 else 204

    archive = Sink(answer).start()
    retry = 'retry = { max_attempts = 1000, first = "10ms", max = "50ms" }'
    site.system.add_handlers(f'name = "archive"\nurl = "{archive.url}"\nbatch = 50\n{retry}')
    yield archive
    archive.stop()


@pytest.mark.soak
@pytest.mark.timeout(180 * SOAK)
def test_no_acknowledged_publish_is_lost_through_kills(site: Site, archive: Sink) -> None:
    """The gateway is killed in the middle of bursts: what it acknowledged is there, in order, once, after every kill.

    A service that takes batches gets all of it in that order, but for what it never takes: those are the dead letters.
    """
    chance, acknowledged, first = random.Random(), list[int](), 0
    site.system.start_gateway()
    for _ in range(KILLS * SOAK):
        talker = Talker(site.wire(), first)
        talker.start()
        eventually(lambda: talker.acknowledged or talker.failure)  # noqa: B023  # asked before it changes
        time.sleep(chance.uniform(0, 0.5))
        site.system.kill("gateway")
        talker.join(10)
        assert not talker.is_alive()
        assert talker.failure is None
        acknowledged += talker.acknowledged
        first = talker.sent
        site.system.start_gateway()
        numbers = site.numbers()
        assert numbers == sorted(set(numbers)), "out of order or twice"
        assert set(acknowledged) <= set(numbers), "acknowledged and lost"
        assert set(numbers) <= set(range(first))
    assert len(acknowledged) >= KILLS * SOAK * BURST
    taken = [n for n in numbers if not is_poisoned(n)]
    eventually(
        lambda: archive.count >= len(taken), within_s=60 * SOAK, what=f"{archive.count} of {len(taken)} were archived"
    )
    assert [received.data["n"] for received in archive.applied["/devices/dev1"]] == taken
    eventually(lambda: site.dead("archive") == len(numbers) - len(taken))
