"""`gateway init`, `gateway serve`, and the other commands around a gateway that really runs."""

import asyncio
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gateway.web.control import is_answering

GATEWAY = Path(sys.executable).with_name("gateway")


def environment(**settings):
    plain = {"MQTT__LISTEN": '["mqtt://127.0.0.1:0"]', "HTTP__LISTEN": '""', "HTTP__DEVICE_LISTEN": '""'}
    return os.environ | {f"LOCKGATE_{name}": value for name, value in (plain | settings).items()}


def run(folder, *arguments, **settings):
    return subprocess.run(
        [GATEWAY, *arguments],
        cwd=folder,
        env=environment(**settings),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def folder(tmp_path):
    assert run(tmp_path, "init").returncode == 0
    return tmp_path


@pytest.fixture
def gateway(folder):
    with subprocess.Popen([GATEWAY, "serve"], cwd=folder, env=environment(), stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 30
        while not is_answering(folder / "state/gateway.sock"):
            assert process.poll() is None, process.stderr.read().decode()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield process
        process.kill()


def test_the_same_commands_work_on_a_running_and_a_stopped_gateway(folder, gateway):
    """An event raised while it runs is found on its files after SIGTERM, which is a clean end."""
    assert stat.S_IMODE((folder / "state/gateway.sock").stat().st_mode) == 0o600
    event_id = run(folder, "events", "publish", "hello", '{"n": 1}').stdout.strip()
    live = json.loads(run(folder, "events", "show", event_id, "--json").stdout)
    assert live["state"] == "stored"
    gateway.send_signal(signal.SIGTERM)
    assert gateway.wait(30) == 0
    assert not (folder / "state/gateway.sock").exists()
    assert json.loads(run(folder, "events", "show", event_id, "--json").stdout) == live
    tail = run(folder, "events", "tail", "--from", "beginning", "--json")
    assert [json.loads(line)["data"] for line in tail.stdout.splitlines()] == [{"n": 1}]
    assert tail.stderr == "the gateway is not running: nothing more will come\n"


def test_a_second_gateway_on_the_same_state_is_refused(folder, gateway):
    """One line, exit code 1; the first is not disturbed."""
    second = run(folder, "serve")
    assert second.returncode == 1
    assert second.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in second.stderr
    assert run(folder, "device", "list", "--json").stdout == "[]\n"


async def test_killed_it_leaves_nothing_in_the_way(folder, gateway):
    """After SIGKILL the stale socket is passed by, and the next start replaces it."""
    gateway.kill()
    await asyncio.to_thread(gateway.wait, 30)
    assert (folder / "state/gateway.sock").exists()
    assert (await asyncio.to_thread(run, folder, "device", "list", "--json")).stdout == "[]\n"


def test_an_address_that_is_taken_is_told_in_one_line(folder):
    """The key, the value and what was expected; no traceback, though it came out of a task group."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run(folder, "serve", HTTP__LISTEN=f'"127.0.0.1:{port}"')
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"error: http.listen: expected an address that can be bound (address already in use), found '127.0.0.1:{port}'"
    )
    assert "Traceback" not in done.stderr
