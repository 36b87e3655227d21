"""Runs in the pipeline: their place in the order of arrival, their receipts, their failures."""

import asyncio

import ingest_parts as parts
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from edge_protocol.envelope import Place
from gateway.ingest.pipeline import MAX_INLINE_BYTES
from gateway.ports.identity import Principal, PrincipalKind
from gateway.ports.ingest import STORED, Lane

UNAVAILABLE = "bus-unavailable: events cannot be stored now, send them again"


def readings(*numbers):
    return [b'{"n":%d}' % n for n in numbers]


def bare(payload=b"1", **more):
    return parts.arrival(payload, **{"event_type": "temperature"} | more)


class GatedBus(parts.FailingBus):
    """Appends when the test opens the gate."""

    def __init__(self, inner):
        super().__init__(inner)
        self.gate = asyncio.Event()

    async def append(self, batches):
        await self.gate.wait()
        return await super().append(batches)


async def drained(pipeline):
    async with asyncio.timeout(30):
        await pipeline.drain()


async def test_a_run_is_one_batch_settled_once_when_it_is_stored(bus):
    """A run of three becomes one row of three events with ids of their own, acknowledged after the commit."""
    gated, ledger = GatedBus(bus), parts.Ledger()
    pipeline = parts.pipeline_on(gated)
    await pipeline.start()
    assert pipeline.submit_run(bare(), readings(1, 2, 3), ledger.settle(0))
    await asyncio.sleep(0.01)
    assert ledger.receipts == {}, "nothing is acknowledged before the commit"
    gated.gate.set()
    await drained(pipeline)
    assert ledger.receipts == {0: STORED}
    assert gated.appends == [1]
    events = await parts.stored(bus)
    assert [(event.data["n"], event.type) for event in events] == [(n, "temperature") for n in (1, 2, 3)]
    assert len({event.id for event in events}) == 3
    await pipeline.aclose()


async def test_publishes_are_counted_not_runs(pipeline, bus):
    """Publishes, events and bytes of a run count as if each had come alone."""
    ledger = parts.Ledger()
    assert pipeline.submit_run(bare(), [b"1", b"22", b"333"], ledger.settle(0))
    pipeline.submit(bare(b"4444"), ledger.settle(1))
    await drained(pipeline)
    stats = pipeline.stats
    assert (stats.publishes, stats.events, stats.bytes, stats.duplicates) == (4, 4, 10, 0)


async def test_equal_runs_are_never_repeats(pipeline, bus):
    """The same readings twice are twice as many events."""
    ledger = parts.Ledger()
    for n in range(2):
        assert pipeline.submit_run(bare(), readings(1, 1), ledger.settle(n))
    await drained(pipeline)
    assert len({event.id for event in await parts.stored(bus)}) == 4


@pytest.mark.parametrize("excess", [-1, 0, 1])
@pytest.mark.parametrize("at", [0, 2])
async def test_a_large_payload_is_not_taken_in_a_run(pipeline, bus, excess, at):
    """What would go to the pool alone is not opened on the loop's thread in a run; then nothing has happened."""
    payloads = readings(1, 2, 3)
    payloads[at] = b'"' + b"x" * (MAX_INLINE_BYTES + excess - 2) + b'"'
    ledger = parts.Ledger()
    is_taken = pipeline.submit_run(bare(), payloads, ledger.settle(0))
    await drained(pipeline)
    assert is_taken is (excess <= 0)
    assert ledger.receipts == ({0: STORED} if is_taken else {})
    assert len(await parts.stored(bus)) == (3 if is_taken else 0)


@pytest.mark.parametrize(
    "arrival",
    [
        bare(principal=Principal(PrincipalKind.DEVICE, "", "dev2")),
        bare(role="sealed"),
        bare(event_type=None),
        bare(content_type="application/cloudevents+json"),
    ],
)
async def test_what_must_be_looked_at_alone_is_not_taken(pipeline, bus, arrival):
    """Another device's topic, a role that seals, no CloudEvents where they belong, or some elsewhere: nothing happens."""
    ledger = parts.Ledger()
    assert not pipeline.submit_run(arrival, readings(1, 2), ledger.settle(0))
    await drained(pipeline)
    assert ledger.receipts == {}
    assert await parts.stored(bus) == []
    assert (pipeline.stats.refused, pipeline.stats.deferred) == ({}, {})


async def test_a_service_may_carry_a_run_for_a_device(pipeline, bus):
    """Who is no device publishes runs where policy lets it."""
    ledger, carrier = parts.Ledger(), Principal(PrincipalKind.CLIENT, "lockgate:x", "bridge")
    assert pipeline.submit_run(bare(principal=carrier), readings(1, 2), ledger.settle(0))
    await drained(pipeline)
    assert ledger.receipts == {0: STORED}


