"""Retained messages: kept, shown, replaced, removed, expired, bounded, restored; the last states of devices likewise."""

import asyncio
import time

import pytest
from certified import Authority, served
from mqtt_kit import becomes, eventually, properties, publish, running, stored, token
from mqtt_tokens import key_of
from mqttjs_client import options, play

from gateway.devices import Registry
from gateway.errors import BusUnavailable
from gateway.mqtt.codec import (
    Disconnect,
    Pingreq,
    Pingresp,
    Puback,
    Publish,
    ReasonCode,
    Suback,
    Subscribe,
    Subscription,
    Version,
    Will,
)
from gateway.mqtt.session import Session
from gateway.ports.identity import Principal, PrincipalKind
from gateway.rules.policy import Policy, PolicyRule

ANN = {"role": "operator", "claims": {"iss": "id"}}


def wanted(filter_="chat/#", qos=1, **how):
    return Subscribe(packet_id=9, subscriptions=(Subscription(topic_filter=filter_, qos=qos, **how),))


async def keep(client, topic, payload=b"kept", **how):
    """Publish retained, and expect it to be durable."""
    answer = await client.publish(topic, payload, retain=True, **how)
    assert answer.reason_code in {0, 0x10}, answer


async def shown(client, filter_="chat/#", **how):
    """Subscribe; what is shown comes behind SUBACK."""
    client.send(wanted(filter_, **how))
    suback = await client.read()
    assert isinstance(suback, Suback), suback
    return suback


async def messages(client, count):
    found = []
    while len(found) < count:
        packet = await client.read()
        assert isinstance(packet, Publish), packet
        found.append(packet)
    return found


async def retained(run):
    """Topics of the messages on disk."""
    return [key.removeprefix("retained/") for key in await run.state.kept("retained/")]


async def nothing_more(client):
    """Nothing was on its way: the answer to a PINGREQ is the next packet."""
    client.send(Pingreq())
    answer = await client.read()
    assert isinstance(answer, Pingresp), answer


@pytest.mark.parametrize("version", list(Version))
@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_shown_to_later_subscribers(version, qos):
    """A later subscriber gets the last message with RETAIN set, at the lower QoS [MQTT-3.3.1-5, -9, MQTT-3.8.4-8]."""
    async with running() as run:
        ann = await run.client("ann", **ANN)
        await keep(ann, "chat/a", b"first")
        await keep(ann, "chat/a", b"last")
        bob = await run.client("bob", version=version, **ANN)
        await shown(bob, qos=qos)
        (message,) = await messages(bob, 1)
        assert (message.topic, message.payload, message.retain, message.qos) == ("chat/a", b"last", True, min(qos, 1))


async def test_live_messages_are_not_marked():
    """To a subscription that exists RETAIN is 0, unless it asked for it as published [MQTT-3.3.1-12, -13]."""
    async with running() as run:
        ann, bob, eve = [await run.client(name, **ANN) for name in ("ann", "bob", "eve")]
        await shown(bob, qos=0)
        await shown(eve, qos=0, retain_as_published=True)
        await keep(ann, "chat/a")
        assert [(await messages(each, 1))[0].retain for each in (bob, eve)] == [False, True]


async def test_empty_payload_removes():
    """An empty retained message is delivered, and removes what was kept; it is not kept itself [MQTT-3.3.1-6, -7]."""
    async with running() as run:
        ann, bob = await run.client("ann", **ANN), await run.client("bob", **ANN)
        await keep(ann, "chat/a")
        await shown(bob, qos=0)
        await messages(bob, 1)
        await keep(ann, "chat/a", b"")
        assert (await messages(bob, 1))[0].payload == b""
        assert await retained(run) == []
        eve = await run.client("eve", **ANN)
        await shown(eve)
        await nothing_more(eve)


