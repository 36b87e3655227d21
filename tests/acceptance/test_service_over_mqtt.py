"""A cloud service that is only an MQTT client: mosquitto_sub with a durable shared subscription, and the plug pulled."""

from __future__ import annotations

import pytest
from system import System, eventually

NAME = "mqtt:service/orders:devices/+/events/order/#"


class Service:
    """mosquitto_sub as a service: each event a line, its topic and its data."""

    def __init__(self, system: System, version: str) -> None:
        self._system = system
        self._token = system.gateway("token", "create", "--role", "service").stdout.strip()
        self._version = version
        self._runs = 0

    def start(self) -> None:
        """Connect, and go on where it was."""
        self._runs += 1
        lasting = ("-x", "3600") if self._version == "5" else ()
        command = (
            *("mosquitto_sub", "-V", self._version, "-h", "localhost", "-p", str(self._system.mqtt_port), "-d"),
            *("--cafile", str(self._system.folder / "certs/ca.pem"), "-u", "svc", "-P", self._token),
            *(
                "-c",
                "-i",
                "svc",
                "-q",
                "1",
                "-t",
                "$share/orders/devices/+/events/order/#",
                "-F",
                "EVENT %t %p",
                *lasting,
            ),
        )
        self._system.start(f"service-{self._runs}", "stdbuf", "-oL", *command)

    @property
    def events(self) -> list[str]:
        """What it printed in this run."""
        return [line for line in self._log.splitlines() if line.startswith("EVENT ")]

    @property
    def is_subscribed(self) -> bool:
        return "Subscribed" in self._log

    @property
    def _log(self) -> str:
        return self._system.log(f"service-{self._runs}")

    def kill(self) -> None:
        self._system.kill(f"service-{self._runs}")


def seen(service: Service, count: int) -> list[str]:
    eventually(lambda: len(service.events) >= count, what=f"expected {count} events, found {service.events}")
    return service.events


@pytest.mark.parametrize("version", ["5", "mqttv311"])
def test_mosquitto_sub_as_a_service(system: System, version: str) -> None:
    """Sealed events appear decrypted; what was stored while the service or the gateway was gone comes later, once."""
    system.start_gateway()
    home = system.add_agent("press1")
    service = Service(system, version)
    service.start()
    eventually(lambda: service.is_subscribed)
    system.agent("emit", "order.placed", '{"order": 1}', home=home)
    (first,) = seen(service, 1)
    assert first.startswith("EVENT devices/press1/events/order/placed {")
    assert ('{"order":1}' if version == "5" else '"data":{"order":1}') in first.replace(": ", ":")
    service.kill()

    for n in (2, 3, 4):
        system.agent("emit", "order.placed", f'{{"order": {n}}}', home=home)
    eventually(lambda: system.handlers()[NAME]["lag"] >= 3)  # and presence
    shown = system.handlers()[NAME]
    assert (shown["state"], shown["cause"], shown["dead"]) == ("down", "nobody is connected", 0)
    system.kill("gateway")
    system.start_gateway()
    eventually(lambda: system.handlers()[NAME]["lag"] >= 3)  # and presence
    service.start()
    later = [line.replace(": ", ":") for line in seen(service, 3)]
    assert [n for n in (2, 3, 4) for line in later if f'"order":{n}' in line] == [2, 3, 4]
    eventually(lambda: system.handlers()[NAME]["lag"] == 0)
    assert len(service.events) == 3
