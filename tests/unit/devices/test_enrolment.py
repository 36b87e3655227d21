"""Enrolment by one-time code."""

import asyncio
import base64
import datetime as dt
import hashlib
import json

import device_parts as parts
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from structlog.testing import capture_logs

from edge_protocol import jose
from edge_protocol.errors import TopicInvalid
from edge_protocol.jwk import b64url
from edge_protocol.key_set import verify_key_set
from edge_protocol.keys import new_signing_key, verify_key_from_jwk
from gateway.devices import Enrolment, EnrolmentRefused, create_identity
from gateway.errors import ConfigError, NotFound
from gateway.rules.admission import Attempts


def make_ca():
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test CA")])
    start = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(start).not_valid_after(start + dt.timedelta(days=9000))
    certificate = builder.sign(key, hashes.SHA256())
    return certificate.public_bytes(Encoding.PEM), key.public_key()


CA_PEM, CA_KEY = make_ca()


@pytest.fixture
async def site(tmp_path):
    async with parts.site() as site:
        site.identity = create_identity(tmp_path)
        site.enrolment = enrolment_of(site)
        yield site


def enrolment_of(site, **more):
    settings = {"audience": parts.AUDIENCE, "ca_pem": CA_PEM, "mqtt": ["mqtts://gw:8883"], "clock": site.clock}
    return Enrolment(site.state, site.registry, site.identity, **{**settings, **more})


def request_for(code, key, device="dev1", *, signer=None, **changed):
    claims = {
        "id": device,
        "code_hash": b64url(hashlib.sha256(code.encode()).digest()),
        "aud": "lockgate-enroll",
        "iat": parts.NOW_S,
        **changed,
    }
    claims = {name: value for name, value in claims.items() if value is not None}
    proof = jose.sign(json.dumps(claims).encode(), signer or key)
    return {"code": code, "id": device, "jwk": key.public.jwk, "proof": proof}


async def refused(site, request, peer="192.0.2.1"):
    with capture_logs() as logs, pytest.raises(EnrolmentRefused) as caught:
        await site.enrolment.enrol(request, peer=peer)
    assert [(entry["event"], entry["rule"]) for entry in logs] == [("enrolment_refused", caught.value.rule)]
    assert request.get("code") not in [*logs[0].values()]
    return str(caught.value)


async def test_a_code_pins_the_ca():
    """The second half of a code is the hash of the CA's public key, as `openssl` would compute it."""
    async with parts.site() as site:
        site.identity = None
        code = await enrolment_of(site).create_code("dev1", role="device")
    secret, pin = code.split(".")
    spki = CA_KEY.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert base64.urlsafe_b64decode(pin + "=") == hashlib.sha256(spki).digest()
    assert len(base64.urlsafe_b64decode(secret)) == 24


async def test_a_device_enrols(site):
    """A good request registers the key under the code's role and labels, and answers all that the agent needs."""
    code = await site.enrolment.create_code("dev1", role="simple-device", labels={"site": "north"})
    key = new_signing_key()
    answer = await site.enrolment.enrol(request_for(code, key), peer="192.0.2.1")
    assert list(answer) == ["id", "aud", "ca", "signing_key", "key_set", "mqtt"]
    assert (answer["id"], answer["aud"], answer["mqtt"]) == ("dev1", parts.AUDIENCE, ["mqtts://gw:8883"])
    assert answer["ca"] == CA_PEM.decode()
    pinned = verify_key_from_jwk(answer["signing_key"])
    verify_key_set(answer["key_set"], [pinned], audience=parts.AUDIENCE, min_version=1, now_s=parts.NOW_S)
    document = await site.registry.show("dev1")
    assert (document.role, document.labels) == ("simple-device", {"site": "north"})
    assert await site.connect(parts.token(key))
    json.dumps(answer)


async def test_the_store_holds_no_code(site):
    """Only the hash of a code is stored: who reads the store cannot enrol."""
    code = await site.enrolment.create_code("dev1", role="device")
    (entry,) = await site.state.scan("enrol/", "", 10)
    assert entry.key == f"enrol/{b64url(hashlib.sha256(code.encode()).digest())}"
    assert code.split(".")[0].encode() not in entry.value


async def test_a_code_is_used_once(site):
    """A second device, or the same one with another key, is refused; a code for two takes two."""
    code = await site.enrolment.create_code("dev*", role="device")
    await site.enrolment.enrol(request_for(code, new_signing_key()), peer="a")
    used = "code-used: the code has been used; ask for a new one"
    assert await refused(site, request_for(code, new_signing_key(), "dev2")) == used
    assert await refused(site, request_for(code, new_signing_key())) == used
    two = await site.enrolment.create_code("*", role="device", uses=2)
    for device in ("cart-1", "cart-2"):
        await site.enrolment.enrol(request_for(two, new_signing_key(), device), peer="a")
    assert await refused(site, request_for(two, new_signing_key(), "cart-3")) == used


