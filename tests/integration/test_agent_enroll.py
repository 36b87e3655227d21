"""Enrolment by one-time code, and TLS by the CA it brings, against real TLS servers."""

from __future__ import annotations

import hashlib
import json
import socket
import ssl
import threading
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from agent_home import Running, emit, home_for, wait_until
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from scripted_broker import AUDIENCE, Broker, Cloud

from edge_agent.access import read_key, read_trust
from edge_agent.enroll import enroll
from edge_agent.errors import AgentError, EnrolmentFailed, UsageError
from edge_agent.home import Home
from edge_agent.setup import make_home
from edge_protocol import jose
from edge_protocol.jwk import b64url
from edge_protocol.keys import verify_key_from_jwk
from gateway.cli.certificates import write_certificates


def certificates(folder, *, now=None, hosts=("localhost",)):
    folder.mkdir(parents=True)
    write_certificates(folder, hosts, now=now or datetime.now(UTC))
    return folder


def server_tls(folder):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem", folder / "server-key.pem")
    return context


def code_for(folder):
    certificate = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
    public = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return f"s3cret_S3CRET.{b64url(hashlib.sha256(public).digest())}"


class Desk:
    """The gateway's device listener, scripted: what it was asked, and what it answers."""

    def __init__(self, cloud, folder, *, ca=None):
        self.cloud, self.folder = cloud, folder
        self.ca = ca or (folder / "ca.pem").read_bytes()
        self.requests = []
        self.change = {}
        self.status = 200
        self.refusal = b'{"rule": "code-used", "detail": "ask for a new one"}'
        self.offset = timedelta()

    def answer(self, request):
        self.requests.append(request)
        key = verify_key_from_jwk(request["jwk"])
        proof = jose.parse(request["proof"])
        assert jose.verify(proof, [key])
        self.proof = proof.payload
        self.cloud.device_keys[key.kid] = key
        return {
            "id": request["id"],
            "aud": AUDIENCE,
            "ca": (self.folder / "ca.pem").read_text(),
            "signing_key": self.cloud.signing_key.public.jwk,
            "key_set": self.cloud.key_set(),
            "mqtt": ["mqtts://localhost:8883"],
        } | self.change


