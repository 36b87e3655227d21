"""The agent's uplink against a scripted MQTT 5 server on real sockets: every answer of wire protocol, section 6."""

from __future__ import annotations

from contextlib import closing
from itertools import pairwise

import pytest
from agent_home import ONE_BY_ONE, Running, emit, home_for, wait_until
from scripted_broker import AUDIENCE, refuse, user

from edge_protocol.tokens import read
from gateway.mqtt.codec import Connack, Disconnect, Properties, ReasonCode


def test_events_arrive_in_order_and_are_forgotten(cloud, broker, home):
    """What was emitted before and while the uplink runs is stored once, in order, and leaves the outbox."""
    ids = emit(home, 25)
    with Running(home) as agent:
        agent.wait_empty()
        ids += emit(home, 3)
        wait_until(lambda: len(cloud.events) == 28)
        agent.wait_empty()
        assert agent.outbox.noted("connection")["state"] == "connected"
        assert agent.outbox.noted("last_receipt_ms") > 0
    assert cloud.ids == ids
    places = [(opened.place.first, len(opened.events)) for opened in cloud.opened]
    assert places[:3] == [(1, 10), (11, 10), (21, 5)]
    wait_until(lambda: broker.connections[0].disconnect)


def test_connect_is_as_the_protocol_says(cloud, broker, home):
    """MQTT 5, clean start, no session expiry, client id and subject are the device, a user property a stream."""
    with Running(home) as agent:
        wait_until(lambda: broker.connections and broker.connections[0].connect)
        connect = broker.connections[0].connect
        assert connect.properties.user_properties == (("stream", agent.outbox.stream().id),)
    assert (connect.client_id, connect.clean_start) == ("dev1", True)
    assert not connect.properties.session_expiry_interval
    claims = read(bytes(connect.password)).claims
    assert (claims.aud, claims.sub, claims.exp - claims.iat) == (AUDIENCE, "dev1", 3600)


def test_a_lost_puback_is_no_loss_and_no_duplicate(cloud, broker, home):
    """A connection that breaks between storing and acknowledging: `stored-through` settles it, nothing is sent twice."""
    ids = emit(home, 10)

    def store_and_break(connection, publish):
        broker.judge(connection, publish)
        broker.on_event = None
        connection.close()
        return True

    broker.on_event = store_and_break
    with Running(home) as agent:
        agent.wait_empty()
    assert cloud.ids == ids
    assert len(cloud.opened) == 1


def test_a_kill_in_the_middle_of_a_window_keeps_order(cloud, broker, tmp_path):
    """The third of many envelopes in flight breaks the connection; what follows is sent again, in order."""
    home = home_for(cloud, tmp_path / "home", broker.url, more=ONE_BY_ONE)
    ids = emit(home, 40)
    seen = []

    def break_often(connection, publish):
        seen.append(publish)
        if len(seen) in (3, 9, 20):
            connection.close()
            return True
        return False

    broker.on_event = break_often
    with Running(home) as agent:
        agent.wait_empty()
    assert cloud.ids == ids
    assert len(broker.connections) == 4


@pytest.mark.parametrize("receive_maximum", [1, 2, 5, 16, 17])
def test_the_window_is_bounded(cloud, broker, tmp_path, receive_maximum):
    """Never more envelopes in flight than the window (16) and the server's Receive Maximum."""
    home = home_for(cloud, tmp_path / "home", broker.url, more=ONE_BY_ONE)
    broker.connack = Properties(receive_maximum=receive_maximum)
    held = []

    def hold(_connection, publish):
        held.append(publish)
        return True

    broker.on_event = hold
    emit(home, 30)
    bound = min(16, receive_maximum)
    with Running(home) as agent:
        wait_until(lambda: len(held) == bound)
        wait_until(lambda: agent.uplink._sender.in_flight == bound)
        connection = broker.connections[0]
        broker.on_event = None
        for publish in held:
            broker.take(connection, publish)
        agent.wait_empty()
    assert len(cloud.events) == 30


def refusing(cloud, broker, bad, reason="bad-schema: no"):
    """Refuse (0x99) what holds one of these events; the set may change later."""

    def refuse(connection, publish):
        is_bad = not bad.isdisjoint(event.id for event in cloud.open("dev1", publish.payload).events)
        if is_bad:
            connection.send(broker.puback(publish, 0x99, reason))
        return is_bad

    return refuse


