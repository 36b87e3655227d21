"""Plain payloads (wire protocol, section 3)."""

import json

import ingest_parts as parts
import pytest

from edge_protocol.envelope import AgeLimits
from edge_protocol.event import BATCH_TYPE, EVENT_TYPE
from edge_protocol.events import decode_stored
from edge_protocol.payload import Limits
from gateway.ingest.opener import Job, Refusal, Summary, Terms, open_publish

TERMS = Terms(parts.AUDIENCE, (), Limits(), AgeLimits())
FRESH = "01936c5c-0000-7000-8000-000000000001"


def opened(payload, **more):
    job = Job(payload=payload, device="dev1", received_ms=parts.NOW_MS, fresh_id=FRESH, **more)
    return open_publish(more.pop("terms", TERMS), job)


def typed(payload, *, event_type="temperature", **more):
    return opened(payload, event_type=event_type, **more)


def events_of(summary):
    assert isinstance(summary, Summary), summary
    return decode_stored(summary.body, summary.encoding, source="/devices/dev1", stream="", first=0)


def test_first_byte_tells_one_event_from_a_batch():
    """`{` is one CloudEvent and `[` a batch; both keep the ids their sender made, to be deduplicated by."""
    one = opened(parts.event(1, id_="a"))
    two = opened(b"[" + parts.event(1, id_="a", type_="x") + b"," + parts.event(2, id_="b") + b"]")
    assert (one.events, one.ids, one.last_id, one.types) == (1, ("a",), "a", ("cart_updated",))
    assert (two.events, two.ids, two.last_id, two.types) == (2, ("a", "b"), "b", ("cart_updated", "x"))
    assert [event.data for event in events_of(two)] == [{"n": 1}, {"n": 2}]


@pytest.mark.parametrize(
    ("payload", "detail"),
    [
        (b"", "nothing: expected 0xD0 (envelope), '{' (CloudEvent) or '[' (batch)"),
        (b" {}", "first byte 0x20: expected 0xD0 (envelope), '{' (CloudEvent) or '[' (batch)"),
        (b"21.5", "first byte 0x32: expected 0xD0 (envelope), '{' (CloudEvent) or '[' (batch)"),
        (b"\xd8\x10\x83", "first byte 0xD8: expected 0xD0 (envelope), '{' (CloudEvent) or '[' (batch)"),
    ],
)
def test_other_first_bytes_are_refused(payload, detail):
    """A payload that is neither an envelope nor CloudEvents JSON is refused with what was found."""
    assert opened(payload) == Refusal("unknown-payload", detail)


@pytest.mark.parametrize(
    ("payload", "content_type", "agrees"),
    [
        (parts.event(), EVENT_TYPE, True),
        (parts.event(), "Application/CloudEvents+JSON; charset=utf-8", True),
        (parts.event(), BATCH_TYPE, False),
        (parts.event(), "application/json", False),
        (b"[" + parts.event() + b"]", BATCH_TYPE, True),
        (b"[" + parts.event() + b"]", EVENT_TYPE, False),
        (b"\xd0\x83", EVENT_TYPE, False),
    ],
)
def test_a_content_type_must_agree_with_the_payload(payload, content_type, agrees):
    """A Content Type that contradicts the first byte is refused, whichever of the two is wrong."""
    found = opened(payload, content_type=content_type)
    assert isinstance(found, Summary) == agrees
    if not agrees:
        assert found.rule == "content-type"
        assert found.detail.startswith(repr(content_type))


@pytest.mark.parametrize("excess", [-1, 0, 1])
def test_a_plain_payload_may_weigh_as_much_as_an_envelope(excess):
    """The limit of one payload holds for plain ones too, exactly."""
    event = parts.event()
    limit = len(event) + 2 - excess
    terms = TERMS._replace(limits=Limits(envelope_bytes=limit))
    found = open_publish(terms, Job(b"[" + event + b"]", "dev1", parts.NOW_MS, ""))
    assert isinstance(found, Summary) == (excess <= 0)
    if excess > 0:
        assert found == Refusal("payload-too-large", f"{limit + 1} bytes, at most {limit} are allowed")


@pytest.mark.parametrize(
    ("payload", "content_type", "data"),
    [
        (b'{"celsius": 21.5}', "application/json", {"celsius": 21.5}),
        (b"21.5", "application/json", 21.5),
        (b"open", "application/octet-stream", b"open"),
        (b"\xff\xfe", "application/octet-stream", b"\xff\xfe"),
        (b"", "application/octet-stream", None),
    ],
)
def test_a_bare_payload_becomes_an_event_of_the_topics_type(payload, content_type, data):
    """A bare payload gets a fresh id, the time of arrival and a content type by whether it parses."""
    found = typed(payload)
    (event,) = events_of(found)
    assert (event.id, event.type, event.time) == (FRESH, "temperature", "2027-01-15T08:00:00.000Z")
    assert (event.datacontenttype, event.data) == (content_type, data)
    assert found.ids == (), "ids that the gateway made say nothing about repetition"


