"""CloudEvents over HTTP: the three content modes."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_protocol.errors import EventRejected
from edge_protocol.events import Limits
from gateway.web.ingress import event_headers, read_events

LIMITS = Limits(event_bytes=1000, events=3, json_depth=4)
SOURCE = "/services/orders"
BINARY = {"ce-specversion": "1.0", "ce-id": "a1", "ce-type": "order_placed", "ce-source": "/anywhere"}
EVENT = {"specversion": "1.0", "id": "a1", "type": "order_placed", "source": "/anywhere", "data": {"n": 1}}
STRUCTURED = "application/cloudevents+json; charset=utf-8"
BATCHED = "application/cloudevents-batch+json"


def read(body, content_type=None, headers=None, limits=LIMITS):
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return read_events(raw, content_type=content_type, headers=headers or {}, limits=limits, source=SOURCE)


def refused(*args, **kwargs):
    with pytest.raises(EventRejected) as caught:
        read(*args, **kwargs)
    return caught.value


def test_binary_mode_takes_attributes_from_headers_and_data_from_the_body():
    """Headers are attributes, percent-decoded; the body is the data, verbatim."""
    headers = {**BINARY, "ce-subject": "caf%C3%A9%20%22x%22", "ce-partitionkey": "p"}
    (event,) = read(b'{ "n" : 1 }', "application/json", headers)
    assert (event.id, event.type, event.subject) == ("a1", "order_placed", 'café "x"')
    assert event.payload == b'{ "n" : 1 }'
    assert event.datacontenttype == "application/json"
    assert event.extensions == {"partitionkey": "p"}


def test_binary_mode_takes_bytes_that_are_no_json():
    """With another Content-Type the body is bytes."""
    (event,) = read(b"\x00\xff", "application/octet-stream", BINARY)
    assert event.data == b"\x00\xff"
    assert not event.is_json


def test_binary_mode_without_body_has_no_data():
    """An empty body is no data."""
    (event,) = read(b"", None, BINARY)
    assert event.data is None


def test_structured_and_batched_mode_read_the_json_format():
    """One event, and several in order."""
    (event,) = read(EVENT, STRUCTURED)
    assert event.data == {"n": 1}
    assert [each.id for each in read([EVENT, {**EVENT, "id": "a2"}], BATCHED)] == ["a1", "a2"]


@pytest.mark.parametrize("mode", ["binary", "structured", "batched"])
def test_source_stream_and_sequence_are_never_the_senders(mode):
    """The gateway sets `source` to the principal's and drops what it alone may set."""
    forged = {"source": "/devices/cart-7", "stream": "s", "sequence": "9"}
    if mode == "binary":
        events = read(b"1", None, BINARY | {f"ce-{name}": value for name, value in forged.items()})
    else:
        body = EVENT | forged
        events = read(body, STRUCTURED) if mode == "structured" else read([body], BATCHED)
    assert [(event.source, event.stream, event.sequence) for event in events] == [(SOURCE, None, None)]


@pytest.mark.parametrize(
    ("body", "content_type", "headers", "rule"),
    [
        (EVENT, "application/json", {}, "unsupported-content-type"),
        (EVENT, None, {}, "unsupported-content-type"),
        (EVENT, "application/cloudevents+avro", {}, "unsupported-content-type"),
        (b"{", STRUCTURED, {}, "bad-json"),
        (b"[{]", BATCHED, {}, "bad-json"),
        (b"\xff", STRUCTURED, {}, "bad-utf8"),
        (b"{", "application/json", BINARY, "bad-json"),
        (b'"\xff"', "application/json", BINARY, "bad-json"),
        (b'1,"id":"forged"', "application/json", BINARY, "bad-json"),
        (b"1", None, {**BINARY, "ce-subject": "%FF"}, "bad-utf8"),
        (b"1", None, {**BINARY, "ce-type": "no spaces"}, "bad-type"),
        (b"1", None, {**BINARY, "ce-specversion": "0.3"}, "bad-specversion"),
        (b"1", None, {**BINARY, "ce-data": "1"}, "bad-attribute"),
        (b"1", None, {**BINARY, "ce-datacontenttype": "text/plain"}, "bad-attribute"),
        (b"1", None, {name: value for name, value in BINARY.items() if name != "ce-id"}, "bad-id"),
        ({**EVENT, "type": 7}, STRUCTURED, {}, "bad-type"),
    ],
)
def test_a_refusal_names_its_rule(body, content_type, headers, rule):
    """What cannot be read is refused by a rule, never by an unforeseen error."""
    assert refused(body, content_type, headers).rule == rule


def test_a_refusal_in_a_batch_names_the_event():
    """The detail counts from 0."""
    assert refused([EVENT, {**EVENT, "type": "a b"}], BATCHED).detail.startswith("event 1: ")


@pytest.mark.parametrize(("size", "is_fine"), [(999, True), (1000, True), (1001, False)])
def test_binary_mode_keeps_the_size_limit(size, is_fine):
    """The limit holds for the body: n-1 and n pass, n+1 does not."""
    body = b"x" * size
    if is_fine:
        assert read(body, "text/plain", BINARY)[0].payload == body
    else:
        assert str(refused(body, "text/plain", BINARY)) == ("event-too-large: 1001 bytes, at most 1000 are allowed")


@pytest.mark.parametrize(("depth", "is_fine"), [(2, True), (3, True), (4, False)])
def test_binary_mode_keeps_the_depth_limit(depth, is_fine):
    """The event itself is the first level."""
    body = b"[" * depth + b"]" * depth
    if is_fine:
        read(body, "application/json", BINARY)
    else:
        assert refused(body, "application/json", BINARY).rule == "json-too-deep"


@pytest.mark.parametrize(("count", "is_fine"), [(0, False), (1, True), (3, True), (4, False)])
def test_a_batch_keeps_its_count(count, is_fine):
    """1 to 3 events here."""
    if is_fine:
        assert len(read([EVENT] * count, BATCHED)) == count
    else:
        assert refused([EVENT] * count, BATCHED).rule in {"too-many-events", "empty-batch"}


def test_deep_nesting_is_refused_without_recursion():
    """A bomb of brackets is a refusal like any other, in every mode."""
    bomb = b"[" * 200_000
    assert refused(bomb, BATCHED).rule in {"bad-json", "json-too-deep"}
    assert refused(bomb, STRUCTURED, limits=Limits()).rule in {"bad-json", "json-too-deep"}
    assert refused(bomb, "application/json", BINARY, limits=Limits()).rule == "json-too-deep"


@given(st.binary(max_size=200), st.sampled_from([None, STRUCTURED, BATCHED, "application/json", "text/plain"]))
def test_any_body_is_read_or_refused(body, content_type):
    """No bytes raise anything but EventRejected, and whatever is read has the principal's source."""
    try:
        events = read(body, content_type, BINARY)
    except EventRejected:
        return
    assert {event.source for event in events} == {SOURCE}


def test_event_headers_joins_repeated_ones():
    """RFC 9110: a repeated field is its values with commas; other headers are not picked, least of all the token."""
    pairs = [("CE-Id", "a"), ("ce-id", "b"), ("Authorization", "Bearer x"), ("Ce-Type", "t")]
    assert event_headers(pairs) == {"ce-id": "a,b", "ce-type": "t"}
