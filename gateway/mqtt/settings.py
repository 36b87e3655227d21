"""What the MQTT server is told when it is built: frozen, typed, with the defaults of the wire protocol."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLimits:
    """Bounds (wire protocol, sections 2 and 7). Sizes are bytes, times seconds.

    Attributes:
        connections: Let in at a time; beyond, CONNACK 0x97 with `retry-after`.
        connects_per_s: CONNECTs a second, with as many again for two seconds; beyond, CONNACK 0x9F with `retry-after`.
        inflight_bytes: Publishes taken and not settled, in all; beyond, sockets are not read.
        connection_inflight_bytes: Likewise of one connection.
        packet_bytes: Maximum Packet Size that is announced: an envelope of 1 MiB with room around it.
        receive_maximum: Unacknowledged QoS > 0 publishes of an MQTT 5 client.
        topic_alias_maximum: Topic aliases an MQTT 5 client may use.
        keep_alive_s: The longest keep-alive; MQTT 5 clients are told (Server Keep Alive).
        connect_s: From the accepted socket to the complete CONNECT.
        authenticate_s: How long the registry may take over a token.
        queue_messages: Deliveries that wait for a slow or absent subscriber.
        queue_bytes: Likewise, their topics, payloads and properties.
        queues_bytes: What waits in all queues, and 512 bytes a message. Absent subscribers of a principal get no more
            of it than is left for all others.
        unsent_bytes: Written to a peer and not taken by its socket; beyond, deliveries wait in the queue.
        slow_reader_s: A peer that takes nothing for so long is sent off with 0x97.
        linger_s: How long a closed peer may take to read our last words.
        receive_buffer_bytes: SO_RCVBUF: what the kernel queues while a socket is not read.
        state_bytes: One reported state.
        json_depth: Its nesting.
        subscriptions: Of one session.
        retained_messages: Kept of all clients, on disk and in memory; beyond, a retained publish gets 0x97.
        retained_bytes: Likewise, their topics, payloads and properties, and 256 bytes a message
            and a topic level behind the eighth.
        sessions: Of one principal, without a connection (those with one are bounded by `connections`); beyond, 0x97.
        session_expiry_s: The longest Session Expiry Interval; MQTT 5 clients are told a shorter one than they asked for.
        session_expiry_311_s: How long a 3.1.1 session without clean session lives without a connection, if not shorter.
        streams: `stream` properties of one CONNECT that are looked up.
    """

    connections: int = 10_000
    connects_per_s: float = 2000.0
    inflight_bytes: int = 64 << 20
    connection_inflight_bytes: int = 8 << 20
    packet_bytes: int = (1 << 20) + (128 << 10)
    receive_maximum: int = 256
    topic_alias_maximum: int = 16
    keep_alive_s: int = 1200
    connect_s: float = 5.0
    authenticate_s: float = 10.0
    queue_messages: int = 1000
    queue_bytes: int = 4 << 20
    queues_bytes: int = 256 << 20
    unsent_bytes: int = 64 << 10
    slow_reader_s: float = 30.0
    linger_s: float = 1.0
    receive_buffer_bytes: int = 128 << 10
    state_bytes: int = 256 << 10
    json_depth: int = 32
    subscriptions: int = 1000
    retained_messages: int = 10_000
    retained_bytes: int = 64 << 20
    sessions: int = 1000
    session_expiry_s: int = 365 * 24 * 3600
    session_expiry_311_s: int = 7 * 24 * 3600
    streams: int = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """Where to listen and how to answer.

    Attributes:
        listen: `mqtts://HOST:PORT`, or `mqtt://` for plain TCP, `wss://HOST:PORT/mqtt` or `ws://` for WebSocket; port 0
            takes a free one, `[::1]` is IPv6.
        certificate: PEM chain of the server, for TLS.
        private_key: Its key.
        client_ca: PEM certificates of the CA that signs the clients' certificates; "": none is asked for.
        allow_plaintext: Whether `mqtt://` and `ws://` may be bound to another address than loopback.
        origins: Pages, besides those of the same host, that may connect by WebSocket; `*`: any.
        proxy_protocol: Networks of balancers, whose connections begin with a PROXY protocol header, version 2.
        strict_311: Whether a 3.1.1 connection is closed instead of acknowledging a refused publish (section 6).
        limits: What is too much.
    """

    listen: tuple[str, ...] = ("mqtts://0.0.0.0:8883",)
    certificate: str = "certs/server.pem"
    private_key: str = "certs/server-key.pem"
    client_ca: str = ""
    allow_plaintext: bool = False
    origins: tuple[str, ...] = ()
    proxy_protocol: tuple[str, ...] = ()
    strict_311: bool = True
    limits: ServerLimits = field(default_factory=ServerLimits)
