"""TLS: certificates replaced under live connections, mutual TLS, the tools people use."""

import asyncio
import contextlib
import ssl

import aiomqtt
import pytest
from certified import Authority, served, trusting
from mqtt_kit import Client, becomes, eventually, running, token
from structlog.testing import capture_logs

from gateway.errors import ConfigError
from gateway.mqtt.codec import Puback, Version
from gateway.mqtt.settings import ServerSettings
from gateway.mqtt.tls import Certificates, certified_names, server_context

EVENT = "devices/dev1/events/x"


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path)


def served_serial(client):
    return client.writer.get_extra_info("ssl_object").getpeercert()["serialNumber"]


async def secure(run, context, client_id="dev1"):
    client = await Client.open(run.port, ssl=context, server_hostname="localhost")
    run.clients.append(client)
    await client.connect(client_id)
    return client


@pytest.mark.parametrize("how", ["files", "call"])
async def test_reload(authority, how):
    """A new pair is used for new connections, within seconds or when asked; who is connected stays connected."""
    async with running(**served(authority)) as run:
        old = await secure(run, trusting(authority), "dev1")
        authority.issue("server", "localhost", "localhost")
        if how == "call":
            assert run.server.reload_certificates()
        before = served_serial(old)
        new = None
        async with asyncio.timeout(10):
            while new is None or served_serial(new) == before:
                new = await secure(run, trusting(authority), "dev2")
        for client, device in ((old, "dev1"), (new, "dev2")):
            assert isinstance(await client.publish(f"devices/{device}/events/x"), Puback)


@pytest.mark.parametrize("broken", ["other key", "half written", "gone"])
async def test_bad_pair_keeps_the_old(authority, broken):
    """A pair that cannot be used is logged once, by setting, and the old one stays; the next good one is taken."""
    async with running(**served(authority)) as run:
        old = await secure(run, trusting(authority))
        certificate = authority.folder / "server.pem"
        match broken:
            case "other key":
                other, _ = authority.issue("other", "localhost", "localhost")
                certificate.write_bytes(other.read_bytes())
            case "half written":
                certificate.write_bytes(certificate.read_bytes()[:300])
            case "gone":
                certificate.unlink()
        with capture_logs() as logs:
            assert not run.server.reload_certificates()
        (entry,) = logs
        assert (entry["event"], entry["setting"]) == ("certificate_not_reloaded", "mqtt.certificate")
        new = await secure(run, trusting(authority), "dev2")
        assert served_serial(new) == served_serial(old)
        authority.issue("server", "localhost", "localhost")
        assert run.server.reload_certificates()
        newer = await secure(run, trusting(authority), "dev3")
        assert served_serial(newer) != served_serial(old)


def test_no_reload_for_other_files(authority, tmp_path):
    """Files that come and go beside the certificates, where the gateway was started, are nothing new."""
    with contextlib.chdir(tmp_path):
        certificates = Certificates(ServerSettings(**served(authority)))
        reloads = []
        certificates.on_reload = lambda: reloads.append(None)
        (tmp_path / "beside").touch()
        certificates.check(0.0)
        assert reloads == []
        authority.issue("server", "localhost", "localhost")
        certificates.check(2.0)
        certificates.check(4.0)
        assert reloads == [None]


async def test_reload_that_others_cannot_follow(authority):
    """Others read the same files; a pair that changed between two readings is read again, and deadlines go on."""
    async with running(**served(authority)) as run:
        calls = []

        def read_too():
            calls.append(None)
            if len(calls) == 1:
                raise ssl.SSLError("half written")

        run.server.on_certificates = read_too
        assert not run.server.reload_certificates()
        await eventually(lambda: len(calls) == 2)
        assert run.server.reload_certificates()


def mutual(authority, **options):
    return served(authority, client_ca=str(authority.file), **options)


async def is_shut_out(run, context):
    try:
        reader, writer = await asyncio.open_connection("localhost", run.port, ssl=context)
        said = await reader.read()
        writer.close()
    except (ssl.SSLError, ConnectionError):
        return True
    return said == b""


@pytest.mark.parametrize("scheme", ["mqtts", "wss"])
async def test_mutual_tls(authority, scheme):
    """With `client_ca` a client without a certificate of that CA is not let in, one with it is."""
    async with running(**mutual(authority, scheme=scheme)) as run:
        (foreign := authority.folder / "foreign").mkdir()
        stranger = trusting(authority)
        stranger.load_cert_chain(*Authority(foreign).issue("dev1", "dev1"))
        for context in (trusting(authority), stranger):
            assert await is_shut_out(run, context)
        assert run.authenticator.calls == 0
        if scheme == "mqtts":
            client = await secure(run, trusting(authority, "dev1"))
            assert client.connack.reason_code == 0


async def test_certificate_must_name_the_device(authority):
    """CN or DNS name must equal the device id: a token of another device is refused with 0x87, in 3.1.1 with 5."""
    async with running(**mutual(authority)) as run:
        context = trusting(authority, "dev1")
        assert (await secure(run, context, "dev1")).connack.reason_code == 0
        refused = (await secure(run, context, "dev2")).connack
        assert refused.reason_code == 0x87
        assert refused.properties.reason_string.startswith("certificate: expected the device id as its CN")
        old = await Client.open(run.port, ssl=context, server_hostname="localhost", version=Version.V311)
        run.clients.append(old)
        assert (await old.connect("dev2")).reason_code == 0x87
        named = trusting(authority)
        named.load_cert_chain(*authority.issue("many", "something", "dev3", "dev4"))
        assert (await secure(run, named, "dev4")).connack.reason_code == 0
        assert (await secure(run, named, "dev5")).connack.reason_code == 0x87
        service = await Client.open(run.port, ssl=context, server_hostname="localhost")
        run.clients.append(service)
        assert (await service.connect("any", role="service", claims={"iss": "id"})).reason_code == 0


