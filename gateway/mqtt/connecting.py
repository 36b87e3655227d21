"""CONNECT: whose token it is, under which client id, with which will; then CONNACK (wire protocol, section 2)."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

import structlog

from edge_protocol.envelope import FIRST_BYTES
from edge_protocol.errors import TokenRejected
from edge_protocol.topics import Kind, TopicName
from gateway.errors import GatewayError
from gateway.mqtt.codec import Auth, Connack, Connect, Properties, ReasonCode, Version, Will
from gateway.mqtt.hub import retry_after_s
from gateway.mqtt.publishing import place_or_refusal, refusal
from gateway.ports.identity import Credentials, Grant, Principal
from gateway.ports.ingest import STORED, UNSPECIFIED_ERROR, Receipt
from gateway.rules.policy import Permissions
from gateway.rules.session import Input, State, Violation, keep_alive_to_use

if TYPE_CHECKING:
    from gateway.mqtt.connection import Connection
    from gateway.mqtt.hub import Hub

log = structlog.get_logger()

AUTHENTICATION_METHOD: Final = "jwt"


class Refused(Exception):
    """CONNACK refuses.

    Attributes:
        code: Its reason code.
        reason: Its Reason String.
        retry_s: When it is worth trying again, in seconds.
    """

    def __init__(self, code: ReasonCode, reason: str, retry_s: int | None = None) -> None:
        super().__init__(reason)
        self.code, self.reason, self.retry_s = code, reason, retry_s


async def admit(connection: Connection, hub: Hub, connect: Connect) -> None:
    """Decide on a CONNECT, and answer it; a peer that went away meanwhile gets nothing."""
    try:
        if connection.is_surplus:
            raise Refused(
                ReasonCode.QUOTA_EXCEEDED, "overloaded: too many connections", retry_after_s(connect.client_id)
            )
        if not hub.connects.take_if_there(1, hub.loop.time()):
            raise Refused(
                ReasonCode.CONNECTION_RATE_EXCEEDED,
                "overloaded: too many connections a second",
                retry_after_s(connect.client_id),
            )
        grant = await _authenticate(connection, hub, connect)
        if connection.lifecycle.state is State.AUTHENTICATING:
            connection.prove(grant)  # from here on a revocation reaches it
        _check_certificate(connection, hub, grant.principal)
        client_id = _client_id(connect, grant.principal)
        _check_will(connect.will, grant.permissions)
        _check_sessions(hub, grant.principal, client_id)
        through = await _stored_through(hub, connect, grant.principal)
    except Refused as refused:
        if connection.lifecycle.state is State.AUTHENTICATING:
            connection.refuse(refused.code, refused.reason, refused.retry_s)
        return
    if connection.lifecycle.state is State.AUTHENTICATING:
        await _let_in(connection, hub, connect, client_id, through)


async def renew(connection: Connection, hub: Hub, token: bytes, done: Callable[[Receipt], object]) -> None:
    """Prove a fresh token for a live connection; a bad one ends it (wire protocol, section 2).

    `done` is called once, whatever happens: a token publish is in flight until then.
    """
    receipt = Receipt(UNSPECIFIED_ERROR, "token: not renewed")
    try:
        grant = await _renewed(connection, hub, token)
        if grant is not None and connection.lifecycle.state is State.RENEWING:
            connection.lifecycle.take(Input.RENEWED)
            connection.adopt(grant)
            receipt = STORED
    finally:
        done(receipt)
    connection.start_reading()


async def _renewed(connection: Connection, hub: Hub, token: bytes) -> Grant | None:
    assert connection.grant is not None
    try:
        async with asyncio.timeout(hub.settings.limits.authenticate_s):
            return await hub.authenticator.renew(connection.grant, token)
    except TokenRejected as error:
        connection.end(ReasonCode.NOT_AUTHORIZED, str(error))
    except (GatewayError, TimeoutError):
        again = ("retry-after", str(retry_after_s(connection.client_id)))
        connection.end(ReasonCode.IMPLEMENTATION_SPECIFIC_ERROR, "registry-unavailable: try again later", (again,))
    return None


def token_of(packet: Auth, method: str | None) -> bytes:
    """The fresh token that an AUTH brings.

    Raises:
        Violation: It is not a re-authentication by the method of CONNECT.
    """
    if packet.properties.authentication_method != method:
        raise Violation(ReasonCode.PROTOCOL_ERROR, "AUTH: expected the method of CONNECT [MQTT-4.12.1-1]")
    if packet.reason_code is not ReasonCode.RE_AUTHENTICATE:
        raise Violation(ReasonCode.PROTOCOL_ERROR, "AUTH: expected reason 0x19, re-authenticate (section 4.12.1)")
    return packet.properties.authentication_data or b""


async def _let_in(
    connection: Connection, hub: Hub, connect: Connect, client_id: str, through: Mapping[str, int]
) -> None:
    """Give the client its session; CONNACK follows when what that changed is durable."""
    assert connection.grant is not None
    principal, changes = connection.principal, hub.journal.count
    if (old := hub.clients.get(principal, client_id)) is not None:
        old.end(ReasonCode.SESSION_TAKEN_OVER, "taken over by a new connection of the same client [MQTT-3.1.4-3]")
    session, is_present = hub.sessions.open(
        connection.grant,
        client_id,
        clean_start=connect.clean_start,
        expiry_s=_session_expiry_s(connect, hub),
        will=connect.will,
    )
    keep_alive_s = connect.keep_alive_s  # 3.1.1 cannot be told another one
    if connect.version is Version.V5:
        keep_alive_s = keep_alive_to_use(connect.keep_alive_s, hub.settings.limits.keep_alive_s)
    connection.enter(session, keep_alive_s)
    is_durable = hub.journal.count == changes or await hub.journal.settled()
    if connection.lifecycle.state is not State.AUTHENTICATING:
        return
    if not is_durable:
        again_s = retry_after_s(client_id)
        connection.refuse(ReasonCode.SERVER_UNAVAILABLE, "session-unavailable: try again later", again_s)
        return
    said = _announced(connection, hub, connect, through)
    connection.welcome(Connack(session_present=is_present, properties=said))


def _session_expiry_s(connect: Connect, hub: Hub) -> int:
    limits = hub.settings.limits
    asked_s = connect.properties.session_expiry_interval or 0
    if connect.version is not Version.V5:
        asked_s = 0 if connect.clean_start else limits.session_expiry_311_s
    return min(asked_s, limits.session_expiry_s)


async def _authenticate(connection: Connection, hub: Hub, connect: Connect) -> Grant:
    token = _token(connect)
    try:
        async with asyncio.timeout(hub.settings.limits.authenticate_s):
            return await hub.authenticator.authenticate(
                Credentials(
                    client_id=connect.client_id,
                    token=token,
                    is_loopback=connection.is_loopback and connection.is_peer_local,
                )
            )
    except TokenRejected as error:
        raise Refused(ReasonCode.NOT_AUTHORIZED, str(error)) from error
    except (GatewayError, TimeoutError) as error:
        again_s = retry_after_s(connect.client_id)
        raise Refused(ReasonCode.SERVER_UNAVAILABLE, "registry-unavailable: try again later", again_s) from error


def _token(connect: Connect) -> bytes | None:
    method = connect.properties.authentication_method
    if method is None:
        return connect.password
    if method != AUTHENTICATION_METHOD:
        raise Refused(
            ReasonCode.BAD_AUTHENTICATION_METHOD, f"authentication method: expected {AUTHENTICATION_METHOD}, or none"
        )
    token = connect.properties.authentication_data
    if token is None or connect.password is not None:
        raise Refused(ReasonCode.NOT_AUTHORIZED, "expected the token in Authentication Data, and no password")
    return token


def _client_id(connect: Connect, principal: Principal) -> str:
    """The session's name: a device's id for a device, as its token has proved; else the client's choice."""
    return principal.device or connect.client_id or uuid.uuid4().hex


