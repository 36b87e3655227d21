"""The agent's connection and its streams, against a scripted MQTT 5 server on real sockets: tokens, clocks, keys, forks."""

from __future__ import annotations

import os
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest
from agent_home import Running, emit, home_for, wait_until
from scripted_broker import Broker, Cloud, refuse, user

from edge_agent import Agent
from edge_protocol.envelope_keys import Suite
from edge_protocol.tokens import read
from gateway.mqtt.codec import Connack, Properties, Puback, Publish, ReasonCode


def test_a_device_without_a_clock_connects_at_its_second_attempt(cloud, broker, home):
    """`server-time` on a refusal sets the clock; the offset is kept on disk and goes into token, `iat` and events."""
    ahead = timedelta(days=400)
    refused = []

    def other_time(connection):
        claims = read(bytes(connection.connect.password)).claims
        now = datetime.now(UTC) + ahead
        if abs(claims.iat - now.timestamp()) > 60:
            refused.append(claims.iat)
            pairs = (("server-time", now.isoformat()),)
            connection.send(
                Connack(reason_code=ReasonCode.NOT_AUTHORIZED, properties=user(*pairs, reason="token-expired: old"))
            )
            connection.close()
            return True
        pairs = (("server-time", now.isoformat()), ("receipts", "durable"))
        connection.send(Connack(properties=user(*pairs)))
        return True

    broker.on_connect = other_time
    broker.send_keys = lambda _connection: None
    with Running(home) as agent:
        wait_until(lambda: len(broker.connections) == 2)
        wait_until(lambda: agent.outbox.noted("connection")["state"] == "connected")
        assert agent.outbox.noted("clock_offset_s") == pytest.approx(ahead.total_seconds(), abs=5)
    assert len(refused) == 1
    (event,) = emit(home, 1)
    with closing(home.outbox(home.settings())) as outbox:
        body = outbox.cut(1, None, events=1, size=1000).rows[0].body.decode()
    assert f'"time":"{(datetime.now(UTC) + ahead).year}' in body
    assert event in body


def test_stored_through_settles_only_what_was_sent(cloud, broker, home):
    """A stream that the gateway has in part: what this disk never sent is not believed to be stored."""
    ids = emit(home, 5)

    def claim_three(connection):
        ((_, stream),) = connection.connect.properties.user_properties
        pairs = (("receipts", "durable"), ("stored-through", f"{stream} 3"))
        connection.send(Connack(properties=user(*pairs)))
        return True

    broker.on_connect = claim_three
    with Running(home) as agent:
        agent.wait_empty()
    assert cloud.ids == ids


def test_a_stream_ahead_of_its_counter_is_forked(cloud, broker, home):
    """`stored-through` above the own counter (a restored disk): a new stream, and everything that waits goes out in it."""
    ids = emit(home, 5)
    with closing(home.outbox(home.settings())) as outbox:
        old_id = outbox.stream().id

    def claim_many(connection):
        ((_, stream),) = connection.connect.properties.user_properties
        pairs = (("receipts", "durable"), ("stored-through", f"{stream} {1000 if stream == old_id else 0}"))
        connection.send(Connack(properties=user(*pairs)))
        return True

    broker.on_connect = claim_many
    with Running(home) as agent:
        agent.wait_empty()
        assert agent.outbox.stream().id != old_id
    assert cloud.ids == ids
    assert (cloud.opened[0].place.first, cloud.opened[0].place.settled) == (1, 0)


def test_a_restored_disk_loses_nothing(cloud, broker, home):
    """An outbox copied back in time has numbers the gateway knows with other ids: 0x99, a new stream, all stored."""
    with Running(home) as agent:
        emit(home, 10)
        wait_until(lambda: len(cloud.events) == 10)
        agent.wait_empty()
    backup = home.outbox_file.read_bytes()
    with Running(home) as agent:
        emit(home, 10)
        wait_until(lambda: len(cloud.events) == 20)
        agent.wait_empty()
    for file in home.path.glob("outbox.db*"):
        file.unlink()
    home.outbox_file.write_bytes(backup)
    ids = emit(home, 15)
    with Running(home) as agent:
        agent.wait_empty()
    assert cloud.ids[20:] == ids
    assert len(cloud.ranges) == 2


