"""MQTT over WebSocket (MQTT 5.0, chapter 6; RFC 6455): the upgrade, frames and packets, the close, abuse, real clients."""

import asyncio
import ssl
import threading
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import paho.mqtt.client as paho
import pytest
from certified import Authority, served
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mqtt_kit import Client, connect, eventually, publish, running, token
from paho.mqtt.enums import CallbackAPIVersion
from raw_websocket import BINARY, CLOSE, PING, PONG, TEXT, RawWebSocket, frame

from gateway.mqtt.codec import Connack, Disconnect, Pingreq, Pingresp, Puback, Subscribe, Subscription, Version, encode
from gateway.mqtt.codec import Publish as PublishPacket

EVENT = "devices/dev1/events/x"


OPERATOR = {"role": "operator", "claims": {"iss": "id"}}


@asynccontextmanager
async def web(**options):
    async with running(listen=("ws://localhost:0/mqtt",), **options) as run:
        opened = []

        async def open_(**how):
            opened.append(await RawWebSocket.open(run.port, **how))
            return opened[-1]

        run.open = open_
        try:
            yield run
        finally:
            for each in opened:
                await each.aclose()


async def test_address():
    """The address that is listened on says its path; the port was taken."""
    async with web() as run:
        assert run.server.addresses[0].startswith("ws://")
        assert run.server.addresses[0].endswith(f":{run.port}/mqtt")


async def test_upgrade_and_publish():
    """Sub-protocol `mqtt` is selected [MQTT-6.0.0-4]; packets go and come in binary frames [MQTT-6.0.0-1]."""
    async with web() as run:
        raw = await run.open()
        assert (raw.status, raw.headers["sec-websocket-protocol"]) == (101, "mqtt")
        assert "sec-websocket-extensions" not in raw.headers
        assert (await raw.connect()).reason_code == 0
        raw.send(publish(EVENT))
        assert isinstance(await raw.read(), Puback)
        raw.send(Pingreq())
        assert isinstance(await raw.read(), Pingresp)


async def test_packets_span_and_share_frames():
    """Frames and packets have nothing to do with each other [MQTT-6.0.0-2]: byte by byte, and all in one."""
    async with web() as run:
        raw = await run.open()
        for byte in encode(connect("dev1"), Version.V5):
            raw.frame(BINARY, bytes([byte]))
        assert isinstance(await raw.read(), Connack)
        raw.send(*(publish(EVENT, packet_id=n) for n in range(1, 101)))
        assert [(await raw.read()).packet_id for _ in range(100)] == list(range(1, 101))
        data = encode(publish(EVENT, b"x" * 70_000), Version.V5)
        raw.frame(BINARY, data[:10], fin=False)
        raw.frame(PING, b"between fragments")
        raw.frame(0, data[10:-1], fin=False)
        raw.frame(0, data[-1:])
        assert await raw.read_frame() == (PONG, b"between fragments")
        assert isinstance(await raw.read(), Puback)
        assert [len(event.payload) for event in await run.events()] == [2] * 100 + [70_000]


async def test_pipelined_behind_the_upgrade():
    """What comes in one segment with the upgrade is read."""
    async with web() as run:
        data = encode(connect("dev1"), Version.V5) + encode(publish(EVENT), Version.V5)
        raw = await run.open(behind=frame(BINARY, data))
        assert isinstance(await raw.read(), Connack)
        assert isinstance(await raw.read(), Puback)


async def test_delivery():
    """A message of 100 kB reaches a subscriber, in frames with the long forms of length."""
    async with web() as run:
        claims = {"role": "operator", "claims": {"iss": "id"}}
        sub, pub = await run.open(), await run.open()
        await sub.connect("sub", **claims)
        await pub.connect("pub", **claims)
        sub.send(Subscribe(packet_id=1, subscriptions=(Subscription(topic_filter="chat/#"),)))
        await sub.read()
        for size in (1, 200, 100_000):
            pub.send(PublishPacket(topic="chat/a", payload=b"x" * size))
            assert len((await sub.read()).payload) == size


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"target": "/"}, 404),
        ({"Sec_WebSocket_Protocol": "chat"}, 400),
        ({"Sec_WebSocket_Protocol": None}, 400),
        ({"Origin": "https://evil.example"}, 403),
        ({"Sec_WebSocket_Version": "8"}, 426),
        ({"Sec_WebSocket_Key": None}, 400),
        ({"Upgrade": "h2c"}, 400),
        ({"Host": None}, 400),
        ({"Host": "xn--a.xn--\u00e4"}, 400),
    ],
)
async def test_upgrade_refused(headers, status):
    """Another path, sub-protocol [MQTT-6.0.0-3], origin or version of WebSocket gets its HTTP status, and is closed."""
    async with web() as run:
        raw = await run.open(headers=headers)
        assert raw.status == status
        assert await raw.reader.read() == b""
        assert run.authenticator.calls == 0