def _check_certificate(connection: Connection, hub: Hub, principal: Principal) -> None:
    """With mutual TLS a device's certificate names it; the CA vouches for other clients, the token says who they are."""
    if hub.settings.client_ca and principal.device is not None and principal.sub not in connection.certified_names:
        raise Refused(
            ReasonCode.NOT_AUTHORIZED, "certificate: expected the device id as its CN or as a DNS name (mutual TLS)"
        )


def _check_sessions(hub: Hub, principal: Principal, client_id: str) -> None:
    held, limit = hub.sessions.of(principal), hub.settings.limits.sessions
    if len(held) < limit or hub.sessions.get(principal, client_id) is not None:
        return
    away = sum(not session.is_connected for session in held)  # those with a connection are bounded by `connections`
    if away >= limit:
        raise Refused(ReasonCode.QUOTA_EXCEEDED, f"sessions: this principal has {away} already")


def _check_will(will: Will | None, permissions: Permissions) -> None:
    if will is None:
        return
    place = place_or_refusal(will.topic)
    if isinstance(place, Receipt):
        raise Refused(ReasonCode.NOT_AUTHORIZED, f"will: {place.reason}")
    refused = refusal(will, place, TopicName(will.topic), permissions)
    if refused is not None:
        raise Refused(ReasonCode.NOT_AUTHORIZED, f"will: {refused.reason}")
    if permissions.require_envelope and place.kind is Kind.EVENTS and will.payload[:1] != FIRST_BYTES[:1]:
        raise Refused(
            ReasonCode.NOT_AUTHORIZED, "will: envelope-required: plain events are not accepted from this role"
        )


async def _stored_through(hub: Hub, connect: Connect, principal: Principal) -> Mapping[str, int]:
    named = [value for name, value in connect.properties.user_properties if name == "stream"]
    streams = list(dict.fromkeys(named))[: hub.settings.limits.streams]
    if not streams:
        return {}
    try:
        async with asyncio.timeout(hub.settings.limits.authenticate_s):
            known = await hub.stored_through(principal.source, streams)
    except (GatewayError, TimeoutError) as error:
        again_s = retry_after_s(connect.client_id)
        raise Refused(ReasonCode.SERVER_UNAVAILABLE, "bus-unavailable: try again later", again_s) from error
    return {stream: known.get(stream, 0) for stream in streams}


def _announced(connection: Connection, hub: Hub, connect: Connect, through: Mapping[str, int]) -> Properties:
    """What CONNACK says of this server (MQTT 5.0, section 3.2.2.3); what it leaves out has the specification's default."""
    limits, asked = hub.settings.limits, connect.properties
    keep_alive_s, expiry_s = connection.keep_alive_s, connection.session.expiry_s
    stored = tuple(("stored-through", f"{stream} {last}") for stream, last in through.items())
    return Properties(
        receive_maximum=limits.receive_maximum,
        maximum_packet_size=limits.packet_bytes,
        assigned_client_identifier=None if connect.client_id else connection.client_id,
        topic_alias_maximum=limits.topic_alias_maximum,
        server_keep_alive=keep_alive_s if keep_alive_s != connect.keep_alive_s else None,
        session_expiry_interval=expiry_s if expiry_s != (asked.session_expiry_interval or 0) else None,
        authentication_method=asked.authentication_method,
        user_properties=(("server-time", hub.server_time()), ("receipts", "durable"), *stored),
    )
