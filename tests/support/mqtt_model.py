"""The clients of the model test of the MQTT server, and what they send.

A `Peer` keeps its side of the protocol as section 4 of MQTT 5.0 has it, and checks with each packet that the server does.
"""

from __future__ import annotations

from model_world import LIFETIME_S, UNIX_S, Gateway, Link
from mqtt_kit import connect, properties, publish
from mqtt_tokens import token

from gateway.mqtt.codec import (
    Connack,
    Disconnect,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    Subscription,
    Version,
    encode,
)

PLAIN, SHARED = "chat/all", "chat/jobs"
FILTERS = (PLAIN, f"$share/g/{SHARED}")
TOKEN = token("ann", "operator", iss="id", iat=UNIX_S, exp=UNIX_S + LIFETIME_S)
MOST_SENT = 6  # unacknowledged at a time


class Sent:
    """A message on its way to the server."""

    def __init__(self, message, qos: int) -> None:
        self.message, self.qos = message, qos
        self.is_released = False


class Message:
    """Something published.

    Attributes:
        number: Counts messages of both peers.
        fate: None while nobody knows; True: the server acknowledged it; False: nobody will ever know.
    """

    def __init__(self, number: int, sender: str, topic: str, qos: int) -> None:
        self.number, self.topic, self.qos = number, topic, qos
        self.order = sender, topic, qos
        self.payload = f"{number} {sender} {topic} {qos}".encode()
        self.fate: bool | None = None