async def test_a_type_that_is_not_allowed_is_refused_alone(pipeline, bus):
    """A run is taken where its role may emit all of its types; if not, nothing has happened."""
    ledger, lane = parts.Ledger(), Lane()

    def events(*types):
        return [parts.event(n, type_=type_) for n, type_ in enumerate(types)]

    runs = [
        (bare(role="narrow", lane=lane, event_type="order.placed"), readings(1, 2)),
        (bare(role="narrow", lane=lane, event_type="cart.updated"), readings(1, 2)),
        (parts.arrival(events("x")[0], role="narrow", lane=lane), events("cart.a", "order.placed", "cart.b")),
        (parts.arrival(events("x")[0], role="narrow", lane=lane), events("cart.a", "cart.b")),
    ]
    taken = [pipeline.submit_run(*run, ledger.settle(n)) for n, run in enumerate(runs)]
    await drained(pipeline)
    assert taken == [False, True, False, True]
    assert ledger.receipts == {1: STORED, 3: STORED}
    assert pipeline.stats.refused == {}
    assert [event.type for event in await parts.stored(bus)] == ["cart.updated", "cart.updated", "cart.a", "cart.b"]


@pytest.mark.parametrize("failure", [parts.unavailable(), parts.full(), RuntimeError("bug")])
async def test_a_failed_append_stops_the_lane_of_a_run(bus, failure):
    """When the bus fails, a run is told so, counted for each publish, and its lane takes no run any more."""
    failing, lane = parts.FailingBus(bus, [failure]), Lane()
    pipeline = parts.pipeline_on(failing)
    await pipeline.start()
    ledger = parts.Ledger()
    with capture_logs():
        assert pipeline.submit_run(bare(lane=lane), readings(1, 2, 3), ledger.settle(0))
        await drained(pipeline)
    broken = ledger.receipts[0]
    assert broken.code == (0x97 if isinstance(failure, parts.BusFull) else 0x83)
    assert lane.broken == broken
    assert list(pipeline.stats.deferred.values()) == [3]
    assert not pipeline.submit_run(bare(lane=lane), readings(4, 5), ledger.settle(1))
    assert pipeline.submit_run(bare(), readings(6, 7), ledger.settle(2))
    await drained(pipeline)
    assert ledger.receipts == {0: broken, 2: STORED}
    assert [event.data["n"] for event in await parts.stored(bus)] == [6, 7]
    await pipeline.aclose()


async def test_a_run_behind_what_stops_its_lane_is_not_stored(pipeline, bus):
    """A run that was taken before an envelope in front of it asked to be sealed again gets that receipt too."""
    ledger, lane, stranger = parts.Ledger(), Lane(), parts.new_signing_key()
    with capture_logs():
        pipeline.submit(parts.arrival(parts.sealed(parts.event(1), key=stranger), lane=lane), ledger.settle(0))
        assert pipeline.submit_run(bare(lane=lane), readings(2, 3), ledger.settle(1))
        assert pipeline.submit_run(bare(), readings(4, 5), ledger.settle(2))
        await drained(pipeline)
    assert ledger.receipts[0].reseal
    assert ledger.receipts[1] == ledger.receipts[0]
    assert ledger.receipts[2] == STORED
    assert [event.data["n"] for event in await parts.stored(bus)] == [4, 5]
    assert list(pipeline.stats.deferred.values()) == [3]


