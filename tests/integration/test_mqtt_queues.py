"""What waits for clients that are away or slow: kept, in order, within bounds that are answered."""

import asyncio
from functools import partial

import pytest
import structlog
from lasting import ANN, Clock, alive, gone, lasting, operator
from mqtt_kit import eventually, properties, publish, running, token

from gateway.mqtt.codec import Puback, Publish, Subscribe, Subscription, Version
from gateway.mqtt.messages import Message
from gateway.rules.flows import OVERHEAD_BYTES
from gateway.rules.sharing import Fate

BOTH = pytest.mark.parametrize("version", list(Version))


@pytest.mark.parametrize(("messages", "kept_"), [(2, [b"1", b"2"]), (3, [b"1", b"2", b"3"]), (4, [b"1", b"2", b"3"])])
async def test_queue_is_bounded_by_count(messages, kept_):
    """A full queue refuses the newest, counts it, and the publisher is not held up."""
    async with running(limits={"queue_messages": 3}) as run:
        await gone(run, await operator(run, "r", "chat/#", **lasting()))
        writer = await operator(run, "w")
        for n in range(1, messages + 1):
            assert (await writer.publish("chat/a", b"%d" % n)).reason_code == 0
        again = await operator(run, "r", **lasting())
        assert [(await again.read()).payload for _ in kept_] == kept_
        assert await alive(again)
        assert run.server.stats.dropped["queue-full"] == messages - len(kept_)


@pytest.mark.parametrize(("extra", "dropped"), [(-1, 0), (0, 0), (1, 1)])
async def test_queue_is_bounded_by_bytes(extra, dropped):
    """Payloads and topics together fill a queue up to its bound, not beyond."""
    async with running(limits={"queue_bytes": 1000}) as run:
        await gone(run, await operator(run, "r", "chat/#", **lasting()))
        writer = await operator(run, "w")
        await writer.publish("chat/a", b"x" * 494)
        await writer.publish("chat/a", b"x" * (494 + extra))
        assert run.server.stats.dropped["queue-full"] == dropped


async def test_expired_messages_make_room():
    """What has expired leaves a full queue before anything is refused."""
    async with running(limits={"queue_messages": 2}) as run:
        await gone(run, await operator(run, "r", "chat/#", **lasting()))
        writer = await operator(run, "w")
        await writer.publish("chat/a", b"1", properties=properties(message_expiry_interval=1))
        await writer.publish("chat/a", b"2")
        await asyncio.sleep(1.1)  # the interval itself
        await writer.publish("chat/a", b"3")
        again = await operator(run, "r", **lasting())
        assert [(await again.read()).payload for _ in range(2)] == [b"2", b"3"]
        assert run.server.stats.dropped["expired"] == 1


async def test_expiry_is_counted_while_queued(tmp_path):
    """A message's interval goes on while it waits, across a restart too; what is left is sent along [MQTT-3.3.2-6]."""
    clock = Clock()
    async with running(clock=clock, folder=tmp_path) as run:
        await gone(run, await operator(run, "r", "chat/#", **lasting(expiry_s=1000)))
        writer = await operator(run, "w")
        for seconds in (30, 60):
            await writer.publish("chat/a", b"%d" % seconds, properties=properties(message_expiry_interval=seconds))
        crashed = run.crashed()
    clock.ahead_s = 40
    async with running(clock=clock, folder=crashed) as run:
        again = await operator(run, "r", **lasting())
        got = await again.read()
        assert got.payload == b"60"
        assert got.properties.message_expiry_interval in (18, 19, 20)
        assert run.server.stats.dropped["expired"] == 1


async def test_handed_deliveries():
    """`on_ack` tells how a delivery ended: taken, or handed back when the session ends; QoS 2 once sent is not."""
    async with running() as run:
        reader = await operator(run, "r", **lasting(receive_maximum=3))
        (session,) = run.server._hub.sessions.of(ANN)
        assert session.is_connected
        ends = {}
        for n, qos in enumerate((1, 2, 1, 1)):
            message = Message("chat/a", b"%d" % n, qos)
            note = partial(ends.__setitem__, n)
            assert session.offer(message, qos, (), retain=False, on_ack=note)
        got = [await reader.read() for _ in range(3)]
        reader.send(Puback(packet_id=got[0].packet_id))
        await eventually(lambda: ends == {0: Fate.TAKEN})
        await gone(run, reader)
        assert not session.is_connected
        assert ends == {0: Fate.TAKEN}
        await operator(run, "r")
        assert ends == {0: Fate.TAKEN, 1: Fate.BROKEN, 2: Fate.UNSENT, 3: Fate.UNSENT}


