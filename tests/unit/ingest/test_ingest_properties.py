"""What no altered, stolen or repeated envelope and no failing bus may ever bring about."""

import asyncio
import json

import ingest_parts as parts
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from protocol_strategies import json_values
from structlog.testing import capture_logs

from edge_protocol.envelope import FIRST_BYTES, AgeLimits, Place
from edge_protocol.errors import EventRejected
from edge_protocol.event import Event, encode_event
from edge_protocol.events import decode_event
from edge_protocol.payload import Limits
from gateway.ingest.opener import Job, Refusal, Summary, Terms, open_publish
from gateway.ports.ingest import STORED, Lane

TERMS = Terms(parts.AUDIENCE, ((int(parts.ENVELOPE_KEY.suite), parts.ENVELOPE_KEY.raw),), Limits(), AgeLimits())
FRESH = "01936c5c-0000-7000-8000-000000000001"
JWK = parts.DEVICE_KEY.public.jwk
VERIFY = ((JWK["alg"], JWK["x"], ""),)
ENVELOPES = {
    "streamed": parts.sealed(parts.event(1), parts.event(2), place=Place("s1", 1, 0)),
    "unstreamed": parts.sealed(parts.event(3)),
}
DEVICES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._~-]{0,20}", fullmatch=True)


def opened(payload, *, device="dev1", audience=parts.AUDIENCE, received_ms=parts.NOW_MS):
    job = Job(payload, device, received_ms, "", verify_keys=VERIFY)
    return open_publish(TERMS._replace(audience=audience), job)


