"""Runs of bare payloads: opened at once only where that gives the events that opening each alone gives."""

import base64
import json

import ingest_parts as parts
import pytest
from hypothesis import event, example, given, settings
from hypothesis import strategies as st
from protocol_strategies import json_values

from edge_protocol.envelope import AgeLimits
from edge_protocol.errors import EventRejected
from edge_protocol.events import decode_stored
from edge_protocol.payload import Limits
from gateway.ingest.opener import Terms, open_run
from gateway.ingest.plain import Arrived, read_typed, read_untyped
from gateway.ingest.runs import read_bare_run, read_structured_run
from gateway.rules.framed import MAX_EVENTS, unframed

SOURCE = "/devices/dev1"
ARRIVED = Arrived("01936c5c-0000-7000-8000-0000000000aa", "2027-01-15T08:00:00.000Z")
CONTENT_TYPES = [
    None,
    "application/json",
    "Application/JSON; charset=utf-8",
    "a/b+json",
    "text/plain",
    "application/octet-stream",
    "application/cloudevents+json",
    "application/cloudevents-batch+json",
    "",
    "bad\0",
    "no-slash",
    "x/" + "y" * 300,
]


def run_of(payloads, *, content_type=None, limits=None, event_type="a.b", arrived=ARRIVED):
    return read_bare_run(
        payloads,
        event_type=event_type,
        content_type=content_type,
        source=SOURCE,
        limits=limits or Limits(),
        arrived=arrived,
    )


def alone(payload, n=0, *, content_type=None, limits=None, event_type="a.b"):
    """What `read_typed` makes of one payload that came as number n of a run."""
    return read_typed(
        payload,
        event_type=event_type,
        content_type=content_type,
        attributes=(),
        source=SOURCE,
        limits=limits or Limits(),
        arrived=Arrived(f"{ARRIVED.id[:-2]}{n:02x}", ARRIVED.time),
    )


def batch_of(summary):
    body, encoding = unframed(summary.body, summary.encoding)
    assert encoding == ""
    return body


def nested(levels):
    return b"[" * levels + b"]" * levels


NUMBERS = st.sampled_from(
    [b"1e400", b"-1e400", b"1" * 30, b"9" * 400, b"-0", b"01", b"1.", b"18446744073709551616", b"NaN", b"Infinity"]
)
TEXTS = st.sampled_from(
    [
        b'"\xff"',
        b'"\xed\xa0\x80"',
        b'{"\xff":1}',
        b'{"a":1,"a":2}',
        b'"\\ud800"',
        b'"\\u0000"',
        b'"\0"',
        b'{"a":1}x',
        b" 1 ",
        b"\n{}\t",
        b"\xef\xbb\xbf1",
        b"\x0b1",
        b"true",
        b"nope",
        b"",
        b" ",
        b"[1,]",
        b"{1:2}",
        b"// 1",
    ]
)
STARTS = st.binary(max_size=4).map(lambda rest: b"\xd0" + rest) | st.just(b"\xd0\x83")
JSON = json_values.map(lambda value: json.dumps(value).encode())
DEEP = st.integers(1, 6).map(nested) | st.integers(1, 6).map(lambda n: b'{"a":' * n + b"1" + b"}" * n)
PAYLOADS = st.one_of(
    st.lists(JSON | DEEP, min_size=1, max_size=8),
    st.lists(st.binary(min_size=1, max_size=20), min_size=1, max_size=8),
    st.lists(JSON | DEEP | NUMBERS | TEXTS, min_size=1, max_size=4),
    st.lists(JSON | DEEP | NUMBERS | TEXTS | STARTS | st.binary(max_size=20), min_size=1, max_size=4),
)
LIMITS = st.builds(Limits, event_bytes=st.integers(190, 300) | st.just(10_000), json_depth=st.integers(1, 8))


@given(payloads=PAYLOADS, content_type=st.sampled_from(CONTENT_TYPES), limits=LIMITS)
@example(payloads=[b"1", b"2"], content_type="", limits=Limits())
@example(payloads=[b"a", b"b"], content_type="", limits=Limits())
@settings(max_examples=1500, deadline=None)
def test_a_run_is_what_opening_each_gives_or_nothing(payloads, content_type, limits):
    """Either a run is not taken, or it holds byte for byte the event of each payload; none that alone is refused."""
    try:
        found = run_of(payloads, content_type=content_type, limits=limits)
    except EventRejected:
        for n, payload in enumerate(payloads):
            with pytest.raises(EventRejected):
                alone(payload, n, content_type=content_type, limits=limits)
        return
    event("taken" if found else "not taken")
    if found is None:
        return
    each = [alone(payload, n, content_type=content_type, limits=limits) for n, payload in enumerate(payloads)]
    assert batch_of(found) == b"[" + b",".join(summary.body[1:-1] for summary in each) + b"]"
    assert (found.events, found.types, found.place, found.ids) == (len(payloads), ("a.b",), None, ())
    assert found.last_id == each[-1].last_id
    read = decode_stored(batch_of(found), "", source=SOURCE, stream="", first=0)
    assert len({one.id for one in read}) == len(payloads)
    assert read[-1].id == found.last_id


