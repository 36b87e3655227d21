"""What people point at the gateway first: mosquitto_pub, and clients that should be refused."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import subprocess
import time
from pathlib import Path

import pytest
from paho_client import Client
from sink import Sink
from system import System, eventually

from edge_protocol import tokens
from edge_protocol.keys import SigningKey, load_signing_key, new_signing_key

BAD_CREDENTIALS = 0x87


@pytest.fixture
def simple(system: System, sink: Sink) -> System:
    """A running gateway with two simple devices, dev1 and dev2, whose keys the test holds."""
    system.add_handlers(f'name = "ledger"\nurl = "{sink.url}"')
    system.start_gateway()
    for device in ("dev1", "dev2"):
        home = system.folder / device
        address = f"mqtts://localhost:{system.mqtt_port}"
        audience = _audience(system)
        jwk = system.agent("init", device, "--gateway", address, "--audience", audience, home=home).stdout
        key = system.folder / f"{device}.jwk"
        key.write_text(jwk)
        system.gateway("device", "add", device, "--role", "simple-device", "--key", str(key))
    return system


def _audience(system: System) -> str:
    config = (system.folder / "configs" / "gateway.toml").read_text()
    return config.partition("audience")[2].partition('"')[2].partition('"')[0]


def _key(system: System, device: str) -> SigningKey:
    return load_signing_key((system.folder / device / "key.pem").read_bytes())


def _token(system: System, device: str, **changes: object) -> str:
    now = int(time.time())
    claims = {"audience": _audience(system), "subject": device, "issued_at": now, "expires_at": now + 600, **changes}
    return tokens.mint(
        changes.pop("key", None) or _key(system, device), **{k: v for k, v in claims.items() if k != "key"}
    )


def _ca(system: System) -> Path:
    return system.folder / "certs" / "ca.pem"


@pytest.mark.parametrize("version", ["5", "311"])
def test_the_mosquitto_pub_line_of_the_readme_works(simple: System, sink: Sink, version: str) -> None:
    """mosquitto_pub with a token from `edge-agent token` publishes an event, over MQTT 5 and 3.1.1."""
    token = simple.agent("token", home=simple.folder / "dev1").stdout.strip()
    line = (
        f"mosquitto_pub -V {version} -h localhost -p {simple.mqtt_port} --cafile {_ca(simple)} -i dev1 -u dev1 -P {token} "
        "-q 1 -t devices/dev1/events/temperature"
    )
    done = subprocess.run(
        [*line.split(), "-m", '{"celsius": 21.5}'], capture_output=True, text=True, timeout=20, check=False
    )
    assert done.returncode == 0, done.stderr
    eventually(lambda: sink.count == 1)
    (received,) = sink.applied["/devices/dev1"]
    assert (received.type, received.data) == ("temperature", {"celsius": 21.5})


def _forge(header: dict, claims: dict, sign: bytes | None) -> str:
    def part(value: dict) -> bytes:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=")

    text = part(header) + b"." + part(claims)
    signature = b"" if sign is None else hmac.new(sign, text, hashlib.sha256).digest()
    return (text + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")).decode()


def test_connack_refuses_what_does_not_prove_the_device(simple: System) -> None:
    """No token, expired, another device's, another audience's, `none` and HS256 are refused with a reason."""
    now = int(time.time())
    claims = {"aud": _audience(simple), "sub": "dev1", "iat": now, "exp": now + 600}
    public = _key(simple, "dev1").public.key.public_bytes_raw()
    hostile = {
        "no token": None,
        "expired": _token(simple, "dev1", issued_at=now - 7200, expires_at=now - 3600),
        "another device's": _token(simple, "dev2"),
        "another device's key": _token(simple, "dev1", key=_key(simple, "dev2")),
        "unknown key": _token(simple, "dev1", key=new_signing_key()),
        "another audience's": _token(simple, "dev1", audience="somebody-else"),
        "alg none": _forge({"alg": "none"}, claims, None),
        "HS256 keyed with the public key": _forge({"alg": "HS256"}, claims, public),
        "lives too long": _token(simple, "dev1", expires_at=now + 86401),
    }
    reasons = {}
    for what, token in hostile.items():
        with Client(simple.mqtt_port, "dev1", token, ca=_ca(simple)) as client:
            assert client.code == BAD_CREDENTIALS, what
            reasons[what] = client.reason
        with Client(simple.mqtt_port, "dev1", token, ca=_ca(simple), version=4) as client:
            assert client.code != 0, what
    assert all(reasons.values()), reasons
    assert reasons["unknown key"] == reasons["another device's key"]
    assert "expired" in reasons["expired"]
    assert "aud" in reasons["another audience's"]

    with Client(simple.mqtt_port, "dev1", _token(simple, "dev1"), ca=_ca(simple)) as client:
        assert client.code == 0, "the next good client is not served"


def test_a_publish_to_another_devices_topic_is_not_authorized(simple: System, sink: Sink) -> None:
    """PUBACK 0x87 in MQTT 5, a closed connection without PUBACK in 3.1.1; nothing is stored."""
    with Client(simple.mqtt_port, "dev1", _token(simple, "dev1"), ca=_ca(simple)) as client:
        assert client.publish("devices/dev2/events/temperature", "{}") == 0x87
        assert client.publish("devices/dev1/events/temperature", "{}") == 0x00
    with Client(simple.mqtt_port, "dev1", _token(simple, "dev1"), ca=_ca(simple), version=4) as client:
        assert client.publish("devices/dev2/events/temperature", "{}") is None
        client.wait_closed()
    eventually(lambda: sink.count == 1)
    assert not sink.applied["/devices/dev2"]


def test_revoking_a_device_takes_effect_within_a_second(simple: System) -> None:
    """P7: `gateway device disable` ends the live connection within a second of the command's end, and refuses the next."""
    with Client(simple.mqtt_port, "dev1", _token(simple, "dev1"), ca=_ca(simple)) as client:
        assert client.code == 0
        simple.gateway("device", "disable", "dev1")
        assert client.wait_closed(within_s=1.0) == 0x87
    with Client(simple.mqtt_port, "dev1", _token(simple, "dev1"), ca=_ca(simple)) as client:
        assert client.code == BAD_CREDENTIALS
    simple.gateway("device", "enable", "dev1")
    with Client(simple.mqtt_port, "dev1", _token(simple, "dev1"), ca=_ca(simple)) as client:
        assert client.code == 0


