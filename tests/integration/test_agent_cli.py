"""The command `edge-agent` through real processes."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
from agent_home import home_for, wait_until
from scripted_broker import AUDIENCE, Broker, Cloud

from edge_agent.access import read_key
from edge_agent.home import Home
from edge_protocol.keys import verify_key_from_jwk
from edge_protocol.tokens import TokenPolicy, read, verify


def run(*args, home, text=None, env=None):
    done = subprocess.run(
        [sys.executable, "-m", "edge_agent.cli", *args],
        input=text,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={**os.environ, "EDGE_AGENT_HOME": str(home), **(env or {})},
    )
    assert "Traceback" not in done.stderr
    return done


def ok(*args, **options):
    done = run(*args, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def path(tmp_path):
    folder = tmp_path / "home"
    ok("init", "dev1", "--gateway", "mqtts://localhost:8883", "--audience", AUDIENCE, home=folder)
    return folder


@contextmanager
def daemon(path):
    process = subprocess.Popen(
        [sys.executable, "-m", "edge_agent.cli", "run", "--home", str(path)], stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def test_init_prints_the_public_key_on_one_line(tmp_path):
    """The JWK is all of stdout; the private key and the folder are the user's alone."""
    done = run("init", "dev1", "--gateway", "mqtts://gw:8883", home=tmp_path / "h")
    assert done.returncode == 0
    assert done.stdout.count("\n") == 1
    key = verify_key_from_jwk(json.loads(done.stdout))
    assert key.alg == "EdDSA"
    assert "next: `edge-agent enroll CODE`" in done.stderr
    assert stat.S_IMODE((tmp_path / "h").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "h" / "key.pem").stat().st_mode) == 0o600


def test_init_makes_keys_for_secure_elements(tmp_path):
    """--alg ES256 makes a P-256 key."""
    assert json.loads(ok("init", "dev1", "--alg", "ES256", home=tmp_path / "h"))["crv"] == "P-256"


def test_init_never_overwrites(path):
    """A second init changes nothing and says what is there."""
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    done = run("init", "dev2", home=path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "exists already; expected a new home (nothing is ever overwritten)" in done.stderr
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("init", "a/b"), "expected 1 to 128 of A-Z"),
        (("init", "dev1", "--gateway", "tcp://x"), "expected mqtts://HOST:8883"),
        (("init", "dev1", "--audience", "a b"), "--audience 'a b': expected 1 to 255 characters"),
        (("init", "dev1", "--ca", "/none"), "--ca /none: No such file or directory; expected a PEM file"),
        (("init", "dev1", "--signing-key", "{}"), "expected a JWK, or a JWK or PEM file"),
        (("init", "dev1", "--alg", "RS256"), "invalid choice: 'RS256'"),
        (("emit",), "the following arguments are required: TYPE"),
        (("frobnicate",), "invalid choice"),
        ((), "required"),
    ],
)
def test_wrong_use_is_2_and_named(tmp_path, args, message):
    """Exit code 2, nothing on stdout, the expected form on stderr, and nothing made."""
    done = run(*args, home=tmp_path / "h")
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert message in done.stderr
    assert not (tmp_path / "h").exists()


@pytest.mark.parametrize(
    "command",
    [
        "",
        "init",
        "enroll",
        "run",
        "emit",
        "status",
        "token",
        "quarantine",
        "quarantine list",
        "quarantine retry",
        "quarantine discard",
    ],
)
def test_every_command_has_an_example(tmp_path, command):
    """--help shows an example, on stdout, and succeeds."""
    text = ok(*command.split(), "--help", home=tmp_path)
    assert "example:\n  " in text


def test_emit_prints_the_id_of_what_is_on_disk(path):
    """One event from DATA, one without, one from @FILE; ids on stdout; status counts them."""
    file = path / "data.json"
    file.write_text('{"n": 3}')
    ids = [ok("emit", "reading", *args, home=path).strip() for args in (('{"n": 1}',), (), (f"@{file}",))]
    assert len(set(ids)) == 3
    status = json.loads(ok("status", "--json", home=path))
    assert (status["pending"], status["running"], status["quarantined"]) == (3, False, 0)
    assert 0 <= status["oldest_age_s"] < 60


def test_status_counts_in_words(path):
    """One event is not events."""
    for shown in ("0 events, 0 bytes", "1 event, ", "2 events, "):
        assert f"pending         {shown}" in ok("status", home=path)
        ok("emit", "t", home=path)


def test_emit_reads_lines(path):
    """`emit TYPE -` takes the data of one event a line; `emit -` takes {type, data} a line; blank lines are nothing."""
    assert len(ok("emit", "reading", "-", home=path, text='1\n\n{"n": 2}\n"three"').split()) == 3
    assert len(ok("emit", "-", home=path, text='{"type": "a", "data": 1}\n{"type": "b"}\n').split()) == 2
    assert json.loads(ok("status", "--json", home=path))["pending"] == 5


def test_a_bad_line_is_named_and_those_before_it_are_kept(path):
    """Lines before the bad one are stored and their ids printed; exit code 1 with the line's number."""
    done = run("emit", "reading", "-", home=path, text="1\n2\n{bad\n4\n")
    assert (done.returncode, len(done.stdout.split())) == (1, 2)
    assert "line 3: " in done.stderr
    assert json.loads(ok("status", "--json", home=path))["pending"] == 2


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("bad type", "1"), "expected dotted levels"),
        (("t", "{"), "bad-json: data is not JSON: Input data was truncated"),
        (("t", "{a}"), "bad-json: data is not JSON: JSON is malformed: object keys must be strings (byte 1)\n"),
        (("t", "@/none"), "edge-agent: @/none: No such file or directory; expected @FILE\n"),
        (("t", "1", "--time", "now"), "expected RFC 3339"),
        (("t", '"' + "x" * 300_000 + '"', "--subject", "s")[:2], None),
        (("-", "1"), "expected no DATA"),
    ],
)
def test_bad_events_are_refused_without_a_traceback(path, args, message):
    """Exit code 2, the reason on stderr, nothing stored."""
    if message is None:
        done = run("emit", args[0], "-", home=path, text=args[1])
        assert (done.returncode, "event-too-large" in done.stderr) == (1, True)
    else:
        done = run("emit", *args, home=path)
        assert done.returncode == 2
        assert message in done.stderr
    assert json.loads(ok("status", "--json", home=path))["pending"] == 0


