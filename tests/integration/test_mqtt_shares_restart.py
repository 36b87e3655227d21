"""Shared subscriptions after a crash: what a session was given goes to another member if that session ends (section 4.8.2)."""

import msgspec
import pytest
from lasting import Clock, alive, clients_kept, gone, kept, lasting
from mqtt_kit import becomes, properties, publish, running, stored, token

from gateway.devices.revoked_tokens import RevokedTokens
from gateway.mqtt.codec import Puback, Pubrec, Pubrel, ReasonCode, Subscribe, Subscription, Unsubscribe
from gateway.mqtt.records import Out

SHARE = "$share/work/chat/#"


async def member(run, name, *, expiry_s=100, **options):
    """Connect as an operator of this name, with a session that is kept."""
    claims = {"iss": "id", "jti": name}
    connecting = lasting(expiry_s=expiry_s, **options.pop("properties", {})) | options
    return await run.client(name, token_=token(name, "operator", **claims), **connecting)


async def joins(client, filter_=SHARE, qos=1, **options):
    """Become a member."""
    wanted = Subscription(topic_filter=filter_, qos=qos, **options)
    client.send(Subscribe(packet_id=1, subscriptions=(wanted,)))
    assert (await client.read()).reason_codes == (qos,)


async def given(run, *payloads, qos=1, share=SHARE):
    """Give one durable member messages while it is away."""
    giver = await member(run, "m")
    await joins(giver, share, qos=qos)
    await gone(run, giver)
    writer = await member(run, "w", expiry_s=0)
    for n, payload in enumerate(payloads, start=1):
        await writer.publish("chat/a", payload, packet_id=n)
    await gone(run, writer)
    await run.server._hub.journal.settled()


async def joined(run, name, **options):
    """Another durable member, which is away."""
    client = await member(run, name)
    await joins(client, **options)
    await gone(run, client)
    await run.server._hub.journal.settled()


async def crashed_after(folder, *payloads):
    """The store of a gateway that crashed when `m` had been given messages, and `a` was the other member."""
    async with running(folder=folder) as run:
        await given(run, *payloads)
        await joined(run, "a")
        return run.crashed()


async def payloads(client, count):
    """What a client gets, acknowledged; and nothing after it."""
    found = []
    for _ in range(count):
        found.append(await client.read())
        client.send(Puback(packet_id=found[-1].packet_id))
    assert await alive(client)
    return [each.payload for each in found]


@pytest.mark.parametrize("other", ["a", "z"])  # loaded before it, and after
@pytest.mark.parametrize(
    "ends", ["clean start", "expires", "expired while stopped", "revoked", "revoked while stopped"]
)
async def test_hand_over_after_a_restart(tmp_path, other, ends):
    """However a session ends after a restart, its QoS 1 messages go to another member, once, in order; nothing is left on disk."""
    clock = Clock()
    async with running(clock=clock, folder=tmp_path) as run:
        await given(run, b"1", b"2", b"3")
        await joined(run, other)
        crashed = run.crashed()
    async with stored(crashed) as storage:
        if "expire" in ends:
            clock.ahead_s = 99.5 if ends == "expires" else 101
            heads = [each for each in await storage.state.scan("session/", "", 1000) if f"/{other}/head" in each.key]
            await storage.state.write({each.key: _lives_long(each.value) for each in heads})
        elif ends == "revoked while stopped":
            await RevokedTokens(storage.state, clock).revoke("id", "m", until_s=clock() + 3600)
    async with running(clock=clock, folder=crashed) as run:
        taker = await member(run, other)
        assert taker.connack.session_present
        if ends == "clean start":
            assert not (await member(run, "m", clean_start=True, expiry_s=0)).connack.session_present
        elif ends == "revoked":
            run.server.disconnect_token("id", "m")
        assert await payloads(taker, 3) == [b"1", b"2", b"3"]
        await becomes(lambda: clients_kept(run), {other})
        await becomes(lambda: kept(run, "/out/"), [])


def _lives_long(head):
    fields = msgspec.msgpack.decode(head)
    fields[2] = 1000  # expiry_s
    return msgspec.msgpack.encode(fields)


async def test_what_is_handed_over_survives_the_next_restart(tmp_path):
    """The member that takes it over keeps it durably, and hands it on when its own session ends after another restart."""
    crashed = await crashed_after(tmp_path, b"1")
    async with running(folder=crashed) as run:
        run.server.disconnect_token("id", "m")
        await run.server._hub.journal.settled()
        await joined(run, "z")
        crashed = run.crashed()
    async with running(folder=crashed) as run:
        last = await member(run, "z")
        run.server.disconnect_token("id", "a")
        assert await payloads(last, 1) == [b"1"]


async def test_what_was_acknowledged_after_a_restart_stays_acknowledged(tmp_path):
    """Only what the session still owes is handed over when it ends."""
    crashed = await crashed_after(tmp_path, b"1", b"2")
    async with running(folder=crashed) as run:
        first = await member(run, "m", properties={"receive_maximum": 1})
        got = await first.read()
        assert got.payload == b"1"
        first.send(Puback(packet_id=got.packet_id))
        assert (await first.read()).payload == b"2"
        taker = await member(run, "a")
        run.server.disconnect_token("id", "m")
        assert await payloads(taker, 1) == [b"2"]


async def test_refused_after_a_restart(tmp_path):
    """What the client refuses is offered to no other [MQTT-4.8.2-6]."""
    crashed = await crashed_after(tmp_path, b"1")
    async with running(folder=crashed) as run:
        taker, first = await member(run, "a"), await member(run, "m")
        got = await first.read()
        first.send(Puback(packet_id=got.packet_id, reason_code=ReasonCode.QUOTA_EXCEEDED))
        assert await alive(first)
        run.server.disconnect_token("id", "m")
        assert await alive(taker)


