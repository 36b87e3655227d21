"""Application messages on their way to subscribers, in the form each version of MQTT can carry.

Owns the CloudEvents MQTT protocol binding 1.0.2: binary mode for 5.0 (attributes as user properties, data as payload),
structured JSON for 3.1.1, which has no properties.
"""

from __future__ import annotations

from typing import Final

import msgspec

from edge_protocol.events import JSON_TYPE, Event, encode_event
from edge_protocol.topics import TopicName, events_topic
from gateway.mqtt.codec import EMPTY, Properties, Publish, Version
from gateway.rules.selection import PRESENCE_TYPES

_FORWARDED: Final = (
    "payload_format_indicator",
    "message_expiry_interval",
    "content_type",
    "response_topic",
    "correlation_data",
    "user_properties",
)
"""Properties that a server passes on unaltered [MQTT-3.3.2-4, -15, -16, -17, -20]; the others end at us."""


class Message:
    """Something published, to be delivered.

    Attributes:
        topic: Its topic.
        plain: Its payload in 3.1.1, if that is another; else None.
        qos: It was published with.
        publisher: The session it came from, for No Local; None for the gateway's own.
        retain: Whether it was published with RETAIN.
        expires_at_s: Loop time after which it is not delivered, or None.
    """

    __slots__ = ("expires_at_s", "payload", "plain", "properties", "publisher", "qos", "retain", "topic")

    def __init__(
        self,
        topic: TopicName,
        payload: bytes,
        qos: int,
        *,
        properties: Properties = EMPTY,
        publisher: object = None,
        retain: bool = False,
        expires_at_s: float | None = None,
        plain: bytes | None = None,
    ) -> None:
        self.topic = topic
        self.payload = payload
        self.qos = qos
        self.properties = properties
        self.publisher = publisher
        self.retain = retain
        self.expires_at_s = expires_at_s
        self.plain = plain

    @property
    def size_bytes(self) -> int:
        """What it counts against bounds: topic, payload, and properties as long as their sender likes."""
        size_bytes = _utf8_bytes(self.topic) + len(self.payload)
        return size_bytes if self.properties is EMPTY else size_bytes + _properties_bytes(self.properties)

    def form(self, version: Version) -> tuple[bytes, Properties]:
        """Payload and properties for a subscriber that speaks a version."""
        if version is Version.V5:
            return self.payload, self.properties
        return self.payload if self.plain is None else self.plain, EMPTY


class EventMessage(Message):
    """A stored event; each form is made once, when the first subscriber needs it.

    Attributes:
        is_presence: The gateway's own event about a device that came or went.
    """

    __slots__ = ("_event", "_forms", "is_presence")

    def __init__(self, device: str, event: Event) -> None:
        super().__init__(events_topic(device, event.type), event.payload, qos=2)  # the subscription's QoS rules
        self.is_presence = event.type in PRESENCE_TYPES
        self._event = event
        self._forms: dict[Version, tuple[bytes, Properties]] = {}

    @property
    def size_bytes(self) -> int:
        """As of any message; attributes are its properties."""
        event = self._event
        texts = (self.topic, event.subject, event.dataschema, *event.extensions, *map(str, event.extensions.values()))
        return len(self.payload) + sum(_utf8_bytes(text) for text in texts if text)

    def form(self, version: Version) -> tuple[bytes, Properties]:
        """Binary mode in 5.0, structured JSON in 3.1.1."""
        if version not in self._forms:
            binary = version is Version.V5
            self._forms[version] = _binary(self._event) if binary else (encode_event(self._event), EMPTY)
        return self._forms[version]


def _properties_bytes(properties: Properties) -> int:
    pairs = (text for pair in properties.user_properties for text in pair)
    texts = (properties.content_type or "", properties.response_topic or "", *pairs)
    return sum(map(_utf8_bytes, texts)) + len(properties.correlation_data or b"")


def _utf8_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def _binary(event: Event) -> tuple[bytes, Properties]:
    """Binary content mode (CloudEvents MQTT binding 1.0.2, section 3.1)."""
    attributes = {"specversion": "1.0", "id": event.id, "source": event.source, "type": event.type}
    for name in ("time", "subject", "dataschema"):
        if (value := getattr(event, name)) is not None:
            attributes[name] = value
    attributes |= {name: _attribute_text(value) for name, value in event.extensions.items()}
    content_type = event.datacontenttype or (JSON_TYPE if event.payload else None)
    return event.payload, Properties(content_type=content_type, user_properties=tuple(attributes.items()))


def _attribute_text(value: str | int | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)  # CloudEvents 1.0.2, section 3.1


def message_of(publish: Publish, topic: TopicName, publisher: object, now_s: float) -> Message:
    """What a client published, as it is passed on."""
    kept = {name: getattr(publish.properties, name) for name in _FORWARDED} if publish.properties is not EMPTY else {}
    expiry_s = publish.properties.message_expiry_interval
    return Message(
        topic,
        publish.payload,
        publish.qos,
        properties=Properties(**kept) if kept else EMPTY,
        publisher=publisher,
        retain=publish.retain,
        expires_at_s=None if expiry_s is None else now_s + expiry_s,
    )


def with_response_topic(message: Message, topic: str) -> Message:
    """A command, whose Response Topic is the gateway's to say (wire protocol, section 3)."""
    message.properties = msgspec.structs.replace(message.properties, response_topic=topic)
    return message