async def test_publish_with_nobody_there():
    """Publishing to a durable subscriber only is a success, not 0x10."""
    async with running() as run:
        await gone(run, await operator(run, "r", "chat/#", **lasting()))
        writer = await operator(run, "w")
        assert await writer.publish("chat/a") == Puback(packet_id=1)
        again = await operator(run, "r", **lasting())
        assert isinstance(await again.read(), Publish)


@BOTH
async def test_offline_messages(version):
    """What is published at QoS 1 to an absent session is delivered on its return, in order; QoS 0 is not."""
    async with running() as run:
        reader = await operator(run, "r", "chat/#", **lasting(version))
        await gone(run, reader)
        writer = await operator(run, "w")
        for n in range(4):
            writer.send(publish("chat/a", b"%d" % n, qos=n % 2, packet_id=n % 2 * (n + 1)))
        assert [(await writer.read()).packet_id for _ in range(2)] == [2, 4]
        again = await operator(run, "r", **lasting(version))
        assert again.connack.session_present
        got = [await again.read() for _ in range(2)]
        assert [(each.payload, each.dup) for each in got] == [(b"1", False), (b"3", False)]
        assert await alive(again)
        assert run.server.stats.dropped["offline"] == 2


COST_BYTES = len("chat/a") + 100 + OVERHEAD_BYTES


async def away(run, *names):
    """Durable readers that are not there."""
    for name in names:
        await gone(run, await operator(run, name, "chat/#", **lasting()))


@pytest.mark.parametrize(("more_bytes", "waiting"), [(-1, 3), (0, 4), (1, 4)])
async def test_all_queues_are_bounded(more_bytes, waiting):
    """The queues of one principal's absent sessions take half of the bound, then refuse the newest; it is counted and logged once."""
    async with running(limits={"queues_bytes": 8 * COST_BYTES + more_bytes}) as run:
        await away(run, "r", "s")
        writer = await operator(run, "w")
        with structlog.testing.capture_logs() as logs:
            for _ in range(3):
                assert (await writer.publish("chat/a", b"x" * 100)).reason_code == 0
        assert run.server.stats.queues.size_bytes == waiting * COST_BYTES
        assert run.server.stats.dropped["queues-full"] == 6 - waiting
        full = [each["cause"] for each in logs if each["event"] == "session_queue_full"]
        assert full == ["queues-full"] * (2 if waiting == 4 else len(full))


@pytest.mark.parametrize(("more_bytes", "last"), [(-1, 0), (0, 1), (1, 1)])
async def test_nobody_takes_the_room_of_others(more_bytes, last):
    """A principal, with however many sessions, gets as much as is left for others then: who comes later still gets some."""
    async with running(limits={"queues_bytes": 9 * COST_BYTES + more_bytes, "queue_messages": 2}) as run:
        writer = await operator(run, "w")
        held = {}
        for name in ("ann", "bob", "carol", "dave"):
            before = run.server.stats.queues.size_bytes
            for n in range(4):
                claims = token(name, "operator", iss="id")
                reader = await run.client(f"r{n}", token_=claims, **lasting())
                wanted = Subscription(topic_filter=f"chat/{name[0]}", qos=1)
                reader.send(Subscribe(packet_id=1, subscriptions=(wanted,)))
                assert (await reader.read()).reason_codes == (1,)
                await gone(run, reader)
            for _ in range(4):
                assert (await writer.publish(f"chat/{name[0]}", b"x" * 100)).reason_code == 0
            held[name] = (run.server.stats.queues.size_bytes - before) // COST_BYTES
        assert held == {"ann": 4, "bob": 2, "carol": 1, "dave": last}


@pytest.mark.parametrize("stays", [True, False])
async def test_who_does_not_read_leaves_others_room(stays):
    """Whatever waits for a connected client that acknowledges nothing, and when it has gone, others have half of the room."""
    async with running(limits={"queues_bytes": 8 * COST_BYTES}) as run:
        slow = await operator(run, "slow", "chat/#", **lasting(receive_maximum=1))
        bob = await run.client("r", token_=token("bob", "operator", iss="id"), **lasting())
        bob.send(Subscribe(packet_id=1, subscriptions=(Subscription(topic_filter="chat/#", qos=1),)))
        await bob.read()
        writer = await run.client("w", token_=token("carol", "operator", iss="id"))
        for _ in range(12):
            assert (await writer.publish("chat/a", b"x" * 100)).reason_code == 0
            bob.send(Puback(packet_id=(await bob.read()).packet_id))
        queues = run.server.stats.queues
        await eventually(lambda: queues.size_bytes == 11 * COST_BYTES)
        await gone(run, bob)
        if not stays:
            await gone(run, slow)
        before = queues.size_bytes
        for _ in range(4):
            assert (await writer.publish("chat/a", b"x" * 100)).reason_code == 0
        assert queues.size_bytes == before + (4 * stays + 2) * COST_BYTES


