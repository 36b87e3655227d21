"""Events: round trips, every refusal with its text, limits at n-1, n, n+1, and bombs that stay small."""

import base64
import json
import re

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from protocol_strategies import SOURCE, event_types, events, json_values
from unit.protocol.reading import GOOD, read, read_batch, refusal, text

from edge_protocol.errors import EventRejected
from edge_protocol.events import (
    Event,
    Limits,
    decode_stored,
    deflate,
    encode_batch,
    encode_event,
    event_ids,
    is_event_type,
    is_json_type,
    split_batch,
)


@given(st.lists(events(), min_size=1, max_size=5))
def test_round_trip(sent):
    """Every event comes back equal: attributes, extensions and data, alone, in a batch, and from the store."""
    batch = encode_batch(map(encode_event, sent))
    assert [read(encode_event(event)) for event in sent] == sent
    assert read_batch(batch) == sent
    assert decode_stored(deflate(batch), "deflate", source=SOURCE, stream="", first=0) == sent
    assert event_ids(batch, "") == [event.id for event in sent]


@given(events(), st.integers(0, 3))
def test_other_spellings_of_the_same_event_are_read_alike(event, indent):
    """Blanks between members and escapes in names and values change nothing of the attributes."""
    plain = json.loads(encode_event(event))
    spelt = json.dumps(plain, ensure_ascii=True, indent=indent).replace('"id"', '"\\u0069d"', 1).encode()
    got = read(b" \n" + spelt + b"\t ")
    assert (got.id, got.type, got.extensions) == (event.id, event.type, event.extensions)
    assert got.data == event.data


@given(json_values, json_values)
def test_data_is_kept_verbatim(value, other):
    """Data stays the text that the producer wrote, blanks and order of members included."""
    written = json.dumps({"z": value, "a": [other]}, indent=1).encode()
    event = read(b'{"data": ' + written + b', "type":"t","id":"a", "specversion":"1.0"}')
    assert event.payload == written
    assert read(encode_event(event)).payload == written


def test_null_members_are_unset():
    """A null member is an unset one, be it an attribute, an extension or data (CloudEvents JSON format, 2.2)."""
    event = read(text(time=None, subject=None, mine=None, data=None, data_base64=None, source=None))
    assert event == Event(id="a", source=SOURCE, type="t")
    assert event.data is None


@pytest.mark.parametrize(
    ("members", "payload", "data"),
    [
        ({"data": "x"}, b'"x"', "x"),
        ({"data": ""}, b'""', ""),
        ({"data": 0}, b"0", 0),
        ({"data": False}, b"false", False),
        ({"data": "x\u00e9", "datacontenttype": "text/plain"}, "x\u00e9".encode(), "x\u00e9".encode()),
        ({"data": {"a": 1}, "datacontenttype": "text/plain"}, b'{"a": 1}', b'{"a": 1}'),
        ({"data_base64": "AP8=", "datacontenttype": "application/octet-stream"}, b"\0\xff", b"\0\xff"),
        ({"data_base64": base64.b64encode(b"[1]").decode()}, b"[1]", [1]),
        ({"data_base64": ""}, b"", None),
        ({"data": [1], "datacontenttype": "Application/Vnd.X+JSON; charset=utf-8"}, b"[1]", [1]),
    ],
)
def test_data_forms(members, payload, data):
    """Data is JSON text or bytes as datacontenttype says, whichever member carried it."""
    event = read(text(**members))
    assert (event.payload, event.data) == (payload, data)


def test_stored_events_carry_stream_and_sequence():
    """What is read back from the bus names its stream and its number there."""
    body = encode_batch([text(mine=1), text(id="b")])
    first, second = decode_stored(body, "", source=SOURCE, stream="s", first=41)
    assert first.extensions == {"mine": 1, "stream": "s", "sequence": "41"}
    assert (second.stream, second.sequence, second.device) == ("s", 42, "dev-1")
    again = decode_stored(b"[" + encode_event(second) + b"]", "", source=SOURCE, stream="", first=0)
    assert again == [second]


def test_source_tells_the_device():
    """Only a device's event has a device, and an event without a stream has no number."""
    event = Event(id="a", source="/services/shop", type="t")
    assert (event.device, event.stream, event.sequence) == (None, None, None)