@pytest.mark.parametrize(("handling", "first", "again"), [(0, 1, 1), (1, 1, 0), (2, 0, 0)])
async def test_retain_handling(handling, first, again):
    """Retain Handling 0: at every SUBSCRIBE; 1: for a new subscription; 2: never [MQTT-3.3.1-9, -10, -11]."""
    async with running() as run:
        ann, bob = await run.client("ann", **ANN), await run.client("bob", **ANN)
        await keep(ann, "chat/a")
        for count in (first, again):
            await shown(bob, "chat/a", qos=0, retain_handling=handling)
            await messages(bob, count)
            await nothing_more(bob)


async def test_shared_subscriptions_are_shown_nothing():
    """A shared subscription gets no retained messages when it begins (section 4.8.2)."""
    async with running() as run:
        ann, bob = await run.client("ann", **ANN), await run.client("bob", **ANN)
        await keep(ann, "chat/a")
        suback = await shown(bob, "$share/g/chat/#", qos=0)
        assert suback.reason_codes[0] < 0x80
        await nothing_more(bob)


async def test_no_local():
    """With No Local a client is not shown what it published itself [MQTT-3.8.3-3]; another of its principal is."""
    async with running() as run:
        ann, bob = await run.client("ann", **ANN), await run.client("bob", **ANN)
        await keep(ann, "chat/a")
        await shown(ann, qos=0, no_local=True)
        await nothing_more(ann)
        await shown(bob, qos=0, no_local=True)
        await messages(bob, 1)


async def test_properties_and_expiry():
    """Properties are kept; the expiry that is told has shrunk [MQTT-3.3.2-6]; what has expired is not shown."""
    async with running() as run:
        ann, bob = await run.client("ann", **ANN), await run.client("bob", **ANN)
        said = properties(
            content_type="text/plain", user_properties=(("a", "1"), ("a", "2")), message_expiry_interval=60
        )
        await keep(ann, "chat/a", properties=said)
        await keep(ann, "chat/b", properties=properties(message_expiry_interval=2))
        await shown(bob, "chat/+", qos=0)
        found = {message.topic: message.properties for message in await messages(bob, 2)}
        assert found["chat/a"].content_type == "text/plain"
        assert found["chat/a"].user_properties == (("a", "1"), ("a", "2"))
        assert 55 <= found["chat/a"].message_expiry_interval <= 60
        await eventually(lambda: len(run.server._hub.retained.under("chat/#")) == 1)


async def test_wills_are_retained_too():
    """A will with RETAIN is kept when it is published [MQTT-3.1.2-15]."""
    async with running() as run:
        ann = await run.client("ann", will=Will(topic="chat/will", payload=b"gone", retain=True), **ANN)
        ann.writer.transport.abort()
        await becomes(lambda: retained(run), ["chat/will"])
        bob = await run.client("bob", **ANN)
        await shown(bob, qos=0)
        assert (await messages(bob, 1))[0].payload == b"gone"


async def test_announced():
    """Retained messages are available, so CONNACK does not say otherwise (3.2.2.3.5)."""
    async with running() as run:
        ann = await run.client("ann", **ANN)
        assert ann.connack.properties.retain_available in {None, True}


@pytest.mark.parametrize("topic", ["devices/dev1/events/x", "devices/dev1/state", "devices/dev1/commands/a/response"])
async def test_not_under_devices(topic):
    """RETAIN under `devices/` and `gateway/` stays refused with 0x87, and the connection goes on."""
    async with running() as run:
        client = await run.client("dev1")
        assert (await client.publish(topic, b"{}", retain=True)).reason_code == 0x87
        assert await retained(run) == []


async def test_delivery_is_authorized():
    """Who may subscribe to more than it may receive is not shown what a deny pattern holds back."""
    rule = {"role": "operator", "publish": ("chat/#",), "subscribe": ("chat/#",), "deny_subscribe": ("chat/secret",)}
    async with running(policy=Policy([PolicyRule(**rule)])) as run:
        ann, bob = await run.client("ann", **ANN), await run.client("bob", **ANN)
        await keep(ann, "chat/secret")
        await keep(ann, "chat/open")
        await shown(bob, "chat/#", qos=0)
        assert (await messages(bob, 1))[0].topic == "chat/open"
        await nothing_more(bob)


