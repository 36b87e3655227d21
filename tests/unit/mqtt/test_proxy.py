"""PROXY protocol, version 2: the headers that are read, and everything else, which is refused."""

import struct
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.mqtt.proxy import HEAD_BYTES, MAX_REST_BYTES, SIGNATURE, Peer, ProxyRefused, read_peer, rest_bytes

V4 = bytes([192, 0, 2, 7, 10, 0, 0, 1]) + struct.pack("!HH", 50000, 8883)
V6 = bytes.fromhex("20010db8000000000000000000000007" + "00" * 15 + "01") + struct.pack("!HH", 50001, 8883)


def header(rest=V4, *, command=0x21, family=0x11, size=None):
    size = len(rest) if size is None else size
    return SIGNATURE + bytes([command, family]) + struct.pack("!H", size), rest


def read(head, rest):
    assert rest_bytes(head) == len(rest)
    return read_peer(head, rest)


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (header(), Peer("192.0.2.7", 50000)),
        (header(V6, family=0x21), Peer("2001:db8::7", 50001)),
        (header(V4 + b"\x04\x00\x02no" + b"\xe0\x00\x00"), Peer("192.0.2.7", 50000)),
        (header(b"", command=0x20, family=0), None),
        (header(command=0x20), None),
        (header(V4[:-1], command=0x20), None),
        (header(b"", family=0), None),
        (header(b"\0" * MAX_REST_BYTES, command=0x20, family=0), None),
    ],
)
def test_headers_read(head, expected):
    """TCP over either IP, with or without values behind; LOCAL and unspecified name nobody."""
    assert read(*head) == expected


@pytest.mark.parametrize(
    ("head", "rest", "message"),
    [
        (b"PROXY TCP4 192.0", b"", "version 1: expected version 2"),
        (b"GET /mqtt HTTP/1", b"", "no PROXY protocol header"),
        (header()[0][:-1], b"", "no PROXY protocol header"),
        (header(command=0x11)[0], V4, "0x11: expected 0x20 or 0x21"),
        (header(command=0x22)[0], V4, "0x22: expected 0x20 or 0x21"),
        (header(size=MAX_REST_BYTES + 1)[0], b"", "2049 bytes: expected at most 2048"),
        (*header(family=0x12), "expected TCP over IPv4 or IPv6"),
        (*header(b"\0" * 216, family=0x31), "expected TCP over IPv4 or IPv6"),
        (*header(V4[:-1]), "11 bytes of addresses: expected 12"),
        (*header(V6[:-1], family=0x21), "35 bytes of addresses: expected 36"),
        (*header(V4 + b"\x04\x00"), "cut off"),
        (*header(V4 + b"\x04\x00\x02n"), "longer than the header"),
    ],
)
def test_headers_refused(head, rest, message):
    """Version 1, other transports, and lengths that do not add up are refused with the reason."""
    with pytest.raises(ProxyRefused, match=message):
        _ = rest_bytes(head), read_peer(head, rest)


@given(st.binary(min_size=HEAD_BYTES, max_size=HEAD_BYTES), st.binary(max_size=100), st.booleans())
def test_any_bytes(head, rest, is_signed):
    """Any bytes are a peer, nobody, or refused: nothing else escapes."""
    if is_signed:
        head = SIGNATURE + bytes([0x20 | head[12] & 1]) + head[13:14] + struct.pack("!H", len(rest))
    with suppress(ProxyRefused):
        found = read_peer(head, rest[: rest_bytes(head)])
        assert found is None or isinstance(found, Peer)
