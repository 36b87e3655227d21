"""Real client tools against the server: mosquitto_pub and mosquitto_sub, paho-mqtt, aiomqtt; TLS and IPv6."""

import asyncio
import datetime as dt
import ssl
import threading

import aiomqtt
import paho.mqtt.client as paho
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from mqtt_kit import Client, eventually, publish, running, token
from paho.mqtt.enums import CallbackAPIVersion

from gateway.errors import ConfigError
from gateway.mqtt.codec import Puback
from gateway.mqtt.listeners import read_listener

VERSIONS = pytest.mark.parametrize("version", ["mqttv311", "5"])


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A self-signed certificate of localhost and its key, as files."""
    folder = tmp_path_factory.mktemp("certs")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + dt.timedelta(1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "server.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "server-key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return folder


def over_tls(folder):
    return {
        "listen": ("mqtts://localhost:0",),
        "certificate": str(folder / "server.pem"),
        "private_key": str(folder / "server-key.pem"),
    }


async def tool(name, port, *arguments, client_id="dev1", password=None):
    password = token(client_id).decode() if password is None else password
    process = await asyncio.create_subprocess_exec(
        name, "-h", "localhost", "-p", str(port), "-i", client_id, "-u", client_id, "-P", password, *arguments,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(20):
        out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


@VERSIONS
async def test_mosquitto_pub(version, certificate):
    """The line of the README: an event over TLS, acknowledged; another device's topic and a bad token are refused."""
    async with running(**over_tls(certificate)) as run:
        line = ("-V", version, "--cafile", str(certificate / "server.pem"), "-q", "1")
        stored = await tool(
            "mosquitto_pub", run.port, *line, "-t", "devices/dev1/events/temperature", "-m", '{"celsius": 21.5}'
        )
        assert stored == (0, "", "")
        (event,) = await run.events()
        assert (event.source, event.type, event.payload) == ("/devices/dev1", "temperature", b'{"celsius": 21.5}')
        other = await tool("mosquitto_pub", run.port, *line, "-t", "devices/dev2/events/temperature", "-m", "1")
        assert (other[0] != 0) or "Not authorized" in other[2]
        code, _, error = await tool("mosquitto_pub", run.port, *line, "-t", "x", "-m", "1", password="bad")
        assert code != 0
        assert "ot authori" in error
        assert await run.types() == ["temperature"]


@VERSIONS
async def test_mosquitto_sub(version):
    """mosquitto_sub gets what mosquitto_pub sends on an ordinary topic."""
    async with running() as run:
        operator = token("ann", "operator", iss="id").decode()
        line = ("-V", version, "-q", "1", "-t", "chat/a")
        listening = asyncio.create_task(
            tool("mosquitto_sub", run.port, *line, "-C", "2", client_id="sub", password=operator)
        )
        await eventually(lambda: run.server.router.wants("chat/a"))
        for text in ("one", "two"):
            sent = await tool("mosquitto_pub", run.port, *line, "-m", text, client_id="pub", password=operator)
            assert sent == (0, "", "")
        assert await listening == (0, "one\ntwo\n", "")


@pytest.mark.parametrize("protocol", [paho.MQTTv311, paho.MQTTv5])
async def test_paho(protocol):
    """paho-mqtt publishes 200 events with 20 in flight, and is told of each."""
    async with running() as run:
        client = paho.Client(CallbackAPIVersion.VERSION2, client_id="dev1", protocol=protocol)
        client.username_pw_set("dev1", token("dev1").decode())
        acknowledged, done = [], threading.Event()

        def on_publish(_client, _userdata, mid, _reason, _properties):
            acknowledged.append(mid)
            if len(acknowledged) == 200:
                done.set()

        def publish_all(_client, _userdata, _flags, _reason, _properties):
            for n in range(200):
                client.publish("devices/dev1/events/x", b"%d" % n, qos=1)

        client.on_connect, client.on_publish = publish_all, on_publish
        client.connect_async("127.0.0.1", run.port)
        client.loop_start()
        try:
            assert await asyncio.to_thread(done.wait, 20)
        finally:
            client.disconnect()
            await asyncio.to_thread(client.loop_stop)
        assert [event.payload for event in await run.events()] == [b"%d" % n for n in range(200)]
        assert acknowledged == sorted(acknowledged)