class Peer:
    """A client that keeps its side of the protocol, with a session that survives everything but `clean`.

    Attributes:
        got: Payloads it took: at QoS 2 once, however often they came.
        since: Messages below this number may have been published before it was subscribed.
    """

    def __init__(self, name: str, version: Version, messages: list[Message]) -> None:
        self.name, self.version, self._messages = name, version, messages
        self.link: Link | None = None
        self.maximum = 3 if version is Version.V5 else 65535
        self.got: list[bytes] = []
        self.is_clean = True
        self.is_mute = self.is_in = False
        self._forget()

    def _forget(self) -> None:
        """Begin a new session."""
        for sent in getattr(self, "sending", {}).values():
            sent.message.fate = False
        self.sending: dict[int, Sent] = {}
        self.received: dict[int, bytes] = {}  # QoS 2: taken, and not released
        self.unanswered: dict[int, bytes] = {}  # QoS 1 and 2: no answer was sent yet
        self.answered: set[int] = {777}  # PUBREC was sent at some time
        self.is_subscribed = False
        self.since = 0

    @property
    def is_linked(self) -> bool:
        return self.link is not None and not self.link.is_cut

    @property
    def is_ready(self) -> bool:
        """Whether it may publish."""
        return self.is_linked and self.is_in

    @property
    def is_done(self) -> bool:
        """Whether nothing is under way."""
        return not (self.sending or self.received or self.unanswered) and self.is_subscribed and self.is_ready

    # What it does.

    def send(self, *packets) -> None:
        if self.is_linked:
            self.link.feed(b"".join(encode(packet, self.version) for packet in packets))

    def answer(self, packet) -> None:
        """Send an acknowledgement, now or when it speaks again; in order in any case [MQTT-4.6.0-2]."""
        self._owed.append(packet)
        if not self.is_mute:
            self.speak()

    def speak(self) -> None:
        """Send what it owes."""
        self.is_mute = False
        for packet in self._owed:
            self._note(packet)
            self.send(packet)
        self._owed.clear()

    def _note(self, packet) -> None:
        if isinstance(packet, Puback | Pubrec):
            self.unanswered.pop(packet.packet_id, None)
        if isinstance(packet, Puback | Pubcomp):
            self.open.discard(packet.packet_id)
        elif isinstance(packet, Pubrec):
            self.answered.add(packet.packet_id)

    def lose(self) -> None:
        if self.link:
            self.link.lose()

    def dial(self, gateway: Gateway, *, clean: bool = False) -> None:
        """Connect; the old connection may still be there, and is taken over then."""
        if clean or self.is_clean:
            self.is_clean = True
            self._forget()
        if self.link:
            self.link.packets.clear()
        self.link = Link(gateway.hub, self.version)
        self.is_in = self.is_mute = False
        self._owed: list = []
        self.open: set[int] = set()  # the server's identifiers that take a place of the Receive Maximum
        self.expected: dict[type, list[int]] = {Puback: [], Pubrec: []}  # in the order of our PUBLISHes
        lasting = {}
        if self.version is Version.V5:
            lasting = {"properties": properties(session_expiry_interval=100_000, receive_maximum=self.maximum)}
        clean_start = self.is_clean and self.version is Version.V5
        self.send(connect(self.name, token_=TOKEN, version=self.version, clean_start=clean_start, **lasting))

    def publish(self, topic: str, qos: int) -> None:
        """Publish under the lowest identifier that is free, so that each is soon used again."""
        in_use = {
            *self.sending,
            *self.expected[Puback],
            *self.expected[Pubrec],
            *(each.packet_id for each in self._owed),
        }
        packet_id = next(each for each in range(1, 100) if each not in in_use)
        if packet_id > MOST_SENT:
            return
        message = Message(len(self._messages), self.name, topic, qos)
        self._messages.append(message)
        self.sending[packet_id] = Sent(message, qos)
        self._publish(packet_id)

    def _publish(self, packet_id: int, *, dup: bool = False) -> None:
        message = self.sending[packet_id].message
        self.expected[Puback if message.qos == 1 else Pubrec].append(packet_id)
        self.send(publish(message.topic, message.payload, qos=message.qos, packet_id=packet_id, dup=dup))

    def repeat(self) -> None:
        """Send again, on the same connection, what is not acknowledged, as some clients of 3.1.1 do."""
        for packet_id, sent in self.sending.items():
            if sent.qos == 2 and not sent.is_released:
                self._publish(packet_id, dup=True)

    def misbehave(self, choice: int) -> None:
        """Send what no good client would: an answer to nothing, or of the wrong kind."""
        known = {packet_id: payload for packet_id, payload in self.unanswered.items() if packet_id in self.open}
        if not known:
            kind = (Pubrel, Pubrec, Puback, Pubcomp)[choice % 4]
            self.send(kind(packet_id=777))
            return
        packet_id, payload = next(iter(known.items()))
        is_once = self._message(payload).qos == 1
        kind = Pubcomp if choice % 2 else Pubrec if is_once else Puback
        self.link.is_doomed = True
        self.send(kind(packet_id=packet_id))

    # What it is sent.

    def read(self) -> None:
        """Take one packet, if there is one."""
        if self.link and self.link.packets:
            packet = self.link.packets.popleft()
            getattr(self, f"on_{type(packet).__name__.lower()}")(packet)

    def on_connack(self, packet: Connack) -> None:
        if packet.reason_code:
            self.link.lose()  # the disk has failed
            return
        self.is_in = True
        is_unsure = self.is_clean and self.version is Version.V311  # an earlier CONNACK may have been lost
        assert is_unsure or packet.session_present == (not self.is_clean), "Session Present [MQTT-3.2.2-3]"
        self.is_clean = False
        self._newest = len(self._messages)
        if not self.is_subscribed:
            subscriptions = tuple(Subscription(topic_filter=each, qos=2) for each in FILTERS)
            self.send(Subscribe(packet_id=1000, subscriptions=subscriptions))
        for packet_id, sent in list(self.sending.items()):
            if sent.is_released:
                self.send(Pubrel(packet_id=packet_id))
            else:
                self._publish(packet_id, dup=True)

    def on_suback(self, packet: Suback) -> None:
        assert [int(code) for code in packet.reason_codes] == [2, 2]
        self.is_subscribed, self.since = True, len(self._messages)

    def on_publish(self, packet: Publish) -> None:
        packet_id, payload, is_twice = packet.packet_id, packet.payload, packet.qos == 2
        message = self._message(payload)
        assert (packet.topic, packet.qos) == (message.topic, message.qos)
        assert packet_id not in self.open, "an identifier in use is used again, or a message repeated unasked"
        before = self.received.get(packet_id) if is_twice else self.unanswered.get(packet_id)
        assert before in {None, payload}, "an identifier that this client still uses carries another message"
        assert packet.dup or before is None, "a repetition without DUP [MQTT-3.3.1-1]"
        assert not packet.dup or message.number < self._newest, "DUP on what was never sent before"
        self.open.add(packet_id)
        assert len(self.open) <= self.maximum, "more than the Receive Maximum"
        self.unanswered[packet_id] = payload
        if not is_twice or before is None:
            self.got.append(payload)
        if is_twice:
            self.received[packet_id] = payload
        self.answer((Pubrec if is_twice else Puback)(packet_id=packet_id))

    def on_pubrel(self, packet: Pubrel) -> None:
        assert packet.packet_id in self.answered, "PUBREL without PUBREC"
        self.received.pop(packet.packet_id, None)
        self.answer(Pubcomp(packet_id=packet.packet_id))

    def on_puback(self, packet: Puback) -> None:
        self._acknowledged(packet)

    def on_pubrec(self, packet: Pubrec) -> None:
        sent = self._acknowledged(packet)
        if sent is not None:
            sent.is_released = True
            self.answer(Pubrel(packet_id=packet.packet_id))

    def _acknowledged(self, packet: Puback | Pubrec) -> Sent | None:
        assert self.expected[type(packet)].pop(0) == packet.packet_id, "acknowledged out of order [MQTT-4.6.0-2, -3]"
        sent = self.sending.get(packet.packet_id)
        if sent is None:
            return None
        sent.message.fate = packet.reason_code < 0x80
        if packet.reason_code >= 0x80 or sent.qos == 1:
            del self.sending[packet.packet_id]
            return None
        return sent

    def on_pubcomp(self, packet: Pubcomp) -> None:
        sent = self.sending.get(packet.packet_id)
        if sent is not None and sent.is_released:
            del self.sending[packet.packet_id]

    def on_disconnect(self, _packet: Disconnect) -> None:
        self.link.lose()

    def _message(self, payload: bytes) -> Message:
        return self._messages[int(payload.split()[0])]