def test_the_token_is_renewed_on_the_connection(cloud, broker, tmp_path):
    """A fresh token is published before the old one expires; the connection stays."""
    home = home_for(cloud, tmp_path / "home", broker.url, more='[uplink]\ntoken_lifetime = "2s"\n')
    with Running(home):
        wait_until(lambda: len(broker.connections[0].tokens) >= 2 if broker.connections else False)
    assert len(broker.connections) == 1
    first = read(bytes(broker.connections[0].connect.password)).claims
    claims = [read(publish.payload).claims for publish in broker.connections[0].tokens]
    assert claims[0].iat <= first.exp
    assert first.exp < claims[0].exp < claims[1].exp
    assert len({first.jti, *(each.jti for each in claims)}) == len(claims) + 1


def test_a_puback_without_durable_receipts_forgets_nothing(cloud, broker, home):
    """CONNACK without `receipts: durable` is a third party's broker: its PUBACK is no receipt (promise P2)."""
    broker.receipts = False
    ids = emit(home, 3)
    with Running(home):
        wait_until(lambda: cloud.ids == ids)
        wait_until(lambda: broker.connections[0].envelopes)
    assert len(cloud.events) == 3
    with closing(home.outbox(home.settings())) as outbox:
        assert outbox.depth().events == 3


def test_nothing_is_sealed_before_a_key_set_is_proven(cloud, broker, home):
    """Without a key set, or with a forged one, nothing leaves; with the first proven one everything does."""
    ids = emit(home, 3)
    good = broker.send_keys
    forger = Cloud()
    answered = []

    def forged(connection):
        answered.append(connection)
        connection.send(_keys(forger.key_set()))

    broker.send_keys = forged
    with Running(home) as agent:
        wait_until(lambda: answered)
        time.sleep(0.2)  # nothing may happen: there is no condition to wait for
        assert not broker.connections[0].envelopes
        good(broker.connections[0])
        agent.wait_empty()
    assert cloud.ids == ids


def _keys(text):
    return Publish(topic="gateway/keys", payload=text.encode(), retain=True)


def test_a_device_never_seals_below_its_suites(tmp_path):
    """A gateway that offers only another suite gets nothing; a device that allows it uses it."""
    cloud = Cloud(Suite.X25519_AES128)
    with Broker(cloud) as broker:
        strict = home_for(cloud, tmp_path / "strict", broker.url)
        emit(strict, 1)
        with Running(strict) as agent:
            wait_until(lambda: agent.uplink._is_without_key)
            assert not broker.connections[0].envelopes
        lenient = home_for(cloud, tmp_path / "lenient", broker.url, more="[seal]\nsuites = [-70001, -70002]\n")
        emit(lenient, 1)
        with Running(lenient) as agent:
            agent.wait_empty()


def test_the_key_set_is_kept_for_the_next_start(cloud, broker, home):
    """A restart finds the key set on disk, proves it again, and can seal before the gateway says anything."""
    with Running(home) as agent:
        wait_until(lambda: agent.uplink._trust.key_set)
    broker.send_keys = lambda _connection: None
    ids = emit(home, 2)
    with Running(home) as agent:
        agent.wait_empty()
    assert cloud.ids == ids


def test_an_older_key_set_is_refused(cloud, broker, home):
    """A key set with a lower version than one seen before is not taken, also after a restart."""
    cloud.version = 5
    with Running(home) as agent:
        wait_until(lambda: agent.uplink._trust.key_set)
    cloud.version = 4
    with Running(home) as agent:
        wait_until(lambda: len(broker.connections) == 2 and agent.outbox.noted("connection")["state"] == "connected")
        emit(home, 1)
        agent.wait_empty()
        assert agent.uplink._trust.key_set.version == 5