def test_split_batch_cuts_ranges():
    """Ranges are inclusive, keep their order, and their events stay verbatim."""
    body = encode_batch([text(id=str(n), data={"n": n}) for n in range(5)])
    whole, tail = split_batch(deflate(body), "deflate", [(0, 4), (3, 4)])
    assert whole == body
    assert tail == encode_batch([text(id="3", data={"n": 3}), text(id="4", data={"n": 4})])
    assert event_ids(tail, "") == ["3", "4"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "bad-json: not JSON: Input data was truncated"),
        (b"{", "bad-json: not JSON: Input data was truncated"),
        (b"nonsense", "bad-json: not JSON: JSON is malformed: invalid character"),
        (b"[]", "bad-json: not a CloudEvent: expected `object`, got `array`"),
        (b"1", "bad-json: not a CloudEvent: expected `object`, got `int`"),
        (text() + b"x", "bad-json: not JSON: JSON is malformed: trailing characters"),
        (text() + b"\0", "bad-json: not JSON"),
        (text(x=1)[:-1] + b",}", "bad-json: not JSON: JSON is malformed"),
        (b"\xef\xbb\xbf" + text(), "bad-json: not JSON"),
        (text().decode().encode("utf-16"), "bad-utf8: byte 0 is not UTF-8"),
        (text(id="X").replace(b"X", b"\xff"), "bad-utf8: byte 30 is not UTF-8"),
        (text(id="X").replace(b"X", b"\xed\xa0\x80"), "bad-utf8: byte 30 is not UTF-8"),
        (text(id="X").replace(b"X", b"\xc0\x80"), "bad-utf8: byte 30 is not UTF-8"),
        (text(id="X").replace(b"X", b"\\ud800"), "bad-json: not JSON"),
        (text(id="X").replace(b"X", b"\\udc00\\ud800"), "bad-json: not JSON"),
        (text(id="X").replace(b"X", b"\x01"), "bad-json: not JSON"),
        (text(mine="X").replace(b"X", b"\\ud800"), "bad-json: not JSON"),
        (text(data="X").replace(b"X", b"\\ud800"), "bad-json: not JSON"),
        (text(data="X").replace(b"X", b"\n"), "bad-json: not JSON"),
        (text(data=[9]).replace(b"9", b"NaN"), "bad-json: not JSON"),
        (text(data=[9]).replace(b"9", b"-Infinity"), "bad-json: not JSON"),
        (text(data=[9]).replace(b"9", b"01"), "bad-json: not JSON: JSON is malformed: invalid number"),
        (text(data=[9]).replace(b"9", b"1e999"), "bad-data: data: expected JSON that can be read (Number out of range"),
        (text(data=[9]).replace(b"9", b"'a'"), "bad-json: not JSON"),
        (text(x=9).replace(b"9", b"NaN"), "bad-json: not JSON"),
    ],
)
def test_bad_json(data, message):
    """What is not one strict JSON object in UTF-8 is refused, with the place where it goes wrong."""
    assert refusal(data).startswith(message)


