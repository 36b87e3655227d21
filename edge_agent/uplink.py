"""The uplink: one connection after the other, what is said on them, and how long to wait in between.

Owns token, clock, keys and pace of a connection's life; `Sender` owns the events on it, `Link` the packets. All of it
runs in one thread: a turn of the network, what it brought, one commit, what can be sent.
"""

from __future__ import annotations

import random
import ssl
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Final

from edge_agent import logs
from edge_agent.agent import CLOCK_OFFSET
from edge_agent.answers import Answer
from edge_agent.backoff import STABLE_S, Pace
from edge_agent.bell import Bell
from edge_agent.clock import Clock, now_ms
from edge_agent.errors import AgentError, cause_of
from edge_agent.https import fetch
from edge_agent.link import Acknowledged, Connected, Ended, Happening, HasFileno, Link, Message, Refused, Subscribed
from edge_agent.outbox import Outbox
from edge_agent.sender import Halt, Sender
from edge_agent.settings import Address, Settings
from edge_agent.stop import Stop
from edge_agent.token import TokenKeeper
from edge_agent.trust import Trust
from edge_protocol.envelope import Place, seal
from edge_protocol.errors import KeySetRejected
from edge_protocol.keys import SigningKey
from edge_protocol.topics import KEYS_TOPIC, events_topic, token_topic

CONNECTION: Final = "connection"
"""Note in the outbox: the state of the connection, for `edge-agent status`."""
KEYS_PATH: Final = "/.well-known/gateway-keys"
_TURN_S: Final = 0.02  # how soon an event emitted by another process is noticed
_FAREWELL_S: Final = 1.0  # wait for the DISCONNECT that follows a PUBACK 0x83 or 0x97 and may say `retry-after`
_KEYS_S: Final = 5.0  # wait for the key set on a connection that asked for it
_DRAIN_S: Final = 5.0  # wait for receipts when the daemon stops
_SHRINK_EVERY_S: Final = 60.0
_FAILURE: Final = 0x80


