"""The pipeline: receipts, lanes, failures of the bus and of the pool."""

import asyncio
import os
import signal
import threading

import ingest_parts as parts
import pytest
from gates import BusGate
from structlog.testing import capture_logs

from edge_protocol.envelope import Place
from edge_protocol.envelope_keys import Suite, new_open_key
from edge_protocol.keys import new_signing_key
from gateway.ingest.chunks import CHUNK_PUBLISHES
from gateway.ports.identity import Principal, PrincipalKind
from gateway.ports.ingest import STORED, Lane, Receipt


async def test_what_is_acknowledged_is_stored(pipeline, bus):
    """Sealed, plain and bare publishes are stored in order and receive 0x00."""
    receipts = await parts.publish(
        pipeline,
        parts.arrival(parts.sealed(parts.event(1), parts.event(2), place=Place("s1", 1, 0))),
        parts.arrival(parts.event(3)),
        parts.arrival(b'{"n":4}', event_type="temperature"),
    )
    assert receipts == [STORED] * 3
    events = await parts.stored(bus)
    assert [event.data["n"] for event in events] == [1, 2, 3, 4]
    assert [(event.stream, event.sequence) for event in events[:3]] == [("s1", 1), ("s1", 2), (None, None)]
    assert (pipeline.stats.publishes, pipeline.stats.events, pipeline.stats.duplicates) == (3, 4, 0)


@pytest.mark.parametrize("suite", list(Suite))
async def test_every_suite_opens(bus, suite):
    """The gateway opens envelopes of each suite it has a key for."""
    key = new_open_key(suite)
    pipeline = parts.pipeline_on(bus, open_keys=[parts.ENVELOPE_KEY, key])
    await pipeline.start()
    assert await parts.publish(pipeline, parts.arrival(parts.sealed(to=key))) == [STORED]
    await pipeline.aclose()


async def test_es256_keys_sign_envelopes(bus):
    """A device of a secure element seals with ECDSA P-256."""
    key = new_signing_key("ES256")
    pipeline = parts.pipeline_on(bus, keys=parts.Keys(key))
    await pipeline.start()
    assert await parts.publish(pipeline, parts.arrival(parts.sealed(key=key))) == [STORED]
    await pipeline.aclose()


async def test_a_repeat_is_a_success_and_stored_once(pipeline, bus):
    """What comes again by stream or by id is acknowledged and counted, not stored again."""
    first = parts.arrival(parts.sealed(parts.event(1), place=Place("s1", 1, 0)))
    again = parts.arrival(parts.event(2, id_="same"))
    assert await parts.publish(pipeline, first, first, again, again) == [STORED] * 4
    assert len(await parts.stored(bus)) == 2
    assert pipeline.stats.duplicates == 2


async def test_bare_payloads_are_never_taken_for_repeats(pipeline, bus):
    """Ids that the gateway makes are fresh each time: two equal readings are two events."""
    reading = parts.arrival(b"21.5", event_type="temperature")
    assert await parts.publish(pipeline, reading, reading) == [STORED] * 2
    events = await parts.stored(bus)
    assert len({event.id for event in events}) == 2


async def test_a_fork_is_told_apart_from_a_repeat(pipeline, bus):
    """Another event at a stored sequence is a restored or cloned disk: 0x99 `stream-forked`."""
    one, other = (parts.sealed(parts.event(n), place=Place("s1", 1, 0)) for n in (1, 2))
    stored, forked = await parts.publish(pipeline, parts.arrival(one), parts.arrival(other))
    assert stored == STORED
    assert (forked.code, forked.reason.partition(":")[0]) == (0x99, "stream-forked")
    assert len(await parts.stored(bus)) == 1


async def test_plain_is_refused_where_an_envelope_is_required(pipeline, bus):
    """A role with `{device}` sends envelopes only: JSON gets 0x87, what is neither gets 0x99, envelopes pass."""
    receipts = await parts.publish(
        pipeline,
        *(
            parts.arrival(payload, role="sealed", event_type=kind)
            for payload, kind in ((parts.event(), None), (b"[]", None), (b"1", "t"), (b"junk", None))
        ),
        parts.arrival(parts.sealed(), role="sealed"),
    )
    assert [receipt.code for receipt in receipts] == [0x87, 0x87, 0x87, 0x99, 0x00]
    assert receipts[0].reason == "envelope-required: the role of this device sends events in envelopes only"
    assert pipeline.stats.refused == {"envelope-required": 3, "unknown-payload": 1}


