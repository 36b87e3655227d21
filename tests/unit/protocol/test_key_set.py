"""Key sets: proven by the pinned key, in time, for this audience, never older than seen."""

import json

import pytest
from protocol_strategies import AUDIENCE, NOW, open_key, signing_key

from edge_protocol import jose
from edge_protocol.envelope_keys import Suite
from edge_protocol.errors import EnvelopeRejected, EventRejected, KeySetRejected, Rejected, ResealNeeded, TokenRejected
from edge_protocol.key_set import MAX_KEY_SET_BYTES, sign_key_set, verify_key_set

KEY = signing_key("EdDSA", "gateway")
KEYS = tuple(open_key(suite).public for suite in Suite)
CLAIMS = {"ver": 7, "iat": NOW, "exp": NOW + 86400, "aud": AUDIENCE, "keys": [dict(key.jwk) for key in KEYS]}


def signed(key=KEY, **changes):
    claims = {name: value for name, value in (CLAIMS | changes).items() if value is not ...}
    return jose.sign(json.dumps(claims).encode(), key)


def proven(text, *pinned, **changes):
    arguments = {"audience": AUDIENCE, "min_version": 7, "now_s": NOW, **changes}
    return verify_key_set(text, pinned or [KEY.public], **arguments)


def refusal(text, *pinned, **changes):
    with pytest.raises(KeySetRejected) as caught:
        proven(text, *pinned, **changes)
    return str(caught.value)


def test_round_trip():
    """What the gateway signs, the device proves, key by key, as text or bytes."""
    text = sign_key_set(KEYS, KEY, version=7, audience=AUDIENCE, issued_at=NOW, expires_at=NOW + 86400)
    got = proven(text)
    assert got == proven(text.encode()) == proven(signed())
    assert (got.version, got.issued_at, got.expires_at, got.keys) == (7, NOW, NOW + 86400, KEYS)
    assert len(text) < 4096


def test_best_takes_the_first_suite_that_is_there():
    """The device's order decides; what it does not name is never used."""
    got = proven(signed(keys=[dict(key.jwk) for key in KEYS[1:]]))
    assert got.best([Suite.XWING_AES256, Suite.P256_AES128]) == KEYS[2]
    assert got.best([Suite.X25519_AES128, Suite.P256_AES128]) == KEYS[1]
    assert got.best([Suite.XWING_AES256]) is None
    assert got.best([]) is None


def test_unknown_suites_are_skipped():
    """Keys of a later version, or that this one cannot read, stand beside the known ones without harm."""
    later = {"kty": "AKP", "alg": "LOCKGATE-70004", "pub": "AAAA"}
    broken = {**KEYS[1].jwk, "x": "AAAA"}
    got = proven(signed(keys=[later, broken, "text", 1, None, [], dict(KEYS[2].jwk)]))
    assert got.keys == (KEYS[2],)


def test_a_private_member_is_never_kept():
    """A key set that holds a private key by mistake does not carry it on."""
    got = proven(signed(keys=[open_key(Suite.X25519_AES128).private_jwk()]))
    assert got.keys == (KEYS[1],)


FORGED = "key-set-forged: not signed by the pinned key of this gateway"
SHAPE = "key-set-malformed: expected {ver, iat, exp, aud, keys}"


@pytest.mark.parametrize(
    ("text", "changes", "message"),
    [
        (signed(signing_key("EdDSA", "other")), {}, FORGED),
        (signed(signing_key("ES256", "gateway")), {}, FORGED),
        (signed()[:-4] + "AAAA", {}, FORGED),
        (signed(), {"audience": "other"}, "key-set-wrong-audience: aud: expected 'other'"),
        (signed(aud=[AUDIENCE]), {}, "key-set-wrong-audience: aud: expected 'lockgate-test'"),
        (signed(aud=...), {}, "key-set-wrong-audience: aud: expected 'lockgate-test'"),
        (signed(ver=...), {}, SHAPE),
        (signed(ver="7"), {}, SHAPE),
        (signed(ver=7.0), {}, SHAPE),
        (signed(ver=True), {}, SHAPE),
        (signed(ver=-1), {}, SHAPE),
        (signed(iat=...), {}, SHAPE),
        (signed(exp=None), {}, SHAPE),
        (signed(keys=...), {}, SHAPE),
        (signed(keys={}), {}, SHAPE),
        ("", {}, "key-set-malformed: expected three parts joined by dots"),
        ("x" * (MAX_KEY_SET_BYTES + 1), {}, "key-set-malformed: 65537 bytes, at most 65536 are allowed"),
        ("x" * MAX_KEY_SET_BYTES, {}, "key-set-malformed: expected three parts joined by dots"),
    ],
)
def test_refusals(text, changes, message):
    """Each rule refuses with its name."""
    assert refusal(text, **changes) == message


def test_no_pinned_key_proves_nothing():
    """Without a pinned key every set is forged."""
    with pytest.raises(KeySetRejected, match="key-set-forged"):
        verify_key_set(signed(), [], audience=AUDIENCE, min_version=0, now_s=NOW)


def test_any_pinned_key_proves():
    """While the signing key rotates, two are pinned and either proves."""
    assert proven(signed(), signing_key("ES256").public, KEY.public).version == 7


@pytest.mark.parametrize(
    ("now_s", "expired"), [(NOW + 86399, False), (NOW + 86399.9, False), (NOW + 86400, True), (NOW + 86401, True)]
)
def test_expiry_to_the_second(now_s, expired):
    """A set is over at the second it names."""
    if expired:
        assert refusal(signed(), now_s=now_s) == f"key-set-expired: expired at {NOW + 86400}, it is {now_s}"
    else:
        assert proven(signed(), now_s=now_s)


@pytest.mark.parametrize("min_version", [6, 7, 8])
def test_versions_never_go_back(min_version):
    """The version seen is accepted again, an older one is not."""
    if min_version <= 7:
        assert proven(signed(), min_version=min_version).version == 7
    else:
        assert refusal(signed(), min_version=8) == "key-set-old: version 7, 8 has been seen"


@pytest.mark.parametrize(
    "kind", [Rejected, TokenRejected, EnvelopeRejected, ResealNeeded, EventRejected, KeySetRejected]
)
def test_refusals_cross_processes(kind):
    """A refusal comes out of a process pool as it went in."""
    import pickle

    again = pickle.loads(pickle.dumps(kind("some-rule", "what was found")))
    assert type(again) is kind
    assert (again.rule, again.detail, str(again)) == ("some-rule", "what was found", "some-rule: what was found")
