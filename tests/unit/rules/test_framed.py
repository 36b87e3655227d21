"""Framed events: kept once what they have in common, and read as the JSON they stand for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.rules.framed import MAX_EVENTS, Frame, digits, pack, unframed, unpack

FRAME = Frame(b'{"id":"', b'","data":', b"}")
PARTS = st.binary(max_size=20)


def joined(frame, data):
    """The JSON batch, event by event."""
    return (
        b"[" + b",".join(frame.start + b"%02x" % n + frame.middle + d + frame.stop for n, d in enumerate(data)) + b"]"
    )


@pytest.mark.parametrize("count", [*range(1, MAX_EVENTS + 1)])
def test_any_number_of_events_is_the_batch_joined(count):
    """1 to 256 events are read as the batch that writing each for itself gives."""
    data = [str(n * n).encode() for n in range(count)]
    assert unpack(pack(FRAME, data)) == joined(FRAME, data)


@given(frame=st.builds(Frame, PARTS, PARTS, PARTS), data=st.lists(PARTS, min_size=1, max_size=MAX_EVENTS))
def test_any_bytes_are_kept_as_they_are(frame, data):
    """Parts and data are bytes, of any size, empty ones too."""
    assert unpack(pack(frame, data)) == joined(frame, data)


@pytest.mark.parametrize("size", [255, 256, 65_535, 65_536, 1 << 20])
def test_sizes_of_several_bytes(size):
    """What is large comes back whole, whichever of the parts it is."""
    frame = Frame(b"s" * size, b"m", b"e" * size)
    data = [b"a" * size, b"", b"b" * (size + 1)]
    assert unpack(pack(frame, data)) == joined(frame, data)


def test_what_is_common_is_kept_once():
    """256 readings weigh their data, 4 bytes each and one frame."""
    frame = Frame(b"s" * 100, b"m" * 100, b"e")
    assert len(pack(frame, [b"21.5"] * 256)) == 16 + 201 + 256 * (4 + 4)


def test_the_end_of_an_id_counts_in_hexadecimal():
    """Event n of a batch ends its id with n, in two lower-case digits."""
    assert [digits(n) for n in (0, 9, 10, 255)] == ["00", "09", "0a", "ff"]
    assert len({digits(n) for n in range(MAX_EVENTS)}) == MAX_EVENTS


def test_readers_never_see_framed():
    """A framed body becomes JSON text; any other is passed on as it is."""
    assert unframed(pack(FRAME, [b"1", b"2"]), "framed") == (b'[{"id":"00","data":1},{"id":"01","data":2}]', "")
    assert unframed(b"[]", "") == (b"[]", "")
    assert unframed(b"\x03\x00", "deflate") == (b"\x03\x00", "deflate")
