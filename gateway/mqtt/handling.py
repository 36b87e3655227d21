"""What is done with each packet that a client may send; the state machine (`rules.session`) refuses the others first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

import structlog
from msgspec.structs import replace as replace_fields

from gateway.mqtt import connecting, subscribing
from gateway.mqtt.codec import (
    Auth,
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
    Subscribe,
    Unsubscribe,
)
from gateway.ports.ingest import Receipt
from gateway.rules.session import Input

if TYPE_CHECKING:
    from gateway.mqtt.connection import Connection
    from gateway.mqtt.hub import Hub

log = structlog.get_logger()


def _connect(connection: Connection, hub: Hub, packet: Connect) -> None:
    connection.asked = replace_fields(packet.properties, authentication_data=None)
    connection.decide(connecting.admit(connection, hub, packet), name="connect")


def _publish(connection: Connection, _hub: Hub, packet: Publish) -> None:
    connection.inbound.take(packet)


def _puback(connection: Connection, _hub: Hub, packet: Puback) -> None:
    connection.session.puback(packet.packet_id, is_refused=packet.reason_code >= ReasonCode.UNSPECIFIED_ERROR)


def _pubrec(connection: Connection, _hub: Hub, packet: Pubrec) -> None:
    connection.session.pubrec(packet.packet_id, is_refused=packet.reason_code >= ReasonCode.UNSPECIFIED_ERROR)


def _pubrel(connection: Connection, _hub: Hub, packet: Pubrel) -> None:
    connection.inbound.release(packet)


def _pubcomp(connection: Connection, _hub: Hub, packet: Pubcomp) -> None:
    connection.session.pubcomp(packet.packet_id)


def _subscribe(connection: Connection, hub: Hub, packet: Subscribe) -> None:
    work = subscribing.subscribe(connection, hub, packet)
    if work is not None:
        connection.decide(work, name="subscribe")


def _unsubscribe(connection: Connection, hub: Hub, packet: Unsubscribe) -> None:
    subscribing.unsubscribe(connection, hub, packet)


def _pingreq(connection: Connection, _hub: Hub, _packet: Pingreq) -> None:
    connection.send(Pingresp())


def _disconnect(connection: Connection, hub: Hub, packet: Disconnect) -> None:
    expiry_s = packet.properties.session_expiry_interval
    if expiry_s and not connection.asked.session_expiry_interval:
        said = Properties(reason_string="session expiry: CONNECT named none (section 3.14.2.2.2)")
        connection.send(Disconnect(reason_code=ReasonCode.PROTOCOL_ERROR, properties=said))
    else:
        if packet.reason_code == ReasonCode.NORMAL_DISCONNECTION:
            connection.session.will = None  # [MQTT-3.14.4-3]
        if expiry_s is not None:
            connection.session.live_for(min(expiry_s, hub.settings.limits.session_expiry_s))
    log.info("disconnected", client=connection.client_id, reason="by client", code=f"0x{packet.reason_code:02X}")
    connection.hang_up("by client")


def _auth(connection: Connection, _hub: Hub, packet: Auth) -> None:
    method = connection.asked.authentication_method

    def done(receipt: Receipt) -> None:
        if not receipt.code:
            connection.send(Auth(properties=Properties(authentication_method=method)))

    connection.renew(None, connecting.token_of(packet, method), done)


HANDLERS: Final[Mapping[type[Packet], tuple[Input, Callable[[Connection, Hub, Any], None]]]] = {
    Connect: (Input.CONNECT, _connect),
    Publish: (Input.PUBLISH, _publish),
    Puback: (Input.PUBACK, _puback),
    Pubrec: (Input.PUBREC, _pubrec),
    Pubrel: (Input.PUBREL, _pubrel),
    Pubcomp: (Input.PUBCOMP, _pubcomp),
    Subscribe: (Input.SUBSCRIBE, _subscribe),
    Unsubscribe: (Input.UNSUBSCRIBE, _unsubscribe),
    Pingreq: (Input.PINGREQ, _pingreq),
    Disconnect: (Input.DISCONNECT, _disconnect),
    Auth: (Input.AUTH, _auth),
}
"""By packet: what it means to the state machine, and who takes it."""
