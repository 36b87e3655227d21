"""Hypothesis strategies for MQTT packets that are valid in a version and from a side; shared by codec and session tests.

The fields that each packet may carry are listed here once more, from table 2-4, so that the codec's table is checked
against something other than itself.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from hypothesis import strategies as st

from gateway.mqtt.codec import (
    EMPTY,
    Auth,
    Connack,
    Connect,
    Disconnect,
    Packet,
    Pingreq,
    Pingresp,
    Properties,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    ReasonCode,
    Side,
    Suback,
    Subscribe,
    Subscription,
    Unsuback,
    Unsubscribe,
    Version,
    Will,
)

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
identities = st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=12)
names = st.text(st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="\0+#"), min_size=1, max_size=24)
levels = st.one_of(
    st.just("+"), st.text(st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="\0+#/"), max_size=8)
)
blobs = st.binary(max_size=40)
bits = st.integers(0, 1)
flags = st.booleans()
qos = st.integers(0, 2)
u16 = st.integers(0, 0xFFFF)
u32 = st.integers(0, 0xFFFF_FFFF)
packet_ids = st.integers(1, 0xFFFF)
subscription_ids = st.integers(1, 268_435_455)
user_properties = st.lists(st.tuples(texts, texts), max_size=4).map(tuple)


def _plain_filter(parts: list[str], *, multi: bool) -> str:
    return "/".join([*parts, "#"] if multi else parts)


plain_filters = st.builds(_plain_filter, st.lists(levels, min_size=1, max_size=4), multi=flags).filter(
    lambda text: text and not text.startswith("$share/")
)
share_names = st.text(
    st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="\0+#/"), min_size=1, max_size=8
)
shared_filters = st.builds("$share/{}/{}".format, share_names, plain_filters)
topic_filters = plain_filters | shared_filters

MESSAGE = {
    "payload_format_indicator": bits,
    "message_expiry_interval": u32,
    "content_type": texts,
    "response_topic": names,
    "correlation_data": blobs,
    "user_properties": user_properties,
}
WILL = {**MESSAGE, "will_delay_interval": u32}
OPENING = {
    "session_expiry_interval": u32,
    "receive_maximum": st.integers(1, 0xFFFF),
    "maximum_packet_size": st.integers(1, 0xFFFF_FFFF),
    "topic_alias_maximum": u16,
    "authentication_method": texts,
    "user_properties": user_properties,
}
CONNECT = {**OPENING, "request_problem_information": flags, "request_response_information": flags}
CONNACK = {
    **OPENING,
    "maximum_qos": bits,
    "retain_available": flags,
    "assigned_client_identifier": texts,
    "reason_string": texts,
    "wildcard_subscription_available": flags,
    "subscription_identifier_available": flags,
    "shared_subscription_available": flags,
    "server_keep_alive": u16,
    "response_information": texts,
    "server_reference": texts,
}
ACK = {"reason_string": texts, "user_properties": user_properties}
PUBLISH = {
    "client": {**MESSAGE, "topic_alias": st.integers(1, 0xFFFF)},
    "server": {
        **MESSAGE,
        "topic_alias": st.integers(1, 0xFFFF),
        "subscription_identifiers": st.lists(subscription_ids, max_size=3).map(tuple),
    },
}
SUBSCRIBE = {"subscription_identifiers": st.tuples(subscription_ids), "user_properties": user_properties}
UNSUBSCRIBE = {"user_properties": user_properties}
DISCONNECT = {
    "client": {**ACK, "session_expiry_interval": u32},
    "server": {**ACK, "server_reference": texts},
}
AUTH = {**ACK, "authentication_data": blobs}

FAILURES = (0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99)
BOTH_DISCONNECT = (0x80, 0x81, 0x82, 0x83, 0x90, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99)
CODES = {
    "received": {"client": (0x00, *FAILURES), "server": (0x00, 0x10, *FAILURES)},
    "disconnect": {
        "client": (0x00, 0x04, *BOTH_DISCONNECT),
        "server": (0x87, 0x89, 0x8B, 0x8D, 0x8E, 0x8F, *range(0x9A, 0xA3), *BOTH_DISCONNECT),
    },
    "auth": {"client": (0x18, 0x19), "server": (0x00, 0x18)},
    "connack": (*range(0x80, 0x8B), 0x8C, 0x90, 0x95, 0x97, 0x99, 0x9A, 0x9B, 0x9C, 0x9D, 0x9F),
    "connack_311": (0x84, 0x85, 0x88, 0x86, 0x87),
    "suback": (0x00, 0x01, 0x02, 0x80, 0x83, 0x87, 0x8F, 0x91, 0x97, 0x9E, 0xA1, 0xA2),
    "suback_311": (0x00, 0x01, 0x02, 0x80),
    "unsuback": (0x00, 0x11, 0x80, 0x83, 0x87, 0x8F, 0x91),
}


def codes(values: Sequence[int]) -> st.SearchStrategy[ReasonCode]:
    return st.sampled_from(values).map(ReasonCode)


def properties(
    fields: Mapping[str, st.SearchStrategy[Any]], version: Version = Version.V5
) -> st.SearchStrategy[Properties]:
    """Any of the fields, often none; `authentication_data` never without the method."""
    if version is Version.V311:
        return st.just(EMPTY)
    some = st.fixed_dictionaries({}, optional=fields).map(lambda values: Properties(**values))
    return st.one_of(st.just(EMPTY), some)


@st.composite
def opening_properties(draw: st.DrawFn, fields: Mapping[str, st.SearchStrategy[Any]], version: Version) -> Properties:
    found = draw(properties(fields, version))
    if found.authentication_method is None or not draw(flags):
        return found
    return Properties(
        **{name: getattr(found, name) for name in fields if getattr(found, name) not in {None, ()}},
        authentication_data=draw(blobs),
    )


def wills(version: Version) -> st.SearchStrategy[Will]:
    return st.builds(Will, topic=names, payload=blobs, qos=qos, retain=flags, properties=properties(WILL, version))


@st.composite
def connects(draw: st.DrawFn, version: Version) -> Connect:
    user_name = draw(st.none() | identities)
    may_have_password = version is Version.V5 or user_name is not None
    clean_start = draw(flags)
    needs_id = version is Version.V311 and not clean_start
    return Connect(
        version=version,
        client_id=draw(identities.filter(bool) if needs_id else identities),
        clean_start=clean_start,
        keep_alive_s=draw(u16),
        user_name=user_name,
        password=draw(st.none() | blobs) if may_have_password else None,
        will=draw(st.none() | wills(version)),
        properties=draw(opening_properties(CONNECT, version)),
    )


@st.composite
def connacks(draw: st.DrawFn, version: Version) -> Connack:
    refused = draw(flags)
    failures = CODES["connack"] if version is Version.V5 else CODES["connack_311"]
    return Connack(
        reason_code=draw(codes(failures)) if refused else ReasonCode.SUCCESS,
        session_present=not refused and draw(flags),
        properties=draw(opening_properties(CONNACK, version)),
    )


@st.composite
def publishes(draw: st.DrawFn, version: Version, sender: Side) -> Publish:
    level = draw(qos)
    found = draw(properties(PUBLISH[sender], version))
    return Publish(
        topic=draw(names if found.topic_alias is None else names | st.just("")),
        payload=draw(st.binary(max_size=300)),
        qos=level,
        retain=draw(flags),
        dup=bool(level) and draw(flags),
        packet_id=draw(packet_ids) if level else 0,
        properties=found,
    )


def acks(kind: type[Any], values: Sequence[int], version: Version) -> st.SearchStrategy[Any]:
    reasons = codes(values) if version is Version.V5 else st.just(ReasonCode.SUCCESS)
    return st.builds(kind, packet_id=packet_ids, reason_code=reasons, properties=properties(ACK, version))


@st.composite
def subscriptions(draw: st.DrawFn, version: Version) -> Subscription:
    topic_filter = draw(topic_filters)
    if version is Version.V311:
        return Subscription(topic_filter=topic_filter, qos=draw(qos))
    return Subscription(
        topic_filter=topic_filter,
        qos=draw(qos),
        no_local=not topic_filter.startswith("$share/") and draw(flags),
        retain_as_published=draw(flags),
        retain_handling=draw(st.integers(0, 2)),
    )


def subscribes(version: Version) -> st.SearchStrategy[Subscribe]:
    return st.builds(
        Subscribe,
        packet_id=packet_ids,
        subscriptions=st.lists(subscriptions(version), min_size=1, max_size=4).map(tuple),
        properties=properties(SUBSCRIBE, version),
    )


def subacks(version: Version) -> st.SearchStrategy[Suback]:
    values = CODES["suback"] if version is Version.V5 else CODES["suback_311"]
    return st.builds(
        Suback,
        packet_id=packet_ids,
        reason_codes=st.lists(codes(values), min_size=1, max_size=4).map(tuple),
        properties=properties(ACK, version),
    )


def unsubscribes(version: Version) -> st.SearchStrategy[Unsubscribe]:
    return st.builds(
        Unsubscribe,
        packet_id=packet_ids,
        topic_filters=st.lists(topic_filters, min_size=1, max_size=4).map(tuple),
        properties=properties(UNSUBSCRIBE, version),
    )


def unsubacks(version: Version) -> st.SearchStrategy[Unsuback]:
    if version is Version.V311:
        return st.builds(Unsuback, packet_id=packet_ids)
    return st.builds(
        Unsuback,
        packet_id=packet_ids,
        reason_codes=st.lists(codes(CODES["unsuback"]), min_size=1, max_size=4).map(tuple),
        properties=properties(ACK, version),
    )


def disconnects(version: Version, sender: Side) -> st.SearchStrategy[Disconnect]:
    if version is Version.V311:
        return st.just(Disconnect())
    return st.builds(
        Disconnect,
        reason_code=codes(CODES["disconnect"][sender]),
        properties=properties(DISCONNECT[sender], version),
    )


@st.composite
def auths(draw: st.DrawFn, sender: Side) -> Auth:
    found = draw(properties(AUTH))
    values = {name: getattr(found, name) for name in AUTH}
    return Auth(
        reason_code=draw(codes(CODES["auth"][sender])),
        properties=Properties(**values, authentication_method=draw(texts)),
    )


def packets(version: Version, sender: Side) -> st.SearchStrategy[Packet]:
    """Every packet but CONNECT that a side may send in a version."""
    both = [
        publishes(version, sender),
        *(acks(kind, CODES["received"][sender], version) for kind in (Puback, Pubrec)),
        *(acks(kind, (0x00, 0x92), version) for kind in (Pubrel, Pubcomp)),
    ]
    if version is Version.V5:
        both += [disconnects(version, sender), auths(sender)]
    if sender == "server":
        return st.one_of(*both, connacks(version), subacks(version), unsubacks(version), st.just(Pingresp()))
    own = [subscribes(version), unsubscribes(version), st.just(Pingreq()), disconnects(version, sender)]
    return st.one_of(*both, *own)