class Uplink:
    """Delivers an outbox to its gateway until it is told to stop."""

    def __init__(
        self,
        settings: Settings,
        *,
        address: Address,
        tls: ssl.SSLContext | None,
        key: SigningKey,
        trust: Trust,
        outbox: Outbox,
        stop: Stop,
        bell: Bell | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._settings = settings
        self._address = address
        self._tls = tls
        self._key = key
        self._trust = trust
        self._outbox = outbox
        self._stop = stop
        self._bell = bell
        self._wakers: list[HasFileno] = [stop] if bell is None else [stop, bell]
        self._jitter = jitter
        self._pace = Pace()
        self._clock = Clock(outbox.noted(CLOCK_OFFSET) or 0.0)
        self._token = TokenKeeper(
            key,
            audience=trust.audience,
            device=settings.id,
            lifetime_s=settings.uplink.token_lifetime,
            clock=self._clock,
        )
        self._sender = Sender(outbox, settings.uplink, topic=events_topic(settings.id), seal=self._seal)
        self._token_packet: int | None = None
        self._is_accepted = False
        self._asked_s, self._answered_requests = 0.0, 0
        self._is_without_key = False

    def run(self) -> None:
        """Connect, deliver, wait, again; returns when told to stop, with what is in flight answered or given up."""
        self._recall_keys()
        while not self._stop.is_set:
            wait_s = self._session()
            if not self._stop.is_set:
                self._stop.wait(wait_s)
        self._note("stopped")

    def _session(self) -> float:
        """One connection from start to end; returns the seconds to wait before the next."""
        try:
            end = self._connection()
        except (OSError, AgentError) as exc:
            end = Ended(None, cause_of(exc))
        except Exception as exc:  # noqa: BLE001  # top of the worker: paho raises what it likes on a broken peer
            logs.error("uplink_failed", exc_info=True, error=type(exc).__name__)
            end = Ended(None, type(exc).__name__)
        return self._after(end)

    def _connection(self) -> Ended | Refused | Halt:
        self._fetch_keys()
        self._is_accepted, self._token_packet, self._asked_s = False, None, time.monotonic()
        self._note("connecting")
        link = Link(
            self._address,
            client_id=self._settings.id,
            token=self._token.mint(),
            streams=[self._sender.stream_id],
            keepalive_s=self._settings.uplink.keepalive,
            timeout_s=self._settings.uplink.connect_timeout,
            tls=self._tls,
        )
        try:
            link.connect()
            return self._converse(link)
        finally:
            link.close()
            self._sender.end()

    def _converse(self, link: Link) -> Ended | Refused | Halt:
        """Take turns until something ends the connection."""
        started_s = time.monotonic()
        quiet_s = started_s + _SHRINK_EVERY_S
        while True:
            end = self._turn(link)
            now_s = time.monotonic()
            if end is not None:
                return end
            if not self._is_accepted and now_s - started_s > self._settings.uplink.connect_timeout:
                return Ended(None, "no CONNACK in time")
            if now_s - started_s > STABLE_S:
                self._pace.progressed()
            if self._stop.is_set:
                return self._drain(link)
            if self._sender.is_overdue(now_s):
                return Ended(None, "no receipt in time")
            self._renew(link, now_s)
            self._sender.pump(link)
            if now_s > quiet_s and not self._sender.in_flight:
                quiet_s = now_s + _SHRINK_EVERY_S
                self._outbox.store.shrink()

    def _turn(self, link: Link) -> Ended | Refused | Halt | None:
        """Read what came and do it, in order; returns what ends the connection, if anything does."""
        receipts = self._sender.receipts
        wait_s = min(_TURN_S, self._settings.uplink.linger) if self._sender.is_lingering else _TURN_S
        end: Ended | Refused | None = None
        happened = link.turn(wait_s, self._wakers)
        if self._bell is not None:
            self._bell.clear()
        for happening in happened:
            end = self._happened(happening, link) or end
        self._sender.commit()
        if self._sender.receipts > receipts:
            self._pace.progressed()
        if self._sender.halt is not None:
            return _told_by(self._sender.halt, end) if end else self._farewell(link, self._sender.halt)
        return end or self._ask_for_keys(link)

    def _ask_for_keys(self, link: Link) -> Halt | None:
        """Have the retained key set sent again when an envelope was refused for its key."""
        if not self._sender.wants_keys:
            return None
        if self._sender.key_requests > self._answered_requests:
            self._answered_requests, self._asked_s = self._sender.key_requests, time.monotonic()
            link.subscribe(KEYS_TOPIC)
        elif time.monotonic() - self._asked_s > _KEYS_S:
            return Halt("no usable key set in time")
        return None

    def _happened(self, happening: Happening, link: Link) -> Ended | Refused | None:
        match happening:
            case Connected():
                self._accepted(happening, link)
            case Acknowledged():
                if not self._sender.take(happening):
                    self._renewed(happening)
            case Message(topic, payload) if topic == KEYS_TOPIC:
                self._offer_keys(payload)
            case Subscribed(code) if code >= _FAILURE:
                logs.warning("key_set_subscription_refused", code=f"0x{code:02X}")
            case Ended() | Refused():
                return happening
        return None

    def _accepted(self, connected: Connected, link: Link) -> None:
        self._is_accepted = True
        self._correct_clock(connected.server_time)
        logs.info("connected", gateway=self._address.url)
        self._note("connected")
        link.subscribe(KEYS_TOPIC)
        self._sender.begin(connected)

    def _farewell(self, link: Link, halt: Halt) -> Halt:
        """Wait a moment for the DISCONNECT that may say when to come again."""
        deadline_s = time.monotonic() + _FAREWELL_S
        if halt.answer is None or halt.answer.retry_after_s is not None:
            return halt
        while link.is_open and time.monotonic() < deadline_s:
            for happening in link.turn(_TURN_S):
                if isinstance(happening, Acknowledged):
                    self._sender.take(happening)
                elif isinstance(happening, Ended):
                    return _told_by(halt, happening)
        return halt

    def _drain(self, link: Link) -> Ended:
        """Wait, bounded, for the receipts of what is in flight; nothing new is sent."""
        deadline_s = time.monotonic() + _DRAIN_S
        while link.is_open and self._sender.in_flight and self._sender.halt is None and time.monotonic() < deadline_s:
            for happening in link.turn(_TURN_S):
                if isinstance(happening, Acknowledged):
                    self._sender.take(happening)
            self._sender.commit()
        return Ended(None, "stopped")

    def _after(self, end: Ended | Refused | Halt) -> float:
        """Note why it ended and say how long to wait."""
        answer: Answer | None = end.answer
        reason = (answer.reason if answer else "") or (end.cause if isinstance(end, Ended) else "")
        reason = (end.reason if isinstance(end, Halt) else reason) or (f"0x{answer.code:02X}" if answer else "")
        untold = False
        if isinstance(end, Refused):
            self._correct_clock(end.server_time)
            untold = end.is_bare
        wait_s = self._pace.next_s(self._jitter(), told_s=answer.retry_after_s if answer else None, untold=untold)
        logs.info(
            "disconnected", reason=reason, code=f"0x{answer.code:02X}" if answer else None, wait_s=round(wait_s, 1)
        )
        self._note("waiting", reason=reason, retry_at_ms=now_ms() + int(wait_s * 1000))
        return wait_s

    def _renew(self, link: Link, now_s: float) -> None:
        is_due = self._is_accepted and self._token_packet is None and now_s >= self._token.renew_at_s
        if is_due and link.has_room:
            self._token_packet = link.publish(token_topic(self._settings.id), self._token.mint())

    def _renewed(self, acknowledged: Acknowledged) -> None:
        if acknowledged.packet_id != self._token_packet:
            return
        self._token_packet = None
        if acknowledged.answer.code >= _FAILURE:  # tried again when the next is due; at the latest by the next connect
            logs.warning("token_refused", code=f"0x{acknowledged.answer.code:02X}", reason=acknowledged.answer.reason)
        else:
            logs.info("token_renewed")

    def _correct_clock(self, server_time: str) -> None:
        if self._clock.correct(server_time):
            logs.warning("clock_corrected", offset_s=round(self._clock.offset_s, 1))
            self._outbox.note(CLOCK_OFFSET, self._clock.offset_s)

    def _seal(self, batch: bytes, place: Place) -> bytes | None:
        now_s = self._clock.now_s()
        to = self._trust.seal_key(self._settings.seal.suites, now_s)
        if (to is None) != self._is_without_key:
            self._is_without_key = to is None
            if to is None:
                logs.info(
                    "no_key_to_seal_with", suites=list(self._settings.seal.suites), detail="waiting for gateway/keys"
                )
        if to is None:
            return None
        return seal(
            batch,
            key=self._key,
            to=to,
            audience=self._trust.audience,
            device=self._settings.id,
            issued_at=max(0, int(now_s)),
            place=place,
            compress=self._settings.seal.compress,
        )

    def _recall_keys(self) -> None:
        try:
            self._trust.recall(self._clock.now_s())
        except KeySetRejected as exc:
            logs.warning("key_set_refused", reason=str(exc), origin="disk")

    def _offer_keys(self, text: bytes) -> None:
        try:
            is_new = self._trust.offer(text, self._clock.now_s())
        except KeySetRejected as exc:
            logs.warning("key_set_refused", reason=str(exc), origin="gateway")
            return
        if is_new and self._trust.key_set is not None:
            logs.info("key_set_taken", version=self._trust.key_set.version)
        self._sender.keys_arrived()

    def _fetch_keys(self) -> None:
        """Ask over HTTPS when there is nothing to seal with: a role may not read `gateway/keys`."""
        url = self._trust.file.url
        is_known = self._trust.seal_key(self._settings.seal.suites, self._clock.now_s()) is not None
        if not url or self._tls is None or (is_known and not self._sender.wants_keys):
            return
        try:
            status, body = fetch(url, KEYS_PATH, self._tls)
        except AgentError as exc:
            logs.info("key_set_not_fetched", reason=str(exc))
            return
        if status == HTTPStatus.OK:
            self._offer_keys(body.strip())

    def _note(self, state: str, **fields: Any) -> None:
        try:
            self._outbox.note(
                CONNECTION, {"state": state, "gateway": self._address.url, "since_ms": now_ms(), **fields}
            )
        except AgentError as exc:  # for `status` only: delivery finds out for itself whether the disk works
            logs.warning("state_not_noted", reason=str(exc))


def _told_by(halt: Halt, end: Ended | Refused) -> Halt:
    """Why we leave, with the `retry-after` of the DISCONNECT that followed, if it has one."""
    if end.answer is not None and end.answer.retry_after_s is not None:
        return Halt(halt.reason, end.answer)
    return halt
