"""Presence: which devices are there, as events of the gateway's own, with an epoch that only grows."""

import asyncio
import itertools
import json

import pytest
from mqtt_gates import StateGate
from mqtt_kit import eventually, running, stored

from edge_protocol.errors import EventRejected
from gateway.errors import BusUnavailable
from gateway.mqtt.codec import Disconnect, Will
from gateway.mqtt.presence import KEPT_CHANGES, Presence
from gateway.mqtt.turns import Tasks
from gateway.ports.identity import Principal, PrincipalKind
from gateway.rules.policy import Policy, PolicyRule
from gateway.storage import open_storage


class Bus:
    """Takes events as the bus does: each id once; can be made to fail, before or after it has stored."""

    def __init__(self):
        self.events = {}
        self.failure = None
        self.is_stored_first = False
        self.calls = 0

    async def announce(self, events):
        self.calls += 1
        await asyncio.sleep(0)
        if self.failure and not self.is_stored_first:
            raise self.failure
        for event in events:
            self.events[event.id] = event
        if self.failure:
            raise self.failure

    def seen(self, device="dev1"):
        """(what, epoch) of a device's events, in order."""
        mine = [event for event in self.events.values() if event.source == f"/devices/{device}"]
        return [(event.type.removeprefix("device."), json.loads(event.payload)["epoch"]) for event in mine]


async def test_connected_and_disconnected():
    """Both events: source of the device, type, time, epoch, address, and why it went."""
    bus = Bus()
    async with running(announce=bus.announce) as run:
        client = await run.client("dev1")
        host, port = client.writer.get_extra_info("sockname")
        await eventually(lambda: len(bus.events) == 1)
        client.send(Disconnect())
        await eventually(lambda: len(bus.events) == 2)
    came, went = bus.events.values()
    assert (came.type, came.source, came.datacontenttype) == ("device.connected", "/devices/dev1", "application/json")
    assert json.loads(came.payload) == {"epoch": 1, "address": f"{host}:{port}"}
    data = json.loads(went.payload)
    assert (went.type, data["epoch"], data["address"]) == ("device.disconnected", 1, f"{host}:{port}")
    assert data["reason"]
    assert came.time < went.time
    assert came.id != went.id


@pytest.mark.parametrize("how", ["abort", "revoked", "shut down"])
async def test_every_way_to_go(how):
    """Lost, revoked or sent off because the gateway stops: every end of a connection is reported, with a reason."""
    bus = Bus()
    async with running(announce=bus.announce) as run:
        client = await run.client("dev1")
        if how == "abort":
            client.writer.transport.abort()
            await eventually(lambda: len(bus.events) == 2)
        elif how == "revoked":
            run.server.disconnect(Principal(PrincipalKind.DEVICE, "", "dev1"), reason="device disabled")
            await eventually(lambda: len(bus.events) == 2)
    assert bus.seen() == [("connected", 1), ("disconnected", 1)]
    reason = json.loads(list(bus.events.values())[1].payload)["reason"]
    assert {"revoked": "device disabled", "shut down": "the gateway is shutting down"}.get(how, reason) == reason


async def test_only_devices_that_were_let_in():
    """Operators are not devices; a device whose CONNECT is refused was never there."""
    bus = Bus()
    async with running(announce=bus.announce) as run:
        await run.client("ann", role="operator", claims={"iss": "id"})
        refused = await run.raw()
        await refused.connect("dev1", token_=b"bad")
        await run.client("dev2")
        await eventually(lambda: bus.events)
        assert bus.seen("dev1") == []
        assert {event.source for event in bus.events.values()} == {"/devices/dev2"}


async def test_takeover():
    """The end of a connection that was taken over has the lower epoch: the highest epoch tells the truth."""
    bus = Bus()
    async with running(announce=bus.announce) as run:
        await run.client("dev1")
        await run.client("dev1")
        await eventually(lambda: len(bus.events) == 3)
        assert max(bus.seen(), key=lambda seen: seen[1]) == ("connected", 2)
        assert ("disconnected", 1) in bus.seen()


async def test_epochs_grow_over_restarts(tmp_path):
    """A gateway that starts again goes on counting; who was connected when it crashed is reported gone."""
    bus = Bus()
    async with running(announce=bus.announce, folder=tmp_path) as run:
        await run.client("dev1")
        await eventually(lambda: bus.seen() == [("connected", 1)])
        crashed = run.crashed()
    async with running(announce=bus.announce, folder=tmp_path) as run:
        await run.client("dev1")
        await eventually(lambda: bus.seen()[-1] == ("connected", 2))
        assert len(bus.events) == 3
    after = Bus()
    async with running(announce=after.announce, folder=crashed) as run:
        await eventually(lambda: after.seen() == [("disconnected", 1)])
        (event,) = after.events.values()
        assert json.loads(event.payload) == {"epoch": 1, "reason": "gateway restarted"}
        await run.client("dev1")
        await eventually(lambda: after.seen()[-1] == ("connected", 2))


