"""Envelope keys: sizes, JWK forms, round trips, and what belongs to another suite."""

import pytest
from protocol_strategies import open_key
from unit.protocol import by_hand

from edge_protocol.envelope_keys import (
    DEFAULT_SUITE,
    OpenKey,
    SealKey,
    Suite,
    new_open_key,
    open_key_from_jwk,
    seal_key_from_jwk,
)
from edge_protocol.errors import KeyInvalid
from edge_protocol.jwk import b64url, thumbprint, unb64url

suites = pytest.mark.parametrize("suite", list(Suite))
SIZES = {Suite.XWING_AES256: 1120 + 16, Suite.X25519_AES128: 32 + 16, Suite.P256_AES128: 65 + 16}
MEMBERS = {
    Suite.XWING_AES256: {"kty": "AKP", "alg": "LOCKGATE-70001"},
    Suite.X25519_AES128: {"kty": "OKP", "crv": "X25519", "alg": "LOCKGATE-70002"},
    Suite.P256_AES128: {"kty": "EC", "crv": "P-256", "alg": "LOCKGATE-70003"},
}


def test_the_default_is_the_hybrid():
    """What is recorded today stays secret tomorrow."""
    assert DEFAULT_SUITE is Suite.XWING_AES256 == -70001
    assert new_open_key().suite is DEFAULT_SUITE


@suites
def test_private_jwk_round_trip(suite):
    """A key comes back from its private JWK, and its public half from the public one."""
    key = new_open_key(suite)
    private = key.private_jwk()
    assert open_key_from_jwk(private) == key
    assert seal_key_from_jwk(key.public.jwk) == key.public
    assert private.items() >= key.public.jwk.items()
    sealed = seal_key_from_jwk(key.public.jwk).seal(b"secret", info=b"info")
    assert open_key_from_jwk(private).open(sealed, info=b"info") == b"secret"
    assert len(sealed) == SIZES[suite] + len(b"secret")


@suites
def test_jwk_forms(suite):
    """Each suite has the JWK form of section 1, and its kid is the thumbprint."""
    key = open_key(suite)
    jwk = key.public.jwk
    assert jwk.items() >= MEMBERS[suite].items()
    assert jwk["kid"] == b64url(thumbprint(jwk)) == b64url(key.kid) == b64url(key.public.kid)
    public = unb64url(jwk["pub"]) if "pub" in jwk else unb64url(jwk["x"])
    expected = by_hand.KEMS[suite.value].public(key.raw)
    assert public == (expected[1:33] if suite is Suite.P256_AES128 else expected)
    assert len(public) == (1184 + 32 if suite is Suite.XWING_AES256 else 32)
    assert len(unb64url(key.private_jwk()["priv" if suite is Suite.XWING_AES256 else "d"])) == (
        64 + 32 if suite is Suite.XWING_AES256 else 32
    )


@suites
def test_private_parts_do_not_show(suite):
    """Neither a repr nor a public JWK has the private part, even if it was read from a private JWK."""
    key = open_key(suite)
    secret = b64url(key.raw)
    read = seal_key_from_jwk(key.private_jwk())
    for shown in (repr(key), str(key), repr(key.public), repr(read), str(read.jwk)):
        assert secret not in shown
        assert repr(key.raw) not in shown
    assert read == key.public


@suites
def test_info_and_key_decide(suite):
    """Another info or another key opens nothing, and neither does noise."""
    key = open_key(suite)
    sealed = key.public.seal(b"secret", info=b"info")
    assert key.open(sealed, info=b"info") == b"secret"
    assert key.open(sealed, info=b"other") is None
    assert open_key(suite, "other").open(sealed, info=b"info") is None
    for noise in (b"", sealed[:-1], sealed[1:], sealed + b"\0", bytes(len(sealed)), b"\xff" * len(sealed)):
        assert key.open(noise, info=b"info") is None


def test_every_seal_differs():
    """Sealing twice gives two ciphertexts: each has its own ephemeral key."""
    key = open_key(Suite.X25519_AES128).public
    assert key.seal(b"x", info=b"") != key.seal(b"x", info=b"")


XWING, X25519, P256 = (open_key(suite).private_jwk() for suite in Suite)


