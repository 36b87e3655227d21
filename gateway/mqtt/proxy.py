"""PROXY protocol, version 2: what a balancer says of the peer it speaks for (haproxy.org, proxy-protocol.txt, section 2.2).

Pure: bytes in, an address out. Strict: version 1, datagrams, Unix sockets, lengths that do not add up and headers over
`MAX_REST_BYTES` are refused. Which peers may say it is the listener's to decide.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
HEAD_BYTES: Final = 16
MAX_REST_BYTES: Final = 2048  # addresses, then type-length-values: real balancers send less than 300
_LOCAL, _PROXY = 0x20, 0x21
_UNSPECIFIED, _TCP4, _TCP6 = 0x00, 0x11, 0x21
_ADDRESSES: Final = {_TCP4: (IPv4Address, struct.Struct("!4s4sHH")), _TCP6: (IPv6Address, struct.Struct("!16s16sHH"))}


class ProxyRefused(ValueError):
    """The header is none that is accepted; the message says why."""


@dataclass(frozen=True, slots=True)
class Peer:
    """The client behind a balancer, as the balancer says."""

    host: str
    port: int


def rest_bytes(head: bytes) -> int:
    """Check the first `HEAD_BYTES` of a header; tell how many bytes follow.

    Raises:
        ProxyRefused: It is no version 2 header, or too long a one.
    """
    if head[:6] == b"PROXY ":
        raise ProxyRefused("PROXY protocol version 1: expected version 2")
    if len(head) != HEAD_BYTES or head[:12] != SIGNATURE:
        raise ProxyRefused("no PROXY protocol header where this peer must send one")
    if head[12] not in (_LOCAL, _PROXY):
        raise ProxyRefused(f"version and command 0x{head[12]:02X}: expected 0x20 or 0x21")
    size: int = struct.unpack_from("!H", head, 14)[0]
    if size > MAX_REST_BYTES:
        raise ProxyRefused(f"header of {size} bytes: expected at most {MAX_REST_BYTES}")
    return size


def read_peer(head: bytes, rest: bytes) -> Peer | None:
    """Read whom the balancer speaks for; None for itself (LOCAL: its health checks) and for what it does not know.

    Args:
        head: Checked by `rest_bytes`.
        rest: As many bytes as that told.

    Raises:
        ProxyRefused: No TCP address, or lengths that do not add up.
    """
    family = head[13]
    if head[12] == _LOCAL:
        return None  # whatever follows is to be discarded, its family included
    if family not in _ADDRESSES:
        if family != _UNSPECIFIED:
            raise ProxyRefused(f"family and protocol 0x{family:02X}: expected TCP over IPv4 or IPv6")
        return None
    kind, layout = _ADDRESSES[family]
    if len(rest) < layout.size:
        raise ProxyRefused(f"{len(rest)} bytes of addresses: expected {layout.size}")
    _check_values(rest, layout.size)
    host, _, port, _ = layout.unpack_from(rest)
    return Peer(str(kind(host)), port)


def _check_values(rest: bytes, at: int) -> None:
    """Type-length-values are not used, but they must fill the header exactly."""
    while at < len(rest):
        if at + 3 > len(rest):
            raise ProxyRefused("a type-length-value is cut off")
        at += 3 + int.from_bytes(rest[at + 1 : at + 3], "big")
    if at > len(rest):
        raise ProxyRefused("a type-length-value is longer than the header")
