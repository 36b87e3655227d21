"""The whole gateway: devices over WebSocket, their presence on its bus, certificates loaded again on SIGHUP."""

from __future__ import annotations

import asyncio
import os
import signal
import ssl
import subprocess
import sys
import time
from pathlib import Path

import pytest
from certified import Authority
from fleet import event, make_folder, register, stored_events
from gateway_here import run, serving
from mqtt_kit import Client
from raw_websocket import RawWebSocket

from gateway.config import parse
from gateway.demo.stage import free_port
from gateway.errors import ConfigError
from gateway.mqtt.codec import Disconnect, Puback, Publish, Version
from gateway.web.control import is_answering


def settings_of(folder: Path):
    mqtt, wss = free_port(), free_port()
    return make_folder(
        folder,
        MQTT__LISTEN=f'["mqtts://localhost:{mqtt}", "wss://localhost:{wss}/mqtt"]',
        HTTP__LISTEN=f"127.0.0.1:{free_port()}",
        HTTP__DEVICE_LISTEN="",
        LIMITS__OPENER_PROCESSES="1",
        BUS__MIN_FREE_DISK="1",
    ), wss


EVERYTHING = ("*",)
"""Types: the gateway's own events, too, which must be asked for."""


def test_a_device_over_websocket_and_its_presence(tmp_path: Path) -> None:
    """An event over wss is stored; around it stand the gateway's own events, with address and epoch; no forged one does."""

    async def scenario() -> None:
        settings, wss = settings_of(tmp_path)
        async with serving(settings):
            device = (await register(settings, {"dev1": "simple-device"}))["dev1"]
            context = ssl.create_default_context(cafile=str(tmp_path / "certs/ca.pem"))
            for epoch in (1, 2):
                raw = await RawWebSocket.open(wss, ssl=context)
                assert (await raw.connect("dev1", token_=device.token())).reason_code == 0
                raw.send(Publish(topic="devices/dev1/events/measured", payload=b"1", qos=1, packet_id=epoch))
                assert (await raw.read()).reason_code == 0
                forged = event("forged", type_="device.disconnected")
                raw.send(Publish(topic="devices/dev1/events", payload=forged, qos=1, packet_id=9))
                answer = await raw.read()
                assert isinstance(answer, Puback)
                assert answer.reason_code == 0x87
                raw.send(Disconnect())
                await raw.aclose()
                await _until(settings, 3 * epoch)
            stored = await stored_events(settings, *EVERYTHING)
        assert [each["type"] for each in stored].count("measured") == 2
        presence = [each for each in stored if each["type"].startswith("device.")]
        assert [(each["type"], each["data"]["epoch"]) for each in presence] == [
            ("device.connected", 1), ("device.disconnected", 1), ("device.connected", 2), ("device.disconnected", 2),
        ]  # fmt: skip
        assert {each["source"] for each in stored} == {"/devices/dev1"}
        assert all(each["data"]["address"].startswith(("127.0.0.1:", "[::1]:")) for each in presence)

    run(scenario())


async def _until(settings, count: int) -> None:
    async with asyncio.timeout(10):
        while len(await stored_events(settings, *EVERYTHING)) < count:  # noqa: ASYNC110 - told by nobody
            await asyncio.sleep(0.02)


def test_sighup(tmp_path: Path) -> None:
    """SIGHUP: the next connection sees the new certificate, to devices' HTTPS too; an open one goes on, nothing stops."""
    settings, _ = settings_of(tmp_path)
    port = int(settings.mqtt.listen[0].rpartition(":")[2])
    enrol = free_port()
    names = {
        "MQTT__LISTEN": f'["mqtts://localhost:{port}"]',
        "HTTP__LISTEN": '""',
        "HTTP__DEVICE_LISTEN": f"https://localhost:{enrol}",
    }
    environ = os.environ | {f"LOCKGATE_{name}": value for name, value in names.items()}
    gateway = Path(sys.executable).with_name("gateway")
    with subprocess.Popen([gateway, "serve"], cwd=tmp_path, env=environ, stderr=subprocess.DEVNULL) as process:
        try:
            _wait(lambda: is_answering(tmp_path / "state/gateway.sock"))
            before = ssl.get_server_certificate(("localhost", port))
            open_ = asyncio.new_event_loop()
            reader, writer = open_.run_until_complete(_connect(port))
            other = Authority(tmp_path)
            other.issue("server", "localhost", "localhost")
            for name in ("server.pem", "server-key.pem"):
                (tmp_path / name).replace(tmp_path / "certs" / name)
            process.send_signal(signal.SIGHUP)
            for each in (port, enrol):
                _wait(lambda each=each: ssl.get_server_certificate(("localhost", each)) != before)
            client = Client(reader, writer, Version.V5)
            assert open_.run_until_complete(client.connect("dev1")).reason_code == 0x87  # alive: it answers
            open_.run_until_complete(client.aclose())
            open_.close()
            assert process.poll() is None
        finally:
            process.terminate()
            assert process.wait(30) == 0


async def _connect(port: int):
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return await asyncio.open_connection("localhost", port, ssl=context)


def _wait(condition) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("mqtt", "message"),
    [
        ({"listen": ["ws://0.0.0.0:80/mqtt"]}, r"mqtt.listen\[0\]: expected a loopback address, or .* for plain ws://"),
        ({"listen": ["wss://h:1/other"]}, r"mqtt.listen\[0\]: expected wss://HOST:PORT/mqtt"),
        ({"listen": ["mqtts://h:1/mqtt"]}, r"mqtt.listen\[0\]: expected mqtts://HOST:PORT, found"),
        ({"proxy_protocol": ["10.0.0.1/8"]}, r"mqtt.proxy_protocol\[0\]: expected a network such as 10.0.0.0/8"),
        ({"origins": ["app.example"]}, r"mqtt.origins\[0\]: expected https://HOST or https://HOST:PORT, or \*"),
        ({"origins": ["https://app.example/"]}, r"mqtt.origins\[0\]: expected https://HOST"),
    ],
)
def test_settings_refused(mqtt, message: str) -> None:
    """A listener, a network or an origin that cannot be stops the start with its key."""
    with pytest.raises(ConfigError, match=message):
        parse({"audience": "a", "mqtt": mqtt})


def test_settings_taken() -> None:
    """All four schemes, mutual TLS, origins and balancers are settings now; ws:// elsewhere than loopback if allowed."""
    listen = ["mqtts://[::]:1", "mqtt://[::1]:2", "wss://h:3/mqtt", "ws://localhost:4", "ws://127.0.0.1:5/mqtt"]
    mqtt = {"listen": listen, "client_ca": "certs/ca.pem", "origins": ["*"], "proxy_protocol": ["fd00::/8"]}
    assert parse({"audience": "a", "mqtt": mqtt}).mqtt.client_ca == "certs/ca.pem"
    parse({"audience": "a", "mqtt": {"listen": ["ws://0.0.0.0:80/mqtt"], "allow_plaintext": True}})