@pytest.mark.parametrize(
    ("jwk", "message"),
    [
        ({}, "JWK alg None: expected one of LOCKGATE-70001, LOCKGATE-70002, LOCKGATE-70003"),
        ({**X25519, "alg": "LOCKGATE-70004"}, "JWK alg 'LOCKGATE-70004': expected one of LOCKGATE-70001"),
        ({**X25519, "alg": "LOCKGATE-70003"}, "JWK of suite -70003: kty, crv and members do not belong to it"),
        ({**X25519, "alg": "LOCKGATE-70001"}, "JWK of suite -70001: kty, crv and members do not belong to it"),
        ({**P256, "alg": "LOCKGATE-70002"}, "JWK of suite -70002: kty, crv and members do not belong to it"),
        ({**XWING, "alg": "LOCKGATE-70002"}, "JWK of suite -70002: kty, crv and members do not belong to it"),
        ({**X25519, "crv": "Ed25519"}, "JWK of suite -70002: kty, crv and members do not belong to it"),
        ({**X25519, "x": b64url(bytes(31))}, "JWK of suite -70002: "),
        ({**X25519, "x": X25519["x"] + "="}, "JWK of suite -70002: expected base64url without padding"),
        ({**P256, "x": P256["y"]}, "JWK of suite -70003: "),
        ({**P256, "x": b64url(b"\0" + unb64url(P256["x"]))}, "JWK of suite -70003: expected x and y of 32 bytes each"),
        ({**XWING, "pub": XWING["pub"][:-4]}, "JWK of suite -70001: "),
        ({**XWING, "pub": b64url(unb64url(XWING["pub"])[:1184])}, "JWK of suite -70001: "),
        ({**XWING, "pub": b64url(unb64url(XWING["pub"]) + b"\0")}, "JWK of suite -70001: "),
        ({**XWING, "pub": 5}, "JWK of suite -70001: kty, crv and members do not belong to it"),
        ({**X25519, "kid": P256["kid"]}, f"JWK kid: expected its RFC 7638 thumbprint {X25519['kid']}"),
    ],
)
def test_bad_public_jwks(jwk, message):
    """A public envelope key of an unknown suite, a wrong kind or size, or with another's kid is refused."""
    with pytest.raises(KeyInvalid) as caught:
        seal_key_from_jwk(jwk)
    assert str(caught.value).startswith(message)
    with pytest.raises(KeyInvalid):
        open_key_from_jwk(jwk)


OTHER = {suite: open_key(suite, "other").private_jwk() for suite in Suite}


@pytest.mark.parametrize(
    ("jwk", "message"),
    [
        (open_key(Suite.X25519_AES128).public.jwk, "private JWK of suite -70002: d: expected 32 bytes, found 0"),
        (open_key(Suite.XWING_AES256).public.jwk, "private JWK of suite -70001: priv: expected 96 bytes, found 0"),
        ({**X25519, "d": b64url(bytes(31))}, "private JWK of suite -70002: d: expected 32 bytes, found 31"),
        ({**P256, "d": b64url(bytes(33))}, "private JWK of suite -70003: d: expected 32 bytes, found 33"),
        ({**P256, "d": b64url(bytes(32))}, "private JWK of suite -70003: "),
        ({**P256, "d": b64url(b"\xff" * 32)}, "private JWK of suite -70003: "),
        ({**XWING, "priv": b64url(bytes(95))}, "private JWK of suite -70001: priv: expected 96 bytes, found 95"),
        ({**X25519, "d": X25519["d"] + "="}, "private JWK of suite -70002: expected base64url without padding"),
        (
            {**X25519, "d": OTHER[Suite.X25519_AES128]["d"]},
            "private JWK of suite -70002: its public members are another key's",
        ),
        (
            {**P256, "d": OTHER[Suite.P256_AES128]["d"]},
            "private JWK of suite -70003: its public members are another key's",
        ),
        (
            {**XWING, "priv": OTHER[Suite.XWING_AES256]["priv"]},
            "private JWK of suite -70001: its public members are another key's",
        ),
    ],
)
def test_bad_private_jwks(jwk, message):
    """A private envelope key of a wrong size, or beside another key's public members, is refused."""
    with pytest.raises(KeyInvalid) as caught:
        open_key_from_jwk(jwk)
    assert str(caught.value).startswith(message)


def test_keys_are_values():
    """Keys compare by suite and bytes."""
    key = open_key(Suite.X25519_AES128)
    assert key == OpenKey(Suite.X25519_AES128, key.raw)
    assert isinstance(key.public, SealKey)
    assert key != open_key(Suite.X25519_AES128, "other")
