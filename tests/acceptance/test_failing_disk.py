"""What publishers see while the gateway's disk fails: no acknowledgement that a restart does not show (P3, P4).

The gateway runs in this process on a disk that fails where it is told to and forgets what was not synced (`diskfault`).
By default a sample of the places where a call can fail; `SOAK` multiplies it.
"""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
import pytest
from diskfault import FaultyDisk, eio, eio_sync, enospc
from fleet import Device, event, register, stored_events
from gateway_here import Here, run, serving, settings_in
from mqtt_kit import Client, eventually
from sink import Sink
from soak import SOAK

from edge_protocol.envelope import Place
from gateway.config import Settings
from gateway.mqtt.codec import Connect, Disconnect, Packet, Pingreq, Pingresp, Puback, Publish, Version

ROLES = {"plain1": "simple-device", "plain2": "simple-device", "old1": "simple-device", "sealed1": "device"}
EVENTS_EACH = 30
TRY_AGAIN = {0x83, 0x97}
BEHIND_A_REFUSAL = -1  # no packet identifier
ALL_FINE = {"ready": True, "checks": {"listeners": "ok", "bus": "ok", "disk": "ok"}}
PLACES = 5 * SOAK  # of the calls, how many are made to fail: about 70 in all


class Publisher:
    """A device that numbers its events from 1, sends all it may, and repeats in order what was not acknowledged."""

    def __init__(self, device: Device, version: Version = Version.V5, *, padding_bytes: int = 0) -> None:
        self.device, self.version = device, version
        self._padding = "x" * padding_bytes
        self.acknowledged: list[int] = []
        self.refusals = 0
        self._envelopes: dict[int, bytes] = {}

    @property
    def next(self) -> int:
        return len(self.acknowledged) + 1

    async def publish(self, port: int, last: int) -> None:
        """Send everything up to a number on one connection, without waiting, until all is answered or it ends."""
        try:
            client = await self.connected(port)
        except OSError:
            return
        waiting = list(range(self.next, last + 1))
        client.send(*(self.packet(n) for n in waiting))
        with suppress(ConnectionError):
            while waiting and (packet := await client.read(15)) is not None:
                self._take(packet, waiting)
        await client.aclose()

    async def publish_until_acknowledged(self, port: int, last: int) -> None:
        async with asyncio.timeout(20):
            while self.next <= last:
                await self.publish(port, last)
                await asyncio.sleep(0.02)  # a publisher that is sent off comes back, a little later

    async def connected(self, port: int) -> Client:
        client = await Client.open(port, self.version)
        password = self.device.token()
        client.send(Connect(version=self.version, client_id=self.device.id, user_name="", password=password))
        connack = await client.read()
        if connack is None or connack.reason_code:
            await client.aclose()
            raise ConnectionRefusedError
        return client

    def packet(self, n: int) -> Publish:
        data = {"n": n, "padding": self._padding} if self._padding else n
        if self.device.id.startswith("sealed"):
            if n not in self._envelopes:
                self._envelopes[n] = self.device.seal(event(f"{self.device.id}-{n}", data), place=Place("s", n, 0))
            return Publish(topic=self.device.events_topic, payload=self._envelopes[n], qos=1, packet_id=n)
        return Publish(
            topic=f"{self.device.events_topic}/measured", payload=json.dumps(data).encode(), qos=1, packet_id=n
        )

    def _take(self, packet: Packet, waiting: list[int]) -> None:
        """Note an answer: after the first "later" comes no acknowledgement, only DISCONNECT (wire protocol, section 6)."""
        code = int(packet.reason_code)
        if isinstance(packet, Disconnect):
            assert code in TRY_AGAIN, packet
            assert {name for name, _ in packet.properties.user_properties} == {"retry-after"}
            waiting.clear()
        else:
            assert isinstance(packet, Puback), packet
            assert packet.packet_id == waiting[0], "an acknowledgement is missing or out of order"
            self.refusals += bool(code)
            if code:
                assert code in TRY_AGAIN, packet
                waiting[:] = [BEHIND_A_REFUSAL]
            else:
                self.acknowledged.append(waiting.pop(0))


def publishers_of(devices: dict[str, Device]) -> list[Publisher]:
    return [
        Publisher(device, Version.V311 if name.startswith("old") else Version.V5) for name, device in devices.items()
    ]


@contextmanager
def faulty_disk(disk: FaultyDisk) -> Iterator[FaultyDisk]:
    try:
        yield disk
    finally:
        disk.unregister()


def on(settings: Settings, vfs: str) -> Settings:
    """The same gateway on another disk."""
    bus = msgspec.structs.replace(settings.bus, url=f"sqlite:///state/bus.db?vfs={vfs}")
    return msgspec.structs.replace(settings, bus=bus)