async def test_another_client_ca(authority):
    """A replaced CA of clients counts for new connections: certificates of the old one are worth nothing any more."""
    clients = authority.folder / "clients.pem"
    clients.write_bytes(authority.file.read_bytes())
    (folder := authority.folder / "new").mkdir()
    new = Authority(folder)
    async with running(**served(authority, client_ca=str(clients))) as run:
        old = await secure(run, trusting(authority, "dev1"))
        clients.write_bytes(new.file.read_bytes())
        assert run.server.reload_certificates()
        assert await is_shut_out(run, trusting(authority, "dev2"))
        context = trusting(authority)
        context.load_cert_chain(*new.issue("dev3", "dev3"))
        assert (await secure(run, context, "dev3")).connack.reason_code == 0
        assert isinstance(await old.publish(EVENT), Puback)


async def test_mutual_tls_is_not_passed_by_plaintext(authority):
    """A device that comes without TLS proves no name, and is refused."""
    listen = ("mqtt://localhost:0", "mqtts://localhost:0")
    async with running(**mutual(authority) | {"listen": listen}) as run:
        client = await run.raw()
        assert (await client.connect("dev1")).reason_code == 0x87


async def test_no_session_is_resumed_past_the_certificate(authority):
    """With mutual TLS every handshake is a full one: no ticket lets a client skip its certificate."""
    async with running(**mutual(authority)) as run:
        client = await secure(run, trusting(authority, "dev1"))
        await client.publish(EVENT)
        assert not client.writer.get_extra_info("ssl_object").session.has_ticket


@pytest.mark.parametrize("content", ["", "no PEM\n", None])
def test_client_ca_that_cannot_be(authority, content):
    """An empty, unreadable or missing CA file stops the start: it never means that anyone may come in."""
    file = authority.folder / "clients.pem"
    if content is not None:
        file.write_text(content)
    settings = served(authority, client_ca=str(file))
    with pytest.raises(ConfigError, match=r"mqtt\.client_ca: expected PEM certificates of the CA of clients"):
        server_context(ServerSettings(**settings))


def test_client_ca_without_a_ca(authority):
    """A file of leaf certificates only vouches for nobody."""
    leaf, _ = authority.issue("leaf", "leaf")
    with pytest.raises(ConfigError, match=r"mqtt\.client_ca: expected certificates of a CA"):
        server_context(ServerSettings(**served(authority, client_ca=str(leaf))))


def test_names_of_a_certificate():
    """CN and DNS names count, other names and organisations do not."""
    certificate = {
        "subject": ((("organizationName", "dev9"),), (("commonName", "dev1"),)),
        "subjectAltName": (("DNS", "dev2"), ("IP Address", "127.0.0.1"), ("URI", "dev3")),
    }
    assert certified_names(certificate) == {"dev1", "dev2"}
    assert certified_names({}) == certified_names(None) == frozenset()


async def test_peer_that_does_not_shake_hands(authority):
    """A peer that is silent, or speaks no TLS, is closed in time; good ones are served meanwhile."""
    async with running(**served(authority), limits={"connect_s": 0.5}) as run:
        silent = await asyncio.open_connection("localhost", run.port)
        plain = await asyncio.open_connection("localhost", run.port)
        plain[1].write(b"\x10\x10\0\4MQTT")
        assert (await secure(run, trusting(authority))).connack.reason_code == 0
        for reader, writer in (silent, plain):
            await reader.read()
            writer.close()


@pytest.mark.parametrize("version", ["mqttv311", "5"])
async def test_mosquitto_with_a_certificate(authority, version):
    """mosquitto_pub with --cert and --key publishes as the device its certificate names."""
    async with running(**mutual(authority)) as run:
        certificate, key = authority.issue("dev1", "dev1")
        process = await asyncio.create_subprocess_exec(
            "mosquitto_pub", "-h", "localhost", "-p", str(run.port), "-i", "dev1", "-u", "dev1", "-V", version,
            "-P", token("dev1").decode(), "--cafile", authority.file, "--cert", certificate, "--key", key,
            "-q", "1", "-t", EVENT, "-m", "1", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert await process.communicate() == (b"", b"")
        assert process.returncode == 0
        assert await run.types() == ["x"]


async def test_aiomqtt_over_tls(authority):
    """The aiomqtt client connects over TLS and publishes."""
    async with running(**served(authority)) as run:
        async with aiomqtt.Client(
            "localhost", run.port, username="dev1", password=token("dev1").decode(), identifier="dev1",
            tls_context=trusting(authority),
        ) as client:  # fmt: skip
            await client.publish(EVENT, b"1", qos=1)
        await becomes(run.types, ["x"])


async def test_many_pairs_in_a_row(authority):
    """Replaced twenty times under load, no connection is lost and none is refused."""
    async with running(**served(authority)) as run:
        clients = []
        await run.register(*(f"pair{n}" for n in range(20)))
        for n in range(20):
            authority.issue("server", "localhost", "localhost")
            assert run.server.reload_certificates()
            clients.append(await secure(run, trusting(authority), f"pair{n}"))
        for n, client in enumerate(clients):
            assert isinstance(await client.publish(f"devices/pair{n}/events/x"), Puback)
        assert len({served_serial(client) for client in clients}) == 20
