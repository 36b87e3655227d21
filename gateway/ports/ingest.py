"""From a PUBLISH on an event topic to its acknowledgement."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import msgspec

from gateway.ports.identity import Principal
from gateway.rules.policy import Permissions

SUCCESS: Final = 0x00
UNSPECIFIED_ERROR: Final = 0x80
UNAVAILABLE: Final = 0x83
NOT_AUTHORIZED: Final = 0x87
TOPIC_NAME_INVALID: Final = 0x90
QUOTA_EXCEEDED: Final = 0x97
PAYLOAD_FORMAT_INVALID: Final = 0x99


@dataclass(frozen=True, slots=True)
class Receipt:
    """How a publish ended (wire protocol, section 6).

    Attributes:
        code: MQTT reason code; 0x00 means stored, durably.
        reason: The rule and the detail, for the Reason String; "" on success.
        reseal: The sender shall refresh its keys and seal again (user property `action: reseal`).
        retry_after_s: Worth trying again after so many seconds (user property `retry-after`).
    """

    code: int
    reason: str = ""
    reseal: bool = False
    retry_after_s: int | None = None

    @property
    def is_final(self) -> bool:
        """Whether sending the same again would end the same: stored, or refused for good."""
        return self.code not in (UNAVAILABLE, QUOTA_EXCEEDED)


STORED: Final = Receipt(SUCCESS)


class Lane:
    """The event publishes of one connection, which are stored in order or not at all.

    After the first that cannot be stored now (0x83, 0x97) ingest stores no later one of the same lane: each gets that
    receipt too. So what the sender repeats on its next connection keeps its order.

    Attributes:
        broken: The receipt that stopped the lane, or None.
    """

    __slots__ = ("broken",)

    def __init__(self) -> None:
        self.broken: Receipt | None = None


class Arrival(msgspec.Struct, frozen=True, kw_only=True):
    """One PUBLISH on an event topic, its topic authorized for the principal already.

    Attributes:
        principal: Who sent it.
        permissions: Authorizes the type of every event inside.
        device: Whose topic it is: owner of the signing key and of the events.
        event_type: The type a typed topic names; None on `devices/{id}/events`.
        payload: As received.
        content_type: MQTT 5 Content Type, if any.
        attributes: MQTT 5 user properties (CloudEvents binary mode on a typed topic).
        received_ms: Arrival, Unix milliseconds.
        lane: Of its connection.
    """

    principal: Principal
    permissions: Permissions
    device: str
    event_type: str | None
    payload: bytes
    content_type: str | None = None
    attributes: tuple[tuple[str, str], ...] = ()
    received_ms: int
    lane: Lane


class Ingest(Protocol):
    """Opens, checks and stores event publishes."""

    def submit(self, arrival: Arrival, settle: Callable[[Receipt], None]) -> None:
        """Take a publish over; never blocks.

        `settle` is called exactly once, on the event loop's thread, possibly before this returns: after the events are
        durable, or with the refusal. A sender that has gone changes nothing: what was taken is stored. Submissions of
        one lane are stored in the order of the calls.
        """
        ...

    def submit_run(self, arrival: Arrival, payloads: Sequence[bytes], settle: Callable[[Receipt], None]) -> bool:
        """Take several publishes over as one: stored together, settled once.

        For plain payloads: bare data on a typed topic, or CloudEvents, each of which is a payload.

        Args:
            arrival: Of the first; the others differ in payload only.
            payloads: Of all, at least one.
            settle: As in `submit`, for all of them; not called before this returns.

        Returns:
            Whether they were taken. If not, nothing has happened, and each is to be submitted for itself.
        """
        ...

    def flush(self) -> None:
        """Hand over what this loop turn gathered, rather than waiting for a full chunk."""
        ...