@pytest.mark.parametrize("is_released", [False, True])
async def test_qos_2_stays_with_its_session(tmp_path, is_released):
    """What had begun at QoS 2 before the crash goes to nobody else [MQTT-4.8.2-5]; what was never sent does."""
    async with running(folder=tmp_path) as run:
        await given(run, b"1", b"2", qos=2)
        first = await member(run, "m", properties={"receive_maximum": 1})
        writer = await member(run, "w", expiry_s=0)
        for n in (1, 2):
            writer.send(publish("chat/a", b"q%d" % n, qos=2, packet_id=n))
            assert isinstance(await writer.read(), Pubrec)
        for _ in range(2):  # the two at QoS 1 that waited
            first.send(Puback(packet_id=(await first.read()).packet_id))
        begun = await first.read()
        assert (begun.qos, begun.payload) == (2, b"q1")
        if is_released:
            first.send(Pubrec(packet_id=begun.packet_id))
            assert isinstance(await first.read(), Pubrel)
        await gone(run, first)
        await joined(run, "a", qos=2)
        crashed = run.crashed()
    async with running(folder=crashed) as run:
        taker = await member(run, "a")
        run.server.disconnect_token("id", "m")
        got = await taker.read()
        assert (got.qos, got.payload, got.dup) == (2, b"q2", False)
        assert await alive(taker)


async def test_who_left_the_group(tmp_path):
    """What was on its way to a session that has unsubscribed stays its own, and is the group's when it ends."""
    async with running(folder=tmp_path) as run:
        await given(run, b"1")
        await joined(run, "a")
        first = await member(run, "m", properties={"receive_maximum": 1})
        await first.read()
        first.send(Unsubscribe(packet_id=9, topic_filters=(SHARE,)))
        assert (await first.read()).reason_codes == (0,)
        await gone(run, first)
        await run.server._hub.journal.settled()
        crashed = run.crashed()
    async with running(folder=crashed) as run:
        again = await member(run, "m")
        got = await again.read()
        assert (got.payload, got.dup) == (b"1", True)
        taker = await member(run, "a")
        run.server.disconnect_token("id", "m")
        assert await payloads(taker, 1) == [b"1"]


async def test_the_group_is_the_one_it_came_by(tmp_path):
    """A group of another name, or on another filter, gets nothing of it."""
    async with running(folder=tmp_path) as run:
        await given(run, b"1")
        crashed = run.crashed()
    async with running(folder=crashed) as run:
        others = await member(run, "a"), await member(run, "b")
        await joins(others[0], "$share/other/chat/#")
        await joins(others[1], "$share/work/chat/+")
        run.server.disconnect_token("id", "m")
        assert [await alive(each) for each in others] == [True, True]


@pytest.mark.parametrize(("granted", "flags"), [(1, False), (2, True)])
async def test_as_it_was_published(tmp_path, granted, flags):
    """Whoever takes over gets the message as published, within its own subscription: QoS, RETAIN, properties, identifier."""
    async with running(folder=tmp_path) as run:
        giver = await member(run, "m")
        await joins(giver)
        await gone(run, giver)
        writer = await member(run, "w", expiry_s=0)
        more = properties(content_type="text/plain", user_properties=(("k", "v"), ("k", "w")))
        writer.send(publish("chat/a", b"1", qos=2, retain=True, properties=more))
        assert (await writer.read()).reason_code == 0
        await joined(run, "a", qos=granted, retain_as_published=flags)
        crashed = run.crashed()
    async with running(folder=crashed) as run:
        taker = await member(run, "a")
        run.server.disconnect_token("id", "m")
        got = await taker.read()
        assert (got.qos, got.retain, got.dup, got.payload) == (granted, flags, False, b"1")
        assert got.properties == more


async def test_records_of_before(tmp_path):
    """Records without a share are read, delivered, and end with their session; older gateways read past the new fields."""
    crashed = await crashed_after(tmp_path, b"1", b"2")
    old = msgspec.defstruct(
        "Old", [("packet", bytes | None), ("plain", bytes | None), ("at", float | None), ("key", str)], array_like=True
    )
    async with stored(crashed) as storage:
        outs = [each for each in await storage.state.scan("session/", "", 1000) if "/out/" in each.key]
        assert len(outs) == 2
        records = {each.key: msgspec.msgpack.decode(each.value, type=old) for each in outs}
        assert [each.packet for each in records.values()] == [
            msgspec.msgpack.decode(each.value, type=Out).packet for each in outs
        ]
        await storage.state.write({key: msgspec.msgpack.encode(record) for key, record in records.items()})
    async with running(folder=crashed) as run:
        first, taker = await member(run, "m", properties={"receive_maximum": 1}), await member(run, "a")
        assert (await first.read()).payload == b"1"
        run.server.disconnect_token("id", "m")
        assert await alive(taker)
        await becomes(lambda: clients_kept(run), {"a"})


async def test_a_long_name_costs_nothing():
    """What is kept with a message is small, however long the name of its share is."""
    sizes = []
    for name in ("s", "s" * 60_000):
        async with running() as run:
            await given(run, b"1", share=f"$share/{name}/chat/#")
            found = await run.state.kept("session/")
            sizes.append([len(value) for key, value in found.items() if "/out/" in key])
    assert sizes[0] == sizes[1] != []
