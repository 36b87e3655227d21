"""Presence: which devices are there, as events of the gateway's own, with an epoch that only grows."""

import asyncio
import itertools
import json

import ingest_parts as parts
import pytest
from gates import StateGate
from mqtt_kit import becomes, eventually, running, stored

from edge_protocol.errors import EventRejected
from edge_protocol.payload import Limits
from gateway.errors import BusUnavailable
from gateway.mqtt.codec import Disconnect, Will
from gateway.mqtt.presence import KEPT_CHANGES, Presence
from gateway.mqtt.turns import Tasks
from gateway.operations.events import append_events
from gateway.ports.identity import Principal, PrincipalKind
from gateway.rules.policy import Policy, PolicyRule
from gateway.storage import open_storage


async def data(run, device="dev1"):
    """What the bus was told of a device."""
    return [json.loads(event.payload) for event in await run.events() if event.source == f"/devices/{device}"]


async def seen(run, device="dev1"):
    """(what, epoch) of it, in the order of the bus."""
    mine = [event for event in await run.events() if event.source == f"/devices/{device}"]
    return [(event.type.removeprefix("device."), json.loads(event.payload)["epoch"]) for event in mine]


async def number(run):
    """How many events there are."""
    return len(await run.events())


async def test_connected_and_disconnected():
    """Both events: source of the device, type, time, epoch, address, and why it went."""
    async with running(is_announcing=True) as run:
        client = await run.client("dev1")
        host, port = client.writer.get_extra_info("sockname")
        await becomes(lambda: number(run), 1)
        client.send(Disconnect())
        await becomes(lambda: number(run), 2)
        came, went = await run.events()
    assert (came.type, came.source, came.datacontenttype) == ("device.connected", "/devices/dev1", "application/json")
    assert json.loads(came.payload) == {"epoch": 1, "address": f"{host}:{port}"}
    said = json.loads(went.payload)
    assert (went.type, said["epoch"], said["address"]) == ("device.disconnected", 1, f"{host}:{port}")
    assert said["reason"]
    assert came.time < went.time
    assert came.id != went.id


@pytest.mark.parametrize("how", ["abort", "revoked", "shut down"])
async def test_every_way_to_go(how):
    """Lost, revoked or sent off because the gateway stops: every end of a connection is reported, with a reason."""
    async with running(is_announcing=True) as run:
        client = await run.client("dev1")
        if how == "abort":
            client.writer.transport.abort()
        elif how == "revoked":
            run.server.disconnect(Principal(PrincipalKind.DEVICE, "", "dev1"), reason="device disabled")
        else:
            await run.server.aclose()
        await becomes(lambda: seen(run), [("connected", 1), ("disconnected", 1)])
        reason = (await data(run))[1]["reason"]
        assert {"revoked": "device disabled", "shut down": "the gateway is shutting down"}.get(how, reason) == reason


async def test_only_devices_that_were_let_in():
    """Operators are not devices; a device whose CONNECT is refused was never there."""
    async with running(is_announcing=True) as run:
        await run.client("ann", role="operator", claims={"iss": "id"})
        refused = await run.raw()
        await refused.connect("dev1", token_=b"bad")
        await run.client("dev2")
        await becomes(lambda: seen(run, "dev2"), [("connected", 1)])
        assert await number(run) == 1


async def test_takeover():
    """The end of a connection that was taken over has the lower epoch: the highest epoch tells the truth."""
    async with running(is_announcing=True) as run:
        await run.client("dev1")
        await run.client("dev1")
        await becomes(lambda: number(run), 3)
        assert max(await seen(run), key=lambda each: each[1]) == ("connected", 2)
        assert ("disconnected", 1) in await seen(run)


async def test_epochs_grow_over_restarts(tmp_path):
    """A gateway that starts again goes on counting; who was connected when it crashed is reported gone."""
    async with running(is_announcing=True, folder=tmp_path) as run:
        await run.client("dev1")
        await becomes(lambda: seen(run), [("connected", 1)])
        crashed = run.crashed()
    begun = [("connected", 1), ("disconnected", 1)]
    async with running(is_announcing=True, folder=tmp_path) as run:
        await run.client("dev1")
        await becomes(lambda: seen(run), [*begun, ("connected", 2)])
    async with running(is_announcing=True, folder=crashed) as run:
        await becomes(lambda: seen(run), begun)
        assert (await data(run))[1] == {"epoch": 1, "reason": "gateway restarted"}
        await run.client("dev1")
        await becomes(lambda: seen(run), [*begun, ("connected", 2)])


