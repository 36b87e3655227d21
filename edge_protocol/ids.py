"""Identifiers: what a device, a principal and an event may be called."""

from __future__ import annotations

import re
from typing import Final, NewType

from edge_protocol.errors import TopicInvalid

DeviceId = NewType("DeviceId", str)
"""1 to 128 of `A-Z a-z 0-9 - . _ ~`, first a letter or digit: always one whole topic level."""

MAX_DEVICE_ID: Final = 128
_DEVICE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9\-._~]{0,127}")
_AUDIENCE = re.compile(r"[!-~]{1,255}")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def device_id(text: str) -> DeviceId:
    """Check a device id (wire protocol, section 1).

    Raises:
        TopicInvalid: It is empty, too long, or has a character that could mean something in a topic.
    """
    if not _DEVICE_ID.fullmatch(text):
        raise TopicInvalid(
            f"device id {text[:200]!r}: expected 1 to {MAX_DEVICE_ID} of A-Z a-z 0-9 - . _ ~, first a letter or digit"
        )
    return DeviceId(text)


def is_audience(text: str) -> bool:
    """Tell whether a text may be an audience: 1 to 255 of `!` to `~`."""
    return _AUDIENCE.fullmatch(text) is not None


def device_source(device: str) -> str:
    """CloudEvents `source` of a device's events."""
    return f"/devices/{device}"


def service_source(sub: str) -> str:
    """CloudEvents `source` of a cloud service's events."""
    return f"/services/{sub}"


def is_uuid(text: str) -> bool:
    """Tell whether a text is a UUID written as by RFC 9562, section 4, in lower case."""
    return _UUID.fullmatch(text) is not None


def uuid7(now_ms: int, random: bytes) -> str:
    """Make a UUID version 7 (RFC 9562, section 5.7): sortable by time, unique by 74 random bits.

    Args:
        now_ms: Unix time in milliseconds.
        random: 10 random bytes.

    Raises:
        ValueError: The time does not fit 48 bits, or these are not 10 bytes.
    """
    if not 0 <= now_ms < 1 << 48 or len(random) != 10:
        raise ValueError("expected milliseconds of 48 bits and 10 random bytes")
    time, text = f"{now_ms:012x}", random.hex()
    variant = "89ab"[random[2] >> 4 & 0x3]  # two bits of the digit are random; the version's digit replaces a whole one
    return f"{time[:8]}-{time[8:]}-7{text[1:4]}-{variant}{text[5:8]}-{text[8:]}"