@pytest.mark.parametrize(
    "request_",
    [
        b"\x10\x10\0\4MQTT\5\2\0\0\0\0\0" + b"\r\n\r\n",
        b"POST /mqtt HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /mqtt HTTP/1.1\r\nHost: x\r\n" + b"X: " + b"y" * 40_000 + b"\r\n\r\n",
    ],
    ids=["MQTT", "POST", "long"],
)
async def test_no_handshake(request_):
    """MQTT without WebSocket, another method and headers without end are answered 400, and closed."""
    async with web() as run:
        raw = await run.open(request=request_)
        assert raw.status in {400, 0}  # 0: reset, since the peer had sent more than was read
        await eventually(lambda: not run.server._hub.sockets)


async def test_no_upgrade_in_time():
    """A peer that says nothing, or half a request, is closed when the time for CONNECT is over."""
    async with web(limits={"connect_s": 0.2}) as run:
        reader, writer = await asyncio.open_connection("localhost", run.port)
        writer.write(b"GET /mqtt HTTP/1.1\r\n")
        assert await reader.read() == b""
        writer.close()


async def test_text_frame():
    """A text frame ends the connection [MQTT-6.0.0-1]: close code 1003."""
    async with web() as run:
        raw = await run.open()
        await raw.connect()
        raw.frame(TEXT, b"hello")
        raw.send(publish(EVENT))
        assert await raw.closed() == 1003
        assert await run.types() == []
        await eventually(lambda: not run.server._hub.sockets)


@pytest.mark.parametrize(("over", "code"), [(0, None), (1, 1009)])
async def test_frame_too_large(over, code):
    """A frame of twice the Maximum Packet Size is the longest; a byte more ends the connection with 1009."""
    async with web(limits={"packet_bytes": 20_000}) as run:
        raw = await run.open()
        await raw.connect()
        raw.frame(BINARY, b"\xc0\0" * 20_000 + b"\xc0" * over)
        if code is None:
            assert isinstance(await raw.read(), Pingresp)
        else:
            assert await raw.closed() == code


@pytest.mark.parametrize(
    "data",
    [
        frame(BINARY, b"x", mask=None),
        frame(BINARY, b"x", rsv=4),
        frame(3, b"x"),
        frame(PING, b"x", fin=False),
        frame(PING, b"x" * 126),
        frame(0, b"x"),
        frame(CLOSE, b"x"),
        b"\x82\xff" + b"\xff" * 8 + b"abcd",
    ],
    ids=["unmasked", "rsv", "opcode", "ping fragment", "long ping", "continuation", "close of one byte", "length"],
)
async def test_frames_that_break_rfc_6455(data):
    """Unmasked, reserved bits or opcodes, bad control frames, a continuation of nothing: Close 1002, then the end."""
    async with web() as run:
        raw = await run.open()
        await raw.connect()
        raw.writer.write(data)
        assert await raw.closed() == 1002
        await eventually(lambda: not run.server._hub.sockets)


async def test_client_closes():
    """A Close is answered with its code, the socket closed; without DISCONNECT the connection counts as lost."""
    async with web() as run:
        raw = await run.open()
        await raw.connect()
        raw.frame(CLOSE, b"\x03\xe8")
        assert await raw.read_frame() == (CLOSE, b"\x03\xe8")
        assert await raw.read_frame() is None
        await eventually(lambda: not run.server._hub.sockets)


async def test_server_closes():
    """The server's DISCONNECT comes first, then Close 1000; a peer that does not answer it is cut off after a moment."""
    async with web(limits={"linger_s": 0.3}) as run:
        polite, silent = await run.open(), await run.open()
        await polite.connect("dev1")
        await silent.connect("dev2")
        for raw in (polite, silent):
            raw.send(connect("dev1"))
            assert isinstance(await raw.read(), Disconnect)
        assert await polite.closed() == 1000
        assert (await silent.read_frame())[0] == CLOSE
        assert await silent.read_frame() is None