async def test_aiomqtt():
    """The client aiomqtt subscribes, publishes and receives, over MQTT 5."""
    async with running() as run:
        options = {"port": run.port, "username": "", "password": token("ann", "operator", iss="id").decode()}
        async with aiomqtt.Client("127.0.0.1", protocol=aiomqtt.ProtocolVersion.V5, **options) as client:
            await client.subscribe("chat/#", qos=1)
            await client.publish("chat/a", b"hello", qos=1)
            async with asyncio.timeout(5):
                message = await anext(client.messages)
            assert (str(message.topic), message.payload) == ("chat/a", b"hello")


async def test_tls_versions(certificate):
    """TLS 1.2 is spoken, 1.1 is not; what is sent in plain text is not answered."""
    async with running(**over_tls(certificate)) as run:
        context = ssl.create_default_context(cafile=str(certificate / "server.pem"))
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        client = await Client.open(run.port, ssl=context, server_hostname="localhost")
        assert (await client.connect()).reason_code == 0
        assert await client.publish("devices/dev1/events/x") == Puback(packet_id=1)
        await client.aclose()
        old = ssl.create_default_context(cafile=str(certificate / "server.pem"))
        old.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            old.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await Client.open(run.port, ssl=old, server_hostname="localhost")
        plain = await run.raw()
        plain.send(publish("x"))
        assert await plain.ended() == []


async def test_tls_slow_and_closing(certificate):
    """Over TLS too: last words are read, and a shutdown ends connections in time."""
    async with running(**over_tls(certificate)) as run:
        context = ssl.create_default_context(cafile=str(certificate / "server.pem"))
        client = await Client.open(run.port, ssl=context, server_hostname="localhost")
        await client.connect()
        client.send(publish("devices/dev1/events/x"))
        assert await client.read() == Puback(packet_id=1)
        closing = asyncio.create_task(run.server.aclose())
        assert [packet.reason_code for packet in await client.ended()] == [0x8B]
        await client.aclose()
        async with asyncio.timeout(3):
            await closing


async def test_ipv6():
    """A listener may be an IPv6 address."""
    async with running(listen=("mqtt://[::1]:0",)) as run:
        assert run.server.addresses[0].startswith("mqtt://[::1]:")
        reader, writer = await asyncio.open_connection("::1", run.port)
        writer.close()
        await writer.wait_closed()
        assert reader


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("mqtt://0.0.0.0:1883", "a loopback address for mqtt://"),
        ("mqtt://gateway.example.com", "a loopback address for mqtt://"),
        ("http://127.0.0.1:1", "mqtts://HOST:PORT or mqtt://HOST:PORT"),
        ("mqtts://:8883", "mqtts://HOST:PORT or mqtt://HOST:PORT"),
        ("mqtts://h:99999", "mqtts://HOST:PORT or mqtt://HOST:PORT"),
    ],
)
def test_listeners_refused(url, expected):
    """Plain text where others could listen in, and what is no MQTT address, names the setting."""
    with pytest.raises(ConfigError, match=r"mqtt\.listen\[0\]: expected") as caught:
        read_listener(url, "mqtt.listen[0]", allow_plaintext=False)
    assert caught.value.expected.startswith(expected)


def test_plaintext_allowed():
    """With `allow_plaintext`, and on loopback in any case, plain TCP is accepted; ports have their defaults."""
    assert read_listener("mqtt://0.0.0.0", "k", allow_plaintext=True).port == 1883
    assert read_listener("mqtt://localhost:0", "k", allow_plaintext=False).is_loopback
    assert read_listener("mqtts://0.0.0.0", "k", allow_plaintext=False).port == 8883


async def test_address_in_use():
    """An address that is taken stops the start with the setting's name."""
    async with running() as run:
        with pytest.raises(ConfigError, match=r"mqtt\.listen\[0\]: expected an address that can be bound"):
            async with running(listen=(run.server.addresses[0],)):
                pass


async def test_certificate_missing(tmp_path):
    """A certificate that cannot be loaded stops the start with the setting's name."""
    with pytest.raises(ConfigError, match=r"mqtt\.certificate: expected a PEM certificate"):
        async with running(**over_tls(tmp_path)):
            pass
