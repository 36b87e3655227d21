"""The command line as people run it: init, check, help, errors."""

import os
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

GATEWAY = Path(sys.executable).with_name("gateway")
COMMANDS = [
    "init",
    "check",
    "serve",
    "stats",
    "demo",
    *(f"device {verb}" for verb in ("add", "list", "show", "disable", "enable", "remove")),
    *(f"token {verb}" for verb in ("create", "revoke")),
    *(f"events {verb}" for verb in ("show", "tail", "publish")),
    *(f"handlers {verb}" for verb in ("list", "remove")),
    *(f"dead-letters {verb}" for verb in ("list", "show", "replay", "discard")),
]


def run(*arguments, cwd=None, **environment):
    return subprocess.run(
        [GATEWAY, *arguments],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    done = run("init", "gw", "--host", "gw.example.com", cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    return folder / "gw", done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_an_example(command):
    """Help stands on stdout, and shows how the command is used."""
    done = run(*command.split(), "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"  gateway {command}" in done.stdout.partition("Example")[2]


def test_help_lists_every_noun():
    """The first look shows what there is."""
    done = run("--help")
    assert done.returncode == 0
    for name in {command.split()[0] for command in COMMANDS}:
        assert f"\n  {name} " in done.stdout


def test_init_prints_the_next_two_commands(made):
    """On stdout, ready to be run."""
    assert made[1].splitlines() == [
        "gateway serve -c gw/configs/gateway.toml",
        "gateway device add dev1 -c gw/configs/gateway.toml",
    ]


def test_init_makes_what_a_gateway_needs(made):
    """A configuration with an audience of its own, certificates, an identity; private things private."""
    folder = made[0]
    audience = tomllib.loads((folder / "configs/gateway.toml").read_text())["audience"]
    assert audience.startswith("lockgate-")
    assert len(bytes.fromhex(audience.removeprefix("lockgate-"))) == 3
    for path in ("certs/ca.pem", "certs/server.pem", "state/keys/signing.pem"):
        assert (folder / path).is_file()
    assert stat.S_IMODE((folder / "state").stat().st_mode) == 0o700
    for path in ("certs/ca-key.pem", "certs/server-key.pem", "state/keys/signing.pem"):
        assert stat.S_IMODE((folder / path).stat().st_mode) == 0o600


def test_init_never_overwrites(made):
    """It names what exists, fails, and changes nothing."""
    before = {path: path.read_bytes() for path in made[0].rglob("*") if path.is_file()}
    done = run("init", cwd=made[0])
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "error: configs/gateway.toml exists, nothing was changed: give another DIR, or move it away\n"
    )
    assert {path: path.read_bytes() for path in made[0].rglob("*") if path.is_file()} == before


def test_init_begins_again_where_it_was_cut_short(tmp_path):
    """Without a configuration it makes what is missing, and keeps the keys that are there."""
    assert run("init", cwd=tmp_path).returncode == 0
    (tmp_path / "configs/gateway.toml").unlink()
    key = (tmp_path / "state/keys/signing.pem").read_bytes()
    done = run("init", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout == "gateway serve\ngateway device add dev1\n"
    assert done.stderr.startswith("kept: state/keys")
    assert (tmp_path / "state/keys/signing.pem").read_bytes() == key


def test_init_refuses_a_host_that_is_none(tmp_path):
    """Nothing that could be mistaken for a gateway stays behind."""
    done = run("init", "--host", "no host", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: --host: expected a DNS name in ASCII or an IP address")
    assert not (tmp_path / "configs").exists()


def test_check_says_ok(made):
    """One line on stdout with what there is."""
    done = run("check", "-c", "configs/gateway.toml", cwd=made[0])
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("ok: audience lockgate-")
    assert "4 roles, 0 handlers" in done.stdout
    assert done.stdout.count("\n") == 1


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("MQTT__CERTIFICATE", '"none.pem"', "mqtt.certificate: expected a readable file"),
        ("MQTT__PRIVATE_KEY", '"certs/ca-key.pem"', "mqtt.private_key: expected the key of "),
        (
            "MQTT__LISTEN",
            '["http://x"]',
            "mqtt.listen[0]: expected mqtts://HOST:PORT or mqtt://HOST:PORT or wss://HOST:PORT or ws://HOST:PORT, found 'http://x'",
        ),
        ("STATE_DIR", '"nowhere"', "state_dir: expected a file that can be read"),
        (
            "POLICY",
            '[{role = "r", publish = ["a/#/b"]}]',
            "policy[0].publish[0]: expected a pattern (topic filter 'a/#/b'",
        ),
        ("POLICY", '[{role = "r", emit = ["a b"]}]', "policy[0].emit[0]: expected a pattern (event type 'a b'"),
        ("HANDLERS", '[{name = "h", url = "gopher://x"}]', "handlers.h.url: expected a URL with "),
        (
            "HANDLERS",
            '[{name = "h", url = "http://x", types = ["a*b"]}]',
            "handlers[0].types[0]: expected exact, or with one *",
        ),
        ("COLOUR", '"red"', "colour: expected no such setting"),
        ("BUS__URL", '"redis:///x"', "bus.url: expected a URL that starts with memory:// or sqlite://"),
        (
            "BUS__URL",
            '"sqlite:///nowhere/bus.db"',
            "bus.url: expected a file in a directory that exists; there is no /",
        ),
        ("BUS__URL", '"sqlite:bus.db"', "bus.url: expected a URL that starts with memory:// or sqlite://"),
    ],
)
def test_check_names_key_value_and_expectation(made, setting, value, message):
    """One line on stderr, exit code 1, no traceback."""
    done = run("check", cwd=made[0], **{f"LOCKGATE_{setting}": value})
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: {message}")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bogus"], "error: no such command 'bogus'"),
        (["device", "show"], "error: missing argument"),
        (["device", "add", "x", "--label", "y"], "error: invalid value for --label: expected NAME=VALUE, found 'y'"),
        (["events", "publish", "t", "{"], "error: invalid value for DATA: expected JSON"),
        (["events", "tail", "--limit", "0"], "error: invalid value for '--limit'"),
        (["dead-letters", "replay"], "error: invalid value for ID: expected an ID, or --handler NAME"),
        (["dead-letters", "discard", "--dry-run"], "error: invalid value for ID: expected an ID, or --handler NAME"),
        (["token", "create", "--role", "r", "--ttl", "8"], "error: invalid value"),
        (["check", "--colour"], "error: no such option: --colour"),
    ],
)
def test_wrong_use_is_told_in_one_line(made, arguments, message):
    """Exit code 2, and where the help is."""
    done = run(*arguments, cwd=made[0])
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(message)
    assert "--help)" in done.stderr
    assert done.stderr.count("\n") == 1


