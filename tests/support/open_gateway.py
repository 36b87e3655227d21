"""A gateway that lets anybody in: how public conformance suites run against it, and how ours do.

`gateway serve` as its own process, with a role for clients without a token that may publish and subscribe to every
ordinary topic, on a plain listener on loopback (wire protocol, section 2, `anonymous_role`).
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from fleet import make_folder
from mqtt_wire import Wire

from gateway.demo.stage import free_port, program
from gateway.mqtt.codec import Version
from gateway.web.control import is_answering

POLICY: Final = """
[[policy]]
role = "anybody"
publish = ["#"]
subscribe = ["#"]
deny_subscribe = ["test/nosubscribe"]
deny_publish = ["test/nopublish"]
"""
KEEP_ALIVE_S: Final = 60
"""The longest keep-alive: a client that asks for more is told so in 5.0."""


class OpenGateway:
    """The process, and the clients that were opened with it."""

    def __init__(self, folder: Path, **environ: str) -> None:
        self.folder = folder
        self.port = free_port()
        self._wires: list[Wire] = []
        self._process: subprocess.Popen[bytes] | None = None
        make_folder(folder)
        config = folder / "configs" / "gateway.toml"
        config.write_text(config.read_text() + POLICY)
        settings = {
            "MQTT__LISTEN": f'["mqtt://127.0.0.1:{self.port}"]',
            "AUTH__ANONYMOUS_ROLE": "anybody",
            "HTTP__LISTEN": '""',
            "HTTP__DEVICE_LISTEN": '""',
            "LIMITS__KEEP_ALIVE": str(KEEP_ALIVE_S),
            "LIMITS__OPENER_PROCESSES": "1",
            "BUS__MIN_FREE_DISK": "1",
        }
        self._environ = os.environ | {f"LOCKGATE_{name}": value for name, value in (settings | environ).items()}

    @property
    def process_id(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self, within_s: float = 30) -> None:
        """Serve; return when clients can connect."""
        with (self.folder / "gateway.log").open("ab") as log:
            self._process = subprocess.Popen(
                [program("gateway"), "serve", "-c", "configs/gateway.toml"],
                cwd=self.folder,
                env=self._environ,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + within_s
        while not is_answering(self.folder / "state/gateway.sock"):
            assert self._process.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.02)

    def log(self) -> str:
        """What the process has written."""
        return (self.folder / "gateway.log").read_text()

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End the process, gently or not."""
        self.forget()
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(30)
            self._process = None

    def wire(self, version: Version = Version.V5) -> Wire:
        """A connection on which nothing was sent yet."""
        self._wires.append(Wire(self.port, version))
        return self._wires[-1]

    def client(self, client_id: str = "", version: Version = Version.V5, **options: Any) -> Wire:
        """A client that was let in; an empty client id is made by the server."""
        wire = self.wire(version)
        connack = wire.connect(client_id, **options)
        assert connack.reason_code == 0, connack
        return wire

    def forget(self) -> None:
        """Close all connections of clients."""
        for wire in self._wires:
            wire.close()
        self._wires.clear()


@contextmanager
def open_gateway(folder: Path, **environ: str) -> Iterator[OpenGateway]:
    """Serve until the block ends."""
    gateway = OpenGateway(folder, **environ)
    try:
        gateway.start()
        yield gateway
    finally:
        gateway.stop()
