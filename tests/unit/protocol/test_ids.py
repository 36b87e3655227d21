"""Identifiers at their limits, and the layout of a UUID version 7."""

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_protocol.errors import TopicInvalid
from edge_protocol.ids import device_id, device_source, is_audience, service_source, uuid7


@pytest.mark.parametrize("text", ["a", "0", "A-._~9", "a" * 127, "a" * 128])
def test_device_ids(text):
    """Letters, digits and - . _ ~ make an id of up to 128."""
    assert device_id(text) == text


@pytest.mark.parametrize(
    "text",
    ["", "a" * 129, "-a", ".", "..", "_a", "~a", "a b", "a/b", "a+", "#", "$SYS", "a\n", "a\0", "\u00e9", "\u0661"],
)
def test_bad_device_ids(text):
    """What could mean something in a topic, or is too long, is no id."""
    with pytest.raises(TopicInvalid) as caught:
        device_id(text)
    assert str(caught.value) == (
        f"device id {text!r}: expected 1 to 128 of A-Z a-z 0-9 - . _ ~, first a letter or digit"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("!", True),
        ("~", True),
        ("a" * 255, True),
        ("a" * 256, False),
        ("", False),
        (" ", False),
        ("\x7f", False),
        ("a\n", False),
        ("\u00e9", False),
    ],
)
def test_audiences(text, expected):
    """An audience has 1 to 255 of ! to ~."""
    assert is_audience(text) is expected


def test_uuid7_is_the_example_of_rfc_9562():
    """RFC 9562, appendix A.6: the same time and random bits give the same text."""
    random = bytes.fromhex("0cc318c4dc0c0c07398f")
    assert uuid7(0x017F22E279B0, random) == "017f22e2-79b0-7cc3-98c4-dc0c0c07398f"


@given(st.integers(0, 2**48 - 1), st.binary(min_size=10, max_size=10))
def test_uuid7_layout(now_ms, random):
    """Version 7, variant 10, the time in front, and 74 bits of what was handed in."""
    made = uuid.UUID(uuid7(now_ms, random))
    assert (made.version, made.variant, made.int >> 80) == (7, uuid.RFC_4122, now_ms)
    given_bits = int.from_bytes(random, "big")
    assert (made.int >> 64) & 0xFFF == (given_bits >> 64) & 0xFFF
    assert made.int & (1 << 62) - 1 == given_bits & (1 << 62) - 1


@given(st.tuples(st.integers(0, 2**48 - 1), st.binary(min_size=10, max_size=10)), st.integers(1, 10**6))
def test_uuid7_sorts_by_time(made, later_ms):
    """A later millisecond sorts behind, whatever the random bits."""
    now_ms, random = made
    if now_ms + later_ms < 2**48:
        assert uuid7(now_ms, random) < uuid7(now_ms + later_ms, bytes(10))


@pytest.mark.parametrize(("now_ms", "random"), [(-1, bytes(10)), (2**48, bytes(10)), (0, bytes(9)), (0, bytes(11))])
def test_uuid7_refuses_what_does_not_fit(now_ms, random):
    """Too few random bytes would collide, too many would spill into the time."""
    with pytest.raises(ValueError, match="expected milliseconds of 48 bits and 10 random bytes"):
        uuid7(now_ms, random)


def test_sources():
    """Sources are as section 4 writes them."""
    assert (device_source("d1"), service_source("shop")) == ("/devices/d1", "/services/shop")