@pytest.mark.parametrize(
    ("payloads", "content_type", "is_taken"),
    [
        ([b'{"n":1}', b"[2]", b'"3"', b"4.5", b"null"], None, True),
        ([b'{"n":1}', b"open"], None, False),
        ([b"open", b'{"n":1}'], None, False),
        ([b"open", b"shut"], None, True),
        ([b"\x00\xff", b"\x01"], None, True),
        ([b"1", b"2"], "application/json", True),
        ([b"open", b"2"], "text/plain", True),
        ([b"open", b"2"], "application/json", False),
        ([b"1", b""], "application/json", False),
        ([b"open", b""], None, False),
        ([b"{open", b"tshut", b"1-2"], None, True),
        ([b"open", b"{shut", b"\xd0\x82", b"\xd0"], None, True),
        ([b"open", nested(5000)], None, False),
        ([nested(5000), b"open"], None, False),
        ([b"open", b"\xd0\x83"], None, False),
        ([b"open", b"\xd0\x83"], "text/plain", False),
        ([b"{}", b"{}"], "application/cloudevents+json", False),
        ([b"{}", b"{}"], "APPLICATION/CloudEvents+JSON", False),
        ([b"{}", b"{}"], "application/cloudevents-batch+json", False),
    ],
)
def test_which_runs_are_taken(payloads, content_type, is_taken):
    """All JSON or none of it is taken; empty ones, possible envelopes and CloudEvents are looked at alone."""
    assert (run_of(payloads, content_type=content_type) is not None) is is_taken


@pytest.mark.parametrize("payload", [b'{"n":1}', b"open"])
@pytest.mark.parametrize("count", [1, 255, 256, 257])
def test_a_run_has_at_most_256_payloads(payload, count):
    """The last two digits of an id count 256 events; more are not taken."""
    assert MAX_EVENTS == 256
    found = run_of([payload] * count)
    assert (found is not None) is (count <= 256)
    if found:
        read = decode_stored(batch_of(found), "", source=SOURCE, stream="", first=0)
        assert [one.id for one in read] == [f"{ARRIVED.id[:-2]}{n:02x}" for n in range(count)]


@pytest.mark.parametrize("excess", [-1, 0, 1])
@pytest.mark.parametrize("payload", [b'{"n":12345}', b"\xffopen"])
@pytest.mark.parametrize("at", [0, 1, 4])
def test_the_limit_of_an_event_holds_for_each(excess, payload, at):
    """A run is taken up to the size that one of its events may have, exactly, wherever the largest stands."""
    small = payload[:1] + payload[-1:] if payload[:1] == b"{" else payload[:2]
    payloads = [small] * 5
    payloads[at] = payload
    limit = len(alone(payload).body) - 2 - excess
    found = run_of(payloads, limits=Limits(event_bytes=limit))
    assert (found is not None) is (excess <= 0)
    if excess > 0:
        with pytest.raises(EventRejected, match=str(limit)):
            alone(payload, limits=Limits(event_bytes=limit))


@pytest.mark.parametrize("excess", [-1, 0, 1])
def test_the_limit_of_a_payload_holds_for_each(excess):
    """A payload over the size of an envelope is not taken, though its event would be small enough."""
    limits = Limits(envelope_bytes=100)
    found = run_of([b"1", b'"' + b"x" * (98 + excess) + b'"', b"2"], limits=limits)
    assert (found is not None) is (excess <= 0)


@pytest.mark.parametrize("depth", range(1, 9))
@pytest.mark.parametrize("levels", range(1, 9))
def test_depth_is_never_exceeded(depth, levels):
    """What nests deeper than allowed is never taken; plainly shallow data is, from a depth of 4 on."""
    found = run_of([b"1", nested(levels)], limits=Limits(json_depth=depth))
    if found is not None:
        alone(nested(levels), limits=Limits(json_depth=depth))
    assert (found is not None) is (depth >= 4 and levels <= 3)


def test_no_depth_ends_the_process():
    """A payload that nests a hundred thousand times is looked at alone, where it is refused."""
    assert run_of([b"1", nested(100_000)]) is None


def test_binary_data_is_kept():
    """What is not JSON is stored in base64, as alone."""
    found = run_of([b"\xff\x00", b"open"], content_type="image/x")
    read = decode_stored(batch_of(found), "", source=SOURCE, stream="", first=0)
    assert [(one.data, one.datacontenttype) for one in read] == [(b"\xff\x00", "image/x"), (b"open", "image/x")]
    assert base64.b64encode(b"\xff\x00") in found.body