TYPE_RULE = ": expected dotted levels of A-Z a-z 0-9 _ -, at most 255"
TEXT_RULE = ": expected 1 to 1024 characters without control characters"


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"specversion": "0.3"}, 'bad-specversion: specversion: expected "1.0"'),
        ({"specversion": 1.0}, "bad-specversion: specversion: expected a string, found another type"),
        ({"specversion": None}, "bad-specversion: specversion: expected a string, found nothing"),
        ({"id": 7}, "bad-id: id: expected a string, found another type"),
        ({"id": None}, "bad-id: id: expected a string, found nothing"),
        ({"id": ""}, "bad-id: id" + TEXT_RULE),
        ({"id": "x" * 1025}, "bad-id: id" + TEXT_RULE),
        ({"id": "a\nb"}, "bad-id: id" + TEXT_RULE),
        ({"id": "a\x00"}, "bad-id: id" + TEXT_RULE),
        ({"id": "a\x7f"}, "bad-id: id" + TEXT_RULE),
        ({"id": "a\x9f"}, "bad-id: id" + TEXT_RULE),
        ({"id": "a\ufffe"}, "bad-id: id" + TEXT_RULE),
        ({"id": "a\U0010ffff"}, "bad-id: id" + TEXT_RULE),
        ({"id": "a\ufdd0"}, "bad-id: id" + TEXT_RULE),
        ({"type": True}, "bad-type: type: expected a string, found another type"),
        ({"type": ""}, "bad-type: type ''" + TYPE_RULE),
        ({"type": "a..b"}, "bad-type: type 'a..b'" + TYPE_RULE),
        ({"type": ".a"}, "bad-type: type '.a'" + TYPE_RULE),
        ({"type": "a."}, "bad-type: type 'a.'" + TYPE_RULE),
        ({"type": "a/b"}, "bad-type: type 'a/b'" + TYPE_RULE),
        ({"type": "a\n"}, "bad-type: type 'a\\n'" + TYPE_RULE),
        ({"type": "#"}, "bad-type: type '#'" + TYPE_RULE),
        ({"type": "\u00e9"}, "bad-type: type '\u00e9'" + TYPE_RULE),
        ({"source": "/devices/dev-2"}, "wrong-source: source '/devices/dev-2': expected '/devices/dev-1', or none"),
        ({"source": ""}, "wrong-source: source '': expected '/devices/dev-1', or none"),
        ({"source": ["x"]}, "bad-source: source: expected a string, found another type"),
        ({"time": "yesterday"}, "bad-time: time: expected RFC 3339, such as 2026-11-23T09:30:00Z"),
        ({"time": 1795000000}, "bad-time: time: expected a string, found another type"),
        ({"time": "2026-11-23"}, "bad-time: time: expected RFC 3339"),
        ({"time": "2026-11-23T09:30:00"}, "bad-time: time: expected RFC 3339"),
        ({"time": "2026-13-01T09:30:00Z"}, "bad-time: time: expected RFC 3339"),
        ({"time": "2026-02-30T09:30:00Z"}, "bad-time: time: expected RFC 3339"),
        ({"time": "0000-01-01T09:30:00Z"}, "bad-time: time: expected RFC 3339"),
        ({"time": "2026-11-23T24:00:00Z"}, "bad-time: time: expected RFC 3339"),
        ({"time": "2026-11-23T09:60:00Z"}, "bad-time: time: expected RFC 3339"),
        ({"time": "2026-11-23T09:30:00+24:00"}, "bad-time: time: expected RFC 3339"),
        ({"time": "2026-11-23T09:30:00.1234567890Z"}, "bad-time: time: expected RFC 3339"),
        ({"time": "\u0662026-11-23T09:30:00Z"}, "bad-time: time: expected RFC 3339"),
        ({"time": "2026-11-23T09:30:00Z\n"}, "bad-time: time: expected RFC 3339"),
        ({"subject": ""}, "bad-subject: subject" + TEXT_RULE),
        ({"subject": 1}, "bad-subject: subject: expected a string, found another type"),
        ({"datacontenttype": "a\r\nX: y"}, "bad-datacontenttype: datacontenttype" + TEXT_RULE),
        ({"dataschema": "x" * 1025}, "bad-dataschema: dataschema" + TEXT_RULE),
        ({"data": 1, "data_base64": "AA=="}, "bad-data: expected data or data_base64, found both"),
        ({"data_base64": "A"}, "bad-data: data_base64: expected standard base64"),
        ({"data_base64": "A A="}, "bad-data: data_base64: expected standard base64"),
        ({"data_base64": "_-8="}, "bad-data: data_base64: expected standard base64"),
        ({"data_base64": 1}, "bad-data_base64: data_base64: expected a string, found another type"),
        ({"data_base64": "AA=="}, "bad-data: data_base64: expected JSON, as datacontenttype says (JSON is malformed"),
        ({"data_base64": "Iv8i"}, "bad-data: data_base64: expected JSON, as datacontenttype says ('utf-8' codec"),
        ({"Mine": 1}, "bad-attribute: attribute 'Mine': expected 1 to 20 of a-z 0-9"),
        ({"my_own": 1}, "bad-attribute: attribute 'my_own': expected 1 to 20 of a-z 0-9"),
        ({"": 1}, "bad-attribute: attribute '': expected 1 to 20 of a-z 0-9"),
        ({"a" * 21: 1}, "bad-attribute: attribute 'aaaaaaaaaaaaaaaaaaaaa': expected 1 to 20 of a-z 0-9"),
        ({'"': 1}, "bad-json: expected each member once, and no quote in its name"),
        ({"mine": 1.5}, "bad-attribute: mine: expected a string, an integer or a boolean"),
        ({"mine": {}}, "bad-attribute: mine: expected a string, an integer or a boolean"),
        ({"mine": "a\r\nb"}, "bad-attribute: mine: expected no control characters"),
        ({"mine": 2**31}, "bad-attribute: mine: expected an integer of 32 bits (CloudEvents 1.0, section 3.1)"),
        ({"mine": -(2**31) - 1}, "bad-attribute: mine: expected an integer of 32 bits"),
        ({"stream": "s"}, "bad-attribute: stream: set by the gateway from the envelope, expected none"),
        ({"sequence": "7"}, "bad-attribute: sequence: set by the gateway from the envelope, expected none"),
    ],
)
def test_refusals(members, message):
    """Each rule of section 4 refuses with its name, alone and in a batch, where the detail counts the event."""
    assert refusal(text(**members)).startswith(message)
    rule, _, detail = message.partition(": ")
    assert refusal(encode_batch([text(), text(**members)]), read_batch).startswith(f"{rule}: event 1: {detail}")