async def test_every_type_inside_is_authorized(pipeline, bus):
    """One event of a type that policy forbids refuses the whole envelope with 0x87 and names the type."""
    receipts = await parts.publish(
        pipeline,
        parts.arrival(parts.sealed(parts.event(type_="cart.updated")), role="narrow"),
        parts.arrival(
            parts.sealed(parts.event(type_="cart.updated"), parts.event(type_="order.placed")), role="narrow"
        ),
    )
    assert receipts == [STORED, Receipt(0x87, "not-authorized: no role of this client may emit type 'order.placed'")]
    assert len(await parts.stored(bus)) == 1


async def test_another_devices_topic_is_refused(pipeline, bus):
    """A device that reaches another's topic in spite of policy is refused here too; a service may carry for it."""
    intruder = Principal(PrincipalKind.DEVICE, "", "dev2")
    carrier = Principal(PrincipalKind.CLIENT, "lockgate:x", "bridge")
    receipts = await parts.publish(
        pipeline,
        parts.arrival(parts.event(), principal=intruder),
        parts.arrival(parts.event(), principal=carrier),
    )
    assert receipts == [Receipt(0x87, "not-authorized: this is another device's topic"), STORED]


async def test_unknown_keys_ask_for_a_reseal_and_stop_the_lane(bus):
    """An unknown envelope or signing key is 0x83 reseal; what follows on the lane is not stored and told the same."""
    pipeline = parts.pipeline_on(bus, keys=parts.Keys(unknown=["dev9"]))
    await pipeline.start()
    lane, other = Lane(), Lane()
    receipts = await parts.publish(
        pipeline,
        parts.arrival(parts.sealed(parts.event(1)), lane=lane),
        parts.arrival(parts.sealed(parts.event(2), to=new_open_key(Suite.X25519_AES128)), lane=lane),
        parts.arrival(parts.sealed(parts.event(3)), lane=lane),
        parts.arrival(parts.event(4), lane=lane),
        parts.arrival(parts.sealed(parts.event(5)), lane=other),
        parts.arrival(parts.sealed(device="dev9"), device="dev9"),
    )
    reseal = Receipt(0x83, "unknown-envelope-key: no envelope key of this gateway has this kid and suite", reseal=True)
    assert receipts[:5] == [STORED, reseal, reseal, reseal, STORED]
    assert receipts[5].reseal
    assert receipts[5].reason.startswith("unknown-signing-key: ")
    assert [event.data["n"] for event in await parts.stored(bus)] == [1, 5]
    await pipeline.aclose()


async def test_rotated_envelope_keys_take_effect(pipeline):
    """After `use_open_keys` the new key opens, and one no longer named does not."""
    fresh = new_open_key(Suite.P256_AES128)
    pipeline.use_open_keys([fresh])
    old, new = await parts.publish(pipeline, parts.arrival(parts.sealed()), parts.arrival(parts.sealed(to=fresh)))
    assert (old.reseal, new) == (True, STORED)


@pytest.mark.parametrize(
    ("failure", "receipt"),
    [
        (parts.unavailable(), Receipt(0x83, "bus-unavailable: events cannot be stored now, send them again")),
        (RuntimeError("bug"), Receipt(0x83, "bus-unavailable: events cannot be stored now, send them again")),
        (parts.full(12.2), Receipt(0x97, "bus-full: no room for events now, send them later", retry_after_s=13)),
    ],
)
async def test_a_failed_append_acknowledges_nothing_and_stops_its_lanes(bus, failure, receipt):
    """When the bus fails, its lanes are told so now and from then on; the next connection is served."""
    failing = BusGate(bus)
    failing.failures = [failure]
    pipeline = parts.pipeline_on(failing)
    await pipeline.start()
    lane = Lane()
    with capture_logs():
        assert await parts.publish(pipeline, parts.arrival(parts.event(1), lane=lane)) == [receipt]
    assert await parts.publish(pipeline, parts.arrival(parts.event(2), lane=lane)) == [receipt]
    assert lane.broken == receipt
    assert await parts.publish(pipeline, parts.arrival(parts.event(1))) == [STORED]
    assert [event.data["n"] for event in await parts.stored(bus)] == [1]
    assert pipeline.stats.deferred[receipt.reason.partition(":")[0]] == 2
    await pipeline.aclose()