async def test_a_share_is_given_back():
    """What a session of a principal has taken, or ended with, may wait for another of it."""
    async with running(limits={"queues_bytes": 2 * COST_BYTES}) as run:
        await away(run, "r")
        writer = await operator(run, "w")
        queues = run.server.stats.queues
        await writer.publish("chat/a", b"x" * 100)
        reader = await operator(run, "r", **lasting())
        reader.send(Puback(packet_id=(await reader.read()).packet_id))
        await eventually(lambda: queues.size_bytes == 0)
        await gone(run, reader)
        await writer.publish("chat/a", b"x" * 100)
        assert queues.size_bytes == COST_BYTES
        await gone(run, await operator(run, "r"))
        assert queues.size_bytes == 0
        await away(run, "s")
        await writer.publish("chat/a", b"x" * 100)
        assert queues.size_bytes == COST_BYTES
        assert run.server.stats.dropped["queues-full"] == 0


async def test_who_is_there_does_not_suffer_for_who_is_not():
    """A connected session takes messages, durable or not, however full the queues of the others are."""
    async with running(limits={"queues_bytes": 2 * COST_BYTES}) as run:
        await away(run, "r")
        live = await operator(run, "live", "chat/#", **lasting())
        writer = await operator(run, "w")
        for _ in range(3):
            assert (await writer.publish("chat/a", b"x" * 100)).reason_code == 0
            packet = await live.read()
            live.send(Puback(packet_id=packet.packet_id))
        assert run.server.stats.dropped["queues-full"] == 2
        assert run.server.stats.queues.size_bytes == COST_BYTES


async def test_queues_count_across_restart_and_return(tmp_path):
    """What was kept counts after a restart, and what is delivered, or ends with its session, no more."""
    async with running(folder=tmp_path) as run:
        await away(run, "r", "s")
        await (await operator(run, "w")).publish("chat/a", b"x" * 100)
        crashed = run.crashed()
    async with running(folder=crashed) as run:
        queues = run.server.stats.queues
        assert queues.size_bytes == 2 * COST_BYTES
        reader = await operator(run, "r", **lasting())
        await reader.read()
        assert queues.size_bytes == COST_BYTES
        await gone(run, reader)
        assert queues.size_bytes == 2 * COST_BYTES
        run.server.disconnect(ANN)
        assert queues.size_bytes == 0


async def test_expired_messages_of_others_make_room():
    """When all queues are full, what has expired in any of them goes first."""
    async with running(limits={"queues_bytes": 2 * COST_BYTES}) as run:
        await away(run, "r")
        writer = await operator(run, "w")
        await writer.publish("chat/a", b"x" * 100, properties=properties(message_expiry_interval=1))
        reader = await operator(run, "s", "chat/b", **lasting())
        await gone(run, reader)
        await asyncio.sleep(1.1)  # the interval itself
        await writer.publish("chat/b", b"x" * 90)
        assert run.server.stats.dropped == {"expired": 1, "queues-full": 1}  # chat/b is for both


async def test_qos_0_of_others_makes_room():
    """When all queues are full, QoS 0 that waits for slow readers goes before QoS 1 of an absent one is refused."""
    async with running(limits={"queues_bytes": 1 << 20, "queue_messages": 100_000, "slow_reader_s": 60}) as run:
        slow = await operator(run, "slow", "chat/#", qos=0)
        slow.reader._transport.pause_reading()
        await away(run, "r")
        writer = await operator(run, "w")
        queues = run.server.stats.queues
        while queues.size_bytes < 1 << 20:
            writer.send(*(publish("chat/a", b"x" * 10_000, qos=0, packet_id=0) for _ in range(20)))
            assert await alive(writer)
        before = queues.size_bytes
        assert (await writer.publish("chat/a", b"x" * 100)).reason_code == 0
        assert queues.size_bytes < min(before, 1 << 20)
        (session,) = [each for each in run.server._hub.sessions if each.client_id == "r"]
        assert [delivery.qos for delivery in session._out] == [1]
        assert set(run.server.stats.dropped) == {"offline", "queues-full"}


@pytest.mark.parametrize(("more_bytes", "dropped"), [(-1, 0), (0, 0), (1, 1)])
async def test_properties_count(more_bytes, dropped):
    """Properties that may be long fill a queue as payloads do."""
    async with running(limits={"queue_bytes": 1000}) as run:
        await away(run, "r")
        writer = await operator(run, "w")
        texts = {"content_type": "c" * 100, "response_topic": "r" * 100, "correlation_data": b"d" * 100}
        long = properties(user_properties=(("n" * 300, "\u00e9" * 100),), **texts)
        await writer.publish("chat/a", b"x" * (1000 - 806 + more_bytes), properties=long)
        assert run.server.stats.dropped["queue-full"] == dropped