@pytest.mark.parametrize("name", ["specversion", "id", "type"])
def test_required_attributes(name):
    """Without one of the required attributes there is no event."""
    data = json.dumps({key: value for key, value in GOOD.items() if key != name}).encode()
    assert refusal(data) == f"bad-{name}: {name}: expected a string, found nothing"
    batch = encode_batch([text(), text(), data])
    assert refusal(batch, read_batch) == f"bad-{name}: event 2: {name}: expected a string, found nothing"


@pytest.mark.parametrize(
    "members",
    [
        {"id": "x" * 1024},
        {"id": "\u00e9\u4e2d\U0001f600\u00a0"},
        {"type": "A-z_0.b"},
        {"source": SOURCE},
        {"time": "2026-11-23t23:59:60.123456789+23:59"},
        {"time": "2024-02-29T00:00:00z"},
        {"a" * 20: "", "b": 2**31 - 1, "c": -(2**31), "d": True},
        {"mine": 'say "hi" \\ \u00e9'},
        {"subject": 'say "hi"'},
        {"data": {"id": 1, "a": {"a": '"{[\\'}}},
    ],
)
def test_what_is_allowed(members):
    """The last value of each range passes, and quotes or brackets in values confuse nothing."""
    event = read(text(**members))
    assert {name: getattr(event, name, None) or event.extensions.get(name) for name in members if name != "data"} == {
        name: value or None for name, value in members.items() if name != "data"
    } or event.extensions == members
    assert read_batch(encode_batch([text(**members)])) == [event]


@pytest.mark.parametrize(
    "extra",
    [
        b'"id":"b"',
        b'"\\u0069d":"b"',
        b'"type":"t"',
        b'"data":1,"data":2',
        b'"data":"\\"","data":1',
        b'"data":null,"data":1',
        b'"mine":1,"mine":1',
        b'"mine":null,"mine":1',
        b'"min\\u0065":1,"mine":1',
        b'"data_base64":"","data_base64":""',
    ],
)
def test_duplicate_members_are_refused(extra):
    """No member stands twice, however its name is spelt: two readers must never see two events."""
    data = text()[:-1] + b"," + extra + b"}"
    assert refusal(data) == "bad-json: expected each member once, and no quote in its name"
    assert "event 0: expected each member once" in refusal(b"[" + data + b"]", read_batch)


_members = st.fixed_dictionaries(
    {"specversion": st.sampled_from(["1.0", "1.1"]), "id": st.text(max_size=3), "type": event_types | st.just("a/b")},
    optional={
        "source": st.sampled_from([SOURCE, "/devices/other", None]),
        "time": st.sampled_from(["2026-11-23T09:30:00Z", "2026-02-30T09:30:00Z", "now", None]),
        "subject": st.sampled_from(["s", "", None]),
        "datacontenttype": st.sampled_from(["text/plain", "application/json"]),
        "data_base64": st.sampled_from(["MQ==", "?"]),
        "abcdef": st.just(12),
    },
)


@given(_members, st.none() | json_values.map(json.dumps) | st.text('{}[]"\\1\ud800', max_size=6), st.integers(1, 4))
def test_a_blank_between_members_changes_nothing(members, data, depth):
    """What is usual is read in fewer steps, and found the same: the same event, or refused in the same words."""
    written = b",".join(f"{json.dumps(name)}:{json.dumps(value)}".encode() for name, value in members.items())
    if data is not None:
        written += b',"data":' + data.encode("utf-8", "surrogatepass")
    assert _told(b"{" + written + b"}", depth) == _told(b"{" + written + b" }", depth)


def _told(data, depth):
    try:
        return read(data, json_depth=depth)
    except EventRejected as exc:
        return re.sub(r"byte [0-9]+", "byte", str(exc))