async def test_what_waits_is_one_append(bus):
    """All that is opened while a commit runs goes into the next one: group commit."""
    slow = BusGate(bus)
    slow.is_open.clear()
    pipeline = parts.pipeline_on(slow)
    await pipeline.start()
    ledger = parts.Ledger()
    pipeline.submit(parts.arrival(parts.event()), ledger.settle(0))
    pipeline.flush()
    await asyncio.sleep(0)
    for number in range(1, 3 * CHUNK_PUBLISHES + 1):
        pipeline.submit(parts.arrival(parts.event()), ledger.settle(number))
    assert not ledger.receipts, "nothing is acknowledged before the commit"
    pipeline.flush()
    slow.is_open.set()
    await pipeline.drain()
    assert slow.appends == [1, 3 * CHUNK_PUBLISHES]
    assert set(ledger.receipts.values()) == {STORED}
    await pipeline.aclose()


async def test_a_turn_ends_with_a_flush_of_its_own(pipeline):
    """A publish does not wait for company: without any `flush` it is handed over at the end of the loop turn."""
    settled = asyncio.get_running_loop().create_future()
    pipeline.submit(parts.arrival(parts.event()), settled.set_result)
    async with asyncio.timeout(10):
        assert await settled == STORED


async def test_settling_happens_on_the_loops_thread(pipeline):
    """Whoever opened an envelope, its receipt arrives on the loop's thread."""
    threads = []
    pipeline.submit(parts.arrival(parts.sealed()), lambda _: threads.append(threading.get_ident()))
    await pipeline.drain()
    assert threads == [threading.get_ident()]


async def test_one_listener_that_fails_costs_no_other_its_receipt(pipeline):
    """A `settle` that raises is logged; the rest of the commit is acknowledged."""
    ledger = parts.Ledger()

    def fail(receipt):
        raise ValueError("listener")

    with capture_logs() as logs:
        pipeline.submit(parts.arrival(parts.event()), fail)
        pipeline.submit(parts.arrival(parts.event()), ledger.settle(1))
        await pipeline.drain()
    assert ledger.receipts == {1: STORED}
    assert [entry["event"] for entry in logs] == ["settle_failed"]


async def test_a_killed_process_loses_nothing(bus):
    """When a process of the pool is killed the pool is rebuilt and its chunks are opened again, each once."""
    pipeline = parts.pipeline_on(bus, processes=2)
    await pipeline.start()
    ledger, total = parts.Ledger(), 200
    lane = Lane()
    with capture_logs() as logs:
        for number in range(total):
            envelope = parts.sealed(parts.event(number), place=Place("s1", number + 1, 0))
            pipeline.submit(parts.arrival(envelope, lane=lane), ledger.settle(number))
        os.kill(next(iter(pipeline._pool._executor._processes)), signal.SIGKILL)
        async with asyncio.timeout(30):
            await pipeline.drain()
    assert list(ledger.receipts.values()) == [STORED] * total
    assert [event.sequence for event in await parts.stored(bus)] == list(range(1, total + 1))
    assert pipeline.stats.pool_rebuilds == 1
    assert logs == [{"event": "opener_pool_rebuilt", "log_level": "warning", "processes": 2, "times": 1}]
    await pipeline.aclose()


async def test_an_idle_pool_that_was_killed_is_rebuilt(pipeline):
    """A process that dies while nothing is being opened is noticed by the next envelope, which is stored."""
    executor = pipeline._pool._executor
    (process,) = executor._processes.values()
    with capture_logs():
        process.kill()
        async with asyncio.timeout(10):
            while not executor._broken:  # noqa: ASYNC110  # concurrent.futures has no event for it
                await asyncio.sleep(0.01)
        assert await parts.publish(pipeline, parts.arrival(parts.sealed())) == [STORED]


async def test_a_rejection_is_logged_without_the_payload(pipeline):
    """The operator reads who was refused and why, never what was in it."""
    with capture_logs() as logs:
        await parts.publish(pipeline, parts.arrival(b"\xd0secret-secret"))
    assert [entry["event"] for entry in logs] == ["event_rejected"]
    assert (logs[0]["device"], logs[0]["size_bytes"]) == ("dev1", 14)
    assert logs[0]["reason"].startswith("bad-cbor: ")
    assert "secret" not in str(logs)


async def test_a_closed_pipeline_takes_nothing(bus):
    """Closing settles what was taken; a second close does nothing; a publish afterwards is the caller's mistake."""
    pipeline = parts.pipeline_on(bus)
    await pipeline.start()
    ledger = parts.Ledger()
    pipeline.submit(parts.arrival(parts.sealed()), ledger.settle(0))
    await pipeline.aclose()
    await pipeline.aclose()
    assert ledger.receipts == {0: STORED}
    with pytest.raises(RuntimeError, match="the pipeline is not started, or closed"):
        pipeline.submit(parts.arrival(parts.event()), ledger.settle(1))
