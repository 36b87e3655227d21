"""Rules that tie several fields of a packet together; the reader and the writer both ask here."""

from __future__ import annotations

from gateway.mqtt.codec.faults import CodecError, Rule
from gateway.mqtt.codec.packets import Auth, Connack, Connect, Publish, Subscription, Will
from gateway.mqtt.codec.properties import Properties
from gateway.mqtt.codec.reasons import Version
from gateway.mqtt.codec.topics import SHARE_PREFIX, check_topic_filter, check_topic_name, has_wildcard


def check_connect(packet: Connect) -> None:
    """Check user name against password, client id against clean session, and the authentication properties."""
    if packet.version is Version.V311:
        if packet.password is not None and packet.user_name is None:
            raise CodecError(Rule.PASSWORD_WITHOUT_USER_NAME)
        if not packet.client_id and not packet.clean_start:
            raise CodecError(Rule.CLIENT_ID_EMPTY)
    check_authentication(packet.properties)


def check_will(will: Will) -> None:
    """Check a will's topic and QoS."""
    if will.qos not in (0, 1, 2):
        raise CodecError(Rule.WILL_QOS_3)
    check_topic_name(will.topic)


def check_connack(packet: Connack) -> None:
    """Check that a refusal has no session, and the authentication properties."""
    if packet.session_present and packet.reason_code:
        raise CodecError(Rule.SESSION_PRESENT_REFUSED)
    check_authentication(packet.properties)


def check_authentication(properties: Properties) -> None:
    """Check that authentication data come with a method (3.1.2.11.10)."""
    if properties.authentication_data is not None and properties.authentication_method is None:
        raise CodecError(Rule.AUTH_DATA_WITHOUT_METHOD)


def check_auth(packet: Auth) -> None:
    """Check that AUTH names its method; the caller excepts the form without bytes, which cannot (3.15.2.1)."""
    if packet.properties.authentication_method is None:
        raise CodecError(Rule.AUTH_METHOD_MISSING)


def check_publish_topic(topic: str, properties: Properties, version: Version) -> None:
    """Check the topic name of a PUBLISH, which may be empty only in 5.0 and with an alias (3.3.2.1)."""
    if has_wildcard(topic):
        raise CodecError(Rule.TOPIC_WILDCARD)
    if not topic and version is Version.V311:
        raise CodecError(Rule.TOPIC_EMPTY)
    if not topic and properties.topic_alias is None:
        raise CodecError(Rule.TOPIC_EMPTY_WITHOUT_ALIAS)


def check_publish(packet: Publish, version: Version) -> None:
    """Check what a PUBLISH about to be written claims: QoS against packet identifier and DUP, and its topic."""
    if packet.qos not in (0, 1, 2):
        raise CodecError(Rule.QOS_3, f"QoS is {packet.qos}" if packet.qos != 3 else "")
    if not packet.qos and packet.dup:
        raise CodecError(Rule.DUP_AT_QOS_0)
    if not packet.qos and packet.packet_id:
        raise CodecError(Rule.PACKET_ID_AT_QOS_0)
    check_publish_topic(packet.topic, packet.properties, version)


def check_subscription(subscription: Subscription) -> None:
    """Check a topic filter and its options (3.8.3.1)."""
    if subscription.qos not in (0, 1, 2):
        raise CodecError(Rule.OPTIONS_QOS_3)
    if subscription.retain_handling not in (0, 1, 2):
        raise CodecError(Rule.RETAIN_HANDLING_3)
    check_topic_filter(subscription.topic_filter)
    if subscription.no_local and subscription.topic_filter.startswith(SHARE_PREFIX):
        raise CodecError(Rule.NO_LOCAL_SHARED)


def is_payload_format_valid(message: Publish | Will) -> bool:
    """Tell whether a payload that is said to be text is UTF-8 (3.3.2.3.2).

    Not a matter of framing: the connection stays whole, and whoever asked answers PAYLOAD_FORMAT_INVALID.

    Returns:
        True without the indicator, or for well-formed UTF-8; U+0000 is allowed in payloads.
    """
    if message.properties.payload_format_indicator != 1:
        return True
    try:
        message.payload.decode()
    except UnicodeDecodeError:
        return False
    return True