def test_quarantine_takes_the_one_bad_event(cloud, broker, home):
    """0x99 halves a batch until the bad event is alone; it is set aside with the reason, the rest is stored in order."""
    ids = emit(home, 10)

    broker.on_event = refusing(cloud, broker, {ids[6]}, "bad-schema: celsius: expected a number")
    with Running(home) as agent:
        agent.wait_empty()
        (aside,) = agent.outbox.quarantined()
    assert (aside.id, aside.code, aside.reason) == (ids[6], 0x99, "bad-schema: celsius: expected a number")
    assert cloud.ids == ids[:6] + ids[7:]
    assert len(broker.connections) == 1


def test_a_retried_event_takes_a_new_number(cloud, broker, home):
    """An event from quarantine is sent again behind everything else; its old number stays a hole that is settled."""
    ids = emit(home, 3)
    bad = {ids[1]}

    broker.on_event = refusing(cloud, broker, bad)
    with Running(home) as agent:
        agent.wait_empty()
        bad.clear()
        with closing(home.outbox(home.settings())) as outbox:  # as the command does, in another connection
            assert outbox.retry() == [ids[1]]
        wait_until(lambda: len(cloud.events) == 3)
        agent.wait_empty()
    assert cloud.ids == [ids[0], ids[2], ids[1]]
    assert (cloud.opened[-1].place.first, cloud.opened[-1].place.settled) == (4, 3)


def test_events_in_flight_behind_a_refused_batch_are_stored(cloud, broker, home):
    """A refused batch with others in flight behind it: nothing is lost, nothing doubled, the hole is filled."""
    ids = emit(home, 30)

    broker.on_event = refusing(cloud, broker, {ids[11]})
    with Running(home) as agent:
        agent.wait_empty()
    assert sorted(cloud.ids) == sorted(ids[:11] + ids[12:])
    assert len(set(cloud.ids)) == 29
    for opened in cloud.opened:
        assert opened.place.settled < opened.place.first


@pytest.mark.parametrize("code", [0x87, 0x90])
def test_not_authorized_is_not_retried(cloud, broker, home, code):
    """0x87 and 0x90 set a batch of one type aside whole: it is sent once and never again."""
    ids = emit(home, 5)
    sent = []

    def forbid(connection, publish):
        sent.append(publish)
        connection.send(broker.puback(publish, code, "topic-not-allowed: no"))
        return True

    broker.on_event = forbid
    with Running(home) as agent:
        agent.wait_empty()
        assert [each.id for each in agent.outbox.quarantined()] == ids
    assert len(sent) == 1
    assert len(broker.connections) == 1


def test_a_forbidden_type_takes_no_other_with_it(cloud, broker, home):
    """0x87 for a batch of several types is halved until the forbidden type is alone."""
    good = emit(home, 4)
    bad = emit(home, 2, kind="secret")
    good += emit(home, 3)

    def forbid_type(connection, publish):
        if any(event.type == "secret" for event in cloud.open("dev1", publish.payload).events):
            connection.send(broker.puback(publish, 0x87, "type-not-allowed: secret"))
            return True
        return False

    broker.on_event = forbid_type
    with Running(home) as agent:
        agent.wait_empty()
        assert [each.id for each in agent.outbox.quarantined()] == bad
    assert cloud.ids == good


def test_reseal_refreshes_the_keys(cloud, broker, home):
    """0x83 with `action: reseal`: the agent asks for the key set again and seals with the new key, in order."""
    ids = emit(home, 10)
    with Running(home) as agent:
        agent.wait_empty()
        cloud.rotate()
        ids += emit(home, 25)
        wait_until(lambda: len(cloud.events) == 35)
        agent.wait_empty()
        assert agent.outbox.depth().quarantined == 0
    assert cloud.ids == ids
    assert len(broker.connections) == 1


def test_reseal_and_disconnect_refreshes_the_keys(cloud, broker, home):
    """A gateway that answers a reseal with DISCONNECT too: the next connection waits for the keys and keeps order."""
    ids = emit(home, 10)
    with Running(home) as agent:
        agent.wait_empty()
        cloud.rotate()

        def answer_and_leave(connection, publish):
            puback = broker.judge(connection, publish)
            connection.send(puback)
            if puback.reason_code:
                connection.send(Disconnect(reason_code=ReasonCode(0x83), properties=user(reason="reseal")))
                connection.close()
            return True

        broker.on_event = answer_and_leave
        ids += emit(home, 25)
        wait_until(lambda: len(cloud.events) == 35)
        agent.wait_empty()
        assert agent.outbox.depth().quarantined == 0
    assert cloud.ids == ids
    assert len(broker.connections) == 2