def test_a_bare_payload_keeps_the_content_type_it_came_with():
    """A Content Type is what the data is; one that says JSON is checked."""
    (event,) = events_of(typed(b"<a/>", content_type="application/xml"))
    assert (event.datacontenttype, event.data) == ("application/xml", b"<a/>")
    refused = typed(b"<a/>", content_type="application/json")
    assert refused == Refusal("content-type", "'application/json': the payload is not JSON")


def test_an_envelope_is_refused_on_a_typed_topic():
    """0xD0 0x83 on a typed topic is refused rather than stored as data; another 0xD0 is data."""
    refused = typed(parts.sealed())
    assert refused == Refusal("envelope-on-typed-topic", "expected event data; envelopes go to devices/ID/events")
    assert events_of(typed(b"\xd0\x84"))[0].data == b"\xd0\x84"


def test_a_structured_event_must_have_the_topics_type():
    """On a typed topic a structured CloudEvent counts as one, if its type is the topic's."""
    same = typed(parts.event(7, id_="s"), event_type="cart_updated", content_type=EVENT_TYPE)
    assert (same.ids, events_of(same)[0].data) == (("s",), {"n": 7})
    other = typed(parts.event(7), event_type="cart", content_type=EVENT_TYPE)
    assert other == Refusal("wrong-type", "type 'cart_updated': the topic says 'cart'")
    batch = typed(b"[]", content_type=BATCH_TYPE)
    assert batch.rule == "content-type"


def test_binary_mode_takes_user_properties_as_attributes():
    """With a core attribute among the user properties, all of them are attributes, and the sender's id counts."""
    found = typed(
        b'{"a":1}',
        attributes=(
            ("specversion", "1.0"),
            ("id", "own"),
            ("source", "/devices/dev1"),
            ("type", "temperature"),
            ("time", "2026-01-01T00:00:00Z"),
            ("subject", "oven"),
            ("traceparent", "00-1"),
        ),
    )
    (event,) = events_of(found)
    assert found.ids == ("own",)
    assert (event.id, event.time, event.subject) == ("own", "2026-01-01T00:00:00Z", "oven")
    assert (event.extensions, event.data) == ({"traceparent": "00-1"}, {"a": 1})


def test_user_properties_without_core_attributes_mean_nothing():
    """Properties of another purpose do not make a bare payload a CloudEvent in binary mode."""
    (event,) = events_of(typed(b"1", attributes=(("X-Trace", "1"), ("X-Trace", "2"))))
    assert event.extensions == {}


@pytest.mark.parametrize(
    ("attributes", "rule", "detail"),
    [
        ((("type", "humidity"),), "wrong-type", "type 'humidity': the topic says 'temperature'"),
        ((("source", "/devices/dev2"),), "wrong-source", "source '/devices/dev2': expected '/devices/dev1', or none"),
        ((("specversion", "0.3"),), "bad-specversion", 'specversion: expected "1.0"'),
        ((("id", "a"), ("id", "b")), "bad-attribute", "an attribute is named twice among the user properties"),
        ((("id", "a"), ("data", "b")), "bad-data", "data: expected as the payload, not as a user property"),
        ((("id", ""),), "bad-id", "id: expected 1 to 1024 characters without control characters"),
        ((("time", "now"),), "bad-time", "time: expected RFC 3339, such as 2026-11-23T09:30:00Z"),
        ((("id", "a"), ("Bad-Name", "b")), "bad-attribute", "attribute 'Bad-Name': expected 1 to 20 of a-z 0-9"),
        ((("id", "a"), ("sequence", "7")), "bad-attribute", "sequence: set by the gateway from the envelope"),
    ],
)
def test_binary_mode_is_checked_like_any_event(attributes, rule, detail):
    """What a property says must be right, and nothing that only the gateway may say."""
    refused = typed(b"1", attributes=attributes)
    assert refused.rule == rule
    assert refused.detail.startswith(detail)


def test_binary_mode_content_types_must_be_one():
    """`datacontenttype` as a property must equal the Content Type."""
    found = typed(b"1", content_type="text/plain", attributes=(("datacontenttype", "application/json"),))
    assert found == Refusal("content-type", "Content Type and datacontenttype differ")


@pytest.mark.parametrize(("levels", "is_refused"), [(30, False), (31, False), (32, True), (100_000, True)])
def test_depth_counts_the_event_itself(levels, is_refused):
    """Bare data may nest as deep as leaves room for the event around it, and no depth ends the process."""
    found = typed(b"[" * levels + b"]" * levels)
    assert isinstance(found, Refusal) == is_refused
    if is_refused:
        assert found.rule == "json-too-deep"


def test_whatever_goes_wrong_costs_one_publish_only():
    """An error of a decoder that nobody thought of refuses that payload, and names only the kind of error."""
    broken = Job(payload=None, device="dev1", received_ms=parts.NOW_MS, fresh_id="")
    assert open_publish(TERMS, broken) == Refusal("cannot-open", "opening the payload failed (TypeError)")


def test_a_stored_body_is_the_senders_text():
    """What the device wrote is stored as it wrote it, unknown attributes and spelling of numbers included."""
    text = b'{"specversion":"1.0","id":"a","type":"t","shoe":"x","data":{"n":1.50}}'
    assert opened(text).body == b"[" + text + b"]"
    assert json.loads(opened(text).body)[0]["shoe"] == "x"