def check_stored(publisher: Publisher, events: list[dict[str, object]], *, once: bool) -> None:
    """Everything acknowledged is there, first occurrences in order; sealed events (`once`) never twice."""
    mine = [stored for stored in events if stored["source"] == f"/devices/{publisher.device.id}"]
    numbers = [int(stored["data"]) for stored in mine]
    missing = set(publisher.acknowledged) - set(numbers)
    assert not missing, f"{publisher.device.id}: acknowledged, and lost: {sorted(missing)}"
    first_seen = list(dict.fromkeys(numbers))
    assert first_seen == sorted(first_seen), f"{publisher.device.id}: stored out of order"
    if once:
        assert numbers == first_seen, f"{publisher.device.id}: stored twice"


async def scenario(
    folder: Path, nth: int, fault: Callable[[], Exception], *, forever: bool, seed: int | None
) -> tuple[int, int]:
    """Fail, heal, crash, restart; tell how many calls the disk saw while publishers published, and the refusals."""
    settings = settings_in(folder)
    publishers = publishers_of(await register(settings, ROLES))
    with faulty_disk(FaultyDisk("faulty")) as disk:
        async with serving(on(settings, "faulty")) as here:
            disk.fail(nth, fault, forever=forever)
            before = disk.calls
            await asyncio.gather(*(each.publish(here.mqtt_port, EVENTS_EACH) for each in publishers))
            calls = disk.calls - before
            disk.heal()
            both = EVENTS_EACH * 2
            await asyncio.gather(*(each.publish_until_acknowledged(here.mqtt_port, both) for each in publishers))
            status, body = await here.ready()
            assert status == 200, body
            cut = asyncio.get_running_loop().run_in_executor(None, crash_at, disk, disk.calls + nth % 9, seed)
            await asyncio.gather(*(each.publish(here.mqtt_port, EVENTS_EACH * 3) for each in publishers))
            await cut
    refusals = sum(each.refusals for each in publishers)
    await check_after_restart(settings, publishers)
    return calls, refusals


def crash_at(disk: FaultyDisk, calls: int, seed: int | None) -> None:
    """Cut the power in the middle of what comes (or behind it, if it does not take so many calls)."""
    deadline = time.monotonic() + 0.1
    while disk.calls < calls and time.monotonic() < deadline:
        time.sleep(0.0002)
    disk.crash(seed)


async def check_after_restart(settings: Settings, publishers: list[Publisher]) -> None:
    """On the plain disk, after a restart: nothing acknowledged is missing; what is repeated is stored once."""
    events = await stored_events(settings)
    for each in publishers:
        check_stored(each, events, once=each.device.id.startswith("sealed"))
    async with serving(settings) as here:
        total = EVENTS_EACH * 3
        await asyncio.gather(*(each.publish_until_acknowledged(here.mqtt_port, total) for each in publishers))
    events = await stored_events(settings)
    for each in publishers:
        assert each.acknowledged == list(range(1, total + 1))
        check_stored(each, events, once=each.device.id.startswith("sealed"))


@pytest.mark.soak
@pytest.mark.timeout(120 * SOAK)
@pytest.mark.parametrize("forever", [False, True], ids=["once", "from-then-on"])
@pytest.mark.parametrize("fault", [eio, eio_sync, enospc])
def test_nothing_is_acknowledged_that_a_restart_does_not_show(tmp_path, fault, forever):
    """Whichever write or sync fails: 0x83, 0x97 or nothing; once it is healed, all is served without a restart."""
    calls, _ = run(scenario(tmp_path / "counting", 1 << 30, fault, forever=False, seed=None))
    refusals = 0
    for nth in sorted(random.sample(range(1, calls + 1), min(PLACES, calls))):
        seed = None if nth % 2 else nth
        refusals += run(scenario(tmp_path / f"{nth}", nth, fault, forever=forever, seed=seed))[1]
    assert refusals, "no publisher noticed that the disk failed"


@pytest.mark.parametrize("fault", [eio, enospc])
def test_the_gateway_is_not_ready_while_its_disk_fails(tmp_path, fault):
    """/readyz says 503 and why while nothing can be stored, /healthz stays, and all comes back by itself."""

    async def fails_and_heals() -> None:
        settings = settings_in(tmp_path / "gateway")
        (device,) = (await register(settings, {"plain1": "simple-device"})).values()
        publisher = Publisher(device)
        with faulty_disk(FaultyDisk("faulty")) as disk:
            async with serving(on(settings, "faulty")) as here:
                assert (await here.ready())[0] == 200
                disk.fail(1, fault, forever=True)
                status, body = await here.ready()
                assert (status, body["ready"]) == (503, False)
                assert "injected" in body["checks"]["bus"]
                await publisher.publish(here.mqtt_port, 3)
                assert publisher.acknowledged == []
                disk.heal()
                await publisher.publish_until_acknowledged(here.mqtt_port, 3)
                assert await here.ready() == (200, ALL_FINE)

    run(fails_and_heals())