async def test_a_record_that_cannot_be_read(tmp_path):
    """It costs neither the start nor the reports of others, and the device goes on above every epoch it had."""
    bus = Bus()
    async with running(announce=bus.announce, folder=tmp_path) as run:
        await run.client("dev1")
        await eventually(lambda: bus.seen() == [("connected", 1)])
    async with stored(tmp_path) as storage:
        (entry,) = await storage.state.scan("presence/", "", 2)
        await storage.state.put(entry.key, b"\xc1", expect=entry.revision)
    after = Bus()
    async with running(announce=after.announce, folder=tmp_path) as run:
        await run.client("dev2")
        await eventually(lambda: len(after.events) == 1)
        await run.client("dev1")
        await eventually(lambda: len(after.events) == 2)
        epochs = {event.source: json.loads(event.payload)["epoch"] for event in after.events.values()}
        assert epochs["/devices/dev2"] == 1
        assert epochs["/devices/dev1"] > 1_000_000_000


@pytest.mark.parametrize("is_stored_first", [False, True])
async def test_bus_unavailable(is_stored_first):
    """While the bus is unavailable clients come and go as ever; then all is reported, in order, each event once."""
    bus = Bus()
    bus.failure, bus.is_stored_first = BusUnavailable("no disk"), is_stored_first
    async with running(announce=bus.announce) as run:
        client = await run.client("dev1")
        await eventually(lambda: bus.calls)
        client.send(Disconnect())
        await client.ended()
        await run.client("dev2")
        bus.failure = None
        await eventually(lambda: len(bus.events) == 3)
        assert bus.seen() == [("connected", 1), ("disconnected", 1)]


async def test_store_unavailable():
    """An epoch that could not be written is not told; it is as soon as it is on disk."""
    bus = Bus()
    async with running(announce=bus.announce) as run:
        run.state.failure = BusUnavailable("no disk")
        await run.client("dev1")
        await asyncio.sleep(0.05)
        assert not bus.calls
        run.state.failure = None
        await eventually(lambda: bus.seen() == [("connected", 1)])
        assert list(await run.state.kept("presence/")) == ["presence/dev1"]


class Who:
    peer = "192.0.2.7:1"


@pytest.mark.parametrize("pairs", [KEPT_CHANGES // 2, KEPT_CHANGES // 2 + 1, 50])
async def test_flapping_while_the_bus_is_away(pairs):
    """Of a device that comes and goes meanwhile only the last changes are kept; what is told last is the truth."""
    bus, tasks, state = Bus(), Tasks(), StateGate((await open_storage("memory://")).state)
    state.failure = BusUnavailable("no disk")
    ids = itertools.count()
    presence = Presence(state, bus.announce, tasks, clock=lambda: 1.0, make_id=lambda _: f"id{next(ids)}")
    device = Principal(PrincipalKind.DEVICE, "", "dev1")
    for _ in range(pairs):
        who = Who()
        presence.session_began(device, "dev1", who)
        presence.session_ended(device, "dev1", who, "gone")
        await asyncio.sleep(0)
    presence.session_began(device, "dev1", Who())
    await asyncio.sleep(0)
    state.failure = None
    await eventually(lambda: bus.events)
    await presence.aclose()
    assert bus.seen()[-1][0] == "connected"
    assert len(bus.events) <= KEPT_CHANGES + 1
    epochs = [epoch for _, epoch in bus.seen()]
    assert epochs == sorted(epochs)
    await tasks.aclose(timeout_s=1)


async def test_an_event_that_cannot_be_stored():
    """An event that the bus will never take is given up, loudly; others go on."""
    bus = Bus()

    async def announce(events):
        if events[0].source.endswith("dev1"):
            raise EventRejected("bad-attribute", "no")
        await bus.announce(events)

    async with running(announce=announce) as run:
        await run.client("dev1")
        await run.client("dev2")
        await eventually(lambda: bus.seen("dev2"))


async def test_many_at_once():
    """A storm of 300 connections is reported completely, in a few writes."""
    bus = Bus()
    async with running(announce=bus.announce) as run:
        await asyncio.gather(*(run.client(f"dev{n}") for n in range(300)))
        await eventually(lambda: len(bus.events) == 300)
        assert len(run.state.writes) < 100


@pytest.mark.parametrize("type_", ["connected", "disconnected"])
async def test_a_device_cannot_say_it_itself(type_):
    """No policy lets a device, plain or by its will, raise these types: 0x87."""
    rule = PolicyRule(role="all", publish=("#", "devices/{device}/x"), require_envelope=False)
    permissions = Policy([rule]).permissions(["all"], "dev1")
    assert not permissions.may_emit("dev1", f"device.{type_}")
    assert permissions.may_emit("dev1", f"device.{type_}.x")
    assert permissions.may_emit("dev1", "device.temperature")
    async with running() as run:
        client = await run.client("dev1")
        refused = await client.publish(f"devices/dev1/events/device/{type_}")
        assert refused.reason_code == 0x87
        will = await run.raw()
        connack = await will.connect("dev2", will=Will(topic=f"devices/dev2/events/device/{type_}", payload=b"{}"))
        assert connack.reason_code == 0x87
        assert not run.ingest.arrivals


def test_a_service_cannot_either():
    """`emit = ["*"]` does not cover the gateway's own types."""
    permissions = Policy([PolicyRule(role="s", emit=("*",))]).permissions(["s"], None)
    assert permissions.may_raise("device.temperature")
    assert not permissions.may_raise("device.connected")