def test_the_maximum_packet_size_bounds_envelopes(cloud, broker, home):
    """Batches are cut to the server's Maximum Packet Size; one event that cannot fit is set aside, the rest arrives."""
    broker.connack = Properties(maximum_packet_size=6000)
    with Agent.open(home) as agent:
        ids = [agent.emit("blob", os.urandom(1000)) for _ in range(8)]
        large = agent.emit("blob", os.urandom(20_000))
        ids.append(agent.emit("blob", b"x"))
    with Running(home) as running:
        running.wait_empty()
        (aside,) = running.outbox.quarantined()
    assert aside.id == large
    assert aside.reason.startswith("packet-too-large: an envelope of ")
    assert cloud.ids == ids
    assert all(len(publish.payload) < 6000 for publish in broker.connections[0].envelopes)


def test_stopping_waits_for_receipts_in_flight(cloud, broker, home):
    """A stop takes nothing new, waits for what is in flight, and says DISCONNECT."""
    held = []

    def hold(_connection, publish):
        held.append(publish)
        return True

    broker.on_event = hold
    emit(home, 10)
    with Running(home) as agent:
        wait_until(lambda: held)
        agent.stop.set()
        emit(home, 10, start=10)
        for publish in held:
            broker.take(broker.connections[0], publish)
    assert len(cloud.events) == 10
    with closing(home.outbox(home.settings())) as outbox:
        assert outbox.depth().events == 10
    wait_until(lambda: broker.connections[0].disconnect)


def test_a_late_receipt_ends_the_connection(cloud, broker, tmp_path):
    """A server that takes an envelope and never answers is left after `receipt_timeout`, and the envelope sent again."""
    home = home_for(cloud, tmp_path / "home", broker.url, more='[uplink]\nreceipt_timeout = "1s"\n')

    def swallow(_connection, _publish):
        broker.on_event = None
        return True

    broker.on_event = swallow
    ids = emit(home, 2)
    with Running(home) as agent:
        agent.wait_empty()
    assert cloud.ids == ids
    assert len(broker.connections) == 2


def test_garbage_from_the_server_is_survived(cloud, broker, home):
    """Bytes that are no MQTT end the connection, not the agent."""
    ids = emit(home, 2)

    def garbage(connection):
        broker.on_connect = None
        connection.sock.sendall(b"\x20\xff\xff\xff\xff\xff" + bytes(range(200)))
        return True

    broker.on_connect = garbage
    with Running(home) as agent:
        agent.wait_empty()
    assert cloud.ids == ids


def test_too_many_streams_waits_for_the_operator(cloud, broker, home):
    """`too-many-streams` is no fault of any event: nothing is set aside, no stream is started, the agent backs off."""
    emit(home, 4)
    broker.on_event = refuse(0x99, "too-many-streams: 64", disconnect=False)
    with Running(home, jitter=lambda: 0.9) as agent:
        stream = agent.outbox.stream().id
        wait_until(lambda: agent.outbox.noted("connection")["state"] == "waiting")
        depth = agent.outbox.depth()
        assert (depth.events, depth.quarantined) == (4, 0)
        assert agent.outbox.stream().id == stream


def test_a_puback_of_an_unknown_code_forgets_nothing(cloud, broker, home):
    """0x10 and codes outside the table are no receipt: the agent reconnects and sends again."""
    ids = emit(home, 2)

    def odd(connection, publish):
        broker.on_event = None
        connection.send(Puback(packet_id=publish.packet_id, reason_code=ReasonCode.NO_MATCHING_SUBSCRIBERS))
        return True

    broker.on_event = odd
    with Running(home) as agent:
        agent.wait_empty()
    assert cloud.ids == ids
    assert len(broker.connections) == 2