@given(name=st.sampled_from(sorted(ENVELOPES)), at=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
@settings(max_examples=400, deadline=None)
def test_a_flipped_byte_never_yields_an_event(name, at, flip):
    """Whatever byte of an envelope is changed, and however, it is refused with a rule."""
    envelope = bytearray(ENVELOPES[name])
    envelope[int(at * len(envelope))] ^= flip
    assert isinstance(opened(bytes(envelope)), Refusal)


@given(name=st.sampled_from(sorted(ENVELOPES)), cut=st.floats(0, 1, exclude_max=True), tail=st.binary(max_size=8))
@settings(max_examples=200, deadline=None)
def test_a_cut_or_continued_envelope_never_yields_an_event(name, cut, tail):
    """An envelope that ends early, or goes on after its end, is refused."""
    envelope = ENVELOPES[name]
    assert isinstance(opened(envelope[: int(cut * len(envelope))] + tail), Refusal)
    if tail:
        assert isinstance(opened(envelope + tail), Refusal)


@given(name=st.sampled_from(sorted(ENVELOPES)), device=DEVICES, audience=st.text("abc-", min_size=1, max_size=9))
@settings(max_examples=200, deadline=None)
def test_another_device_or_audience_cannot_use_an_envelope(name, device, audience):
    """An envelope opens for the device and the audience it was sealed for only, though all keys are the same."""
    assert isinstance(opened(ENVELOPES[name]), Summary)
    if device != "dev1":
        assert opened(ENVELOPES[name], device=device).rule == "cannot-decrypt"
    assert opened(ENVELOPES[name], audience=audience).rule == "cannot-decrypt"


@pytest.mark.parametrize(
    ("offset_s", "is_opened"),
    [(-61, False), (-60, True), (72 * 3600 - 120, True), (72 * 3600 - 119, False)],
)
def test_age_counts_without_a_stream_only(offset_s, is_opened):
    """An envelope without a stream opens within the deduplication window less twice the skew; a streamed one always."""
    received_ms = parts.NOW_MS + offset_s * 1000
    found = opened(ENVELOPES["unstreamed"], received_ms=received_ms)
    assert isinstance(found, Summary) == is_opened
    assert isinstance(opened(ENVELOPES["streamed"], received_ms=received_ms), Summary)
    if not is_opened:
        assert found.rule == "outside-window"


@given(
    payload=st.binary(max_size=60).filter(lambda noise: noise[:2] != FIRST_BYTES)
    | json_values.map(lambda value: json.dumps(value).encode()),
    content_type=st.sampled_from([None, "application/json", "text/plain", 'a/b+json; x="{"', "bad\0"]),
    limits=st.builds(Limits, event_bytes=st.integers(230, 300), json_depth=st.integers(1, 4)),
)
@settings(max_examples=400, deadline=None)
def test_a_bare_payload_is_stored_as_the_event_around_it_is_written_and_checked(payload, content_type, limits):
    """What is stored of a bare payload, or refused, is what writing its event and reading it back gives."""
    job = Job(payload, "dev1", parts.NOW_MS, FRESH, "a.b", content_type)
    found = open_publish(TERMS._replace(limits=limits), job)
    kind = content_type or ("application/json" if is_json(payload) else "application/octet-stream")
    made = Event(
        id=FRESH,
        source="/devices/dev1",
        type="a.b",
        time="2027-01-15T08:00:00.000Z",
        datacontenttype=kind,
        payload=payload,
    )
    if "json" in kind and payload and not is_json(payload):
        assert found.rule == "content-type"
        return
    text = encode_event(made)
    try:
        decode_event(text, limits=limits, source="/devices/dev1")
    except EventRejected as exc:
        expected = exc
    else:
        assert found == Summary(b"[" + text + b"]", "", None, ("a.b",), 1, FRESH, ())
        return
    if content_type == "bad\0":  # it may be too large or too deep as well: either is said
        assert found.rule in ("bad-datacontenttype", expected.rule)
    else:
        assert found == Refusal(expected.rule, expected.detail)


def is_json(payload):
    try:
        msgspec.json.decode(payload.decode())
    except (UnicodeDecodeError, msgspec.DecodeError):
        return False
    return True


PUBLISHES = st.lists(
    st.tuples(
        st.integers(0, 2),  # lane
        st.sampled_from(["plain", "sealed", "large", "reseal", "bad"]),
        st.booleans(),  # whether the loop turns afterwards
    ),
    min_size=1,
    max_size=40,
)
FAILURES = st.lists(st.sampled_from([None, None, "unavailable", "full"]), max_size=8)


def payload(kind, lane, n):
    data = {"n": n, "fill": "x" * 20_000 if kind == "large" else ""}
    event = parts.event(data=data)
    if kind in ("plain", "large"):
        return event
    if kind == "sealed":
        return parts.sealed(event, device=f"dev{lane}")
    return parts.sealed(event, device=f"dev{lane}", key=parts.new_signing_key()) if kind == "reseal" else b"\xd0bad"


async def play(pipeline, publishes):
    """Submit everything; lane i is the connection of device `dev{i}`."""
    lanes, ledger = [Lane() for _ in range(3)], parts.Ledger()
    for n, (lane, kind, turn) in enumerate(publishes):
        each = parts.arrival(payload(kind, lane, n), device=f"dev{lane}", lane=lanes[lane])
        pipeline.submit(each, ledger.settle(n))
        if turn:
            await asyncio.sleep(0)
    async with asyncio.timeout(30):
        await pipeline.drain()
    return ledger.receipts


@given(publishes=PUBLISHES, failures=FAILURES)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_lanes_keep_order_whatever_fails(runner, publishes, failures):
    """Every publish is answered once; 0x00 means stored; order per lane holds; nothing follows a 0x83 or 0x97."""
    loop, pipeline, bus = runner
    storage = loop.run(parts.memory())
    bus.inner = storage.bus
    bus.failures = [{"unavailable": parts.unavailable(), "full": parts.full()}.get(each) for each in failures]
    with capture_logs():
        receipts = loop.run(play(pipeline, publishes))
    in_bus = [event.data["n"] for event in loop.run(parts.stored(storage.bus))]
    assert sorted(receipts) == list(range(len(publishes)))
    assert sorted(in_bus) == [n for n in sorted(receipts) if receipts[n] == STORED]
    for lane in range(3):
        mine = [n for n, publish in enumerate(publishes) if publish[0] == lane]
        assert [n for n in in_bus if n in mine] == [n for n in mine if receipts[n] == STORED]
        stops = [n for n in mine if not receipts[n].is_final]
        if stops:
            assert all(receipts[n] == receipts[stops[0]] for n in mine if n >= stops[0])
    loop.run(storage.aclose())


async def test_a_replayed_envelope_is_no_new_event(pipeline, bus):
    """An envelope that is sent again, by whoever may use the topic, adds nothing to the bus."""
    arrivals = [parts.arrival(envelope, lane=Lane()) for envelope in ENVELOPES.values() for _ in range(3)]
    assert await parts.publish(pipeline, *arrivals) == [STORED] * 6
    assert [event.data["n"] for event in await parts.stored(bus)] == [1, 2, 3]