async def test_the_last_use_goes_to_one_of_many(site):
    """Requests at the same time never share a use."""
    code = await site.enrolment.create_code("*", role="device")
    requests = [request_for(code, new_signing_key(), f"dev{n}") for n in range(5)]
    with capture_logs():
        results = await asyncio.gather(
            *(site.enrolment.enrol(request, peer="a") for request in requests), return_exceptions=True
        )
    rules = sorted(result.rule for result in results if isinstance(result, EnrolmentRefused))
    assert len(rules) == 4
    assert set(rules) <= {"code-busy", "code-used"}
    assert len(await site.registry.list()) == 1


async def test_a_lost_answer_can_be_asked_for_again(site):
    """The same key for the same id gets the same registration, though the code has been used."""
    code = await site.enrolment.create_code("dev1", role="device")
    request = request_for(code, new_signing_key())
    assert await site.enrolment.enrol(request, peer="a") == await site.enrolment.enrol(request, peer="a")
    assert (await site.registry.show("dev1")).epoch == 1


async def test_a_removed_device_does_not_come_back_by_its_old_code(site):
    """After `device remove` the code it used is spent, also for the key it was used with."""
    code = await site.enrolment.create_code("dev1", role="device")
    request = request_for(code, new_signing_key())
    await site.enrolment.enrol(request, peer="a")
    await site.registry.remove("dev1")
    assert (await refused(site, request)).startswith("code-used: ")


async def test_an_existing_device_is_not_taken_over(site):
    """An id that is registered stays with its key, and the code keeps its use."""
    key = await site.add("dev1")
    code = await site.enrolment.create_code("dev*", role="device")
    message = await refused(site, request_for(code, new_signing_key()))
    assert message == "already-registered: device 'dev1' exists already; `gateway device show dev1` shows it"
    assert await site.connect(parts.token(key))
    message = await refused(site, request_for(code, key, "dev2"))
    assert "is registered for device 'dev1' already" in message
    await site.enrolment.enrol(request_for(code, new_signing_key(), "dev3"), peer="a")


@pytest.mark.parametrize(("late_s", "is_refused"), [(-1, False), (0, True), (1, True)])
async def test_a_code_expires(site, late_s, is_refused):
    """A code works until its last second, and is then forgotten by pruning."""
    code = await site.enrolment.create_code("dev1", role="device", ttl_s=60)
    site.clock.now_s += 60 + late_s
    request = request_for(code, new_signing_key())
    if is_refused:
        assert await refused(site, request) == "code-expired: the code has expired; ask for a new one"
        assert await site.enrolment.prune() == 1
        assert await refused(site, request) == "code-unknown: no such code; ask for a new one"
    else:
        assert await site.enrolment.prune() == 0
        await site.enrolment.enrol(request, peer="a")


async def test_a_code_is_for_its_ids_only(site):
    """An exact id, or a prefix with `*`: anything else is refused before the proof is looked at."""
    code = await site.enrolment.create_code("cart-*", role="device")
    message = await refused(site, request_for(code, new_signing_key(), "oven-1"))
    assert message == "id-not-allowed: id 'oven-1': this code is for 'cart-*'"
    exact = await site.enrolment.create_code("cart-1", role="device")
    assert (await refused(site, request_for(exact, new_signing_key(), "cart-10"))).startswith("id-not-allowed")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"id": "dev2"}, "proof-mismatch: proof: id differs from the request's"),
        ({"code_hash": "x"}, "proof-mismatch: proof: code_hash differs from the request's"),
        ({"code_hash": None}, "proof-mismatch: proof: code_hash differs from the request's"),
        ({"aud": "other"}, "wrong-audience: proof: aud: expected this gateway's, or 'lockgate-enroll'"),
        ({"aud": None}, "wrong-audience: proof: aud: expected this gateway's, or 'lockgate-enroll'"),
        ({"iat": parts.NOW_S - 601}, "proof-time: proof: iat: expected an integer within 600 seconds of 1800000000"),
        ({"iat": parts.NOW_S + 601}, "proof-time: proof: iat: expected an integer within 600 seconds of 1800000000"),
        ({"iat": str(parts.NOW_S)}, "proof-time: proof: iat: expected an integer within 600 seconds of 1800000000"),
        ({"iat": True}, "proof-time: proof: iat: expected an integer within 600 seconds of 1800000000"),
    ],
)
async def test_a_proof_names_what_it_is_for(site, changed, message):
    """Id, code, audience and time of a proof must be the request's; refused, the code keeps its use."""
    code = await site.enrolment.create_code("dev1", role="device")
    key = new_signing_key()
    assert await refused(site, request_for(code, key, **changed)) == message
    for fine in ({"iat": parts.NOW_S - 600}, {"iat": parts.NOW_S + 600}, {"aud": parts.AUDIENCE}):
        await site.enrolment.enrol(request_for(code, key, **fine), peer="a")


