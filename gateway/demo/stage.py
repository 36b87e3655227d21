"""The demo's processes: started in a temporary folder, spoken to through their own interfaces, stopped by process id."""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

START_S: Final = 30.0
STOP_S: Final = 15.0
SERVICES: Final = {"product": "product_added", "cart": "cart_updated", "order": "order_placed"}


class DemoFailed(Exception):
    """A part of the demo did not do what it must; the message says which, and where its log is."""


def free_port() -> int:
    """A TCP port on loopback that nobody listens on, below those that outgoing connections take (from 32768 on)."""
    while True:
        port = random.randrange(10_000, 32_000)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


def retail_folder() -> Path:
    """The retail services: beside this package in the wheel, in examples/ in a clone."""
    packaged = Path(__file__).parent / "retail"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "examples" / "retail"


def program(name: str) -> str:
    """Path of a console script of this installation."""
    return str(Path(sys.executable).parent / name)


def get_json(url: str) -> Any:
    """GET a JSON document."""
    with urllib.request.urlopen(url, timeout=5) as answer:
        return json.load(answer)


class Speaker:
    """A device's program: hands events to the agent's outbox through a pipe."""

    def __init__(self, pipe: subprocess.Popen[str], said: Path) -> None:
        self._pipe, self._said = pipe, said

    def say(self, lines: Iterable[tuple[str, Any]]) -> None:
        """Hand over events, at once."""
        assert self._pipe.stdin is not None
        self._pipe.stdin.writelines(json.dumps({"type": kind, "data": data}) + "\n" for kind, data in lines)
        self._pipe.stdin.flush()

    def close(self) -> int:
        """Say no more; tell how many events are durable in the outbox."""
        assert self._pipe.stdin is not None
        self._pipe.stdin.close()
        if code := self._pipe.wait(STOP_S):
            raise DemoFailed(f"edge-agent emit ended with exit code {code}; see {self._said.with_suffix('.log')}")
        return len(self._said.read_text().split())