def test_reseal_for_ever_backs_off(cloud, broker, home):
    """A gateway that always wants another key is not hammered: after three rounds the connection ends and waits."""
    emit(home, 1)
    broker.on_event = refuse(0x83, "unknown-envelope-key: no", ("action", "reseal"), disconnect=False)
    with Running(home, jitter=lambda: 0.9) as agent:
        wait_until(lambda: agent.outbox.noted("connection")["state"] == "waiting")
        assert len(broker.connections[0].envelopes) == 3
        assert agent.uplink._pace.failures == 1
        assert agent.outbox.depth().events == 1


def _each(scripts):
    def script(connection, publish):
        one = next(scripts, None)
        return one is not None and one(connection, publish)

    return script


def test_bus_unavailable_retries_in_order(cloud, broker, home):
    """0x83: the connection ends, nothing is set aside, and everything comes again in order."""
    ids = emit(home, 30)
    refusals = iter([refuse(0x83, "bus-unavailable: try later")] * 3)
    broker.on_event = _each(refusals)
    with Running(home) as agent:
        agent.wait_empty()
        assert agent.outbox.depth().quarantined == 0
    assert cloud.ids == ids


@pytest.mark.parametrize("where", ["puback", "puback and bare disconnect", "disconnect", "connack"])
def test_retry_after_is_obeyed(cloud, broker, home, where):
    """`retry-after` in PUBACK, DISCONNECT or CONNACK: no connect before it has passed, and then at once."""
    ids = emit(home, 3)
    told = ("retry-after", "2")

    def by_connack(connection):
        broker.on_connect = None
        connection.send(
            Connack(reason_code=ReasonCode.QUOTA_EXCEEDED, properties=user(told, reason="overloaded: wait"))
        )
        connection.close()
        return True

    def by_puback(connection, publish):
        broker.on_event = None
        connection.send(broker.puback(publish, 0x97, "quota: wait", told))
        return True

    def by_both(connection, publish):
        broker.on_event = None
        connection.send(
            broker.puback(publish, 0x97, "quota: wait", told), Disconnect(reason_code=ReasonCode.QUOTA_EXCEEDED)
        )
        connection.close()
        return True

    def by_disconnect(connection, publish):
        broker.on_event = None
        connection.send(broker.puback(publish, 0x83, "bus-unavailable: wait"))
        connection.send(Disconnect(reason_code=ReasonCode(0x83), properties=user(told)))
        connection.close()
        return True

    if where == "connack":
        broker.on_connect = by_connack
    else:
        broker.on_event = {"puback": by_puback, "disconnect": by_disconnect}.get(where, by_both)
    with Running(home) as agent:
        agent.wait_empty()
    first, second = broker.connections
    assert 1.9 <= second.at_s - first.at_s < 5
    assert cloud.ids == ids


def test_a_refusal_without_properties_waits_30_seconds(cloud, broker, home):
    """A CONNACK refusal that could say nothing: the agent waits 30 s with jitter by itself."""

    def refuse_bare(connection):
        connection.send(Connack(reason_code=ReasonCode.QUOTA_EXCEEDED))
        connection.close()
        return True

    broker.on_connect = refuse_bare
    with Running(home, jitter=lambda: 0.5) as agent:
        wait_until(lambda: agent.outbox.noted("connection")["state"] == "waiting")
        noted = agent.outbox.noted("connection")
    assert 35_000 < noted["retry_at_ms"] - noted["since_ms"] <= 37_501
    assert len(broker.connections) == 1


def test_a_kicked_connect_does_not_reset_the_backoff(cloud, broker, home):
    """Accepted and thrown out at once, again and again: the waits grow as if the connect had failed."""

    def kick(connection):
        broker.accept(connection)
        connection.send(Disconnect(reason_code=ReasonCode.SERVER_BUSY, properties=user(reason="busy: go away")))
        connection.close()
        return True

    broker.on_connect = kick
    with Running(home, jitter=lambda: 0.1) as agent:
        wait_until(lambda: len(broker.connections) == 5)
        assert agent.uplink._pace.failures >= 4
    times = [connection.at_s for connection in broker.connections]
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert all(gap >= expected for gap, expected in zip(gaps, (0.1, 0.2, 0.4, 0.8), strict=True)), gaps


def test_a_receipt_resets_the_backoff(cloud, broker, home):
    """Progress, not a connect, ends the row of failures."""
    emit(home, 3)
    refusals = iter([refuse(0x83, "bus-unavailable: no")] * 2)
    broker.on_event = _each(refusals)
    with Running(home, jitter=lambda: 0.05) as agent:
        agent.wait_empty()
        wait_until(lambda: agent.uplink._pace.failures == 0)