async def test_restored(tmp_path):
    """What was acknowledged is there after a restart, with its properties and the rest of its time."""
    async with running(folder=tmp_path) as run:
        ann = await run.client("ann", **ANN)
        await keep(ann, "chat/a", properties=properties(content_type="x", message_expiry_interval=100))
        await keep(ann, "chat/b", properties=properties(message_expiry_interval=5))
        await keep(ann, "chat/c")
        crashed = run.crashed()
    async with running(clock=lambda: time.time() + 50, folder=crashed) as run:
        bob = await run.client("bob", claims={"iss": "id", "exp": time.time() + 3600}, role="operator")
        await shown(bob, qos=0)
        found = {message.topic: message for message in await messages(bob, 2)}
        assert set(found) == {"chat/a", "chat/c"}
        assert found["chat/a"].properties.content_type == "x"
        assert 45 <= found["chat/a"].properties.message_expiry_interval <= 50
        await becomes(lambda: retained(run), ["chat/a", "chat/c"])


async def test_acknowledged_after_the_commit():
    """While the store fails, a retained publish is not acknowledged; one that comes then is refused, at QoS 0 too."""
    async with running() as run:
        ann, bob, eve = [await run.client(name, **ANN) for name in ("ann", "bob", "eve")]
        run.state.failure = BusUnavailable("no disk")
        ann.send(publish("chat/a", retain=True))
        await eventually(lambda: run.server._hub.journal.is_failing)
        assert (await bob.publish("chat/a", b"newer", retain=True)).reason_code == 0x83
        eve.send(publish("chat/a", b"newest", retain=True, qos=0, packet_id=0))
        assert [each.reason_code for each in await eve.ended()] == [0x83]
        run.state.failure = None
        assert (await ann.read()).reason_code == ReasonCode.NO_MATCHING_SUBSCRIBERS
        assert b"newe" not in (await run.state.kept())["retained/chat/a"]


@pytest.mark.parametrize("over", [0, 1])
async def test_bound_by_count(over):
    """The n-th message is kept, the one after gets 0x97 and reaches nobody; replacing and removing go on."""
    async with running(limits={"retained_messages": 3}) as run:
        ann, bob = await run.client("ann", **ANN), await run.client("bob", **ANN)
        for n in range(3):
            await keep(ann, f"chat/{n}")
        await shown(bob, qos=0)
        await messages(bob, 3)
        await keep(ann, "chat/0", b"replaced")
        assert (await messages(bob, 1))[0].payload == b"replaced"
        if over:
            refused = await ann.publish("chat/3", retain=True)
            assert refused.reason_code == 0x97
            expected = "retained-full: no more than 3 messages and 67108864 bytes are retained"
            assert refused.properties.reason_string == expected
            assert isinstance(await ann.read(), Disconnect)
            await nothing_more(bob)
        else:
            await keep(ann, "chat/0", b"")
            await keep(ann, "chat/3")


async def test_bound_by_bytes():
    """Topics, payloads and properties count, with 256 bytes a message; the bound itself fits."""
    async with running(limits={"retained_bytes": 1000}) as run:
        ann = await run.client("ann", **ANN)
        await keep(ann, "chat/a", b"x" * (1000 - 256 - 6))
        assert run.server._hub.retained.size_bytes == 1000
        await keep(ann, "chat/a", b"x")
        refused = await ann.publish("chat/b", b"x" * (1000 - 2 * 256 - 2 * 6), retain=True)
        assert refused.reason_code == 0x97


