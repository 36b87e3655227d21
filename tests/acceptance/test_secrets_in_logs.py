"""Secrets are planted wherever one can get in; no log, no `--json` output and no metric may show one."""

from __future__ import annotations

import http.client
import json
import re
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from paho_client import Client
from sink import Received, Sink
from system import System, eventually

from edge_agent import Agent
from edge_protocol import tokens
from edge_protocol.keys import load_signing_key, new_signing_key
from gateway.demo.stage import program

PAYLOAD = "PLANTED-in-a-payload"
HANDLER_SECRET = "whsec_UExBTlRFRC1pbi10aGUtaGFuZGxlci1zZWNyZXQ="
HEADER = "PLANTED-in-a-header-of-the-handler"
FORGED = "PLANTED-in-a-token-that-is-none"


@dataclass
class Scene:
    """A gateway that logs all it can, and what it must not log."""

    system: System
    sink: Sink
    secrets: dict[str, str] = field(default_factory=dict)

    @property
    def ca(self) -> Path:
        return self.system.folder / "certs" / "ca.pem"

    def plant_token(self, name: str, token: str) -> str:
        """No part of a token may show: its signature stands for the whole."""
        self.secrets[name] = token.rpartition(".")[2]
        return token

    def device_token(self, name: str, *, ttl_s: int = 600) -> str:
        key = load_signing_key((self.system.folder / "simple1" / "key.pem").read_bytes())
        audience = re.search(r'audience\s*=\s*"(.*?)"', (self.system.folder / "configs" / "gateway.toml").read_text())[
            1
        ]
        now = int(time.time())
        minted = tokens.mint(key, audience=audience, subject="simple1", issued_at=now - 700, expires_at=now + ttl_s)
        return self.plant_token(name, minted)

    def plant_file(self, path: Path) -> None:
        """The private parts of a key file: lines of PEM, `d` and `priv` members of JWKs."""
        text = path.read_text()
        for n, line in enumerate(re.findall(r"^[A-Za-z0-9+/=]{40,}$", text, re.MULTILINE)):
            self.secrets[f"{path.name} line {n}"] = line
        for n, value in enumerate(re.findall(r'"(?:d|priv)": ?"([^"]+)"', text)):
            self.secrets[f"{path.name} member {n}"] = value

    def post(self, url: str, body: bytes, **headers: str) -> int:
        request = urllib.request.Request(url, body, {key.replace("_", "-"): value for key, value in headers.items()})
        context = ssl.create_default_context(cafile=str(self.ca)) if url.startswith("https") else None
        try:
            with urllib.request.urlopen(request, timeout=5, context=context) as answer:
                return answer.status
        except urllib.error.HTTPError as exc:
            return exc.code


@pytest.fixture
def scene(system: System) -> Iterator[Scene]:
    sink = Sink(lambda received: 500 if received.type == "poisoned" else 204).start()
    system.environ["LOCKGATE_LOG__LEVEL"] = "debug"
    system.add_handlers(
        f'name = "ledger"\nurl = "{sink.url}"\nsecret = "{HANDLER_SECRET}"\nheaders = {{ Authorization = "{HEADER}" }}\n'
        'retry = { max_attempts = 1, first = "10ms", max = "10ms" }'
    )
    yield Scene(system, sink, {"payload": PAYLOAD, "handler": HANDLER_SECRET, "header": HEADER, "forged": FORGED})
    sink.stop()


def enrol_an_agent(scene: Scene) -> None:
    """An agent enrols (and fails to, twice), runs, and emits."""
    system = scene.system
    url = f"https://localhost:{system.device_port}"
    code = json.loads(system.gateway("device", "add", "agent1", "--json").stdout)["code"]
    scene.secrets["enrolment code"] = code.partition(".")[0]
    private = {"kty": "OKP", "crv": "Ed25519", "x": "AAAA", "d": "PLANTED-as-a-private-key"}
    scene.secrets["private key sent"] = private["d"]
    for jwk in (private, new_signing_key().public.jwk):
        body = {"code": code, "id": "agent1", "jwk": jwk, "proof": f"a.b.{FORGED}"}
        assert scene.post(f"{url}/enroll", json.dumps(body).encode()) == 400
    assert scene.post(f"{url}/enroll", b'{"code": "' + FORGED.encode()) == 400
    home = system.init_agent("agent1", home="agent1")
    system.agent("enroll", code, "--url", url, home=home)
    scene.plant_file(home / "key.pem")
    system.start("agent1", program("edge-agent"), "run", "--home", str(home))
    with Agent.open(home) as agent:
        agent.emit("measured", {"text": PAYLOAD})
        agent.emit("poisoned", {"text": PAYLOAD})


