"""Signing keys and JWKs: published vectors, round trips, and every kind of key that is refused."""

import json

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa, x25519
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from hypothesis import given
from hypothesis import strategies as st
from protocol_strategies import signing_key

from edge_protocol.errors import KeyInvalid
from edge_protocol.jwk import b64url, public_members, thumbprint, unb64url
from edge_protocol.keys import (
    SigningKey,
    VerifyKey,
    load_signing_key,
    load_verify_key,
    new_signing_key,
    verify_key_from_jwk,
)

ALGS = pytest.mark.parametrize("alg", ["EdDSA", "ES256"])
RFC_8037 = {"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}
RFC_7638 = {
    "kty": "RSA",
    "n": "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3ok"
    "njhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQ"
    "vRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnq"
    "DKgw",
    "e": "AQAB",
}


def pem(key):
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def public_pem(key):
    return key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


@pytest.fixture(scope="module")
def rsa_key():
    return rsa.generate_private_key(65537, 2048)


def test_thumbprint_of_rfc_7638():
    """RFC 7638, section 3.1; members that the rule does not name change nothing."""
    assert b64url(thumbprint(RFC_7638)) == "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"
    assert thumbprint(RFC_7638 | {"alg": "RS256", "kid": "2011-04-29"}) == thumbprint(RFC_7638)
    assert load_verify_key(json.dumps(RFC_7638)).jwk["kid"] == "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"


def test_thumbprint_of_rfc_8037():
    """RFC 8037, appendix A.3."""
    key = verify_key_from_jwk(RFC_8037)
    assert key.jwk == RFC_8037 | {"alg": "EdDSA", "kid": "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"}
    assert b64url(key.kid) == key.jwk["kid"]


@pytest.mark.parametrize(
    ("secret", "message", "signature"),
    [
        (
            "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
            "",
            (
                "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24"
                "655141438e7a100b"
            ),
        ),
        (
            "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
            "af82",
            (
                "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28d"
                "c027beceea1ec40a"
            ),
        ),
    ],
)
def test_ed25519_of_rfc_8032(secret, message, signature):
    """RFC 8032, section 7.1, tests 1 and 3."""
    key = SigningKey(ed25519.Ed25519PrivateKey.from_private_bytes(bytes.fromhex(secret)))
    assert key.sign(bytes.fromhex(message)).hex() == signature
    assert key.public.verify(bytes.fromhex(signature), bytes.fromhex(message))


def test_ed25519_with_a_large_s_is_refused():
    """A signature whose S is not below the group order is a second one for the same text: refused (RFC 8032, 5.1.7)."""
    order = 2**252 + 27742317777372353535851937790883648493
    key = signing_key("EdDSA")
    signature = key.sign(b"x")
    forged = signature[:32] + (int.from_bytes(signature[32:], "little") + order).to_bytes(32, "little")
    assert not key.public.verify(forged, b"x")


def test_es256_of_rfc_6979():
    """RFC 6979, appendix A.2.5, SHA-256, "sample": r||s verifies, DER, over-long and swapped forms do not."""
    key = verify_key_from_jwk(
        {
            "kty": "EC",
            "crv": "P-256",
            "x": b64url(bytes.fromhex("60FED4BA255A9D31C961EB74C6356D68C049B8923B61FA6CE669622E60F29FB6")),
            "y": b64url(bytes.fromhex("7903FE1008B8BC99A41AE9E95628BC64F2F1B20C2D7E9F5177A3C294D4462299")),
        }
    )
    r = bytes.fromhex("EFD48B2AACB6A8FD1140DD9CD45E81D69D2C877B56AAF991C34D0EA84EAF3716")
    s = bytes.fromhex("F7CB1C942D657C41D436C7A1B6E29F65F3E900DBB9AFF4064DC4AB2F843ACDA8")
    assert key.verify(r + s, b"sample")
    der = encode_dss_signature(int.from_bytes(r, "big"), int.from_bytes(s, "big"))
    for other in (der, s + r, r + s + b"\0", r + b"\0" + s, b"\0" + r + s, r, b"", bytes(64), b"\xff" * 64):
        assert not key.verify(other, b"sample")
    assert not key.verify(r + s, b"samplf")


@ALGS
@given(st.binary(max_size=100))
def test_sign_and_verify(alg, data):
    """What a key signs, in 64 bytes, its public half verifies, and no other key does."""
    key = signing_key(alg)
    signature = key.sign(data)
    assert len(signature) == 64
    assert key.public.verify(signature, data)
    assert not key.public.verify(signature, data + b"x")
    assert not signing_key(alg, "other").public.verify(signature, data)


@ALGS
def test_pem_and_jwk_round_trips(alg):
    """A key comes back the same from its PEM, its public PEM, its JWK, and a JWK with the private part."""
    key = new_signing_key(alg)
    assert load_signing_key(key.pem()).public == key.public
    for form in (
        key.pem(),
        key.pem().decode(),
        public_pem(key.key),
        json.dumps(key.public.jwk),
        b" \n" + json.dumps(key.public.jwk).encode(),
    ):
        assert load_verify_key(form) == key.public
    with_private = json.dumps({**key.public.jwk, "d": b64url(bytes(32))})
    assert load_verify_key(with_private) == key.public
    assert "d" not in load_verify_key(with_private).jwk
    assert key.alg == key.public.alg == alg


@ALGS
def test_private_parts_do_not_show(alg):
    """Neither repr nor str of a signing key tells anything of it."""
    key = signing_key(alg)
    assert repr(key) == str(key) == "SigningKey()"


@pytest.mark.parametrize(("bits", "accepted"), [(2047, False), (2048, True)])
def test_rsa_size(bits, accepted):
    """RSA keys have at least 2048 bits."""
    key = rsa.generate_private_key(65537, bits)
    for form in (public_pem(key), json.dumps(public_members(key.public_key()))):
        if accepted:
            assert load_verify_key(form).alg == "RS256"
        else:
            with pytest.raises(KeyInvalid, match="expected Ed25519, ECDSA P-256, or RSA of at least 2048 bits"):
                load_verify_key(form)


def test_rsa_algorithms(rsa_key):
    """An RSA key verifies PS256 only if its JWK says so, never both, and never an envelope."""
    members = public_members(rsa_key.public_key())
    key = verify_key_from_jwk(members)
    assert key.alg == "RS256"
    assert verify_key_from_jwk(members | {"alg": "PS256"}).alg == "PS256"
    assert key.kid == verify_key_from_jwk(members | {"alg": "PS256"}).kid
    assert not key.verify(bytes(64), b"")
    with pytest.raises(KeyInvalid, match=r"JWK alg 'ES256': expected RS256 for this kind of key"):
        verify_key_from_jwk(members | {"alg": "ES256"})


def test_other_kinds_of_keys_are_refused(rsa_key):
    """P-384, secp256k1, Ed448, X25519 and DSA are no signing keys here, nor is RSA a private one."""
    kinds = [
        ec.generate_private_key(ec.SECP384R1()),
        ec.generate_private_key(ec.SECP256K1()),
        ed448.Ed448PrivateKey.generate(),
        x25519.X25519PrivateKey.generate(),
        dsa.generate_private_key(2048),
    ]
    for key in kinds:
        for form in (pem(key), public_pem(key)):
            with pytest.raises(KeyInvalid, match="expected Ed25519, ECDSA P-256, or RSA of at least 2048 bits"):
                load_verify_key(form)
    for key in (*kinds, rsa_key):
        with pytest.raises(KeyInvalid, match="private key: expected Ed25519 or ECDSA P-256, found"):
            load_signing_key(pem(key))


def test_encrypted_pem_is_refused():
    """A PEM with a password cannot be read by a daemon."""
    encrypted = signing_key("EdDSA").key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"secret")
    )
    with pytest.raises(KeyInvalid, match="private key: expected PEM without a password"):
        load_signing_key(encrypted)
    with pytest.raises(KeyInvalid, match="key: expected PEM without a password, or a JWK"):
        load_verify_key(encrypted)