@pytest.mark.parametrize(("levels", "code"), [(9, 0), (10, 0x97)])
async def test_bound_by_levels(levels, code):
    """Each level of a long topic costs memory, so it counts: behind the eighth 256 bytes."""
    async with running(limits={"retained_bytes": 256 * 2 + 100}) as run:
        ann = await run.client("ann", **ANN)
        answer = await ann.publish("chat" + "/" * (levels - 1), b"x", retain=True)
        assert answer.reason_code in {code, code or 0x10}


@pytest.mark.parametrize(("levels", "code"), [(128, 1), (129, 0x97)])
async def test_filters_of_many_levels(levels, code):
    """A filter of 64 KiB of slashes would take 20 MB: at most 128 levels are granted."""
    async with running() as run:
        ann = await run.client("ann", **ANN)
        suback = await shown(ann, "chat" + "/" * (levels - 1))
        assert suback.reason_codes == (code,)


async def test_expired_messages_make_room():
    """At the bound what has expired is removed first."""
    async with running(limits={"retained_messages": 1}) as run:
        ann = await run.client("ann", **ANN)
        await keep(ann, "chat/a", properties=properties(message_expiry_interval=2))
        await eventually(lambda: not run.server._hub.retained.under("chat/a"))
        await keep(ann, "chat/b")
        assert run.server._hub.retained.count == 1


async def test_gone_with_the_publisher():
    """A revoked principal's retained messages are gone, at once and from disk; those of others stay."""
    async with running() as run:
        ann = await run.client("ann", **ANN)
        bob = await run.client("bob", **ANN)
        await keep(ann, "chat/a")
        await keep(bob, "chat/b")
        run.server.disconnect(Principal(PrincipalKind.CLIENT, "id", "ann"))
        assert [kept.message.topic for kept in run.server._hub.retained.under("#")] == ["chat/b"]
        await becomes(lambda: retained(run), ["chat/b"])


FREE = Policy([PolicyRule(role="simple-device", publish=("free/#",), subscribe=("free/#",), require_envelope=False)])


@pytest.mark.parametrize("is_new", [False, True])
async def test_gone_with_the_registration(tmp_path, is_new):
    """What a device retained, by its will too, is not shown as that of a device that got its id while nobody looked."""
    async with running(folder=tmp_path, policy=FREE) as run:
        will = Will(topic="free/will", payload=b"lost", qos=1, retain=True)
        device = await run.client("dev1", will=will)
        await keep(device, "free/said")
        device.writer.transport.abort()
        await becomes(lambda: retained(run), ["free/said", "free/will"])
    if is_new:
        async with stored(tmp_path) as storage:
            registry = Registry(storage.state, FREE)
            await registry.remove("dev1")
            await registry.add("dev1", key_of("dev1").public, role="simple-device")
    async with running(folder=tmp_path, policy=FREE) as run:
        found = sorted(kept.message.topic for kept in run.server._hub.retained.under("#"))
        assert found == ([] if is_new else ["free/said", "free/will"])
        await becomes(lambda: retained(run), found)


async def test_more_than_a_queue_holds():
    """A subscriber gets all of 500 retained messages though its queue holds 50: they wait until it has room."""
    async with running(limits={"queue_messages": 50}) as run:
        ann, bob = await run.client("ann", **ANN), await run.client("bob", **ANN)
        for n in range(500):
            await keep(ann, f"chat/{n}", b"%d" % n)
        bob.send(wanted(qos=1))
        await bob.read()
        found = set()
        while len(found) < 500:
            message = await bob.read()
            found.add(message.topic)
            bob.send(Puback(packet_id=message.packet_id))
        assert not run.server.stats.dropped


async def test_unsubscribed_meanwhile():
    """Who ends its subscription is shown no more."""
    async with running(limits={"queue_messages": 4}) as run:
        ann, bob = await run.client("ann", **ANN), await run.client("bob", **ANN)
        for n in range(50):
            await keep(ann, f"chat/{n}")
        bob.send(wanted(qos=1))
        await bob.read()
        bob.writer.transport.abort()
        await eventually(lambda: not [each for each in asyncio.all_tasks() if each.get_name() == "retained"])


