"""Retained messages of clients, on ordinary topics (MQTT 5.0, section 3.3.1.3): in memory to be found, on disk to be kept.

Owns their bounds, expiry and restoring. A change goes through the journal, in the commit that also holds what sessions
queue of the same message, and the publisher is acknowledged after it. A message belongs to who published it: when that
principal is revoked, or registered anew, it is gone.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Final, NamedTuple

import msgspec
import structlog

from edge_protocol.topics import TopicFilter, TopicName
from gateway.mqtt import records
from gateway.mqtt.codec import CodecError
from gateway.mqtt.journal import Journal
from gateway.mqtt.messages import Message
from gateway.mqtt.settings import ServerLimits
from gateway.mqtt.topic_tree import TopicTree
from gateway.ports.identity import Principal, PrincipalKind
from gateway.ports.ingest import QUOTA_EXCEEDED, Receipt
from gateway.ports.state import StateStore

log = structlog.get_logger()

PREFIX: Final = "retained/"
RETRY_AFTER_S: Final = 60
_FORMAT: Final = 1
_PAGE: Final = 256
_PRUNE_S: Final = 1.0
_FREE_LEVELS: Final = 8  # of a topic; they are shared with other topics, as a rule


class Owner(NamedTuple):
    """Who published a message: under which client id (for No Local), by which registration (`Grant.epoch`)."""

    principal: Principal
    client_id: str
    epoch: int


class _Record(msgspec.Struct, frozen=True, array_like=True):
    """A retained message as it is stored; times are Unix seconds."""

    format: int
    kind: str
    issuer: str
    sub: str
    client_id: str
    packet: bytes
    expires_at_s: float | None
    epoch: int = 0


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Record).decode


class Kept:
    """One retained message."""

    __slots__ = ("message", "owner", "size_bytes")

    def __init__(self, message: Message, owner: Owner, size_bytes: int) -> None:
        self.message = message
        self.owner = owner
        self.size_bytes = size_bytes


class Retained:
    """All of them.

    Attributes:
        count: How many there are.
        size_bytes: What they take in the store.
    """

    def __init__(
        self, journal: Journal, limits: ServerLimits, *, clock: Callable[[], float], loop: asyncio.AbstractEventLoop
    ) -> None:
        self._journal = journal
        self._limits = limits
        self._clock = clock
        self._loop = loop
        self._tree: TopicTree[Kept] = TopicTree()
        self._by_principal: dict[Principal, dict[TopicName, None]] = {}
        self._pruned_s = float("-inf")
        self.count = self.size_bytes = 0

    async def load(self, store: StateStore, is_known: Callable[[Principal, int], Awaitable[bool]]) -> None:
        """Find what was kept before the gateway was started; what revoked principals published is gone (P7).

        Args:
            store: Where it is kept.
            is_known: Whether a principal may still connect, by this registration.

        Raises:
            BusUnavailable: The store cannot be read.
        """
        after = ""
        while entries := await store.scan(PREFIX, after, _PAGE):
            for entry in entries:
                self._restore(TopicName(entry.key.removeprefix(PREFIX)), entry.value)
            after = entries[-1].key
        by_registration: defaultdict[tuple[Principal, int], list[TopicName]] = defaultdict(list)
        for kept in self._all():
            by_registration[kept.owner.principal, kept.owner.epoch].append(kept.message.topic)
        for (principal, epoch), topics in by_registration.items():
            if not await is_known(principal, epoch):
                self._drop_all(topics)

    def refusal(self, message: Message) -> Receipt | None:
        """Tell why a message cannot be kept now (0x97); None if it can."""
        if self._fits(message):
            return None
        self._prune()
        if self._fits(message):
            return None
        limits = self._limits
        detail = f"no more than {limits.retained_messages} messages and {limits.retained_bytes} bytes are retained"
        return Receipt(QUOTA_EXCEEDED, f"retained-full: {detail}", retry_after_s=RETRY_AFTER_S)

    def keep(self, message: Message, owner: Owner) -> None:
        """Keep a message in the place of its topic's last one; an empty one only removes that [MQTT-3.3.1-6]."""
        self._drop(message.topic)
        if not message.payload:
            return
        record, size_bytes = self._record(message, owner)
        self._index(Kept(_anonymous(message), owner, size_bytes))
        self._journal.put(PREFIX + message.topic, record)

    @property
    def principals(self) -> set[Principal]:
        """Whose messages there are."""
        return set(self._by_principal)

    def forget(self, principal: Principal) -> None:
        """Remove what a principal published: it is revoked."""
        self._drop_all(self._by_principal.get(principal, ()))

    def under(self, filter_: TopicFilter) -> list[Kept]:
        """What is kept under a filter and has not expired."""
        return [kept for kept in self._tree.under(filter_) if not self._is_expired(kept)]

    def holds(self, kept: Kept) -> bool:
        """Whether a message is still its topic's last one, and has not expired."""
        return self._tree.get(kept.message.topic) is kept and not self._is_expired(kept)

    def _fits(self, message: Message) -> bool:
        old = self._tree.get(message.topic)
        count = self.count + (old is None)
        more_bytes = _least_bytes(message) - (old.size_bytes if old else 0)
        limits = self._limits
        return not message.payload or (
            count <= limits.retained_messages and self.size_bytes + more_bytes <= limits.retained_bytes
        )

    def _record(self, message: Message, owner: Owner) -> tuple[bytes, int]:
        principal, client_id, epoch = owner
        packet, _ = records.write_message(message, message.qos, (), retain=True)
        left_s = None if message.expires_at_s is None else message.expires_at_s - self._loop.time()
        expires_at_s = None if left_s is None else self._clock() + left_s
        kind, issuer, sub = principal.kind.value, principal.issuer, principal.sub
        record = _Record(_FORMAT, kind, issuer, sub, client_id, packet, expires_at_s, epoch)
        return _encode(record), _least_bytes(message)

    def _restore(self, topic: TopicName, data: bytes) -> None:
        try:
            record = _decode(data)
            packet = records.read_publish(record.packet)
        except (msgspec.DecodeError, CodecError, ValueError) as error:
            log.warning("retained_not_read", topic=topic, error=type(error).__name__)
            return
        left_s = None if record.expires_at_s is None else record.expires_at_s - self._clock()
        if record.format != _FORMAT or (left_s is not None and left_s <= 0):
            self._journal.put(PREFIX + topic, None)
            return
        message = records.read_message(packet, None, None if left_s is None else self._loop.time() + left_s)
        principal = Principal(PrincipalKind(record.kind), record.issuer, record.sub)
        self._index(Kept(message, Owner(principal, record.client_id, record.epoch), _least_bytes(message)))

    def _index(self, kept: Kept) -> None:
        self._tree.put(kept.message.topic, kept)
        self._by_principal.setdefault(kept.owner.principal, {})[kept.message.topic] = None
        self.count += 1
        self.size_bytes += kept.size_bytes

    def _drop(self, topic: TopicName) -> None:
        kept = self._tree.pop(topic)
        if kept is None:
            return
        self.count -= 1
        self.size_bytes -= kept.size_bytes
        mine = self._by_principal[kept.owner.principal]
        del mine[topic]
        if not mine:
            del self._by_principal[kept.owner.principal]
        self._journal.put(PREFIX + topic, None)

    def _drop_all(self, topics: Iterable[TopicName]) -> None:
        for topic in tuple(topics):
            self._drop(topic)

    def _prune(self) -> None:
        """Remove what has expired; at most once a second, since it looks at all."""
        if self._loop.time() < self._pruned_s + _PRUNE_S:
            return
        self._pruned_s = self._loop.time()
        self._drop_all(kept.message.topic for kept in self._all() if self._is_expired(kept))

    def _all(self) -> Iterator[Kept]:
        topics = (topic for mine in self._by_principal.values() for topic in mine)
        return (kept for topic in topics if (kept := self._tree.get(topic)) is not None)

    def _is_expired(self, kept: Kept) -> bool:
        expires_at_s = kept.message.expires_at_s
        return expires_at_s is not None and expires_at_s <= self._loop.time()


def _anonymous(message: Message) -> Message:
    """The same message without its publisher's session, which it would keep in memory."""
    return Message(
        message.topic,
        message.payload,
        message.qos,
        properties=message.properties,
        retain=True,
        expires_at_s=message.expires_at_s,
    )


def _least_bytes(message: Message) -> int:
    """What a message is counted as: what it carries, and 256 bytes for what it costs, and for each level of a long topic."""
    return message.size_bytes + 256 * (1 + max(0, message.topic.count("/") + 1 - _FREE_LEVELS))