class Stage:
    """A temporary folder with everything that runs in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.running: dict[str, subprocess.Popen[str]] = {}
        self.services: dict[str, str] = {}
        self.mqtt_port, self.http_port, self.device_port = free_port(), free_port(), free_port()
        self.environ: dict[str, str] = {**os.environ, "PYTHONUNBUFFERED": "1"}

    # --- processes

    def start(self, name: str, *command: str, environ: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        """Start a process; what it says goes to NAME.log."""
        with (self.folder / f"{name}.log").open("a") as log:
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                env={**self.environ, **(environ or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                text=True,
            )
        self.running[name] = process
        return process

    def run(self, *command: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            command,
            cwd=self.folder,
            env=self.environ,
            input=text,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def call(self, *command: str) -> str:
        """Run a command that must succeed, and give what it printed."""
        done = self.run(*command)
        if done.returncode:
            raise DemoFailed(f"`{' '.join(command[:4])} ...` failed: {done.stderr.strip()[-500:]}")
        return done.stdout

    def stop(self) -> None:
        """Stop everything, last started first."""
        for process in reversed(self.running.values()):
            process.terminate()
        deadline = time.monotonic() + STOP_S
        for process in self.running.values():
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def check_alive(self) -> None:
        """Fail if a process ended that should not have."""
        for name, process in self.running.items():
            if process.poll() is not None and name != "intruder":
                log = (self.folder / f"{name}.log").read_text()[-1500:]
                raise DemoFailed(f"{name} ended with exit code {process.returncode}:\n{log}")

    # --- the cast

    def start_services(self, environ: Mapping[str, str]) -> None:
        """Start the retail services and learn where they listen."""
        for name in SERVICES:
            script = str(retail_folder() / f"{name}.py")
            self.start(name, sys.executable, script, "--port", "0", "--database", f"{name}.db", environ=environ)
        for name in SERVICES:
            self.services[name] = self.wait_for(name, partial(self._said_url, name))

    def init_gateway(self) -> None:
        """Make certificates, keys and configuration."""
        self.call(program("gateway"), "init", ".", "--host", "localhost")
        self.environ |= {
            "LOCKGATE_MQTT__LISTEN": json.dumps([f"mqtts://127.0.0.1:{self.mqtt_port}"]),
            "LOCKGATE_HTTP__LISTEN": f"127.0.0.1:{self.http_port}",
            "LOCKGATE_HTTP__DEVICE_LISTEN": f"https://127.0.0.1:{self.device_port}",
            "LOCKGATE_LOG__FORMAT": "json",
        }

    def add_handlers(self, *tables: str) -> None:
        """Add `[[handlers]]` tables to the configuration."""
        with (self.folder / "configs" / "gateway.toml").open("a") as config:
            config.write("".join(f"\n[[handlers]]\n{table}\n" for table in tables))

    def start_gateway(self) -> None:
        """Serve, and wait until it is ready."""
        self.start("gateway", program("gateway"), "serve")
        self.wait_for("gateway", self._is_ready)

    def add_agent(self, device: str) -> Path:
        """Register a device by a one-time code, enrol it, and start its agent."""
        added = json.loads(self.call(program("gateway"), "device", "add", device, "--role", "device", "--json"))
        home = self.init_agent(device, home=device)
        url = f"https://localhost:{self.device_port}"
        self.call(program("edge-agent"), "enroll", added["code"], "--url", url, "--home", str(home))
        self.start(device, program("edge-agent"), "run", "--home", str(home))
        return home

    def init_agent(self, device: str, *, home: str) -> Path:
        """Make an agent's keys."""
        path = self.folder / "agents" / home
        gateway = f"mqtts://localhost:{self.mqtt_port}"
        self.call(program("edge-agent"), "init", device, "--gateway", gateway, "--home", str(path))
        return path

    def speaker(self, device: str, home: Path) -> Speaker:
        """Open a pipe into an agent's outbox: `edge-agent emit -`, one event a line."""
        said = self.folder / f"{device}.emitted"
        with said.open("w") as ids, (self.folder / f"{device}.log").open("a") as log:
            command = (program("edge-agent"), "emit", "-", "--home", str(home))
            pipe = subprocess.Popen(command, env=self.environ, stdin=subprocess.PIPE, stdout=ids, stderr=log, text=True)
        return Speaker(pipe, said)

    # --- looking

    def stats(self) -> dict[str, Any]:
        """The gateway's own counters."""
        found: dict[str, Any] = json.loads(self.call(program("gateway"), "stats", "--json"))
        return found

    def handlers(self) -> dict[str, dict[str, Any]]:
        """Every handler, by name."""
        listed = json.loads(self.call(program("gateway"), "handlers", "list", "--json"))
        return {handler["name"]: handler for handler in listed}

    def handled(self) -> dict[str, tuple[int, int]]:
        """For each service: events handled, and deliveries that came again and changed nothing."""
        shown = {name: get_json(f"{url}/{name}") for name, url in self.services.items()}
        return {name: (document["handled"], document["repeated"]) for name, document in shown.items()}

    def show(self, name: str) -> list[Any]:
        """What a service knows."""
        rows: list[Any] = get_json(f"{self.services[name]}/{name}")[name]
        return rows

    def outbox(self, home: Path) -> dict[str, Any]:
        """An agent's status."""
        found: dict[str, Any] = json.loads(self.call(program("edge-agent"), "status", "--json", "--home", str(home)))
        return found

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}/readyz", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def _said_url(self, name: str) -> str:
        text = (self.folder / f"{name}.log").read_text()
        return text.partition("listening on ")[2].partition("\n")[0]

    def wait_for(self, name: str, condition: Callable[[], Any]) -> Any:
        """Wait until a condition gives something true, and give that."""
        deadline = time.monotonic() + START_S
        while not (found := condition()):
            self.check_alive()
            if time.monotonic() > deadline:
                raise DemoFailed(f"{name} did not start within {START_S:.0f} s; see {self.folder / name}.log")
            time.sleep(0.05)
        return found
