"""What a publish may weigh: depth, inflating, and bombs that are refused in linear time and small memory."""

import json
import time
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from protocol_strategies import json_values
from unit.protocol.reading import read, read_batch, refusal, text

from edge_protocol.errors import EventRejected
from edge_protocol.events import check_depth, deflate, inflate


@given(json_values, st.integers(1, 6))
def test_check_depth_agrees_with_a_recursive_count(value, limit):
    """The scan finds the depth that a walk over the decoded value finds."""

    def depth(node):
        inner = node.values() if isinstance(node, dict) else node if isinstance(node, list) else None
        return 0 if inner is None else 1 + max(map(depth, inner), default=0)

    for written in (json.dumps(value), json.dumps(value, ensure_ascii=False, indent=1)):
        try:
            check_depth(written.encode(), limit)
            assert depth(value) <= limit
        except EventRejected:
            assert depth(value) > limit


def costs(call, *arguments, **limits):
    """Seconds of CPU, and peak bytes of a second run."""
    started = time.process_time()
    message = refusal(*arguments, **limits) if call is None else call()
    seconds = time.process_time() - started
    tracemalloc.start()
    try:
        refusal(*arguments, **limits) if call is None else call()
        return message, seconds, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


LIMIT = 256 * 1024
BOMBS = {
    "open brackets": b"[" * LIMIT,
    "deep data": text(data="X").replace(b'"X"', b"[" * 100_000 + b"]" * 100_000),
    "deep objects": b'{"a":' * (LIMIT // 5),
    "open string behind brackets": b"[" * 40 + b'"' + b'\\"' * (LIMIT // 2 - 40),
    "many members": b"{" + b",".join(b'"%d":1' % n for n in range(20_000)) + b"}",
    "escapes": text(id="X").replace(b"X", b"\\u0041" * 40_000),
    "long number": text(data=[9]).replace(b"9", b"9" * 250_000),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_in_one_event(name):
    """Hostile JSON of the largest size is refused in linear time and small memory."""
    message, seconds, peak = costs(None, BOMBS[name])
    assert ": " in message
    assert seconds < 1
    assert peak < 8 * LIMIT


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"[" * 8_000_000, "bad-json: event 0: not a CloudEvent: expected `object`, got `array`"),
        (b'[{"data":' * 800_000, "json-too-deep: nests deeper than the 32 levels allowed"),
        (b'[{"a":' + b"[" * 4_000_000 + b"]" * 4_000_000 + b"}]", "json-too-deep: nests deeper than the 32 levels"),
        (b"[" + b"0," * 4_000_000 + b"0]", "bad-json: event 0: not a CloudEvent: expected `object`, got `int`"),
        (b"[" + b"{}," * 2_000_000 + b"{}]", "bad-specversion: event 0: specversion: expected a string, found nothing"),
        (b"[" + b"[]," * 2_000_000 + b"[]]", "bad-json: event 0"),
    ],
)
def test_bombs_in_a_batch(data, message):
    """Millions of brackets or members are refused at the first wrong one, not after they are all built."""
    found, seconds, peak = costs(None, data, read_batch)
    assert found.startswith(message)
    assert seconds < 1
    assert peak < 3 * len(data)  # the check that it is UTF-8 decodes it once


def test_many_brackets_within_the_depth_are_counted_fast():
    """An event full of brackets that are not deep passes in well under a second."""
    data = text(data="X").replace(b'"X"', b"[" + b"[]," * 80_000 + b"[]]")
    event, seconds, _ = costs(lambda: read(data))
    assert len(event.data) == 80_001
    assert seconds < 1


@pytest.mark.parametrize("n", [999, 1000, 1001])
@pytest.mark.parametrize("encoding", ["", "deflate"])
def test_inflate_limit(n, encoding):
    """Inflating stops at the limit: as much passes, a byte more is refused."""
    body = deflate(bytes(n)) if encoding else bytes(n)
    if n <= 1000:
        assert inflate(body, encoding, limit=1000) == bytes(n)
    else:
        wanted = "more than the 1000 bytes allowed" if encoding else "1001 bytes, at most 1000 are allowed"
        with pytest.raises(EventRejected, match=f"^inflated-too-large: {wanted}$"):
            inflate(body, encoding, limit=1000)


def test_deflate_bomb_is_cut_off():
    """A kilobyte that would be gigabytes costs no more than the limit."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(512)) + packer.flush()
    _, seconds, peak = costs(None, bomb, lambda data: inflate(data, "deflate", limit=1 << 20))
    assert seconds < 1
    assert peak < 4 << 20


WHOLE = deflate(b"x" * 1000)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        WHOLE[:-1],
        WHOLE + b"\0",
        WHOLE + WHOLE,
        b"\xff" * 10,
        zlib.compress(b"x" * 1000),
        zlib.compress(b"x" * 1000, wbits=31),
    ],
)
def test_damaged_deflate(body):
    """One whole raw stream and nothing else: no cut, no rest, no zlib or gzip wrapping."""
    with pytest.raises(EventRejected, match=r"^bad-deflate: .*DEFLATE stream"):
        inflate(body, "deflate", limit=10_000)


@given(st.binary(max_size=2000))
def test_deflate_round_trip(data):
    """Any bytes survive."""
    assert inflate(deflate(data), "deflate", limit=2000) == data
