"""MQTT 3.1.1 and 5.0 between bytes and values, without I/O: the strict codec of a server (specifications, 1 to 4.8).

`Decoder` reads what one side of a connection receives, `encode` writes any packet, `CodecError` names the rule that
was broken. It knows no session, policy, socket or clock. It reads and writes both directions: tests and load generators
are clients.
"""

from gateway.mqtt.codec.checks import is_payload_format_valid
from gateway.mqtt.codec.faults import CodecError, Rule
from gateway.mqtt.codec.framing import MAX_CONNECT_BYTES, MAX_PACKET_BYTES, Decoder
from gateway.mqtt.codec.packets import (
    Auth,
    Connack,
    Connect,
    Disconnect,
    Packet,
    Pingreq,
    Pingresp,
    Puback,
    Pubcomp,
    Publish,
    PublishRun,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    Subscription,
    Unsuback,
    Unsubscribe,
    Will,
)
from gateway.mqtt.codec.properties import EMPTY, Properties
from gateway.mqtt.codec.reasons import PacketType, ReasonCode, Side, Version
from gateway.mqtt.codec.topics import check_topic_filter, check_topic_name
from gateway.mqtt.codec.wire import Secret
from gateway.mqtt.codec.writer import encode, puback_ok, pubacks_ok

__all__ = [
    "EMPTY",
    "MAX_CONNECT_BYTES",
    "MAX_PACKET_BYTES",
    "Auth",
    "CodecError",
    "Connack",
    "Connect",
    "Decoder",
    "Disconnect",
    "Packet",
    "PacketType",
    "Pingreq",
    "Pingresp",
    "Properties",
    "Puback",
    "Pubcomp",
    "Publish",
    "PublishRun",
    "Pubrec",
    "Pubrel",
    "ReasonCode",
    "Rule",
    "Secret",
    "Side",
    "Suback",
    "Subscribe",
    "Subscription",
    "Unsuback",
    "Unsubscribe",
    "Version",
    "Will",
    "check_topic_filter",
    "check_topic_name",
    "encode",
    "is_payload_format_valid",
    "puback_ok",
    "pubacks_ok",
]
