"""paho-mqtt as a test's client: connect, publish and subscribe, and see the reason codes."""

from __future__ import annotations

import ssl
import threading
from pathlib import Path
from queue import Queue
from typing import Any, Self

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

WAIT_S = 10.0


class Client:
    """One connection, closed on leaving the `with` block."""

    def __init__(
        self, port: int, client_id: str, token: str | None, *, ca: Path | None = None, version: int = 5
    ) -> None:
        protocol = mqtt.MQTTv5 if version == 5 else mqtt.MQTTv311
        self.paho = mqtt.Client(
            CallbackAPIVersion.VERSION2, client_id=client_id, protocol=protocol, reconnect_on_failure=False
        )
        if token is not None:
            self.paho.username_pw_set(client_id, token)
        if ca is not None:
            self.paho.tls_set_context(ssl.create_default_context(cafile=str(ca)))
        self.port = port
        self.messages: Queue[mqtt.MQTTMessage] = Queue()
        self.connack: tuple[int, Any] | None = None
        self.disconnected: int | None = None
        self._connected, self._closed = threading.Event(), threading.Event()
        self._acks: dict[int, tuple[int, Any]] = {}
        self._acked = threading.Condition()
        self.paho.on_connect = self._on_connect
        self.paho.on_disconnect = self._on_disconnect
        self.paho.on_publish = self._on_ack
        self.paho.on_message = lambda _client, _userdata, message: self.messages.put(message)
        self.paho.on_subscribe = lambda _c, _u, mid, codes, properties: self._note(mid, codes[0].value, properties)

    def __enter__(self) -> Self:
        self.paho.connect("localhost", self.port, keepalive=30)
        self.paho.loop_start()
        assert self._connected.wait(WAIT_S) or self._closed.is_set(), "no CONNACK"
        return self

    def __exit__(self, *_: object) -> None:
        self.paho.disconnect()
        self.paho.loop_stop()

    @property
    def code(self) -> int:
        """Reason code of the CONNACK."""
        assert self.connack is not None, "no CONNACK"
        return self.connack[0]

    @property
    def reason(self) -> str:
        """Reason String of the CONNACK."""
        assert self.connack is not None, "no CONNACK"
        return getattr(self.connack[1], "ReasonString", "")

    def publish(
        self, topic: str, payload: bytes | str, *, qos: int = 1, retain: bool = False, **properties: Any
    ) -> int | None:
        """Publish; give the reason code of the PUBACK, None if the connection ended without one."""
        extra = None
        if properties:
            extra = Properties(PacketTypes.PUBLISH)
            for name, value in properties.items():
                setattr(extra, name, value)
        mid = self.paho.publish(topic, payload, qos=qos, retain=retain, properties=extra).mid
        return self._await(mid)

    def subscribe(self, topic_filter: str, qos: int = 1) -> int | None:
        """Subscribe; give the reason code of the SUBACK."""
        _, mid = self.paho.subscribe(topic_filter, qos)
        assert mid is not None
        return self._await(mid)

    def wait_closed(self, within_s: float = WAIT_S) -> int | None:
        """Wait until the server ended the connection; give its reason code."""
        assert self._closed.wait(within_s), "still connected"
        return self.disconnected

    def _await(self, mid: int) -> int | None:
        with self._acked:
            self._acked.wait_for(lambda: mid in self._acks or self._closed.is_set(), WAIT_S)
            return self._acks[mid][0] if mid in self._acks else None

    def _on_connect(self, _client: Any, _userdata: Any, _flags: Any, code: Any, properties: Any) -> None:
        self.connack = (code.value, properties)
        self._connected.set()

    def _on_disconnect(self, _client: Any, _userdata: Any, _flags: Any, code: Any, _properties: Any) -> None:
        self.disconnected = code.value
        self._closed.set()
        with self._acked:
            self._acked.notify_all()

    def _on_ack(self, _client: Any, _userdata: Any, mid: int, code: Any, properties: Any) -> None:
        self._note(mid, code.value, properties)

    def _note(self, mid: int, code: int, properties: Any) -> None:
        with self._acked:
            self._acks[mid] = (code, properties)
            self._acked.notify_all()