@given(random=st.binary(min_size=10, max_size=10))
def test_ids_are_valid_fresh_and_ordered(random):
    """Ids of a run are UUIDv7 of the time of arrival, ascend, and are not those of a run of the same millisecond."""
    terms = Terms(parts.AUDIENCE, (), Limits(), AgeLimits())
    arrival = parts.arrival(b"1", event_type="t")
    ids = []
    for source in (random, bytes(each ^ 0x55 for each in random)):
        found = open_run(terms, arrival, [b"1"] * 256, source)
        ids.append([one.id for one in decode_stored(batch_of(found), "", source=SOURCE, stream="", first=0)])
    assert ids[0] == sorted(set(ids[0]))
    assert not set(ids[0]) & set(ids[1])
    for id_ in ids[0]:
        assert int(id_.replace("-", "")[:12], 16) == parts.NOW_MS
        assert id_[14] == "7"
        assert id_[19] in "89ab"


EVENTS = st.one_of(
    st.builds(parts.event, st.integers(0, 99), id_=st.sampled_from("abc"), type_=st.sampled_from(["a", "b.c"])),
    st.builds(
        lambda one, blanks: one + blanks, st.just(parts.event(1)), st.text(" \t\r\n", max_size=2).map(str.encode)
    ),
    st.builds(lambda n: parts.event(data=json.loads(nested(n))), st.integers(1, 6)),
)
NO_EVENTS = st.sampled_from(
    [
        b"",
        b"{}",
        b" " + parts.event(1),
        parts.event(1)[:-1],
        parts.event(1)[:-1] + b',"id":"twice"}',
        parts.event(1) + b"," + parts.event(2),
        parts.event(1) + b',{"x":"',
        b'{"}' + parts.event(1),
        parts.event(1, type_="a" * 256),
        parts.event(1, stream="s"),
        b"[" + parts.event(1) + b"]",
        parts.sealed(),
        b'{"specversion":"1.0","id":"\xff","type":"t"}',
    ]
)


@given(
    payloads=st.lists(EVENTS, min_size=1, max_size=5) | st.lists(EVENTS | NO_EVENTS, min_size=1, max_size=5),
    content_type=st.sampled_from([None, None, *CONTENT_TYPES]),
    limits=LIMITS | st.builds(Limits, envelope_bytes=st.integers(60, 120)),
)
@settings(max_examples=1500, deadline=None)
def test_a_run_of_cloud_events_is_what_opening_each_gives_or_nothing(payloads, content_type, limits):
    """Either a run is not taken, or it holds byte for byte the text of each event; none that alone is refused."""
    said = {"content_type": content_type, "source": SOURCE, "limits": limits}
    try:
        found = read_structured_run(payloads, **said)
    except EventRejected:
        found = None
    event("taken" if found else "not taken")
    if found is None:
        return
    each = [read_untyped(payload, **said) for payload in payloads]
    assert batch_of(found) == b"[" + b",".join(summary.body[1:-1] for summary in each) + b"]"
    assert found.types == tuple(sorted({type_ for summary in each for type_ in summary.types}))
    assert found.ids == tuple(id_ for summary in each for id_ in summary.ids)
    assert (found.events, found.place, found.last_id) == (len(payloads), None, each[-1].last_id)
    read = decode_stored(batch_of(found), "", source=SOURCE, stream="", first=0)
    assert tuple(one.id for one in read) == found.ids


def test_which_runs_of_cloud_events_are_taken():
    """Single CloudEvents are, whatever their types and ids; batches, envelopes and what is no event are not."""
    said = {"content_type": None, "source": SOURCE, "limits": Limits()}
    good = [parts.event(n, type_=f"t{n}") for n in range(3)]
    assert read_structured_run(good, **said).types == ("t0", "t1", "t2")
    assert read_structured_run([*good, parts.sealed()], **said) is None
    assert read_structured_run([*good, b"[" + good[0] + b"]"], **said) is None
    with pytest.raises(EventRejected):
        read_structured_run([*good, b"{}"], **said)


def test_what_cannot_be_read_is_no_run():
    """Each payload is then opened for itself, which says what is wrong with it."""
    terms = Terms(parts.AUDIENCE, (), Limits(), AgeLimits())
    for bad in (b"{}", b"1", b'{"data":' + nested(100_000) + b"}"):
        assert open_run(terms, parts.arrival(parts.event()), [parts.event(), bad], bytes(10)) is None


def test_a_type_that_no_event_may_have_is_said_of_each():
    """Where every event would be refused a run is not taken: opening each says why."""
    terms = Terms(parts.AUDIENCE, (), Limits(), AgeLimits())
    for more in ({"event_type": "x" * 2000}, {"event_type": "t", "content_type": "bad\0"}):
        assert open_run(terms, parts.arrival(b"1", **more), [b"1", b"2"], bytes(10)) is None
