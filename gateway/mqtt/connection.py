"""One MQTT connection: packets in and out, deadlines, and its one way to end.

A `Channel` around the sans-I/O parts: `codec` reads and writes, `rules.session` says what may come when, `connecting`
lets the client in, `inbound` takes its publishes, `session` delivers to it.

Strategy: while a hold is set, what has been read stays in the decoder, which is asked again when the last hold is gone.
`end` is the only way to send a client off, for whatever reason; what must happen once happens in `_leave`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import structlog

from gateway.mqtt import connecting, subscribing
from gateway.mqtt.channel import DECIDING, NEVER, Channel, fitted, reason_text
from gateway.mqtt.codec import (
    EMPTY,
    CodecError,
    Connack,
    Decoder,
    Disconnect,
    Packet,
    Properties,
    Publish,
    PublishRun,
    ReasonCode,
    Version,
)
from gateway.mqtt.handling import HANDLERS
from gateway.mqtt.hub import retry_after_s
from gateway.mqtt.inbound import Inbound
from gateway.mqtt.publishing import Publisher
from gateway.mqtt.session import Session
from gateway.ports.identity import Grant, Principal
from gateway.ports.ingest import Receipt
from gateway.rules.policy import NOTHING, Permissions
from gateway.rules.session import Input, Lifecycle, State, Violation, keep_alive_deadline_s

if TYPE_CHECKING:
    from gateway.mqtt.hub import Hub

log = structlog.get_logger()

Pairs = tuple[tuple[str, str], ...]


class Connection(Channel):
    """What a listener makes for each accepted socket.

    Attributes:
        grant: Whom the token proved and until when; None until then.
        permissions: What it may do now.
        asked: Properties of its CONNECT, without the token.
        client_id: Of the session; "" until let in.
        session: What it resumed or began; set before CONNACK is written.
        is_surplus: Beyond the connection cap: to be told so and closed.
    """

    __slots__ = (
        "_decoder",
        "_has_begun",
        "_has_left",
        "_is_resumed",
        "asked",
        "client_id",
        "grant",
        "inbound",
        "is_loopback",
        "is_surplus",
        "keep_alive_s",
        "lifecycle",
        "permissions",
        "session",
    )

    session: Session
    inbound: Inbound

    def __init__(self, hub: Hub, *, is_loopback: bool = False) -> None:
        """Wait for a socket.

        Args:
            hub: What all connections share.
            is_loopback: Whether the listener is plain TCP on a loopback address.
        """
        super().__init__(hub)
        self.is_loopback = is_loopback
        self.is_surplus = False
        self.lifecycle = Lifecycle()
        self.grant: Grant | None = None
        self.permissions: Permissions = NOTHING
        self.client_id = ""
        self.asked: Properties = EMPTY
        self.keep_alive_s = 0
        self._decoder = Decoder(max_packet_bytes=hub.settings.limits.packet_bytes)
        self._has_begun = self._has_left = self._is_resumed = False

    @property
    def version(self) -> Version | None:
        """What CONNECT asked for; None before it."""
        return self._decoder.version

    @property
    def unknown_identifier(self) -> ReasonCode:
        """What to say of a packet identifier that is not in use: no error while a session recovers (3.6.2.1, 3.7.2.1)."""
        is_told = self.version is Version.V5 and not self._is_resumed
        return ReasonCode.PACKET_IDENTIFIER_NOT_FOUND if is_told else ReasonCode.SUCCESS

    @property
    def principal(self) -> Principal:
        """Whom the token proved; only once let in."""
        assert self.grant is not None
        return self.grant.principal

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin: a CONNECT must come in time."""
        super().connection_made(transport)
        limits, sockets = self._hub.settings.limits, self._hub.sockets
        sockets.add(self)
        self.is_surplus = len(sockets) > limits.connections
        if len(sockets) > limits.connections + max(16, limits.connections // 10):
            self._transport.abort()  # even refusals are bounded
        else:
            self._hub.wheel.schedule(self, self._opened_s + limits.connect_s)

    def data_received(self, data: bytes) -> None:
        """Read what the peer sent."""
        self._heard_s = self.now_s()
        self._hub.stats.received_bytes += len(data)
        if self.lifecycle.state is State.CLOSING:
            return  # read and forgotten, so that the peer gets our last words and no reset
        self._read(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is gone."""
        was_open = self.lifecycle.state.is_open
        self.lifecycle.take(Input.LOST)
        if was_open:
            log.info("disconnected", client=self.client_id, reason="connection lost", error=str(exc) if exc else "")
        self._is_finished = True
        self._leave("connection lost")
        self._hub.sockets.discard(self)
        self._hub.wheel.forget(self)
        if self.client_id:
            del self.inbound  # which knows us: without the cycle all of this goes at once
        super().connection_lost(exc)

    # Reading.

    def _read(self, data: bytes = b"") -> None:
        packets = self._decoder.feed(data)
        try:
            while not self._holds and self.lifecycle.state is not State.CLOSING:
                packet = next(packets, None)
                if packet is None:
                    return
                self._take(packet)
        except CodecError as error:
            self._refuse_bytes(error)
        except Violation as error:
            self.end(ReasonCode(error.code), error.reason)
        except Exception:  # the worker's top: one connection's failure must not be another's
            log.exception("connection_failed", client=self.client_id)
            self._fail()

    def read_on(self, packet: Publish, most: int) -> PublishRun | None:
        """Read what follows the packet just read and is like it (`Decoder.run`)."""
        return self._decoder.run(packet, most=most)

    def _take(self, packet: Packet) -> None:
        kind, handle = HANDLERS.get(type(packet), (None, None))
        self.lifecycle.take(kind or Input[type(packet).__name__.upper()])
        if handle:
            handle(self, self._hub, packet)

    def _refuse_bytes(self, error: CodecError) -> None:
        if self.lifecycle.state is State.AWAITING_CONNECT:
            says_311 = {ReasonCode.UNSUPPORTED_PROTOCOL_VERSION, ReasonCode.CLIENT_IDENTIFIER_NOT_VALID}
            if self.version is None or (self.version is Version.V311 and error.code not in says_311):
                self.refuse(None, str(error))
            else:
                self.refuse(error.code, str(error))
        else:
            self.end(error.code, str(error))

    def decide(self, work: Coroutine[Any, Any, None], *, name: str) -> None:
        """Run what decides about a packet; nothing more is read until it calls `start_reading`."""
        self._hold(DECIDING)
        self._hub.tasks.start(work, name=name, failed=self._fail)

    # Tokens.

    def prove(self, grant: Grant) -> None:
        """Note whom the token proved; whether that client is let in is decided next."""
        self.grant = grant
        self._hub.clients.prove(grant.principal, self)

    def enter(self, session: Session, keep_alive_s: int) -> None:
        """Take a session; from here on it can be taken over. CONNACK is written when that is durable."""
        assert self.grant is not None
        self.session, self.client_id, self.keep_alive_s = session, session.client_id, keep_alive_s
        self.lifecycle.may_auth = self.asked.authentication_method is not None
        publisher = Publisher(self._hub, self.grant.principal, self.grant.permissions, session.epoch, session)
        self.inbound = Inbound(self, self._hub, publisher)
        self._hub.clients.add(self.grant.principal, self.client_id, self)
        self._hub.stats.connections += 1

    def welcome(self, connack: Connack) -> None:
        """Let the client in: CONNACK, then what its session owes it; then what it sent behind CONNECT is read."""
        assert self.grant is not None
        assert self.version is not None
        self._hub.stats.accepted += 1
        self._is_resumed = connack.session_present
        self.lifecycle.take(Input.ACCEPTED)
        log.info(
            "connected",
            client=self.client_id,
            principal=str(self.principal),
            peer=self.peer,
            version=self.version.name,
        )
        self.adopt(self.grant)
        if not self.send(connack):
            self.end(ReasonCode.PACKET_TOO_LARGE, "CONNACK is larger than the client accepts")
            return
        self._has_begun = True
        self.session.attach(self, self.asked.receive_maximum or 65535, self.asked.topic_alias_maximum or 0)
        for watcher in self._hub.watchers:
            watcher.session_began(self.principal, self.client_id, self)
        self.start_reading()

    def start_reading(self) -> None:
        """Read what comes now, and what was pipelined behind the packet that was decided on."""
        self._heard_s = self.now_s()
        self._release(DECIDING)

    def adopt(self, grant: Grant) -> None:
        """Take a grant: expiry is armed, policy is evaluated again."""
        self.grant = grant
        if self.session.jti != (grant.jti or ""):
            self.session.jti = grant.jti or ""
            self.session.keep_head()
        self.permit(grant.permissions)
        self._hub.wheel.schedule(self, self._due_s(self.now_s()))

    def permit(self, permissions: Permissions) -> None:
        """Apply what the client may do from now on, to what it subscribed to as well."""
        if not self.client_id and self.grant is not None:
            self.grant = replace(self.grant, permissions=permissions)  # not let in yet: that will be with these
            return
        if permissions == self.permissions:
            return
        self.permissions = self.inbound.publisher.permissions = permissions
        self.inbound.limit_rates()
        subscribing.resubscribe(self, self._hub)

    def renew(self, why: Input | None, token: bytes, done: Callable[[Receipt], object]) -> None:
        """Prove a fresh token; nothing more is read until that is decided."""
        if why is not None:
            self.lifecycle.take(why)
        self.decide(connecting.renew(self, self._hub, token, done), name="renew")

    # Writing.

    def send(self, packet: Packet) -> bool:
        """Write a packet; False if it is larger than the client accepts, and was not written."""
        data = fitted(packet, self.version or Version.V311, self.asked)
        if data is not None:
            self.write(data)
        return data is not None

    def wake(self) -> None:
        """Have what waits sent at the end of the turn, behind the acknowledgements that are due."""
        self._hub.turn.add(self)

    def finish_turn(self) -> None:
        """Answer publishes and write what the turn produced."""
        try:
            if self.lifecycle.state.is_open:
                self.inbound.answer()
                self._flush()
                self.session.pump()
                while self._out:  # as much as the peer takes: nothing else would come back for what is left
                    self._flush()
                    self.session.pump()
        except Exception:  # as in `_read`
            log.exception("connection_failed", client=self.client_id)
            self._fail()
        self._flush()

    def _resume(self) -> None:
        if self.lifecycle.state is State.CONNECTED:
            super()._resume()
            self._read()

    # Deadlines.

    def check(self, now_s: float) -> float:
        """Act on what is due (`Timed`)."""
        state = self.lifecycle.state
        if state is State.CLOSING:
            self._transport.abort()
            return NEVER
        if state is State.AWAITING_CONNECT and now_s >= self._opened_s + self._hub.settings.limits.connect_s:
            self.refuse(None, "no CONNECT in time")
        elif state.is_open:
            self._check_open(now_s)
        return self._due_s(now_s)

    def _check_open(self, now_s: float) -> None:
        assert self.grant is not None
        if self._holds:
            self._heard_s = now_s
        if self._hub.clock() >= self.grant.expires_at_s:
            self.end(ReasonCode.NOT_AUTHORIZED, "token-expired: renew the token before its exp")
        elif now_s >= self._stuck_s + self._hub.settings.limits.slow_reader_s:
            self.end(ReasonCode.QUOTA_EXCEEDED, "slow-reader: what was written is not read")
        elif self.keep_alive_s and now_s >= keep_alive_deadline_s(self._heard_s, self.keep_alive_s):
            self.end(ReasonCode.KEEP_ALIVE_TIMEOUT, "keep-alive: nothing heard for one and a half intervals")

    def _due_s(self, now_s: float) -> float:
        state = self.lifecycle.state
        if state is State.AWAITING_CONNECT:
            return self._opened_s + self._hub.settings.limits.connect_s
        if state is State.CLOSING:
            return self._ended_s + self._hub.settings.limits.linger_s
        if not state.is_open or self.grant is None:
            return NEVER  # a decision about the token has a timeout of its own
        heard_s = now_s if self._holds else self._heard_s
        silent_s = keep_alive_deadline_s(heard_s, self.keep_alive_s) if self.keep_alive_s else NEVER
        expires_s = now_s + max(0.0, self.grant.expires_at_s - self._hub.clock())
        return min(silent_s, expires_s, self._stuck_s + self._hub.settings.limits.slow_reader_s)

    # Ending.

    def refuse(self, code: ReasonCode | None, reason: str, retry_s: int | None = None) -> None:
        """Refuse the CONNECT with a CONNACK; without a code, close without a word."""
        self._hub.stats.refused[-1 if code is None else code] += 1
        log.info("connect_refused", peer=self.peer, code=None if code is None else f"0x{code:02X}", reason=reason)
        if not self.lifecycle.end():
            return
        if code is not None:
            pairs: Pairs = (("server-time", self._hub.server_time()),)
            pairs += () if retry_s is None else (("retry-after", str(retry_s)),)
            said = Properties(reason_string=reason_text(reason), user_properties=pairs)
            self.send(Connack(reason_code=code, properties=said))
        self._finish(reason)

    def end(self, code: ReasonCode, reason: str, advice: Pairs = (), *, keep_will: bool = True) -> None:
        """Send the client off: DISCONNECT with a reason in 5.0, close in 3.1.1; before CONNACK, CONNACK.

        Args:
            code: Why.
            reason: For the Reason String and the log.
            advice: User properties of the DISCONNECT.
            keep_will: Whether the will is published, as [MQTT-3.1.2-8] wants for what the client did not ask for.
        """
        if not keep_will and self.client_id:
            self.session.will = None
        if self.lifecycle.state in {State.AWAITING_CONNECT, State.AUTHENTICATING}:
            has_code = self.version is Version.V5 and code is not ReasonCode.SESSION_TAKEN_OVER
            self.refuse(code if has_code else None, reason)
            return
        if self.lifecycle.state.is_open:
            self.inbound.answer()
        if not self.lifecycle.end():
            return
        self._hub.stats.ended[code] += 1
        log.info("disconnected", client=self.client_id, code=f"0x{code:02X}", reason=reason)
        if self.version is Version.V5:
            said = Properties(reason_string=reason_text(reason), user_properties=advice)
            self.send(Disconnect(reason_code=code, properties=said))
        self._finish(reason)

    def hang_up(self, reason: str) -> None:
        """Close at once: the client said goodbye."""
        self._leave(reason)
        self._flush()
        self._ended_s = self.now_s()
        self._hub.wheel.schedule(self, self._due_s(self._ended_s))  # it may never take what was written before
        self._transport.close()

    def shut_down(self) -> None:
        """Send the client off because the gateway stops."""
        if self.lifecycle.state.is_open:
            self.end(ReasonCode.SERVER_SHUTTING_DOWN, "the gateway is shutting down")
        elif self.version is None:
            self.refuse(None, "shutting down")
        else:
            self.refuse(ReasonCode.SERVER_UNAVAILABLE, "shutting-down: try again later", retry_after_s(self.client_id))

    def _finish(self, reason: str = "") -> None:
        self._leave(reason)
        super()._finish()

    def _fail(self) -> None:
        self.end(ReasonCode.UNSPECIFIED_ERROR, "internal error")

    def _leave(self, reason: str) -> None:
        """Give up the session. Once."""
        self._hub.budget.forget(self)
        if self.grant is None or self._has_left:
            return
        self._has_left = True
        self._hub.clients.remove(self.grant.principal, self.client_id, self)
        if not self.client_id:
            return  # it was never let in
        self._hub.stats.connections -= 1
        if not self._has_begun:
            self.session.will = None  # of a connection that was not accepted [MQTT-3.1.2-7]
        self._hub.sessions.left(self.session, self.permissions)
        if self._has_begun:
            for watcher in self._hub.watchers:
                watcher.session_ended(self.grant.principal, self.client_id, self, reason)
