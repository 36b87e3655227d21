"""Who is let in, by token (sections 3.1.4, 3.15, 4.12): devices that are registered at the open gateway."""

import asyncio

import pytest
from fleet import register

from gateway.config import load
from gateway.mqtt.codec import Auth, Properties, ReasonCode, Version


@pytest.fixture
def device(gateway, name):
    """A device that is registered."""
    settings = load(gateway.folder / "configs/gateway.toml", {})
    return asyncio.run(register(settings, {name: "simple-device"}))[name]


def method(token, name="jwt"):
    return Properties(authentication_method=name, authentication_data=token)


@pytest.mark.parametrize("version", list(Version))
def test_password(gateway, device, version):
    """A token as password lets the device in, a bad one does not: 0x87 (3.1.1: 5), and the end."""
    gateway.client(device.id, version, user_name="", password=device.token()).ping()
    wire = gateway.wire(version)
    refused = wire.connect(device.id, user_name="", password=b"nonsense")
    assert (refused.reason_code, refused.session_present) == (ReasonCode.NOT_AUTHORIZED, False)
    assert wire.ended() == []


@pytest.mark.parametrize("version", list(Version))
def test_client_id_of_another(gateway, device, version):
    """A device's token does not open another client id: 0x87 (3.1.1: 5), and the end."""
    wire = gateway.wire(version)
    refused = wire.connect("another", user_name="", password=device.token())
    assert refused.reason_code == ReasonCode.NOT_AUTHORIZED
    assert wire.ended() == []


def test_method(gateway, device):
    """The Authentication Method of CONNECT stands in CONNACK and in the answer to a re-authentication."""
    wire = gateway.client(device.id, properties=method(device.token()))
    assert wire.connack.properties.authentication_method == "jwt"
    wire.send(Auth(reason_code=ReasonCode.RE_AUTHENTICATE, properties=method(device.token())))
    answer = wire.take(Auth)
    assert (answer.reason_code, answer.properties.authentication_method) == (ReasonCode.SUCCESS, "jwt")
    wire.ping()


@pytest.mark.parametrize(
    ("properties", "code"),
    [
        (method(b"nonsense"), ReasonCode.NOT_AUTHORIZED),
        (Properties(authentication_method="jwt"), ReasonCode.NOT_AUTHORIZED),
        (method(b"x", "SCRAM-SHA-256"), ReasonCode.BAD_AUTHENTICATION_METHOD),
    ],
)
def test_method_refused(gateway, device, properties, code):
    """Authentication that fails is refused and closed."""
    wire = gateway.wire()
    assert wire.connect(device.id, properties=properties).reason_code == code
    assert wire.ended() == []


@pytest.mark.parametrize(
    ("reason", "asked", "code"),
    [
        (ReasonCode.RE_AUTHENTICATE, method(b"nonsense"), ReasonCode.NOT_AUTHORIZED),
        (ReasonCode.RE_AUTHENTICATE, method(b"", "other"), ReasonCode.PROTOCOL_ERROR),
        (ReasonCode.CONTINUE_AUTHENTICATION, method(b""), ReasonCode.PROTOCOL_ERROR),
    ],
)
def test_bad_reauthentication(gateway, device, reason, asked, code):
    """Re-authentication by a bad token or another method, or unasked, closes the connection."""
    wire = gateway.client(device.id, properties=method(device.token()))
    wire.send(Auth(reason_code=reason, properties=asked))
    assert wire.verdict() == [code]


@pytest.mark.parametrize("code", [b"\x01", b"\x80", b"\xff"])
def test_undefined_auth(gateway, device, code):
    """AUTH has three codes; another one is a protocol error."""
    wire = gateway.client(device.id, properties=method(device.token()))
    wire.send(b"\xf0\x08" + code + b"\x06\x15\0\3jwt")
    assert wire.verdict() == [ReasonCode.PROTOCOL_ERROR]


def test_anonymous_and_device_are_apart(gateway, device):
    """A client without a token under a device's id is another session: nobody is taken over."""
    mine = gateway.client(device.id, user_name="", password=device.token())
    other = gateway.client(device.id)
    mine.ping()
    other.ping()
