"""From the outbox to the wire and back: cuts batches, seals and publishes them, and does what their answers ask.

Owns the window of one stream and everything that answers do to the outbox. It does not connect, wait or retry: it says
when the connection must end (`halt`), and the uplink decides when the next begins.

Receipts. An event is forgotten only on PUBACK 0x00 of a connection whose CONNACK said `receipts: durable` (promise P2).
Without it a PUBACK is a broker's, not the gateway's: batches then stay in flight, and in the outbox. The signed
receipts of wire protocol, section 6, will be one more source of `_settle`.

`stored-through` settles no more than was handed to the network by this very disk (`sent`): on a restored disk the
gateway may know more of the stream than we ever sent, and what we numbered meanwhile would be forgotten unsent. The
rest is simply sent: the gateway compares ids and says `stream-forked` if it is not the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import msgspec

from edge_agent import logs
from edge_agent.answers import NOT_AUTHORIZED, PAYLOAD_INVALID, Answer, Verdict, verdict
from edge_agent.clock import now_ms
from edge_agent.link import Acknowledged, Connected, Link, publish_bytes
from edge_agent.outbox import Outbox
from edge_agent.rows import Cut
from edge_agent.settings import UplinkSettings
from edge_agent.window import Batch, Cause, Span, Want, Window
from edge_protocol.envelope import Place
from edge_protocol.events import encode_batch

_MAX_RESEALS: Final = 3
"""So many refusals in a row for the key: then it is not the key set that is old, and the connection waits."""


class _Type(msgspec.Struct):
    type: str


_Typed: Final = msgspec.json.Decoder(_Type)


@dataclass(frozen=True, slots=True)
class Halt:
    """Why a connection must end; `answer` is what was said, if something was."""

    reason: str
    answer: Answer | None = None


class Sender:
    """Sends one outbox over one connection after the other."""

    def __init__(
        self,
        outbox: Outbox,
        settings: UplinkSettings,
        *,
        topic: str,
        seal: Callable[[bytes, Place], bytes | None],
    ) -> None:
        """Begin with nothing in flight.

        Args:
            outbox: Where the events wait.
            settings: Sizes and times.
            topic: Where envelopes are published.
            seal: Makes an envelope of a batch, or None while no key is known.
        """
        self._outbox = outbox
        self._settings = settings
        self._topic = topic
        self._seal = seal
        self._stream = outbox.stream()
        self._window = Window()
        self._connected: Connected | None = None
        self._stored: list[Span] = []
        self._sent = self._stream.sent
        self._seen_version = -1
        self._has_more = True
        self._waiting_since_s: float | None = None
        self._reseals = 0
        self._keys_came = False
        self.halt: Halt | None = None
        self.wants_keys = False
        self.key_requests = 0
        self.receipts = 0

    @property
    def stream_id(self) -> str:
        """Id of the stream, for CONNECT."""
        return self._stream.id

    @property
    def in_flight(self) -> int:
        """Batches without an answer."""
        return len(self._window.in_flight)

    @property
    def is_lingering(self) -> bool:
        """Whether a batch waits for company."""
        return self._waiting_since_s is not None

    def begin(self, connected: Connected) -> None:
        """Start on an accepted connection: settle what the gateway has, or start a new stream if it has too much."""
        self._connected, self.halt, self._reseals = connected, None, 0
        self._has_more, self._waiting_since_s = True, None
        if not connected.receipts:
            logs.warning("puback_is_no_receipt", detail="CONNACK lacks receipts: durable; nothing will be forgotten")
            return
        stream = self._outbox.stream()
        through = connected.stored_through.get(stream.id, 0)
        if through > stream.last - stream.base:
            logs.warning("stream_forked", stream=stream.id, stored_through=through, counter=stream.last - stream.base)
            self._fork()
            self.halt = Halt("the gateway has more of the stream than this device gave out")
        elif through:
            self._outbox.settle([Span(stream.base + 1, min(stream.base + through, stream.sent))])

    def end(self) -> None:
        """The connection is gone: write what was answered, and have everything else sent again."""
        self._window.lost()
        self._connected = None
        self.commit()

    def keys_arrived(self) -> None:
        """A key set came: what waited for it may be sealed."""
        self._keys_came = self._has_more = True

    def take(self, acknowledged: Acknowledged) -> bool:
        """Note an answer; nothing is written before `commit`, except what is rare.

        Returns:
            Whether the packet was one of ours.
        """
        batch = self._window.in_flight.get(acknowledged.packet_id)
        if batch is None:
            return False
        events = batch.span.last - batch.span.first + 1
        types = self._types(batch.span) if acknowledged.answer.code == NOT_AUTHORIZED else 1
        decided = verdict(acknowledged.answer, events=events, types=types)
        self._has_more = True
        if decided is Verdict.FORGET:
            self._forget(acknowledged.packet_id)
        else:
            logs.warning(
                "batch_refused", code=f"0x{acknowledged.answer.code:02X}", reason=acknowledged.answer.reason,
                events=events, verdict=decided.name.lower(),
            )  # fmt: skip
            self._refused(acknowledged.packet_id, batch, acknowledged.answer, decided)
        return True

    def commit(self) -> None:
        """Forget what was stored, in one transaction for all answers of a turn."""
        spans, self._stored = self._stored, []
        if spans:
            self._outbox.settle(_joined(spans), now_ms=now_ms())

    def pump(self, link: Link) -> None:
        """Send what the window and the limits allow."""
        if self.wants_keys and self._keys_came and not self.in_flight:  # answers to the old key may still come
            self.wants_keys, self._has_more = False, True
        if self.halt or self._connected is None or self.wants_keys or not self._is_anything_new():
            return
        before = self._sent
        while link.has_room and (want := self._window.want(self._settings.window)) is not None:
            if not self._send_next(link, want):
                break
        if self._sent > before:
            self._outbox.mark_sent(self._sent)

    def is_overdue(self, now_s: float) -> bool:
        """Whether a receipt is late (the oldest batch waits longer than `receipt_timeout`); monotonic seconds."""
        oldest = next(iter(self._window.in_flight.values()), None)
        receipts = self._connected is not None and self._connected.receipts
        return receipts and oldest is not None and now_s - oldest.sent_s > self._settings.receipt_timeout

    def _is_anything_new(self) -> bool:
        version = self._outbox.store.data_version()
        if version != self._seen_version:
            self._seen_version, self._has_more = version, True
        return self._has_more

    def _send_next(self, link: Link, want: Want) -> bool:
        """Send the next batch, or cut it smaller if it does not fit; False if there is nothing to do now."""
        cut = self._outbox.cut(
            want.first, want.last, events=self._settings.max_batch, size=self._settings.max_batch_bytes
        )
        if cut is None:
            self._window.pass_over(want)
            self._waiting_since_s = None
            self._has_more = want.last is not None
            return self._has_more
        if not self._is_ripe(cut, want):
            return False
        envelope = self._seal(encode_batch(row.body for row in cut.rows), self._place(cut))
        if envelope is None:
            self._has_more = False  # until keys arrive
            return False
        batch = Batch(cut.span, want.is_suspect, time.monotonic())
        if self._fits(envelope):
            self._window.sent(link.publish(self._topic, envelope), batch)
            self._sent = max(self._sent, cut.span.last)
        else:
            self._too_large(batch, len(envelope))
        return True

    def _is_ripe(self, cut: Cut, want: Want) -> bool:
        """Whether to send it now: it is full, suspected, has lingered, or nothing is on the way that it could wait for.

        So a lone event leaves at once, and under load a batch gathers while the one before it is being stored (the idea
        of Nagle's algorithm, RFC 896).
        """
        now_s = time.monotonic()
        if self._waiting_since_s is None:
            self._waiting_since_s = now_s
        if (
            cut.is_full
            or want.is_suspect
            or not self.in_flight
            or now_s - self._waiting_since_s >= self._settings.linger
        ):
            self._waiting_since_s = None
            return True
        return False

    def _place(self, cut: Cut) -> Place:
        base = self._stream.base
        return Place(self._stream.id, cut.span.first - base, cut.settled - base)

    def _fits(self, envelope: bytes) -> bool:
        limit = self._connected.packet_bytes if self._connected else None
        return limit is None or publish_bytes(self._topic, envelope) <= limit

    def _too_large(self, batch: Batch, size: int) -> None:
        limit = self._connected.packet_bytes if self._connected else None
        self._window.taken(batch)
        if batch.span.first == batch.span.last:
            batch.move(Cause.REFUSED)
            reason = f"packet-too-large: an envelope of {size} bytes, the server takes packets of {limit}"
            self._quarantine(batch.span, Answer(PAYLOAD_INVALID, reason))
        else:
            batch.move(Cause.HALVED)
            self._window.suspect(*batch.span.halves())

    def _forget(self, packet_id: int) -> None:
        if self._connected is None or not self._connected.receipts:
            return
        batch = self._window.answered(packet_id, Cause.STORED)
        if batch is not None:
            self._stored.append(batch.span)
            self.receipts += 1
            self._reseals = 0

    def _refused(self, packet_id: int, batch: Batch, answer: Answer, decided: Verdict) -> None:
        match decided:
            case Verdict.SET_ASIDE:
                self._window.answered(packet_id, Cause.REFUSED)
                self._quarantine(batch.span, answer)
            case Verdict.HALVE:
                self._window.answered(packet_id, Cause.HALVED)
            case Verdict.RESEAL:
                self._window.answered(packet_id, Cause.LOST)
                self._want_keys(answer)
            case Verdict.FORK:
                self._fork()
                self.halt = Halt(answer.reason, answer)
            case _:
                self.halt = Halt(answer.reason or "the gateway cannot store now", answer)

    def _want_keys(self, answer: Answer) -> None:
        if not self.wants_keys:
            self._reseals += 1
            self.key_requests += 1
            self.wants_keys, self._keys_came = True, False
        if self._reseals >= _MAX_RESEALS:
            self.halt = Halt(f"refused {self._reseals} times for its key: {answer.reason}", answer)

    def _types(self, span: Span) -> int:
        """How many event types a span has: a 0x87 judges types."""
        cut = self._outbox.cut(*span, events=self._settings.max_batch, size=self._settings.max_batch_bytes)
        return len({_Typed.decode(row.body).type for row in cut.rows}) if cut else 1

    def _quarantine(self, span: Span, answer: Answer) -> None:
        ids = self._outbox.set_aside(span, code=answer.code, reason=answer.reason, now_ms=now_ms())
        for event in ids:
            logs.warning("event_quarantined", id=event, code=f"0x{answer.code:02X}", reason=answer.reason)

    def _fork(self) -> None:
        self.commit()
        self._window = Window()
        self._stream = self._outbox.fork()
        self._sent = self._stream.sent
        logs.warning("stream_started", stream=self._stream.id)


def _joined(spans: list[Span]) -> list[Span]:
    """Neighbours as one: a turn's receipts are mostly consecutive."""
    joined: list[Span] = []
    for span in sorted(spans):
        if joined and joined[-1].last + 1 >= span.first:
            joined[-1] = Span(joined[-1].first, max(span.last, joined[-1].last))
        else:
            joined.append(span)
    return joined
