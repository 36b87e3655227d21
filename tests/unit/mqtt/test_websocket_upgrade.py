"""Which WebSocket upgrades are accepted: path, sub-protocol, origin."""

import pytest
from wsproto.events import AcceptConnection, RejectConnection, Request

from gateway.mqtt.websocket import answer


def request(target="/mqtt", subprotocols=("mqtt",), host="gw.example:8443", origin=None):
    headers = [(b"origin", each.encode()) for each in ([origin] if isinstance(origin, str) else origin or [])]
    return Request(host=host, target=target, subprotocols=list(subprotocols), extra_headers=headers)


@pytest.mark.parametrize(
    ("asked", "origins"),
    [
        (request(), ()),
        (request(target="/mqtt?x=1"), ()),
        (request(subprotocols=("mqttv3.1", "mqtt")), ()),
        (request(origin="https://gw.example"), ()),
        (request(origin="https://GW.example:9"), ()),
        (request(origin="http://[::1]:9", host="[::1]:8443"), ()),
        (request(origin="https://app.example"), ("https://app.example",)),
        (request(origin="https://gw.example"), ("https://app.example",)),
        (request(origin="null"), ("*",)),
    ],
)
def test_accepted(asked, origins):
    """`mqtt` is selected [MQTT-6.0.0-4] for programs, for pages of the same host, and for configured origins."""
    assert answer(asked, origins) == AcceptConnection(subprotocol="mqtt")


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        (request(target="/"), 404),
        (request(target="/mqtt/"), 404),
        (request(target="/MQTT"), 404),
        (request(subprotocols=()), 400),
        (request(subprotocols=("mqttv3.1", "MQTT")), 400),
        (request(origin="https://evil.example"), 403),
        (request(origin="https://gw.example.evil.example"), 403),
        (request(origin="https://evil.example@gw.example.evil"), 403),
        (request(origin="null"), 403),
        (request(origin=""), 403),
        (request(origin="http://["), 403),
        (request(origin=["https://gw.example", "https://evil.example"]), 403),
    ],
)
def test_refused(asked, status):
    """Another path is 404, a client that does not offer `mqtt` 400 [MQTT-6.0.0-3], a foreign page 403."""
    refused = answer(asked, ("https://app.example",))
    assert isinstance(refused, RejectConnection)
    assert refused.status_code == status
