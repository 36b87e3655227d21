"""The peers, each started from its package on a free port of loopback: Mosquitto, NATS, amqtt."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from gateway.bench import Target
from gateway.demo.stage import free_port

_START_S = 15.0


@contextmanager
def mosquitto(folder: Path) -> Iterator[Target]:
    """Mosquitto from Debian, in memory: no persistence, no limits on what is in flight."""
    port = free_port()
    config = folder / "mosquitto.conf"
    limits = "max_inflight_messages 0\nmax_queued_messages 0\nset_tcp_nodelay true\n"
    config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\nlog_type error\n{limits}")
    program = shutil.which("mosquitto") or "/usr/sbin/mosquitto"
    with server([program, "-c", str(config)], port, folder / "mosquitto.log") as target:
        yield target


@contextmanager
def nats(folder: Path) -> Iterator[int]:
    """NATS with JetStream that syncs every append, as `sync_interval: always` says; its port."""
    port = free_port()
    config = folder / "nats.conf"
    store = folder / "jetstream"
    config.write_text(
        f"listen: 127.0.0.1:{port}\njetstream {{ store_dir: {store}, sync_interval: always, max_file_store: 20GB }}\n"
    )
    program = str(Path(sys.executable).parent / "nats-server")
    with server([program, "-c", str(config)], port, folder / "nats.log"):
        yield port


@contextmanager
def amqtt(folder: Path) -> Iterator[Target]:
    """amqtt, the MQTT broker in Python."""
    port = free_port()
    config = folder / "amqtt.yaml"
    config.write_text(
        f"listeners:\n  default:\n    type: tcp\n    bind: 127.0.0.1:{port}\n"
        "plugins:\n  amqtt.plugins.authentication.AnonymousAuthPlugin:\n    allow_anonymous: true\n"
    )
    program = str(Path(sys.executable).parent / "amqtt")
    with server([program, "-c", str(config)], port, folder / "amqtt.log") as target:
        yield target


@contextmanager
def server(command: Sequence[str], port: int, log: Path) -> Iterator[Target]:
    """Any server on loopback, once it listens."""
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL)
    try:
        _await_port(process, port, log)
        yield Target(url=f"mqtt://127.0.0.1:{port}")
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _await_port(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"a peer did not start: {log.read_text()[-500:]}") from None
            time.sleep(0.05)
        else:
            return