@pytest.mark.parametrize(
    "data", [b"", b"nonsense", b"\xff\xfe", b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"]
)
def test_nonsense_is_no_key(data):
    """What is neither PEM nor JWK says what was expected."""
    with pytest.raises(KeyInvalid, match="expected PEM without a password"):
        load_verify_key(data)
    with pytest.raises(KeyInvalid, match="expected PEM without a password"):
        load_signing_key(data)


EC = signing_key("ES256").public.jwk
OKP = signing_key("EdDSA").public.jwk


@pytest.mark.parametrize(
    ("jwk", "message"),
    [
        ({}, "JWK: expected OKP Ed25519, EC P-256, or RSA with all their members"),
        ({"kty": "oct", "k": "AAAA"}, "JWK: expected OKP Ed25519, EC P-256, or RSA with all their members"),
        ({**OKP, "crv": "X25519"}, "JWK: expected OKP Ed25519, EC P-256, or RSA with all their members"),
        ({**OKP, "x": 1}, "JWK: expected OKP Ed25519, EC P-256, or RSA with all their members"),
        ({**OKP, "x": OKP["x"] + "="}, "JWK: expected base64url without padding"),
        ({**OKP, "x": b64url(bytes(31))}, "JWK: "),
        ({**OKP, "alg": "ES256"}, "JWK alg 'ES256': expected EdDSA for this kind of key"),
        ({**OKP, "alg": "HS256"}, "JWK alg 'HS256': expected EdDSA for this kind of key"),
        ({**OKP, "alg": 5}, "JWK alg 5: expected EdDSA for this kind of key"),
        ({**OKP, "kid": EC["kid"]}, f"JWK kid: expected its RFC 7638 thumbprint {OKP['kid']}"),
        ({**OKP, "kid": "my-key"}, f"JWK kid: expected its RFC 7638 thumbprint {OKP['kid']}"),
        ({**EC, "crv": "P-384"}, "JWK: expected OKP Ed25519, EC P-256, or RSA with all their members"),
        ({**EC, "y": EC["x"]}, "JWK: "),
        ({**EC, "x": b64url(unb64url(EC["x"])[1:])}, "JWK: expected x and y of 32 bytes each"),
        ({**EC, "x": b64url(b"\0" + unb64url(EC["x"]))}, "JWK: expected x and y of 32 bytes each"),
        ({**RFC_7638, "e": "AA"}, "JWK: "),
    ],
)
def test_bad_jwks(jwk, message):
    """A JWK of an unknown kind, with a wrong size, or whose members contradict one another is refused."""
    with pytest.raises(KeyInvalid) as caught:
        verify_key_from_jwk(jwk)
    assert message in str(caught.value)


def test_a_jwk_must_be_an_object():
    """Broken JSON in place of a JWK says so."""
    with pytest.raises(KeyInvalid, match="key: expected a JWK object"):
        load_verify_key('{"kty":')


def test_new_keys_have_known_algorithms_only():
    """Keys are made for EdDSA and ES256."""
    with pytest.raises(KeyInvalid, match=r"algorithm 'RS256': expected EdDSA or ES256"):
        new_signing_key("RS256")


def test_verify_keys_are_values():
    """Equal keys are equal; another algorithm or key is another value."""
    assert signing_key("EdDSA").public == VerifyKey("EdDSA", signing_key("EdDSA").key.public_key())
    assert signing_key("EdDSA").public != signing_key("EdDSA", "other").public


@pytest.mark.parametrize("text", ["A", "AB", "AAB", "AA==", "AA ", " AA", "A\nA", "A+", "A/", "\u00e9", "AA."])
def test_base64url_is_canonical(text):
    """Padding, blanks, other alphabets, impossible lengths and unused bits are refused."""
    with pytest.raises(ValueError, match=r"^expected (canonical )?base64url "):
        unb64url(text)


@given(st.binary(max_size=70))
def test_base64url_round_trip(data):
    """Any bytes survive, in one spelling."""
    assert unb64url(b64url(data)) == data


def test_thumbprint_needs_a_known_kind():
    """A key without its required members has no thumbprint."""
    for jwk in ({}, {"kty": "OKP", "crv": "Ed25519"}, {"kty": "oct", "k": "x"}, {"kty": ["OKP"]}):
        with pytest.raises(KeyInvalid, match=r"expected OKP, EC, RSA or AKP with its required members"):
            thumbprint(jwk)
    with pytest.raises(KeyInvalid, match="no JWK form for str"):
        public_members("key")
