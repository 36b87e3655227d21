"""A gateway as users install it, in a process of its own and a temporary folder; what it costs is read from /proc."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from gateway.bench import BenchDevice, Target, register
from gateway.cli import client
from gateway.config import Settings, load
from gateway.demo.stage import Stage, free_port


class Deployment(Stage):
    """A gateway that listens with TLS and without; policy as `gateway init` makes it, but without rates."""

    def __init__(self, folder: Path, *handlers: str, **environ: str) -> None:
        folder.mkdir(parents=True)
        super().__init__(folder)
        self.plain_port = free_port()
        self.init_gateway()
        listen = [f"mqtts://127.0.0.1:{self.mqtt_port}", f"mqtt://127.0.0.1:{self.plain_port}"]
        self.environ |= {"LOCKGATE_MQTT__LISTEN": json.dumps(listen), "LOCKGATE_LOG__LEVEL": "warning", **environ}
        config = folder / "configs" / "gateway.toml"
        lines = config.read_text().splitlines(keepends=True)
        config.write_text("".join(line for line in lines if not line.startswith("rate")))
        self.add_handlers(*handlers)

    @property
    def settings(self) -> Settings:
        """Its configuration."""
        return load(self.folder / "configs" / "gateway.toml", self.environ)

    @property
    def process(self) -> psutil.Process:
        """Its main process."""
        return psutil.Process(self.running["gateway"].pid)

    @property
    def plain(self) -> Target:
        """Without TLS."""
        return Target(url=f"mqtt://127.0.0.1:{self.plain_port}")

    @property
    def tls(self) -> Target:
        """With TLS."""
        return Target(url=f"mqtts://localhost:{self.mqtt_port}", ca=str(self.folder / "certs" / "ca.pem"))

    def cpu_s(self) -> float:
        """Processor time of the process and its children so far."""
        times = (process.cpu_times() for process in (self.process, *self.process.children(recursive=True)))
        return float(sum(time.user + time.system for time in times))

    def resident_bytes(self) -> int:
        """Resident memory of the main process: its children hold no connections and no events between chunks."""
        return int(self.process.memory_info().rss)

    def register(self, count: int, role: str) -> list[BenchDevice]:
        """Register devices."""

        async def add() -> list[BenchDevice]:
            async with client.connect(self.settings) as connection:
                return await register(connection.call, count, role=role)

        return asyncio.run(add())

    def halt(self) -> None:
        """Stop the gateway alone."""
        process = self.running.pop("gateway")
        process.terminate()
        process.wait(60)


@contextmanager
def deployed(folder: Path, *handlers: str, **environ: str) -> Iterator[Deployment]:
    """A gateway that serves while the block runs.

    Args:
        folder: For its files; made here.
        handlers: `[[handlers]]` tables.
        environ: `LOCKGATE_...` settings.
    """
    deployment = Deployment(folder, *handlers, **environ)
    try:
        deployment.start_gateway()
        yield deployment
    finally:
        deployment.stop()


def strangers(count: int) -> Sequence[BenchDevice]:
    """Clients of a server that asks for no token."""
    return [BenchDevice(id=f"bench-{n}", pem="", audience="", signing_key={}) for n in range(count)]
