"""The control packets of MQTT as values, the same for 3.1.1 and 5.0 (chapter 3).

What only 5.0 can say has the default that 3.1.1 implies: no properties, success, no subscription options. The values
check nothing themselves: the reader checks what it builds, the writer what it writes.
"""

from __future__ import annotations

import msgspec

from gateway.mqtt.codec.properties import EMPTY, Properties
from gateway.mqtt.codec.reasons import ReasonCode, Version


class _Value(msgspec.Struct, frozen=True, kw_only=True, gc=False, repr_omit_defaults=True):
    """A frozen value; `gc=False` since it can hold no cycle, and millions are made.

    Its options are inherited but for `kw_only`; `frozen` stands at each packet again for the type checker.
    """


class Will(_Value, frozen=True, kw_only=True):
    """What the server publishes when the connection is lost (3.1.2.5)."""

    topic: str
    payload: bytes
    qos: int = 0
    retain: bool = False
    properties: Properties = EMPTY


class Connect(_Value, frozen=True, kw_only=True):
    """First packet of a client (3.1). `clean_start` is the clean session flag of 3.1.1; `keep_alive_s` 0 means none.

    `password` is a `Secret` when it was read from the wire: its repr is `***`.
    """

    version: Version
    client_id: str
    clean_start: bool = True
    keep_alive_s: int = 0
    user_name: str | None = None
    password: bytes | None = None
    will: Will | None = None
    properties: Properties = EMPTY


class Connack(_Value, frozen=True, kw_only=True):
    """Answer to CONNECT (3.2). In 3.1.1 the code is written as the nearest return code."""

    reason_code: ReasonCode = ReasonCode.SUCCESS
    session_present: bool = False
    properties: Properties = EMPTY


class Publish(_Value, frozen=True, kw_only=True):
    """An application message (3.3). `packet_id` is 0 at QoS 0: that value is never on the wire."""

    topic: str
    payload: bytes
    qos: int = 0
    retain: bool = False
    dup: bool = False
    packet_id: int = 0
    properties: Properties = EMPTY


class PublishRun(_Value, frozen=True, kw_only=True):
    """PUBLISH packets, one behind the other, that differ in identifier and payload only: what a busy device sends.

    Attributes:
        first: The first of them.
        packet_ids: Of all, as on the wire, two bytes each; empty at QoS 0.
        payloads: Of all.
    """

    first: Publish
    packet_ids: list[bytes]
    payloads: list[bytes]

    def packets(self) -> list[Publish]:
        """The packets, each for itself."""
        ids = [int.from_bytes(packet_id) for packet_id in self.packet_ids] or [0] * len(self.payloads)
        return [
            msgspec.structs.replace(self.first, packet_id=packet_id, payload=payload)
            for packet_id, payload in zip(ids, self.payloads, strict=True)
        ]


class Puback(_Value, frozen=True, kw_only=True):
    """Answer to PUBLISH at QoS 1 (3.4)."""

    packet_id: int
    reason_code: ReasonCode = ReasonCode.SUCCESS
    properties: Properties = EMPTY


class Pubrec(_Value, frozen=True, kw_only=True):
    """First answer to PUBLISH at QoS 2 (3.5)."""

    packet_id: int
    reason_code: ReasonCode = ReasonCode.SUCCESS
    properties: Properties = EMPTY


class Pubrel(_Value, frozen=True, kw_only=True):
    """Answer to PUBREC (3.6)."""

    packet_id: int
    reason_code: ReasonCode = ReasonCode.SUCCESS
    properties: Properties = EMPTY


class Pubcomp(_Value, frozen=True, kw_only=True):
    """Answer to PUBREL (3.7)."""

    packet_id: int
    reason_code: ReasonCode = ReasonCode.SUCCESS
    properties: Properties = EMPTY


class Subscription(_Value, frozen=True, kw_only=True):
    """A topic filter and its options (3.8.3.1); `qos` is the highest the subscriber wants."""

    topic_filter: str
    qos: int = 0
    no_local: bool = False
    retain_as_published: bool = False
    retain_handling: int = 0


class Subscribe(_Value, frozen=True, kw_only=True):
    """Request for one or more subscriptions (3.8)."""

    packet_id: int
    subscriptions: tuple[Subscription, ...]
    properties: Properties = EMPTY


class Suback(_Value, frozen=True, kw_only=True):
    """Answer to SUBSCRIBE, a code for each subscription (3.9)."""

    packet_id: int
    reason_codes: tuple[ReasonCode, ...]
    properties: Properties = EMPTY


class Unsubscribe(_Value, frozen=True, kw_only=True):
    """Request to end subscriptions (3.10)."""

    packet_id: int
    topic_filters: tuple[str, ...]
    properties: Properties = EMPTY


class Unsuback(_Value, frozen=True, kw_only=True):
    """Answer to UNSUBSCRIBE, a code for each filter; 3.1.1 has no codes (3.11)."""

    packet_id: int
    reason_codes: tuple[ReasonCode, ...] = ()
    properties: Properties = EMPTY


class Pingreq(_Value, frozen=True, kw_only=True):
    """A client's sign of life (3.12)."""


class Pingresp(_Value, frozen=True, kw_only=True):
    """Answer to PINGREQ (3.13)."""


class Disconnect(_Value, frozen=True, kw_only=True):
    """Last packet of a connection (3.14); in 3.1.1 only a client's, without a code."""

    reason_code: ReasonCode = ReasonCode.NORMAL_DISCONNECTION
    properties: Properties = EMPTY


class Auth(_Value, frozen=True, kw_only=True):
    """Step of extended authentication (3.15); 5.0 only."""

    reason_code: ReasonCode = ReasonCode.SUCCESS
    properties: Properties = EMPTY


Packet = (
    Connect
    | Connack
    | Publish
    | Puback
    | Pubrec
    | Pubrel
    | Pubcomp
    | Subscribe
    | Suback
    | Unsubscribe
    | Unsuback
    | Pingreq
    | Pingresp
    | Disconnect
    | Auth
)