# States.


@pytest.mark.parametrize("filter_", ["devices/+/state", "devices/dev1/state"])
async def test_last_states_are_shown(filter_):
    """A new subscriber gets the last reported state of each device as a retained message."""
    async with running() as run:
        device = await run.client("dev1")
        for n in range(2):
            assert (await device.publish("devices/dev1/state", b'{"n": %d}' % n)).reason_code in {0, 0x10}
        ann = await run.client("ann", **ANN)
        await shown(ann, filter_)
        (message,) = await messages(ann, 1)
        assert (message.topic, message.payload, message.retain) == ("devices/dev1/state", b'{"n": 1}', True)


async def test_states_survive_a_restart(tmp_path):
    """States are read from the store, by pages: 100 devices, after a restart."""
    async with stored(tmp_path) as storage:
        await storage.state.write({f"state/dev{n:03}": b'{"n": %d}' % n for n in range(100)})
    async with running(folder=tmp_path) as run:
        ann = await run.client("ann", **ANN)
        await shown(ann, "devices/+/state", qos=0)
        found = [message.topic for message in await messages(ann, 100)]
        assert found == [f"devices/dev{n:03}/state" for n in range(100)]


async def test_an_old_state_never_follows_a_new_one():
    """A state that is replaced while it is being read is not shown behind the new one."""
    async with running() as run:
        ann, device = await run.client("ann", **ANN), await run.client("dev1")
        await device.publish("devices/dev1/state", b'{"n": 1}')
        states = run.server._hub.states
        with states.changed() as changed:
            await device.publish("devices/dev1/state", b'{"n": 2}')
            assert changed == {"dev1"}
        assert not states._changed
        await shown(ann, "devices/+/state", qos=0)
        assert (await messages(ann, 1))[0].payload == b'{"n": 2}'


async def test_spare_room_is_half_the_queue():
    """What can wait is given at most half of a session's queue."""
    async with running(limits={"queue_messages": 10}) as run:
        ann = await run.client("ann", **ANN)
        (session,) = [each.session for each in run.server._hub.sockets]
        assert isinstance(session, Session)
        assert session.has_spare_room
        await ann.aclose()


# Clients that people use.


@pytest.mark.parametrize("version", ["mqttv311", "5"])
async def test_mosquitto_retains(version):
    """mosquitto_pub -r, then mosquitto_sub --retained-only."""
    async with running() as run:
        line = [
            "-h",
            "localhost",
            "-p",
            str(run.port),
            "-V",
            version,
            "-P",
            token("ann", "operator", iss="id").decode(),
            "-u",
            "a",
        ]
        for command in (
            ["mosquitto_pub", *line, "-i", "p", "-q", "1", "-r", "-t", "chat/a", "-m", "kept"],
            [
                "mosquitto_sub",
                *line,
                "-i",
                "s",
                "-q",
                "1",
                "-t",
                "chat/#",
                "--retained-only",
                "-C",
                "1",
                "-F",
                "%t %r %p",
            ],
        ):
            process = await asyncio.create_subprocess_exec(
                *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
            )
            async with asyncio.timeout(20):
                out, err = await process.communicate()
            assert (process.returncode, err) == (0, b"")
        assert out == b"chat/a 1 kept\n"


async def test_mqtt_js_retains(tmp_path):
    """MQTT.js keeps 20 messages and is shown all of them, over secure WebSocket."""
    authority = Authority(tmp_path)
    async with running(**served(authority, "wss")) as run:
        got = await play(
            url=run.server.addresses[0].replace("127.0.0.1", "localhost"),
            options=options(5), topic="chat", count=20, qos=1, ca=str(authority.file), retained=True,
        )  # fmt: skip
        assert {each["payload"] for each in got} == {str(n) for n in range(20)}
        assert all(each["retain"] for each in got)