def connect_a_simple_device(scene: Scene) -> None:
    """A device with tokens good, expired and forged; payloads good, refused, and on topics that are not its own."""
    system = scene.system
    jwk = system.agent("init", "simple1", "--gateway", "mqtts://localhost:1", home=system.folder / "simple1").stdout
    (system.folder / "simple1.jwk").write_text(jwk)
    system.gateway("device", "add", "simple1", "--role", "simple-device", "--key", "simple1.jwk")
    scene.plant_file(system.folder / "simple1" / "key.pem")
    for token in (scene.device_token("expired token", ttl_s=-300), f"e30.e30.{FORGED}", FORGED):
        with Client(system.mqtt_port, "simple1", token, ca=scene.ca) as client:
            assert client.code == 0x87
    topic = "devices/simple1/events"
    with Client(system.mqtt_port, "simple1", scene.device_token("token"), ca=scene.ca) as client:
        assert client.publish(f"{topic}/measured", json.dumps({"text": PAYLOAD})) == 0
        assert client.publish(f"{topic}/poisoned", json.dumps({"text": PAYLOAD})) == 0
        assert client.publish(topic, f'{{"{PAYLOAD}": ') == 0x99
        assert client.publish(topic, json.dumps([{"specversion": PAYLOAD, "id": "x", "type": "a"}])) == 0x99
        assert client.publish("devices/simple1/state", f'["{PAYLOAD}"]') == 0x99
        assert client.publish("devices/other/events/a", PAYLOAD) == 0x87
        assert client.publish("devices/simple1/token", scene.device_token("fresh token", ttl_s=900)) == 0
        assert client.publish("devices/simple1/token", f"e30.e30.{FORGED}") is None
        assert client.wait_closed() == 0x87


def raise_events_as_a_service(scene: Scene) -> None:
    """A service's tokens and bodies, good and bad, one header too long for the HTTP server itself."""
    system = scene.system
    url = f"http://127.0.0.1:{system.http_port}/event_bus"
    token = scene.plant_token("service token", system.gateway("token", "create", "--role", "service").stdout.strip())
    event = json.dumps({"specversion": "1.0", "id": "s1", "type": "measured", "data": {"n": PAYLOAD}}).encode()
    kind = "application/cloudevents+json"
    assert scene.post(url, event, Authorization=f"Bearer {token}", Content_Type=kind) == 200
    assert scene.post(url, event[:-5], Authorization=f"Bearer {token}", Content_Type=kind) == 400
    assert scene.post(url, event, Authorization=f"Bearer {token}x", Content_Type=kind) == 401
    assert scene.post(url, event, Authorization=f"Bearer {FORGED * 500}", Content_Type=kind) == 400
    connection = http.client.HTTPConnection("127.0.0.1", system.http_port, timeout=5)
    connection.request("GET", f"/event_bus?token={FORGED}", headers={"X-Secret": PAYLOAD})
    assert connection.getresponse().status == 405
    connection.close()


def outputs(scene: Scene) -> dict[str, str]:
    """Everything that is shown to people and programs, but events themselves (`events tail`, `dead-letters show`)."""
    system = scene.system
    commands = ["stats", "device list", "device show agent1", "handlers list", "dead-letters list", "events show s1"]
    shown = {name: system.gateway(*name.split(), "--json").stdout for name in commands}
    shown["edge-agent status"] = system.agent("status", "--json", home=system.folder / "agents" / "agent1").stdout
    for path in ("metrics", "readyz", "healthz", ".well-known/gateway-keys"):
        with urllib.request.urlopen(f"http://127.0.0.1:{system.http_port}/{path}", timeout=5) as answer:
            shown[path] = answer.read().decode()
    check = system.gateway("check", check=False)
    return shown | {"check": check.stdout + check.stderr}


def leaks(secrets: dict[str, str], shown: dict[str, str]) -> list[str]:
    return [f"{name} in {where}" for where, text in shown.items() for name, secret in secrets.items() if secret in text]


def wait_for(condition: Callable[[], object], what: str) -> None:
    eventually(condition, within_s=20, what=what)


@pytest.mark.timeout(120)
def test_no_log_output_or_metric_shows_a_secret(scene: Scene) -> None:
    """Tokens, payloads, codes, handler secrets, private keys: planted in good and bad requests, shown nowhere."""
    system = scene.system
    for file in (*(system.folder / "state" / "keys").iterdir(), *(system.folder / "certs").glob("*-key.pem")):
        scene.plant_file(file)
    system.start_gateway()
    enrol_an_agent(scene)
    connect_a_simple_device(scene)
    raise_events_as_a_service(scene)
    wait_for(lambda: scene.sink.count >= 3, "the good events did not arrive")
    wait_for(lambda: system.handlers()["ledger"]["dead"] == 2, "no dead letters")
    assert any(PAYLOAD in json.dumps(received.data) for received in scene.sink.deliveries), "nothing was planted"
    assert len(scene.secrets) > 15, "the key files were not understood"
    shown = outputs(scene)
    assert system.terminate("agent1") == 0
    assert system.terminate("gateway") == 0
    logs = {name: system.log(name) for name in ("gateway", "agent1")}
    assert '"event": "token_refused"' in logs["gateway"], "the log is not where it is looked for"
    assert leaks(scene.secrets, logs | shown) == []
    assert all(has_headers(received) for received in scene.sink.deliveries)


def has_headers(received: Received) -> bool:
    return received.headers["Authorization"] == HEADER
