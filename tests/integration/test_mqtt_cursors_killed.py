"""Durable subscriptions and a gateway that is killed: nothing that was not acknowledged is lost."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from mqtt_wire import Wire
from open_gateway import OpenGateway, open_gateway

from gateway.mqtt.codec import Properties, Publish

LASTING = Properties(session_expiry_interval=3600)


def emit(gateway: OpenGateway, *numbers: int) -> None:
    wire = gateway.client()
    for n in numbers:
        answer = wire.publish("devices/d1/events/t", b'{"n": %d}' % n)
        assert answer.reason_code == 0, answer
    wire.close()


def number(message: Publish) -> int:
    return int(message.payload.partition(b":")[2].rstrip(b"}"))


def service(gateway: OpenGateway) -> Wire:
    return gateway.client("svc", clean_start=False, properties=LASTING)


@pytest.mark.parametrize("filter_", ["$share/orders/devices/+/events/#", "devices/+/events/#"])
@pytest.mark.parametrize("qos", [1, 2])
def test_killed_between_delivery_and_acknowledgement(tmp_path: Path, filter_: str, qos: int) -> None:
    """What the service had and did not acknowledge is delivered again, what it never had too, what it settled is not."""
    with open_gateway(tmp_path / "gateway") as gateway:
        wire = service(gateway)
        assert wire.subscribe(filter_, qos=qos) == (qos,)
        emit(gateway, 1, 2)
        wire.acknowledge(first := wire.take(Publish))
        second = wire.take(Publish)
        assert (number(first), number(second)) == (1, 2)
        emit(gateway, 3)
        gateway.stop(signal.SIGKILL)
        gateway.start()
        emit(gateway, 4)
        wire = service(gateway)
        assert wire.connack.session_present
        found: list[int] = []
        while 4 not in found:
            found.append(number(wire.receive()))
        assert [n for n in dict.fromkeys(found) if n != 1] == [2, 3, 4]  # where it stood is saved 5 times a second
