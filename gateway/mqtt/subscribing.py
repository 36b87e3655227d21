"""SUBSCRIBE and UNSUBSCRIBE: policy for each filter, the answer for each filter (MQTT 5.0, sections 3.8 to 3.11)."""

from __future__ import annotations

from collections.abc import Collection, Coroutine, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from edge_protocol.topics import TopicFilter
from gateway.errors import Unavailable
from gateway.mqtt.codec import Properties, ReasonCode, Suback, Subscribe, Subscription, Unsuback, Unsubscribe
from gateway.mqtt.router import Subscribed
from gateway.mqtt.showing import show
from gateway.mqtt.trie import MAX_LEVELS

if TYPE_CHECKING:
    from gateway.mqtt.connection import Connection
    from gateway.mqtt.hub import Hub

_LONG: Final = 1024
_FILTERS: Final = 1 << 20
"""Characters of all filters of a session, where one is longer than `_LONG`: they are one value in the store."""

_GRANTED = (ReasonCode.GRANTED_QOS_0, ReasonCode.GRANTED_QOS_1, ReasonCode.GRANTED_QOS_2)


def subscribe(connection: Connection, hub: Hub, packet: Subscribe) -> Coroutine[Any, Any, None] | None:
    """Grant what policy allows; answer; then show what is retained.

    Returns:
        What is to be done, and waited for, before anything else is read; None if everything is done.
    """
    for wanted in packet.subscriptions:
        if hub.cursors.wants(connection.session, TopicFilter(wanted.topic_filter), wanted.qos):
            return _open_cursors(connection, hub, packet)
    _grant(connection, hub, packet, ())
    return None


async def _open_cursors(connection: Connection, hub: Hub, packet: Subscribe) -> None:
    """SUBACK says that no event will be missed from now on, so cursors come first."""
    session, joined, failed = connection.session, list[TopicFilter](), set[TopicFilter]()
    for wanted in packet.subscriptions:
        filter_ = TopicFilter(wanted.topic_filter)
        if hub.cursors.wants(session, filter_, wanted.qos) and _refusal(connection, hub, wanted) is None:
            try:
                await hub.cursors.join(session, filter_, _subscribed(connection, hub, packet, wanted))
                joined.append(filter_)
            except Unavailable:
                failed.add(filter_)
    if connection.lifecycle.state.is_open:
        _grant(connection, hub, packet, failed)
        connection.start_reading()
    else:  # the client is gone, and was promised nothing
        for filter_ in joined:
            if filter_ not in session.subscriptions:
                hub.cursors.drop(session, filter_)


def _grant(connection: Connection, hub: Hub, packet: Subscribe, failed: Collection[TopicFilter]) -> None:
    session = connection.session
    codes, granted = [], []
    for wanted in packet.subscriptions:
        filter_ = TopicFilter(wanted.topic_filter)
        code = ReasonCode.UNSPECIFIED_ERROR if filter_ in failed else _refusal(connection, hub, wanted)
        if code is None:
            subscription = _subscribed(connection, hub, packet, wanted)
            is_new = hub.router.subscribe(filter_, session, subscription)
            session.subscriptions[filter_] = subscription
            if not subscription.is_cursor:
                hub.cursors.drop(session, filter_)
            code = _GRANTED[subscription.qos]
            is_shared = wanted.topic_filter.startswith("$share/")
            if not is_shared and (wanted.retain_handling == 0 or (wanted.retain_handling == 1 and is_new)):
                granted.append((filter_, subscription))
        codes.append(code)
    suback = Suback(packet_id=packet.packet_id, reason_codes=tuple(codes), properties=_explained(packet, codes))
    connection.session.keep_head()
    connection.session.shelf.after(partial(_granted, connection, hub, suback, granted))


def _granted(
    connection: Connection, hub: Hub, suback: Suback, granted: Sequence[tuple[TopicFilter, Subscribed]]
) -> None:
    connection.send(suback)
    for filter_, subscription in granted:
        show(hub, connection.session, filter_, subscription)


def unsubscribe(connection: Connection, hub: Hub, packet: Unsubscribe) -> None:
    """End subscriptions; one that does not exist is answered as such [MQTT-3.11.3-1]."""
    codes = []
    for text in packet.topic_filters:
        filter_ = TopicFilter(text)
        connection.session.subscriptions.pop(filter_, None)
        hub.cursors.drop(connection.session, filter_)
        existed = hub.router.unsubscribe(filter_, connection.session)
        codes.append(ReasonCode.SUCCESS if existed else ReasonCode.NO_SUBSCRIPTION_EXISTED)
    unsuback = Unsuback(packet_id=packet.packet_id, reason_codes=tuple(codes))
    connection.session.keep_head()
    connection.session.shelf.after(partial(connection.send, unsuback))


def resubscribe(connection: Connection, hub: Hub) -> None:
    """End subscriptions that the permissions, which have changed, no longer cover."""
    for filter_ in [
        each for each in connection.session.subscriptions if not connection.permissions.may_subscribe(each)
    ]:
        del connection.session.subscriptions[filter_]
        hub.cursors.drop(connection.session, filter_)
        hub.router.unsubscribe(filter_, connection.session)
    connection.session.keep_head()


def _refusal(connection: Connection, hub: Hub, wanted: Subscription) -> ReasonCode | None:
    if wanted.topic_filter.count("/") >= MAX_LEVELS:
        return ReasonCode.QUOTA_EXCEEDED
    if not connection.permissions.may_subscribe(wanted.topic_filter):
        return ReasonCode.NOT_AUTHORIZED
    session, filter_ = connection.session, TopicFilter(wanted.topic_filter)
    if len(session.subscriptions) >= hub.settings.limits.subscriptions and filter_ not in session.subscriptions:
        return ReasonCode.QUOTA_EXCEEDED
    if len(filter_) > _LONG and sum(map(len, session.subscriptions.keys() | {filter_})) > _FILTERS:
        return ReasonCode.QUOTA_EXCEEDED
    if hub.cursors.wants(session, filter_, wanted.qos) and not hub.cursors.has_room(session, filter_):
        return ReasonCode.QUOTA_EXCEEDED
    return None


def _subscribed(connection: Connection, hub: Hub, packet: Subscribe, wanted: Subscription) -> Subscribed:
    return Subscribed(
        qos=wanted.qos,
        identifier=next(iter(packet.properties.subscription_identifiers), None),
        no_local=wanted.no_local,
        retain_as_published=wanted.retain_as_published,
        is_cursor=hub.cursors.wants(connection.session, TopicFilter(wanted.topic_filter), wanted.qos),
    )


def _explained(packet: Subscribe, codes: list[ReasonCode]) -> Properties:
    refused = [
        wanted.topic_filter[:80] for wanted, code in zip(packet.subscriptions, codes, strict=True) if code >= 0x80
    ]
    return Properties(reason_string=f"refused: {', '.join(refused[:10])}") if refused else Properties()