def test_a_device_revoked_while_the_gateway_was_stopped_leaves_nothing(simple: System) -> None:
    """P7: its session, its queue and its retained messages are discarded when the gateway starts."""
    config = simple.folder / "configs" / "gateway.toml"
    free = 'publish   = ["free/#", "devices/{device}/events/#",'
    config.write_text(
        config.read_text()
        .replace('publish   = ["devices/{device}/events/#",', free)
        .replace('subscribe = ["devices/{device}/commands/+",', 'subscribe = ["free/#", "devices/{device}/commands/+",')
    )
    simple.terminate("gateway")
    simple.start_gateway()
    ca = _ca(simple)
    with Client(simple.mqtt_port, "dev1", _token(simple, "dev1"), ca=ca) as client:
        assert client.publish("free/said", "by dev1", retain=True) in (0x00, 0x10)
    with Client(simple.mqtt_port, "dev2", _token(simple, "dev2"), ca=ca) as client:
        assert client.publish("free/kept", "by dev2", retain=True) in (0x00, 0x10)
    simple.terminate("gateway")
    simple.gateway("device", "disable", "dev1")
    simple.start_gateway()
    with Client(simple.mqtt_port, "dev2", _token(simple, "dev2"), ca=ca) as client:
        assert client.subscribe("free/#") == 1
        assert client.messages.get(timeout=5).payload == b"by dev2"
        assert client.messages.empty()