@pytest.mark.parametrize("n", [9, 10, 11])
def test_event_count_limit(n):
    """A batch has at least one event and at most the limit."""
    batch = encode_batch([text()] * n)
    if n <= 10:
        assert len(read_batch(batch, events=10)) == n
    else:
        assert refusal(batch, read_batch, events=10) == "too-many-events: 11 events in a batch, expected 1 to 10"


def test_an_empty_batch_is_refused():
    """A batch without an event has nothing to acknowledge."""
    assert refusal(b"[]", read_batch) == "empty-batch: 0 events in a batch, expected 1 to 1000"
    assert refusal(text(), read_batch) == "bad-json: not a CloudEvent: expected `array`, got `object`"
    assert refusal(b"[1]", read_batch) == "bad-json: event 0: not a CloudEvent: expected `object`, got `int`"


@pytest.mark.parametrize("blank", [b" ", b""])
@pytest.mark.parametrize("more", [-1, 0, 1])
def test_event_size_limit(more, blank):
    """An event of exactly the limit passes, alone and in a batch; one byte more does not."""
    data = text(data="x" * 100).replace(b" ", blank)
    limit = len(data) - more
    if more <= 0:
        assert read(data, event_bytes=limit) == read_batch(b"[ " + data + b" ]", event_bytes=limit)[0]
        return
    message = f"{len(data)} bytes, at most {limit} are allowed"
    assert refusal(data, event_bytes=limit) == f"event-too-large: {message}"
    assert refusal(encode_batch([data]), read_batch, event_bytes=limit) == f"event-too-large: event 0: {message}"


@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")])
@pytest.mark.parametrize("n", [30, 31, 32, 33, 500])
def test_depth_limit(n, opening, closing):
    """Data may nest to 31 levels in an event of 32, in data and in base64 alike."""
    value = opening * n + b"1" + closing * n
    forms = (
        text(data="X").replace(b'"X"', value),
        text(data_base64=base64.b64encode(value).decode()),
        text(mine="[[[[" * 20, data="X").replace(b'"X"', value),
    )
    for data in forms:
        if n <= 31:
            assert read(data).payload == value
        else:
            assert refusal(data) == "json-too-deep: nests deeper than the 32 levels allowed"


@given(st.binary(max_size=60))
def test_noise_is_refused(data):
    """Bytes that are no event are refused with a rule, never with another error."""
    for reader in (read, read_batch):
        assert ": " in refusal(data, reader)


@given(st.text('{}[],:"\\ntrue0.e- \u00e9', max_size=40))
def test_json_like_noise_is_refused(written):
    """Text that almost is JSON, in the place of the data, is either JSON to the standard library too, or refused."""
    data = text(data="X").replace(b'"X"', written.encode())
    try:
        event = read(data)
    except EventRejected:
        return
    expected = json.loads(written)
    assert event.data == expected or (expected is None and event.payload == b"")


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("a" * 254, True), ("a" * 255, True), ("a" * 256, False), ("a.b-c_D", True), ("", False), ("a b", False)],
)
def test_is_event_type(kind, expected):
    """Types have 1 to 255 characters in dotted levels."""
    assert is_event_type(kind) is expected


@given(event_types)
def test_generated_types_are_types(kind):
    """Levels joined by dots are a type; a slash never is part of one."""
    assert is_event_type(kind)
    assert not is_event_type(kind + "/")


@pytest.mark.parametrize(
    ("media", "expected"),
    [
        (None, True),
        ("application/json", True),
        ("APPLICATION/JSON ; charset=utf-8", True),
        ("application/cloudevents+json", True),
        ("text/json", True),
        ("application/jsonx", False),
        ("text/plain", False),
        ("", False),
    ],
)
def test_is_json_type(media, expected):
    """JSON is what the CloudEvents JSON format, section 3.1, takes for JSON."""
    assert is_json_type(media) is expected


def test_limits_are_those_of_the_page():
    """The defaults are section 4's."""
    assert Limits() == Limits(
        event_bytes=262144, envelope_bytes=1048576, inflated_bytes=8388608, events=1000, json_depth=32
    )


def test_events_do_not_change():
    """An event is a value."""
    event = Event(id="a", source=SOURCE, type="t")
    with pytest.raises(AttributeError):
        event.id = "b"
    assert msgspec.structs.replace(event, id="b").id == "b"
