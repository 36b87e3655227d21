"""Flows of QoS 1 and 2 as tables, what waits for a client, and what was received from one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.rules.flows import FLOWS, OVERHEAD_BYTES, Delivery, Outbound, Queues, Received, Said, Stage, Step
from gateway.rules.session import Violation

PLENTY = 1 << 20


def send_all(out, bytes_=PLENTY):
    sent = []
    while (delivery := out.ready(bytes_)) is not None:
        out.sent(delivery)
        sent.append(delivery)
    return sent


def test_qos_1_ends_with_puback():
    """PUBACK ends the flow, and frees the identifier."""
    out = Outbound()
    out.add(1, "a", 1)
    (sent,) = send_all(out)
    assert (sent.packet_id, sent.stage) == (1, Stage.SENT)
    assert out.answered(1, Said.PUBACK) is sent
    assert len(out) == 0
    assert out.answered(1, Said.PUBACK) is None


def test_qos_2_ends_with_pubcomp():
    """PUBREC releases, a second one again; PUBCOMP ends the flow; a refusal ends it at once [MQTT-4.3.3-4]."""
    out = Outbound()
    for item in "ab":
        out.add(2, item, 1)
    first, second = send_all(out)
    for _ in range(2):
        assert out.answered(first.packet_id, Said.PUBREC) is first
        assert first.stage is Stage.RELEASED
    assert out.answered(second.packet_id, Said.REFUSED).stage is Stage.DONE
    assert out.answered(first.packet_id, Said.PUBCOMP).stage is Stage.DONE
    assert len(out) == 0


@pytest.mark.parametrize(
    ("qos", "said", "reason"),
    [
        (1, Said.PUBREC, "PUBREC for packet 1, which is QoS 1 and sent (4.3)"),
        (1, Said.PUBCOMP, "PUBCOMP for packet 1, which is QoS 1 and sent (4.3)"),
        (2, Said.PUBACK, "PUBACK for packet 1, which is QoS 2 and sent (4.3)"),
        (2, Said.PUBCOMP, "PUBCOMP for packet 1, which is QoS 2 and sent (4.3)"),
    ],
)
def test_answers_of_the_wrong_kind(qos, said, reason):
    """An answer that the flow does not wait for is a protocol error, and changes nothing."""
    out = Outbound()
    out.add(qos, "a", 1)
    (sent,) = send_all(out)
    with pytest.raises(Violation) as caught:
        out.answered(1, said)
    assert (caught.value.code, caught.value.reason) == (0x82, reason)
    assert sent.stage is Stage.SENT


def test_every_flow_can_end_and_be_lost():
    """From each stage of each QoS that is under way there is a way on, and the loss of the connection is one."""
    for qos, stage in {(qos, stage) for qos, stage, said in FLOWS if stage is not Stage.WAITING}:
        assert (qos, stage, Said.LOST) in FLOWS
    assert {moved for (qos, _, _), moved in FLOWS.items() if qos == 1} == {Stage.SENT, Stage.DONE, Stage.WAITING}


@pytest.mark.parametrize(("maximum", "sent"), [(1, 1), (2, 2), (3, 3), (4, 3)])
def test_receive_maximum(maximum, sent):
    """No more are sent than the client takes at a time; QoS 0 counts nothing."""
    out = Outbound()
    out.maximum = maximum
    for _ in range(3):
        out.add(1, "x", 1)
    assert len(send_all(out)) == sent
    out.answered(1, Said.PUBACK)
    assert len(send_all(out)) == min(1, 3 - sent)


def test_what_is_released_counts_on_its_connection_only():
    """A QoS 2 flow takes its place until PUBCOMP; on the next connection it takes none (4.9)."""
    out = Outbound()
    out.maximum = 1
    for item in "ab":
        out.add(2, item, 1)
    send_all(out)
    out.answered(1, Said.PUBREC)
    assert send_all(out) == []
    out.suspend()
    assert [each.packet_id for each in out.released()] == [1]
    assert [each.item for each in send_all(out)] == ["b"]
    out.answered(1, Said.PUBCOMP)
    assert out._counted == 1


@pytest.mark.parametrize(("bytes_", "sent"), [(9, 1), (10, 2), (11, 2)])
def test_unacknowledged_bytes_are_bounded(bytes_, sent):
    """What is kept to be sent again is bounded, but one message is always sent."""
    out = Outbound()
    for _ in range(3):
        out.add(1, "x", 5)
    assert len(send_all(out, bytes_)) == sent
    big = Outbound()
    big.add(1, "x", 500)
    assert len(send_all(big, bytes_)) == 1


def test_suspension_keeps_order():
    """What was sent goes before what waited, marked as repeated; QoS 0 is given up; identifiers stay."""
    out = Outbound()
    out.maximum = 2
    for qos, item in ((1, "a"), (2, "b"), (1, "c"), (0, "-")):
        out.add(qos, item, 1)
    send_all(out)
    assert [each.item for each in out.suspend()] == ["-"]
    again = send_all(out)
    assert [(each.item, each.packet_id, each.is_repeat) for each in again] == [("a", 1, True), ("b", 2, True)]
    out.answered(1, Said.PUBACK)
    assert [(each.item, each.packet_id, each.is_repeat) for each in send_all(out)] == [("c", 3, False)]


def test_pubrels_keep_the_order_of_pubrecs():
    """Sent again, PUBRELs come in the order in which PUBRECs came [MQTT-4.6.0-4]."""
    out = Outbound()
    for item in "abc":
        out.add(2, item, 1)
    send_all(out)
    for packet_id in (3, 1):
        out.answered(packet_id, Said.PUBREC)
    out.suspend()
    assert [each.packet_id for each in out.released()] == [3, 1]


def test_an_identifier_in_use_is_not_given_again():
    """When 65,535 numbers later one is still in use, the next message waits for it [MQTT-2.2.1-4]."""
    out = Outbound()
    out.add(2, "old", 1)
    send_all(out)
    out._next = 65535
    out.add(1, "new", 1)
    assert send_all(out) == []
    out.answered(1, Said.PUBREC)
    assert send_all(out) == []
    out.answered(1, Said.PUBCOMP)
    assert [each.packet_id for each in send_all(out)] == [1]


def test_oldest_at_qos_0_is_shed_first():
    """Room is made by giving up QoS 0, oldest first, wherever it stands."""
    out = Outbound()
    for qos, item in ((1, "a"), (0, "b"), (0, "c"), (1, "d")):
        out.add(qos, item, 10)
    assert out.has_room(1, messages=5, bytes_=41)
    assert not out.has_room(1, messages=4, bytes_=41)
    assert not out.has_room(1, messages=5, bytes_=40)
    assert [out.shed().item, out.shed().item, out.shed()] == ["b", "c", None]
    assert [each.item for each in send_all(out)] == ["a", "d"]


STEPS = st.lists(st.sampled_from(["add0", "add1", "add2", "send", "ack", "lose", "restart"]), max_size=80)


def next_answer(delivery):
    if delivery.qos == 1:
        return Said.PUBACK
    return Said.PUBCOMP if delivery.stage is Stage.RELEASED else Said.PUBREC


def restarted(out):
    """What a restart finds: the same deliveries, ascending by number; numbers go on, so that the test can tell them."""
    again = Outbound()
    again.maximum = out.maximum
    again.restore(sorted(out, key=lambda each: each.number))
    again._next = out.next_number
    return again


@given(steps=STEPS, maximum=st.integers(1, 5))
def test_random_flows(steps, maximum):
    """Whatever happens: identifiers in use are unique, order holds, nothing at QoS 1 or 2 is lost or ended twice."""
    out, added, ended, wire = Outbound(), [], [], []
    out.maximum = maximum
    for step in steps:
        if step.startswith("add"):
            qos = int(step[3])
            delivery = out.add(qos, len(added), 1)
            if qos:
                added.append(delivery.number)
        elif step == "send" and (delivery := out.ready(PLENTY)):
            out.sent(delivery)
            if delivery.qos:
                assert delivery.packet_id not in {each.packet_id for each in wire}
                wire.append(delivery)
        elif step == "ack" and wire:
            if out.answered(wire[0].packet_id, next_answer(wire[0])).stage is Stage.DONE:
                ended.append(wire.pop(0).number)
        elif step in {"lose", "restart"}:
            out.suspend()
            wire = out.released()
            if step == "restart":
                out = restarted(out)
        assert len(wire) <= maximum + len(out.released())
    assert sorted(ended + [each.number for each in out if each.qos]) == added


def test_received_identifiers():
    """An identifier is free, then storing, then received until PUBREL; a refusal frees it."""
    received = Received([9])
    assert (received.step(9), received.step(7)) == (Step.RECEIVED, None)
    received.begin(7)
    assert not received.release(7)
    assert list(received) == [9]
    received.settle(7, is_stored=True)
    assert received.release(7)
    assert not received.release(7)
    received.begin(8)
    received.settle(8, is_stored=False)
    assert received.step(8) is None
    assert len(received) == 1


def test_a_repetition_that_cannot_be_sent_is_completed():
    """What the client may hold at QoS 2 is released without being sent again; what it never had is only dropped."""
    out = Outbound()
    for item in "ab":
        out.add(2, item, 3)
    out.sent(first := out.ready(PLENTY))
    assert first.is_begun
    out.suspend()
    again = out.ready(PLENTY)
    assert (again, again.is_begun) == (first, True)
    out.skip(again)
    assert (first.stage, out.released()) == (Stage.RELEASED, [first])
    fresh = out.ready(PLENTY)
    assert (fresh.item, fresh.is_begun) == ("b", False)
    assert out.answered(first.packet_id, Said.PUBCOMP) is first
    assert (out._counted, out._flows_bytes) == (0, 0)


@pytest.mark.parametrize(("more_bytes", "fits"), [(-1, True), (0, True), (1, False)])
def test_all_queues_have_one_bound(more_bytes, fits):
    """What waits for all clients is counted together, with what a message costs besides; an owner may have as much as is left."""
    owned_bytes = 2 * OVERHEAD_BYTES + 10 + 30
    queues = Queues(owned_bytes + (owned_bytes + OVERHEAD_BYTES + 20))
    one, another, other = Outbound(queues.of("a")), Outbound(queues.of("a")), Outbound(queues.of("b"))
    one.add(1, "a", 10)
    other.add(0, "b", 20)
    assert another.has_share(30 + more_bytes) == fits
    assert other.has_share(25)  # it has less


@pytest.mark.parametrize(("more_bytes", "fits"), [(-1, False), (0, True), (1, True)])
def test_who_has_too_much_leaves_half(more_bytes, fits):
    """What was not asked for may be more than the bound: others share half of it all the same, until less waits."""
    cost_bytes = 100 + OVERHEAD_BYTES
    queues = Queues(4 * cost_bytes + 2 * more_bytes)
    greedy, other = Outbound(queues.of("a")), Outbound(queues.of("b"))
    for n in range(10):
        greedy.add(1, n, 100)
    assert (queues.size_bytes, queues.counted_bytes) == (10 * cost_bytes, 2 * cost_bytes + more_bytes)
    assert not greedy.has_share(0)
    assert other.has_share(100) == fits
    greedy.forget()
    assert (queues.size_bytes, queues.counted_bytes) == (0, 0)
    assert other.has_share(100 + more_bytes)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3000)), max_size=200))
def test_nobody_fills_all_queues(offers):
    """However many are greedy, all stays within the bound, and who has nothing yet gets what half of the rest holds."""
    bound = 20_000
    queues = Queues(bound)
    outs = [Outbound(queues.of(owner)) for owner in range(5)]
    for owner, size_bytes in offers:
        if outs[owner].has_share(size_bytes):
            outs[owner].add(1, "m", size_bytes)
    left = bound - queues.size_bytes
    assert left >= bound // 2 ** len(outs)
    assert Outbound(queues.of("new")).has_share(left // 2 - OVERHEAD_BYTES)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["add", "send", "answer", "suspend", "shed", "restore", "forget"]), st.integers(0, 2)
        ),
        max_size=40,
    )
)
def test_all_queues_are_counted_right(steps):
    """Whatever happens, the count is what waits; what was forgotten counts no more, whatever it is offered."""
    queues = Queues(2000)
    share = queues.of("a")
    outs = [Outbound(share), Outbound(queues.of("b"))]
    forgotten = Outbound(share)
    forgotten.add(1, "x", 7)
    forgotten.forget()
    for step, number in steps:
        out = outs[number % 2]
        forgotten.add(number, "x", number)
        if step == "add":
            out.add(number, "m", number * 10)
        elif step == "send":
            send_all(out)
        elif step == "suspend":
            out.suspend()
        elif step == "shed":
            out.shed()
        elif step == "restore":
            out.restore([Delivery(out.next_number, 1, "r", 5, is_repeat=True)])
        elif step == "forget":
            assert len(out.forget()) >= 0
            outs[number % 2] = Outbound(queues.of("ab"[number % 2]))
        else:
            for delivery in [each for each in out if each.stage is Stage.SENT]:
                out.answered(delivery.packet_id, Said.PUBACK if delivery.qos == 1 else Said.PUBREC)
        waiting = [each for each_out in outs for each in each_out._queue]
        assert queues.size_bytes == sum(each.size_bytes + OVERHEAD_BYTES for each in waiting)
        assert queues.counted_bytes == sum(min(queues.of(owner).size_bytes, 1000) for owner in "ab")
        assert share.size_bytes == sum(each.size_bytes + OVERHEAD_BYTES for each in outs[0]._queue)