@pytest.mark.parametrize("how", ["close", "disconnect", "disconnect over tcp"])
async def test_goodbye_of_a_peer_that_does_not_read(how):
    """Who says goodbye and never takes what was written before is cut off after a moment: its socket is not kept."""
    urls = ("ws://localhost:0/mqtt", "mqtt://127.0.0.1:0")
    async with running(listen=urls, limits={"linger_s": 0.2, "unsent_bytes": 1 << 20}) as run:
        tcp_port = urlsplit(run.server.addresses[-1]).port
        if how.endswith("tcp"):
            sub = await Client.open(tcp_port)
        else:
            sub = await RawWebSocket.open(run.port)
        pub = await Client.open(tcp_port)
        await sub.connect("sub", **OPERATOR)
        await pub.connect("pub", **OPERATOR)
        sub.send(Subscribe(packet_id=1, subscriptions=(Subscription(topic_filter="chat/#"),)))
        await sub.read()
        sub.writer.transport.pause_reading()
        (slow,) = [each for each in run.server._hub.sockets if each.client_id == "sub"]
        while not slow._transport.get_write_buffer_size():
            await pub.publish("chat/a", b"x" * 20_000)
        sub.frame(CLOSE, b"\x03\xe8") if how == "close" else sub.send(Disconnect())
        await eventually(lambda: slow not in run.server._hub.sockets)
        for each in (sub, pub):
            each.writer.transport.abort()


async def test_slow_reader():
    """A peer that does not read is not written more than 64 KiB: reading stops, then it is sent off."""
    async with web(limits={"slow_reader_s": 0.5, "linger_s": 0.2}) as run:
        claims = {"role": "operator", "claims": {"iss": "id"}}
        sub, pub = await run.open(), await run.open()
        await sub.connect("sub", **claims)
        await pub.connect("pub", **claims)
        sub.send(Subscribe(packet_id=1, subscriptions=(Subscription(topic_filter="chat/#"),)))
        await sub.read()
        (slow,) = [each for each in run.server._hub.sockets if each.client_id == "sub"]
        for _ in range(600):
            pub.send(PublishPacket(topic="chat/a", payload=b"x" * 60_000))
            await pub.writer.drain()
            assert slow._transport.get_write_buffer_size() < (64 << 10) + 140_000
            if slow not in run.server._hub.sockets:
                break
            await asyncio.sleep(0)
        await eventually(lambda: run.server.stats.ended[0x97] == 1)
        await eventually(lambda: slow not in run.server._hub.sockets)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.binary(max_size=40), max_size=5), st.booleans())
async def test_any_bytes(chunks, is_framed):
    """Any bytes behind the upgrade end the connection or are waited on; nothing is logged as a failure, all is let go."""
    async with web(limits={"connect_s": 0.3, "linger_s": 0.1}) as run:
        raw = await run.open()
        for chunk in chunks:
            raw.writer.write(frame(BINARY, chunk) if is_framed else chunk)
        await raw.closed()
        await eventually(lambda: not run.server._hub.sockets)


@pytest.mark.parametrize("protocol", [paho.MQTTv311, paho.MQTTv5])
@pytest.mark.parametrize("scheme", ["ws", "wss"])
async def test_paho(protocol, scheme, tmp_path):
    """paho-mqtt over WebSocket, plain and TLS, publishes 100 events and gets what it subscribed to."""
    authority = Authority(tmp_path)
    async with running(**served(authority, scheme)) as run:
        client = paho.Client(CallbackAPIVersion.VERSION2, client_id="ann", protocol=protocol, transport="websockets")
        client.username_pw_set("ann", token("ann", "operator", iss="id").decode())
        if scheme == "wss":
            client.tls_set(str(authority.file))
        got, done = [], threading.Event()

        def on_connect(_client, _userdata, _flags, _reason, _properties):
            client.subscribe("chat/#", qos=1)

        def on_subscribe(*_):
            for n in range(100):
                client.publish("chat/a", b"%d" % n, qos=1)

        def on_message(_client, _userdata, message):
            got.append(int(message.payload))
            if len(got) == 100:
                done.set()

        client.on_connect, client.on_subscribe, client.on_message = on_connect, on_subscribe, on_message
        client.connect_async("localhost", run.port)
        client.loop_start()
        try:
            assert await asyncio.to_thread(done.wait, 20)
        finally:
            await asyncio.to_thread(client.disconnect)
            await asyncio.to_thread(client.loop_stop)
        assert got == list(range(100))


async def test_wss_by_hand(tmp_path):
    """Secure WebSocket: TLS first, then the upgrade; closing is as gentle as without TLS."""
    authority = Authority(tmp_path)
    async with running(**served(authority, "wss")) as run:
        context = ssl.create_default_context(cafile=str(authority.file))
        raw = await RawWebSocket.open(run.port, ssl=context)
        assert (await raw.connect()).reason_code == 0
        raw.send(publish(EVENT))
        assert isinstance(await raw.read(), Puback)
        raw.frame(CLOSE, b"\x03\xe8")
        assert await raw.closed() == 1000
        await raw.aclose()