async def test_a_proof_is_by_the_new_key(site):
    """Somebody else's public key cannot be enrolled: the proof must be made with it."""
    code = await site.enrolment.create_code("dev1", role="device")
    message = await refused(site, request_for(code, new_signing_key(), signer=new_signing_key()))
    assert message == "proof-not-proven: proof: expected a JWS by the key of jwk"
    bad = {**request_for(code, new_signing_key()), "proof": "a.b"}
    assert await refused(site, bad) == "proof-malformed: expected three parts joined by dots"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"code": None}, "malformed: code: expected a string of at most 256 ASCII characters"),
        ({"code": "x" * 257}, "malformed: code: expected a string of at most 256 ASCII characters"),
        ({"code": "é"}, "malformed: code: expected a string of at most 256 ASCII characters"),
        ({"code": "x" * 256}, "code-unknown: no such code; ask for a new one"),
        ({"id": 7}, "malformed: id, proof: expected strings"),
        ({"id": "a/b"}, "bad-id: device id 'a/b': expected 1 to 128 of A-Z a-z 0-9 - . _ ~, first a letter or digit"),
        ({"proof": None}, "malformed: id, proof: expected strings"),
        ({"jwk": "key"}, "malformed: jwk: expected a public JWK"),
        ({"jwk": {"kty": "oct", "k": "AA"}}, "key-invalid: JWK: "),
        ({"jwk": {"kty": "OKP", "crv": "Ed25519", "x": "AA"}}, "key-invalid: JWK: "),
    ],
)
async def test_malformed_requests_are_refused_by_name(site, changed, message):
    """Members of the wrong type, size or form are refused before the store is asked."""
    request = {**request_for("x" * 20, new_signing_key()), **changed}
    assert (await refused(site, request)).startswith(message)


async def test_a_private_key_is_refused(site):
    """A device that sends its private key has lost it: it is told so, and the key is not registered."""
    code = await site.enrolment.create_code("dev1", role="device")
    request = request_for(code, key := new_signing_key())
    request["jwk"] = {**request["jwk"], "d": b64url(key.key.private_bytes_raw())}
    message = await refused(site, request)
    assert message == "key-private: jwk: expected the public key only; this one is spent, make another"


async def test_attempts_are_bounded_by_peer(site):
    """Beyond the burst a peer waits; another one does not."""
    site.enrolment = enrolment_of(site, attempts=Attempts(per_s=0.5, burst=2))
    code = await site.enrolment.create_code("dev1", role="device")
    for _ in range(2):
        await refused(site, {"code": "x"})
    message = await refused(site, request_for(code, new_signing_key()))
    assert message == "too-many-attempts: try again in 2 seconds"
    site.clock.now_s += 2
    assert (await refused(site, {"code": "x"})).startswith("malformed")
    await site.enrolment.enrol(request_for(code, new_signing_key()), peer="192.0.2.2")


async def test_codes_are_made_for_what_can_be(site):
    """A role that does not exist, an id that is none, no time and no use are refused."""
    with pytest.raises(NotFound, match="role 'x': the policy has device"):
        await site.enrolment.create_code("dev1", role="x")
    with pytest.raises(TopicInvalid, match="device id 'a/b'"):
        await site.enrolment.create_code("a/b", role="device")
    with pytest.raises(ConfigError, match="ttl: expected at least 1, found 0"):
        await site.enrolment.create_code("dev1", role="device", ttl_s=0)
    with pytest.raises(ConfigError, match="uses: expected at least 1, found 0"):
        await site.enrolment.create_code("dev1", role="device", uses=0)
    with pytest.raises(ConfigError, match=r"mqtt\.certificate: expected a certificate in PEM"):
        enrolment_of(site, ca_pem=b"junk")


async def test_a_code_never_looks_like_an_option(site):
    """`edge-agent enroll CODE` takes any code that the gateway makes: none begins with `-`."""
    codes = [await site.enrolment.create_code(f"dev{n}", role="device") for n in range(300)]
    assert all(code[0].isalnum() for code in codes)
