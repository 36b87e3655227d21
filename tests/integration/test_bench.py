"""`gateway bench` against a gateway that runs, and the benchmarks as commands: short runs that count, and time nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from system import System

HERE = Path(__file__).parents[2]
BENCHMARKS = HERE / "benchmarks"


@pytest.fixture(scope="module")
def system(tmp_path_factory):
    system = System(tmp_path_factory.mktemp("bench"))
    system.init_gateway()
    system.start_gateway()
    yield system
    system.stop()


def bench(system, *arguments):
    done = system.gateway("bench", "--json", *arguments)
    return json.loads(done.stdout)


def events_stored(system):
    return system.stats()["ingest"]["events"]  # those of clients; the gateway tells of connections too


def test_plain_events_over_tls_are_counted_and_stored(system):
    """What the generator calls acknowledged is on the bus, and its devices are gone again."""
    before = events_stored(system)
    said = bench(system, "--clients", "2", "--count", "201", "--window", "7")
    assert (said["connections"], said["sent"], said["acknowledged"], said["refused"]) == (2, 201, 201, {})
    assert said["url"].startswith("mqtts://")
    assert 0 < said["latency_ms"]["p50"] <= said["latency_ms"]["p99"] <= said["latency_ms"]["max"]
    assert events_stored(system) == before + 201
    assert json.loads(system.gateway("device", "list", "--json").stdout) == []


def test_sealed_events_are_stored_from_several_processes(system):
    """Two processes of the generator share devices and count; every event of every envelope is stored once."""
    before = events_stored(system)
    said = bench(system, "--events", "5", "--count", "40", "--clients", "4", "--processes", "2", "--suite", "x25519")
    assert (said["acknowledged"], said["refused"], said["generator"]["processes"]) == (40, {}, 2)
    assert events_stored(system) == before + 200


@pytest.mark.parametrize("options", [("--mqtt", "3.1.1"), ("--rate", "400"), ("--qos", "0")])
def test_it_stops_by_itself(system, options):
    """`--for` ends a run in every mode, and everything that was sent is accounted for."""
    said = bench(system, "--for", "500ms", *options)
    assert said["sent"] == said["acknowledged"] > 0
    assert said["loop"] == ("open" if "--rate" in options else "closed")


def test_an_open_loop_sends_what_was_asked_for(system):
    """The number of publishes is rate times time, whatever the server does; being late is told."""
    said = bench(system, "--for", "1s", "--rate", "300")
    assert said["sent"] == 300
    assert said["send_lag_ms"]["max"] >= 0


def test_refusals_are_told_by_their_reason(system):
    """Plain events of a role that must seal are acknowledged with 0x87, which the generator counts."""
    said = bench(system, "--count", "20", "--clients", "1", "--role", "device")
    assert said["refused"] == {"0x87 envelope-required": 20}


def test_a_fleet_is_made_carried_used_twice_and_removed(system, tmp_path):
    """A file of devices serves a machine without the gateway's configuration, run after run."""
    file = str(tmp_path / "fleet.jsonl")
    made = system.gateway("bench", "--make-devices", "2", "--devices", file, "--events", "1")
    assert f"2 devices registered as device; their private keys are in {file}" in made.stdout
    url = f"mqtts://localhost:{system.mqtt_port}"
    remote = ("--url", url, "--ca", str(system.folder / "certs/ca.pem"), "-c", "none.toml", "--devices", file)
    before = events_stored(system)
    for _ in range(2):
        assert bench(system, *remote, "--events", "2", "--count", "10")["acknowledged"] == 10
    assert events_stored(system) == before + 40, "the second run continued the streams of the first"
    removed = system.gateway("bench", "--remove-devices", "--devices", file)
    assert "are removed, and the file" in removed.stdout
    assert not Path(file).exists()


def test_another_machine_is_loaded_only_when_confirmed(system):
    """An address that is not loopback needs --allow-remote; wrong use exits with 2."""
    done = system.gateway("bench", "--url", "mqtt://192.0.2.1:1883", check=False)
    assert done.returncode == 2
    assert "mqtt://192.0.2.1:1883 is not on this machine: confirm with --allow-remote" in done.stderr


def test_a_server_that_is_not_there_is_one_line(system):
    """What cannot be reached is named, exit code 1."""
    done = system.gateway("bench", "--url", "mqtt://127.0.0.1:1", check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: mqtt://127.0.0.1:1: cannot connect")


def test_people_get_a_table(system):
    """Without --json the result is a table with rate, latencies and how busy the generator was."""
    shown = system.gateway("bench", "--count", "50").stdout
    for word in ("publishes/s", "latency p99", "generator"):
        assert word in shown


@pytest.mark.parametrize(
    ("name", "options", "figures"),
    [
        ("ingest_plain", ("--seconds", "0.2"), 7),
        ("ingest_sealed", ("--seconds", "0.02"), 7),
        ("latency", ("--seconds", "0.2", "--rate", "50"), 6),
        ("connections", ("--connections", "10"), 3),
        ("dispatch", ("--seconds", "0.4"), 3),
        ("backlog", ("--stored", "2000", "--seconds", "0.2"), 1),
        ("growth", ("--seconds", "0.2", "--idle", "20", "--registered", "20"), 4),
        ("memory", ("--through", "200000"), 1),
        ("outbox", ("--seconds", "0.1"), 2),
    ],
)
def test_every_benchmark_runs_and_prints_its_figures(name, options, figures):
    """Each is one command that ends by itself and prints JSON with every figure, its rounds and the machine."""
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), "--json", "--rounds", "1", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert len(said["figures"]) == figures
    assert all(figure["value"] > 0 for figure in said["figures"])
    assert {"cpu", "cores", "packages", "load", "load_after"} <= said["machine"].keys()
