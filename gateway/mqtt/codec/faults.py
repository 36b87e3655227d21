"""Every way in which bytes or packets break MQTT: one table, so that each refusal names its rule and clause.

`Rule` is the table; `CodecError` is what the codec raises. Clauses are those of MQTT 5.0; where 3.1.1 numbers the same
rule differently, both stand. A rule without a normative number is named by its section. A topic name or filter that is
none is malformed: 0x8F and 0x90 are for one that is correctly formed and not accepted (section 3.14.2.1).
"""

from __future__ import annotations

from enum import Enum

from gateway.mqtt.codec.reasons import ReasonCode

_MALFORMED = ReasonCode.MALFORMED_PACKET
_PROTOCOL = ReasonCode.PROTOCOL_ERROR


class Rule(Enum):
    """A rule of the specification: the code that answers its breach, the rule in words, its clauses."""

    RESERVED_TYPE = _PROTOCOL, "reserved packet type", "section 2.1.2"
    RESERVED_FLAGS = _MALFORMED, "reserved bits of the fixed header are wrong", "MQTT-2.1.3-1", "MQTT-2.2.2-2"
    LENGTH_OVER_4_BYTES = _MALFORMED, "remaining length over 4 bytes", "section 2.1.4", "section 2.2.3"
    VARINT_TOO_LONG = _MALFORMED, "variable byte integer over 4 bytes", "section 1.5.5"
    VARINT_NOT_MINIMAL = _MALFORMED, "variable byte integer not in the fewest bytes", "MQTT-1.5.5-1", "section 2.2.3"
    PACKET_TOO_LARGE = ReasonCode.PACKET_TOO_LARGE, "packet over the largest accepted", "section 3.2.2.3.6"
    TRUNCATED = _MALFORMED, "packet ends inside a field", "section 2.1.4", "section 2.2.3"
    TRAILING_BYTES = _MALFORMED, "bytes after the last field", "section 2.1.4", "section 2.2.3"
    UTF8_ILL_FORMED = _MALFORMED, "string is not well-formed UTF-8", "MQTT-1.5.4-1", "MQTT-1.5.3-1"
    UTF8_NUL = _MALFORMED, "string holds U+0000", "MQTT-1.5.4-2", "MQTT-1.5.3-2"
    CONTROL_CHARACTER = _MALFORMED, "control character in a name", "section 1.5.4", "section 1.5.3"
    FIELD_TOO_LONG = _MALFORMED, "string or binary data over 65535 bytes", "section 1.5.4"
    INTEGER_RANGE = _MALFORMED, "integer does not fit its field", "section 1.5"
    NOT_IN_311 = _PROTOCOL, "MQTT 3.1.1 has no words for this", "MQTT 3.1.1, chapter 3"

    FIRST_PACKET = _PROTOCOL, "first packet is not CONNECT", "MQTT-3.1.0-1"
    SECOND_CONNECT = _PROTOCOL, "second CONNECT on a connection", "MQTT-3.1.0-2"
    WRONG_DIRECTION = _PROTOCOL, "packet that the peer never sends", "section 2.1.2"
    PROTOCOL_NAME = ReasonCode.UNSUPPORTED_PROTOCOL_VERSION, "protocol name is not MQTT", "MQTT-3.1.2-1"
    PROTOCOL_LEVEL = ReasonCode.UNSUPPORTED_PROTOCOL_VERSION, "protocol level is neither 4 nor 5", "MQTT-3.1.2-2"
    CONNECT_RESERVED_FLAG = _MALFORMED, "reserved connect flag is set", "MQTT-3.1.2-3"
    WILL_QOS_WITHOUT_WILL = _MALFORMED, "will QoS without a will", "MQTT-3.1.2-11", "MQTT-3.1.2-13"
    WILL_QOS_3 = _MALFORMED, "will QoS 3", "MQTT-3.1.2-12", "MQTT-3.1.2-14"
    WILL_RETAIN_WITHOUT_WILL = _MALFORMED, "will retain without a will", "MQTT-3.1.2-13", "MQTT-3.1.2-15"
    PASSWORD_WITHOUT_USER_NAME = _MALFORMED, "password without user name in 3.1.1", "MQTT-3.1.2-22"
    CLIENT_ID_EMPTY = (
        ReasonCode.CLIENT_IDENTIFIER_NOT_VALID,
        "empty client identifier without clean session in 3.1.1",
        "MQTT-3.1.3-8",
    )
    AUTH_DATA_WITHOUT_METHOD = _PROTOCOL, "authentication data without a method", "section 3.1.2.11.10"
    CONNACK_RESERVED_FLAGS = _MALFORMED, "reserved connect acknowledge flags are set", "MQTT-3.2.2-1"
    SESSION_PRESENT_REFUSED = _PROTOCOL, "session present in a refusal", "MQTT-3.2.2-6", "MQTT-3.2.2-4"

    QOS_3 = _MALFORMED, "QoS 3", "MQTT-3.3.1-4"
    DUP_AT_QOS_0 = _MALFORMED, "DUP at QoS 0", "MQTT-3.3.1-2"
    PACKET_ID_ZERO = _PROTOCOL, "packet identifier 0", "MQTT-2.2.1-3", "MQTT-2.3.1-1"
    PACKET_ID_AT_QOS_0 = _PROTOCOL, "packet identifier at QoS 0", "MQTT-2.2.1-2", "MQTT-2.3.1-5"
    TOPIC_WILDCARD = _MALFORMED, "wildcard in a topic name", "MQTT-3.3.2-2"
    TOPIC_EMPTY = _PROTOCOL, "empty topic name", "MQTT-4.7.3-1"
    TOPIC_EMPTY_WITHOUT_ALIAS = _PROTOCOL, "empty topic name without a topic alias", "section 3.3.2.1"
    SUBSCRIPTION_ID_FROM_CLIENT = _PROTOCOL, "subscription identifier in a client's PUBLISH", "MQTT-3.3.4-6"

    SUBSCRIBE_EMPTY = _PROTOCOL, "SUBSCRIBE without a topic filter", "MQTT-3.8.3-2", "MQTT-3.8.3-3"
    UNSUBSCRIBE_EMPTY = _PROTOCOL, "UNSUBSCRIBE without a topic filter", "MQTT-3.10.3-2"
    OPTIONS_RESERVED = _MALFORMED, "reserved bits of the subscription options are set", "MQTT-3.8.3-5", "MQTT-3-8.3-4"
    OPTIONS_QOS_3 = _PROTOCOL, "subscription with QoS 3", "section 3.8.3.1", "MQTT-3-8.3-4"
    RETAIN_HANDLING_3 = _PROTOCOL, "retain handling 3", "section 3.8.3.1"
    NO_LOCAL_SHARED = _PROTOCOL, "no local on a shared subscription", "MQTT-3.8.3-4"
    FILTER_EMPTY = _MALFORMED, "empty topic filter", "MQTT-4.7.3-1"
    FILTER_MULTI_LEVEL = (
        _MALFORMED,
        '"#" is not the whole last level of the topic filter',
        "MQTT-4.7.1-1",
        "MQTT-4.7.1-2",
    )
    FILTER_SINGLE_LEVEL = _MALFORMED, '"+" is not a whole level of the topic filter', "MQTT-4.7.1-2", "MQTT-4.7.1-3"
    SHARE_NAME_EMPTY = _PROTOCOL, "shared subscription without a share name", "MQTT-4.8.2-1"
    SHARE_NAME_WILDCARD = _PROTOCOL, "wildcard in a share name", "MQTT-4.8.2-2"
    SHARE_FILTER_MISSING = _PROTOCOL, "shared subscription without a topic filter", "MQTT-4.8.2-2"
    ACK_EMPTY = _PROTOCOL, "acknowledgement without a reason code", "MQTT-3.8.4-6", "MQTT-3.8.4-5"

    REASON_CODE = _PROTOCOL, "reason code is not defined for the packet and its sender", "section 2.4"
    SESSION_EXPIRY_FROM_SERVER = _PROTOCOL, "session expiry interval in a server's DISCONNECT", "MQTT-3.14.2-2"
    SERVER_REFERENCE_FROM_CLIENT = _PROTOCOL, "server reference in a client's DISCONNECT", "section 3.14.2.2.5"
    AUTH_METHOD_MISSING = _PROTOCOL, "AUTH without an authentication method", "section 3.15.2.2.2"

    PROPERTY_UNKNOWN = _MALFORMED, "unknown property identifier", "section 2.2.2.2"
    PROPERTY_NOT_ALLOWED = _MALFORMED, "property not allowed in the packet", "section 2.2.2.2"
    PROPERTY_TWICE = _PROTOCOL, "property more than once", "section 2.2.2.2"
    PROPERTY_NOT_0_OR_1 = _PROTOCOL, "property must be 0 or 1", "section 2.2.2.2"
    RECEIVE_MAXIMUM_0 = _PROTOCOL, "receive maximum 0", "section 3.1.2.11.3"
    MAXIMUM_PACKET_SIZE_0 = _PROTOCOL, "maximum packet size 0", "section 3.1.2.11.4"
    SUBSCRIPTION_ID_0 = _PROTOCOL, "subscription identifier 0", "section 3.8.2.1.2"
    TOPIC_ALIAS_0 = ReasonCode.TOPIC_ALIAS_INVALID, "topic alias 0", "MQTT-3.3.2-8"
    RESPONSE_TOPIC = _PROTOCOL, "response topic is empty or holds a wildcard", "MQTT-3.3.2-14"

    def __init__(self, code: ReasonCode, text: str, clause: str, clause_311: str = "") -> None:
        self.code, self.text, self.clause, self.clause_311 = code, text, clause, clause_311


class CodecError(Exception):
    """Bytes that are not MQTT, or a packet that cannot be written: close the connection with `code`.

    Attributes:
        code: What to answer, in DISCONNECT or CONNACK.
        rule: Which rule was broken; stable, for tests and metrics.
        detail: What was found, without anything secret; may be empty.
    """

    def __init__(self, rule: Rule, detail: str = "") -> None:
        clauses = f"{rule.clause}; 3.1.1: {rule.clause_311}" if rule.clause_311 else rule.clause
        super().__init__(f"{rule.text}{': ' if detail else ''}{detail} [{clauses}]")
        self.rule = rule
        self.detail = detail
        self.code = rule.code