async def test_a_record_that_cannot_be_read(tmp_path):
    """It costs neither the start nor the reports of others, and the device goes on above every epoch it had."""
    async with running(is_announcing=True, folder=tmp_path) as run:
        await run.client("dev1")
        await becomes(lambda: seen(run), [("connected", 1)])
    async with stored(tmp_path) as storage:
        (entry,) = await storage.state.scan("presence/", "", 2)
        await storage.state.put(entry.key, b"\xc1", expect=entry.revision)
    async with running(is_announcing=True, folder=tmp_path) as run:
        await run.client("dev2")
        await becomes(lambda: seen(run, "dev2"), [("connected", 1)])
        await run.client("dev1")
        await becomes(lambda: number(run), 4)
        assert (await data(run))[-1]["epoch"] > 1_000_000_000


@pytest.mark.parametrize("is_stored_first", [False, True])
async def test_bus_unavailable(is_stored_first):
    """While the bus is unavailable clients come and go as ever; then all is reported, in order, each event once."""
    async with running(is_announcing=True) as run:
        run.bus.failure, run.bus.is_stored_first = BusUnavailable("no disk"), is_stored_first
        client = await run.client("dev1")
        await eventually(lambda: run.bus.appends)
        client.send(Disconnect())
        await client.ended()
        await run.client("dev2")
        run.bus.failure = None
        await becomes(lambda: number(run), 3)
        assert await seen(run) == [("connected", 1), ("disconnected", 1)]


async def test_store_unavailable():
    """An epoch that could not be written is not told; it is as soon as it is on disk."""
    async with running(is_announcing=True) as run:
        run.state.failure = BusUnavailable("no disk")
        await run.client("dev1")
        await asyncio.sleep(0.05)
        assert not run.bus.appends
        run.state.failure = None
        await becomes(lambda: seen(run), [("connected", 1)])
        assert list(await run.state.kept("presence/")) == ["presence/dev1"]


class Who:
    peer = "192.0.2.7:1"


@pytest.mark.parametrize("pairs", [KEPT_CHANGES // 2, KEPT_CHANGES // 2 + 1, 50])
async def test_flapping_while_the_bus_is_away(pairs):
    """Of a device that comes and goes meanwhile only the last changes are kept; what is told last is the truth."""
    storage, tasks = await open_storage("memory://"), Tasks()
    state = StateGate(storage.state)
    state.failure = BusUnavailable("no disk")
    ids = itertools.count()

    async def announce(events):
        await append_events(storage.bus, events, limits=Limits(), now_s=1.0)

    presence = Presence(state, announce, tasks, clock=lambda: 1.0, make_id=lambda _: f"id{next(ids)}")
    device = Principal(PrincipalKind.DEVICE, "", "dev1")
    for _ in range(pairs):
        who = Who()
        presence.session_began(device, "dev1", who)
        presence.session_ended(device, "dev1", who, "gone")
        await asyncio.sleep(0)
    presence.session_began(device, "dev1", Who())
    await asyncio.sleep(0)
    state.failure = None
    await presence.aclose()
    told = await parts.stored(storage.bus)
    assert told[-1].type == "device.connected"
    assert len(told) <= KEPT_CHANGES + 1
    epochs = [json.loads(event.payload)["epoch"] for event in told]
    assert epochs == sorted(epochs)
    await tasks.aclose(timeout_s=1)
    await storage.aclose()


async def test_an_event_that_cannot_be_stored():
    """An event that the bus will never take is given up, loudly; others go on."""
    async with running(is_announcing=True) as run:
        run.bus.failures = [EventRejected("bad-attribute", "no")]
        await run.client("dev1")
        await eventually(lambda: run.bus.appends)
        await run.client("dev2")
        await becomes(lambda: seen(run, "dev2"), [("connected", 1)])
        assert await seen(run, "dev1") == []


async def test_many_at_once():
    """A storm of 300 connections is reported completely, in a few writes."""
    async with running(is_announcing=True) as run:
        names = [f"many{n}" for n in range(300)]
        await run.register(*names)
        run.state.writes.clear()
        await asyncio.gather(*(run.client(name) for name in names))
        await becomes(lambda: number(run), 300)
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
        assert await run.types() == []


def test_a_service_cannot_either():
    """`emit = ["*"]` does not cover the gateway's own types."""
    permissions = Policy([PolicyRule(role="s", emit=("*",))]).permissions(["s"], None)
    assert permissions.may_raise("device.temperature")
    assert not permissions.may_raise("device.connected")