def test_no_command_shows_the_help():
    """On stderr, since it is no result."""
    done = run()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Usage: gateway")


def test_a_missing_configuration_says_how_to_make_one(tmp_path):
    """For every command that reads it."""
    for command in (["check"], ["device", "list"], ["serve"]):
        done = run(*command, cwd=tmp_path)
        assert done.returncode == 1
        assert done.stderr == (
            "error: -c FILE: expected a readable file (No such file or directory); `gateway init` makes one, "
            "found 'configs/gateway.toml'\n"
        )


def test_a_base_install_is_told_what_is_missing():
    """Without the extra the command names the line to run."""
    code = "import sys; sys.modules['typer'] = None\nfrom gateway.cli import main\nmain()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1] == "pip install 'lockgate[gateway]'"
    assert "Traceback" not in done.stderr


def test_a_key_that_is_none_is_refused(made, tmp_path):
    """Before the gateway is asked."""
    (tmp_path / "bad.pem").write_text("nonsense")
    done = run("device", "add", "x", "--key", str(tmp_path / "bad.pem"), cwd=made[0])
    assert done.returncode == 1
    assert done.stderr == (
        f"error: key: expected PEM without a password, or a JWK (Unable to load PEM file), found '{tmp_path}/bad.pem'\n"
    )


def test_a_file_that_is_not_there_is_named(made):
    """In the system's words, without its numbers."""
    for command in (["device", "add", "x", "--key", "none.pem"], ["events", "publish", "t", "@none.pem"]):
        done = run(*command, cwd=made[0])
        assert (done.returncode, done.stderr) == (1, "error: none.pem: No such file or directory\n")


def test_what_is_no_token_is_not_revoked(made):
    """A token that was cut off in copying, or an id of something else, is refused: nobody shall believe that it is revoked."""
    for text in ("xyz", "eyJhbGciOi", "0199a7c2-5f3e-7b1a-9c44-2a6de0f1b7a", "0199a7c2-5f3e-7b1a-9c44-2a6de0f1b7aaa"):
        done = run("token", "revoke", text, cwd=made[0])
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("error: token: expected one of `gateway token create`, or the id ")
    known = "0199a7c2-5f3e-7b1a-9c44-2a6de0f1b7aa"
    assert run("token", "revoke", known, cwd=made[0]).stdout == f"{known} revoked\n"


def test_a_code_is_no_device_yet(made):
    """What `add` without a key shows does not say of the device what is true when it has enrolled only."""
    shown = run("device", "add", "soon", cwd=made[0]).stdout
    assert [line.split()[0] for line in shown.partition("\n\n")[0].splitlines()] == [
        "id",
        "role",
        "labels",
        "audience",
        "signing_key",
        "mqtt",
        "enrol",
        "code",
        "code_expires_at",
    ]
