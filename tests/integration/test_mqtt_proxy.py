"""PROXY protocol in front of the listeners: whose address counts, who must send a header, what a bad one gets."""

import asyncio
import random
import socket
import ssl
import struct

import pytest
from certified import Authority, served
from mqtt_kit import Client, connect, eventually, running
from raw_websocket import RawWebSocket, frame, upgrade
from structlog.testing import capture_logs

from gateway.errors import ConfigError
from gateway.mqtt.codec import Connack, Connect, Puback, Version, encode
from gateway.mqtt.proxy import SIGNATURE

LOCAL = SIGNATURE + b"\x20\0\0\0"
TRUSTED = ("127.0.0.0/8", "::1")


def proxied(host="192.0.2.7", port=50000):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    address = socket.inet_pton(family, host)
    rest = address + address + struct.pack("!HH", port, 8883)
    return SIGNATURE + bytes([0x21, 0x21 if ":" in host else 0x11]) + struct.pack("!H", len(rest)) + rest


async def behind(run, header, *, client_id="dev1", **options):
    client = await Client.open(run.port, **options)
    run.clients.append(client)
    client.writer.write(header)
    return client, await client.connect(client_id)


@pytest.mark.parametrize("host", ["192.0.2.7", "2001:db8::7"])
async def test_address_of_the_client(host):
    """The address in the header is what the log says, in 3.1.1 and 5.0 alike."""
    async with running(proxy_protocol=TRUSTED) as run:
        with capture_logs() as logs:
            _, connack = await behind(run, proxied(host))
        assert connack.reason_code == 0
        (entry,) = [each for each in logs if each["event"] == "connected"]
        assert entry["peer"] == ("192.0.2.7:50000" if host == "192.0.2.7" else "[2001:db8::7]:50000")


async def test_one_segment_and_single_bytes():
    """The header may come with CONNECT in one segment, or byte by byte; not a byte of MQTT is lost."""
    async with running(proxy_protocol=TRUSTED) as run:
        data = proxied() + encode(connect("dev1"), Version.V5)
        for split in (False, True):
            client = await run.raw()
            for part in [bytes([byte]) for byte in data] if split else [data]:
                client.writer.write(part)
                await asyncio.sleep(0)
            assert isinstance(await client.read(), Connack)


@pytest.mark.parametrize("header", [proxied("127.0.0.1"), LOCAL], ids=["proxy", "local"])
async def test_proxied_is_never_loopback(header):
    """Anonymous clients are for this machine: behind a balancer nobody is, whatever address the header says."""
    async with running(anonymous_role="operator", proxy_protocol=TRUSTED) as run:
        client = await run.raw()
        client.writer.write(header)
        client.send(Connect(version=Version.V5, client_id="x"))
        assert (await client.read()).reason_code == 0x87
    async with running(anonymous_role="operator", proxy_protocol=("10.0.0.0/8",)) as run:
        client = await run.raw()
        client.send(Connect(version=Version.V5, client_id="x"))
        assert (await client.read()).reason_code == 0


async def test_header_of_a_stranger():
    """A peer that is no balancer is no less a client, but its header is not believed: it is bytes that are no MQTT."""
    async with running(proxy_protocol=("192.0.2.0/24",)) as run:
        assert (await run.client("dev1")).connack.reason_code == 0
        client = await run.raw()
        client.writer.write(proxied())
        client.send(connect("dev2"))
        assert await client.ended() in ([], [None])
        assert run.authenticator.calls == 1


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (
            encode(Connect(version=Version.V5, client_id="dev1"), Version.V5),
            "no PROXY protocol header where this peer must send one",
        ),
        (b"PROXY TCP4 192.0.2.7 10.0.0.1 1 2\r\n", "PROXY protocol version 1: expected version 2"),
        (SIGNATURE + b"\x21\x11\xff\xff" + b"x" * 100, "header of 65535 bytes: expected at most 2048"),
        (SIGNATURE + b"\x21\x12\0\x0c" + b"x" * 12, "family and protocol 0x12: expected TCP over IPv4 or IPv6"),
    ],
    ids=["none", "version 1", "too long", "datagram"],
)
async def test_bad_headers(data, reason):
    """No header, version 1, too long a one: the socket is closed without a word, the log says why."""
    async with running(proxy_protocol=TRUSTED) as run:
        with capture_logs() as logs:
            client = await run.raw()
            client.writer.write(data)
            assert await client.ended() in ([], [None])
        (entry,) = [each for each in logs if each["event"] == "proxy_header_refused"]
        assert entry["reason"] == reason
        assert not run.server._hub.sockets


async def test_header_in_time():
    """Half a header is waited for no longer than CONNECT may take."""
    async with running(proxy_protocol=TRUSTED, limits={"connect_s": 0.2}) as run:
        client = await run.raw()
        client.writer.write(proxied()[:20])
        assert await client.ended() == []


async def test_before_tls(tmp_path):
    """The header comes before TLS; what is behind it in the same segment is the handshake."""
    authority = Authority(tmp_path)
    async with running(**served(authority), proxy_protocol=TRUSTED) as run:
        context = ssl.create_default_context(cafile=str(authority.file))
        reader, writer = await asyncio.open_connection("localhost", run.port)
        writer.write(proxied())
        await writer.start_tls(context, server_hostname="localhost")
        client = Client(reader, writer, Version.V5)
        run.clients.append(client)
        with capture_logs() as logs:
            assert (await client.connect("dev1")).reason_code == 0
        assert "192.0.2.7:50000" in {each.get("peer") for each in logs}
        assert isinstance(await client.publish("devices/dev1/events/x"), Puback)


async def test_before_websocket():
    """The header comes before the upgrade too."""
    async with running(listen=("ws://localhost:0/mqtt",), proxy_protocol=TRUSTED) as run:
        key = b"AAAAAAAAAAAAAAAAAAAAAA=="
        data = frame(2, encode(connect("dev1"), Version.V5))
        raw = await RawWebSocket.open(run.port, request=proxied() + upgrade(run.port, key))
        raw.writer.write(data)
        assert isinstance(await raw.read(), Connack)
        await raw.aclose()


async def test_fuzzed_headers():
    """Mutated headers never break the door: each is served or closed, and a good client is served afterwards."""
    rng = random.Random(7)
    async with running(proxy_protocol=TRUSTED, limits={"connect_s": 0.3}) as run:
        opened = []
        for _ in range(300):
            data = bytearray(proxied(rng.choice(["192.0.2.7", "2001:db8::7"])))
            for _ in range(rng.randrange(1, 4)):
                data[rng.randrange(len(data))] = rng.randrange(256)
            client = await Client.open(run.port)
            client.writer.write(bytes(data[: rng.randrange(len(data) + 1)]) + rng.randbytes(rng.randrange(20)))
            opened.append(client)
        await asyncio.gather(*(client.ended() for client in opened))
        for client in opened:
            await client.aclose()
        await eventually(lambda: not run.server._hub.sockets)
        _, connack = await behind(run, proxied())
        assert connack.reason_code == 0


def test_networks_in_settings():
    """What is no network stops the start with its key."""
    from gateway.mqtt.listeners import read_networks

    assert len(read_networks(("10.0.0.0/8", "192.0.2.7", "fd00::/8"), "k")) == 3
    for text in ("10.0.0.1/8", "balancer", ""):
        with pytest.raises(ConfigError, match=r"mqtt\.proxy_protocol\[0\]: expected a network such as 10\.0\.0\.0/8"):
            read_networks((text,), "mqtt.proxy_protocol")