@contextmanager
def listening(desk, host="localhost"):
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_args):
            pass

        def do_GET(self):
            if self.path == "/time":
                self._send(200, json.dumps({"time": (datetime.now(UTC) + desk.offset).isoformat()}).encode())
            elif self.path == "/.well-known/gateway-keys":
                self._send(200, desk.cloud.key_set().encode())
            else:
                assert self.path == "/enroll/ca"
                self._send(200, desk.ca)

        def do_POST(self):
            assert self.path == "/enroll"
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self._send(desk.status, json.dumps(desk.answer(request)).encode() if desk.status == 200 else desk.refusal)

        def _send(self, status, body):
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    class Server(ThreadingHTTPServer):
        def get_request(self):
            sock, address = super().get_request()
            sock.settimeout(5)
            return server_tls(desk.folder).wrap_socket(sock, server_side=True, do_handshake_on_connect=False), address

        def handle_error(self, *_args):
            pass  # a client that does not trust us goes away

    server = Server((host, 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"https://{host}:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def cloud():
    return Cloud()


@pytest.fixture
def home(tmp_path):
    made = Home(tmp_path / "home")
    make_home(made, "dev1", gateway="", audience="", ca=None, signing_key=None, alg="EdDSA")
    return made


def test_enrolment_brings_everything(cloud, home, tmp_path):
    """The code proves the CA, the proof the key; audience, signing key, key set, CA and address are kept."""
    folder = certificates(tmp_path / "certs")
    desk = Desk(cloud, folder)
    with listening(desk) as url:
        trust = enroll(home, code_for(folder), url=url)
    (request,) = desk.requests
    assert request.keys() == {"code", "id", "jwk", "proof"}
    assert request["jwk"] == read_key(home).public.jwk
    code_hash = b64url(hashlib.sha256(code_for(folder).encode()).digest())
    assert {name: desk.proof[name] for name in ("id", "code_hash", "aud")} == {
        "id": "dev1", "code_hash": code_hash, "aud": "lockgate-enroll",
    }  # fmt: skip
    assert abs(desk.proof["iat"] - datetime.now(UTC).timestamp()) < 60
    assert trust.audience == AUDIENCE
    kept = json.loads(home.trust_file.read_text())
    assert (kept["audience"], kept["mqtt"], kept["ca"], kept["url"]) == (
        AUDIENCE,
        ["mqtts://localhost:8883"],
        "ca.pem",
        url,
    )
    again = read_trust(home, home.settings())
    again.recall(datetime.now(UTC).timestamp())
    assert again.key_set.version == 1
    assert (home.path / "ca.pem").read_bytes() == (folder / "ca.pem").read_bytes()


def test_another_ca_gets_nothing(cloud, home, tmp_path):
    """A server with another CA than the code's is refused before the code, the key or the proof is sent."""
    ours, theirs = certificates(tmp_path / "ours"), certificates(tmp_path / "theirs")
    desk = Desk(cloud, theirs)
    with (
        listening(desk) as url,
        pytest.raises(EnrolmentFailed, match=r"not the one this code was made for.*nothing was sent"),
    ):
        enroll(home, code_for(ours), url=url)
    assert not desk.requests
    assert not (home.path / "ca.pem").exists()


def test_a_stolen_ca_certificate_gets_nothing(cloud, home, tmp_path):
    """A man in the middle who shows our CA's certificate still has no server certificate by it: nothing is sent."""
    ours, theirs = certificates(tmp_path / "ours"), certificates(tmp_path / "theirs")
    desk = Desk(cloud, theirs, ca=(ours / "ca.pem").read_bytes())
    with listening(desk) as url, pytest.raises(AgentError, match="CERTIFICATE_VERIFY_FAILED"):
        enroll(home, code_for(ours), url=url)
    assert not desk.requests


def test_the_host_name_is_checked(cloud, home, tmp_path):
    """A certificate by the right CA for another host is not enough."""
    folder = certificates(tmp_path / "certs")
    desk = Desk(cloud, folder)
    with listening(desk, "127.0.0.2") as url, pytest.raises(AgentError, match="IP address mismatch"):
        enroll(home, code_for(folder), url=url)
    assert not desk.requests


def test_a_refusal_shows_the_reason(cloud, home, tmp_path):
    """What the gateway answered is in the message; nothing is kept."""
    folder = certificates(tmp_path / "certs")
    desk = Desk(cloud, folder)
    desk.status = 403
    with (
        listening(desk) as url,
        pytest.raises(EnrolmentFailed, match=r"refused: HTTP status 403 code-used: ask for a new one$"),
    ):
        enroll(home, code_for(folder), url=url)
    assert not (home.path / "ca.pem").exists()


@pytest.mark.parametrize("answer", [b"<html>busy</html>", b"[]", b'{"rule": "x"}', b"\xff"])
def test_an_answer_that_is_no_problem_document_is_shown(cloud, home, tmp_path, answer):
    """Something else may stand at the address: a proxy, for one."""
    folder = certificates(tmp_path / "certs")
    desk = Desk(cloud, folder)
    desk.status, desk.refusal = 502, answer
    with listening(desk) as url, pytest.raises(EnrolmentFailed) as refused:
        enroll(home, code_for(folder), url=url)
    assert str(refused.value) == f"the gateway refused: HTTP status 502 {answer.decode(errors='replace')}"


def test_a_gateway_that_is_not_there(home, tmp_path):
    """The address and the system's words, without its numbers."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        url = f"https://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(AgentError) as refused:
            enroll(home, code_for(certificates(tmp_path / "certs")), url=url)
    assert str(refused.value) == f"{url}/enroll/ca: Connection refused"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": "dev2"}, "answered for 'dev2'"),
        ({"key_set": "x.y.z"}, "key-set-malformed"),
        ({"aud": "other"}, "key-set-wrong-audience"),
        ({"mqtt": "x"}, "expected id, aud, ca, signing_key, key_set, mqtt"),
    ],
)
def test_a_wrong_answer_is_not_kept(cloud, home, tmp_path, change, message):
    """An answer that contradicts itself or the request changes nothing."""
    folder = certificates(tmp_path / "certs")
    desk = Desk(cloud, folder)
    desk.change = change
    with listening(desk) as url, pytest.raises(EnrolmentFailed, match=message):
        enroll(home, code_for(folder), url=url)
    assert not (home.path / "ca.pem").exists()
    assert json.loads(home.trust_file.read_text())["signing_key"] is None


@pytest.mark.parametrize("code", ["", "abc", "abc.def", "a b." + "A" * 43, "." + "A" * 43, "s." + "A" * 42 + "B"])
def test_a_bad_code_is_refused_at_once(home, code):
    """A code that cannot be one is refused by form, without any connection."""
    with pytest.raises(UsageError, match=r"expected SECRET.HASH as `gateway device add` printed it"):
        enroll(home, code, url="https://localhost:1")


def test_without_a_url_it_says_what_is_missing(home):
    """Neither --url nor a gateway: the message names --url."""
    with pytest.raises(AgentError, match=r"expected --url https://HOST:8443"):
        enroll(home, "s." + "A" * 43)


def test_a_device_without_a_clock_enrols_and_connects(cloud, home, tmp_path):
    """Its clock is before the CA was made: dates are not checked, the proof has the gateway's time, TLS comes up."""
    ahead = timedelta(days=2000)
    folder = certificates(tmp_path / "certs", now=datetime.now(UTC) + ahead)
    desk = Desk(cloud, folder)
    desk.offset = ahead
    with listening(desk) as url:
        enroll(home, code_for(folder), url=url)
    assert abs(desk.proof["iat"] - (datetime.now(UTC) + ahead).timestamp()) < 60


def test_the_key_set_comes_over_https_where_the_topic_is_closed(cloud, home, tmp_path):
    """A device that gets nothing on `gateway/keys` asks the listener it enrolled at, before it connects."""
    folder = certificates(tmp_path / "certs")
    desk = Desk(cloud, folder)
    with listening(desk) as url, Broker(cloud, tls=server_tls(folder)) as broker:
        broker.send_keys = lambda _connection: None
        desk.change = {"mqtt": [broker.url]}
        enroll(home, code_for(folder), url=url)
        cloud.rotate()
        with Running(home) as agent:
            ids = emit(home, 3)
            agent.wait_empty()
    assert cloud.ids == ids
    assert len(broker.connections) == 2


def test_the_uplink_speaks_tls_by_the_pinned_ca(cloud, tmp_path):
    """mqtts:// to a server of the CA given works; one of another CA gets no CONNECT, hence no token."""
    ours, theirs = certificates(tmp_path / "ours"), certificates(tmp_path / "theirs")
    ca = (ours / "ca.pem").read_bytes()
    with Broker(cloud, tls=server_tls(ours)) as broker:
        good = home_for(cloud, tmp_path / "good", broker.url, ca=ca)
        ids = emit(good, 30)
        with Running(good) as agent:
            agent.wait_empty()
        assert cloud.ids == ids
    impostor = Broker(cloud, tls=server_tls(theirs))
    with suppress(AssertionError), impostor:
        bad = home_for(cloud, tmp_path / "bad", impostor.url, ca=ca)
        with Running(bad, jitter=lambda: 0.9) as agent:
            wait_until(lambda: "CERTIFICATE_VERIFY_FAILED" in agent.outbox.noted("connection").get("reason", ""))
    assert not impostor.connections