def test_emit_without_a_home_says_what_to_do(tmp_path):
    """No agent: exit code 1 and the command that makes one."""
    done = run("emit", "t", home=tmp_path / "none")
    assert done.returncode == 1
    assert "expected the file that `edge-agent init ID` makes" in done.stderr


def test_token_prints_only_a_token(path):
    """What it prints is a JWT that the device's key proves, for an hour, for the audience."""
    done = run("token", home=path)
    assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 1)
    key = read_key(Home(path)).public
    claims, _ = verify(read(done.stdout.strip()), [key], policy=TokenPolicy(audience=AUDIENCE), now_s=time.time())
    assert (claims.sub, claims.exp - claims.iat) == ("dev1", 3600)


def test_token_without_an_audience_is_refused(tmp_path):
    """It says that enrolment or --audience is missing."""
    ok("init", "dev1", home=tmp_path / "h")
    done = run("token", home=tmp_path / "h")
    assert (done.returncode, done.stdout) == (1, "")
    assert "expected `edge-agent enroll CODE`, or `init --audience`" in done.stderr


def test_run_without_trust_says_what_is_needed(path):
    """A device that was only initialised cannot seal: the daemon ends and names the two ways."""
    done = run("run", home=path)
    assert done.returncode == 1
    assert "the gateway's signing key is not known" in done.stderr
    assert "`edge-agent enroll CODE`, or `edge-agent init` with --audience and --signing-key" in done.stderr


def test_plain_mqtt_goes_to_this_machine_only(tmp_path):
    """mqtt:// to another host is refused with the setting that would allow it."""
    home = home_for(Cloud(), tmp_path / "h", "mqtt://192.0.2.1:1883")
    done = run("run", home=home.path)
    assert done.returncode == 1
    assert "expected mqtts://; plain mqtt:// goes to this machine only" in done.stderr


def test_quarantine_discard_wants_ids_or_all(path):
    """Deleting everything must be said."""
    done = run("quarantine", "discard", home=path)
    assert (done.returncode, "expected ids, or --all" in done.stderr) == (2, True)
    assert ok("quarantine", "discard", "--all", home=path) == ""


def test_the_daemon_delivers_and_stops_cleanly(tmp_path):
    """`run` delivers what other processes emit, `status` shows it, a second daemon is refused, SIGTERM ends it with 0."""
    cloud = Cloud()
    with Broker(cloud) as broker:
        home = home_for(cloud, tmp_path / "h", broker.url)
        first = ok("emit", "before", home=home.path).strip()
        with daemon(home.path) as process:
            wait_until(lambda: cloud.ids == [first])
            second = ok("emit", "after", '{"n": 2}', home=home.path).strip()
            wait_until(lambda: cloud.ids == [first, second])
            wait_until(lambda: json.loads(ok("status", "--json", home=home.path))["pending"] == 0)
            status = json.loads(ok("status", "--json", home=home.path))
            assert (status["running"], status["connection"]["state"]) == (True, "connected")
            assert status["last_receipt_ms"]
            again = run("run", home=home.path)
            assert again.returncode == 1
            assert "serves this home already" in again.stderr
            process.send_signal(signal.SIGTERM)
            _, log = process.communicate(timeout=15)
            assert process.returncode == 0
        assert "connected gateway=mqtt://127.0.0.1" in log
        assert "eyJ" not in log
        assert '"n": 2' not in log
    assert json.loads(ok("status", "--json", home=home.path))["running"] is False


def test_kill_9_of_the_daemon_loses_nothing(tmp_path):
    """SIGKILL with envelopes in flight, twice: every event is stored once, in order."""
    cloud = Cloud()
    with Broker(cloud) as broker:
        home = home_for(cloud, tmp_path / "h", broker.url, more="[uplink]\nmax_batch = 3\n")
        ids = []
        for _ in range(2):
            ids += ok("emit", "t", "-", home=home.path, text="\n".join(map(str, range(60)))).split()
            count = len(cloud.events)
            held = []

            def hold_later(connection, publish, count=count, held=held):
                if len(cloud.events) < count + 12:
                    return False
                broker.judge(connection, publish)  # stored, and never acknowledged
                held.append(publish)
                return True

            broker.on_event = hold_later
            with daemon(home.path) as process:
                wait_until(lambda held=held: len(held) >= 3)
                process.kill()
        broker.on_event = None
        with daemon(home.path):
            wait_until(lambda: json.loads(ok("status", "--json", home=home.path))["pending"] == 0)
    assert cloud.ids == ids


def test_sigterm_while_offline_ends_at_once(tmp_path):
    """A gateway that cannot be reached does not hold the daemon back from stopping."""
    home = home_for(Cloud(), tmp_path / "h", "mqtt://127.0.0.1:1")
    ok("emit", "t", home=home.path)
    with daemon(home.path) as process:
        wait_until(lambda: json.loads(ok("status", "--json", home=home.path))["connection"]["state"] == "waiting")
        status = json.loads(ok("status", "--json", home=home.path))
        assert "refused" in status["connection"]["reason"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