class GatedDisk(FaultyDisk):
    """A disk whose syncs take as long as the test wants."""

    def __init__(self, name: str) -> None:
        self.gate, self.is_syncing = threading.Event(), threading.Event()
        self.gate.set()
        super().__init__(name)

    def count(self, what: str, name: str) -> None:
        if what == "xSync" and not self.gate.is_set():
            self.is_syncing.set()
            self.gate.wait(20)
        super().count(what, name)


@pytest.mark.parametrize("name", ["plain1", "sealed1"])
def test_a_puback_is_never_seen_before_the_commit(tmp_path, name):
    """While the sync of the commit has not returned no PUBACK comes, though the connection is served; then all do (P3)."""

    async def waits_for_the_sync() -> None:
        settings = settings_in(tmp_path / "gateway")
        (device,) = (await register(settings, {name: ROLES[name]})).values()
        publisher = Publisher(device)
        with faulty_disk(GatedDisk("gated")) as disk:
            async with serving(on(settings, "gated")) as here:
                client = await publisher.connected(here.mqtt_port)
                disk.gate.clear()
                client.send(*(publisher.packet(n) for n in range(1, 11)))
                await eventually(disk.is_syncing.is_set)
                for _ in range(20):
                    client.send(Pingreq())
                    assert isinstance(await client.read(), Pingresp), "acknowledged before it was durable"
                disk.gate.set()
                answers = [await client.read() for _ in range(10)]
                assert [(each.packet_id, each.reason_code) for each in answers] == [(n, 0) for n in range(1, 11)]
                await client.aclose()
            disk.crash()
        assert [stored["data"] for stored in await stored_events(settings)] == list(range(1, 11))

    run(waits_for_the_sync())


def test_below_the_floor_of_the_disk_publishers_are_told_when_to_come_back(tmp_path):
    """With less room than bus.min_free_disk: 0x97 with `retry-after`, and /readyz says which setting it is."""

    async def has_no_room() -> None:
        settings = settings_in(tmp_path / "gateway", BUS__MIN_FREE_DISK="1000TiB")
        devices = await register(settings, {"plain1": "simple-device", "sealed1": "device"})
        async with serving(settings) as here:
            for device in devices.values():
                await expect_full(here, Publisher(device))
            status, body = await here.ready()
            assert status == 503
            assert "bus.min_free_disk" in body["checks"]["disk"]
        assert await stored_events(settings) == []

    run(has_no_room())


async def expect_full(here: Here, publisher: Publisher) -> None:
    client = await publisher.connected(here.mqtt_port)
    client.send(publisher.packet(1), publisher.packet(2))
    puback, disconnect = await client.ended()
    for answer in (puback, disconnect):
        assert answer.reason_code == 0x97
        assert answer.properties.reason_string == "bus-full: no room for events now, send them later"
        assert [name for name, _ in answer.properties.user_properties] == ["retry-after"]
        assert 0 < int(answer.properties.user_properties[0][1]) <= 60
    assert puback.packet_id == 1
    await client.aclose()


def test_a_bus_that_a_live_subscription_keeps_full_is_served_again_when_it_has_room(tmp_path):
    """Retention never passes a handler that is behind: devices get 0x97 until it has caught up, and nothing is lost."""

    async def fills_and_drains(sink: Sink) -> None:
        handler = f'[{{name = "ledger", url = "{sink.url}", retry = {{first = "10ms", max = "50ms"}}}}]'
        settings = settings_in(tmp_path / "gateway", HANDLERS=handler, BUS__RETENTION='{age = "7d", size = "512KiB"}')
        (device,) = (await register(settings, {"plain1": "simple-device"})).values()
        publisher = Publisher(device, padding_bytes=20_000)
        async with serving(settings) as here:
            while not publisher.refusals:  # the gateway looks at its room once a second
                assert publisher.next < 5000, "the bus is never full"
                await publisher.publish(here.mqtt_port, publisher.next + 9)
                await asyncio.sleep(0.02)
            sink.start()
            await publisher.publish_until_acknowledged(here.mqtt_port, publisher.next + 20)
            await eventually(lambda: sink.count >= len(publisher.acknowledged), timeout_s=20)
        delivered = [received.data["n"] for received in sink.applied[f"/devices/{device.id}"]]
        assert list(dict.fromkeys(delivered)) == publisher.acknowledged

    sink = Sink().start()
    sink.stop()  # its port is known, and nobody listens there
    try:
        run(fills_and_drains(sink))
    finally:
        sink.stop()