async def test_a_run_waits_for_the_envelopes_in_front_of_it(pipeline, bus):
    """What is opened in the pool is stored, and settled, before a run that was opened at once."""
    lane, settled = Lane(), []
    sealed = [parts.sealed(parts.event(n), place=Place("s1", n, 0)) for n in (1, 2)]
    pipeline.submit(parts.arrival(sealed[0], lane=lane), lambda receipt: settled.append((1, receipt)))
    pipeline.submit(parts.arrival(sealed[1], lane=lane), lambda receipt: settled.append((2, receipt)))
    assert pipeline.submit_run(bare(lane=lane), readings(3, 4), lambda receipt: settled.append((3, receipt)))
    pipeline.submit(bare(readings(5)[0], lane=lane), lambda receipt: settled.append((5, receipt)))
    assert settled == []
    await drained(pipeline)
    assert settled == [(n, STORED) for n in (1, 2, 3, 5)]
    assert [event.data["n"] for event in await parts.stored(bus)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("ending", ["drain", "aclose"])
async def test_whoever_waits_for_the_end_waits_for_runs(bus, ending):
    """`drain` and `aclose` return after a run is settled, not before."""
    gated, ledger = GatedBus(bus), parts.Ledger()
    pipeline = parts.pipeline_on(gated)
    await pipeline.start()
    assert pipeline.submit_run(bare(), readings(1, 2), ledger.settle(0))
    waiting = asyncio.create_task(getattr(pipeline, ending)())
    await asyncio.sleep(0.01)
    assert not waiting.done()
    gated.gate.set()
    async with asyncio.timeout(30):
        await waiting
    assert ledger.receipts == {0: STORED}
    await pipeline.aclose()
    with pytest.raises(RuntimeError, match="the pipeline is not started, or closed"):
        pipeline.submit_run(bare(), readings(1, 2), ledger.settle(1))


async def test_a_listener_that_fails_costs_no_other_its_receipt(pipeline):
    """A `settle` of a run that raises is logged; what comes behind is acknowledged."""
    ledger = parts.Ledger()

    def fail(receipt):
        raise ValueError("listener")

    with capture_logs() as logs:
        assert pipeline.submit_run(bare(), readings(1, 2), fail)
        assert pipeline.submit_run(bare(), readings(3, 4), ledger.settle(1))
        await drained(pipeline)
    assert ledger.receipts == {1: STORED}
    assert [entry["event"] for entry in logs] == ["settle_failed"]


PUBLISHES = st.lists(
    st.tuples(
        st.integers(0, 1),  # lane
        st.sampled_from(["run", "run", "bare", "sealed", "large", "reseal", "bad"]),
        st.integers(1, 5),  # how many, of a run
        st.booleans(),  # whether the loop turns afterwards
    ),
    min_size=1,
    max_size=30,
)
FAILURES = st.lists(st.sampled_from([None, None, "unavailable", "full"]), max_size=6)


def payload(kind, lane, n):
    if kind == "bad":
        return b"\xd0\x83"
    if kind in ("bare", "large"):
        return b'{"n":%d,"fill":"%s"}' % (n, b"x" * (5000 if kind == "large" else 0))
    key = {} if kind == "sealed" else {"key": parts.new_signing_key()}
    return parts.sealed(parts.event(n), device=f"dev{lane}", **key)


async def play(pipeline, publishes):
    """Submit everything as a connection does; give what each publish (lane, numbers) was told."""
    lanes, ledger, told, n = [Lane(), Lane()], parts.Ledger(), [], 0
    for lane, kind, count, turn in publishes:
        where = {"device": f"dev{lane}", "lane": lanes[lane]}
        numbers = list(range(n, n + (count if kind == "run" else 1)))
        n += len(numbers)
        told.append((lane, numbers))
        if kind != "run":
            where |= {} if kind in ("sealed", "reseal") else {"event_type": "t"}
            pipeline.submit(parts.arrival(payload(kind, lane, numbers[0]), **where), ledger.settle(len(told) - 1))
        elif not pipeline.submit_run(bare(**where), readings(*numbers), ledger.settle(len(told) - 1)):
            assert lanes[lane].broken
            told[-1] = (lane, [])
            ledger.receipts[len(told) - 1] = lanes[lane].broken
        if turn:
            await asyncio.sleep(0)
    await drained(pipeline)
    assert sorted(ledger.receipts) == list(range(len(told)))
    return [(lane, numbers, ledger.receipts[index]) for index, (lane, numbers) in enumerate(told)]


@given(publishes=PUBLISHES, failures=FAILURES)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_lanes_keep_order_with_runs_in_them(runner, publishes, failures):
    """Whatever mixes with runs and fails: 0x00 means stored, in order per lane; nothing follows a 0x83 or 0x97."""
    loop, pipeline, bus = runner
    storage = loop.run(parts.memory())
    bus.inner = storage.bus
    bus.schedule = [{"unavailable": parts.unavailable(), "full": parts.full()}.get(each) for each in failures]
    with capture_logs():
        told = loop.run(play(pipeline, publishes))
    events = loop.run(parts.stored(storage.bus))
    assert len({event.id for event in events}) == len(events)
    for lane in range(2):
        mine = [(numbers, receipt) for of, numbers, receipt in told if of == lane]
        in_bus = [event.data["n"] for event in events if event.source == f"/devices/dev{lane}"]
        assert in_bus == [n for numbers, receipt in mine if receipt == STORED for n in numbers]
        stop = next((at for at, (_, receipt) in enumerate(mine) if not receipt.is_final), len(mine))
        assert all(receipt == mine[stop][1] for _, receipt in mine[stop:])
    loop.run(storage.aclose())
