"""Tokens: each sentence of section 2 on hostile input, times to the second, and PyJWT as a second implementation."""

import hashlib
import hmac
import json

import jwt
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st
from protocol_strategies import AUDIENCE, DEVICE, NOW, signing_key

from edge_protocol import jose
from edge_protocol.errors import TokenRejected
from edge_protocol.jwk import b64url, public_members, unb64url
from edge_protocol.keys import verify_key_from_jwk
from edge_protocol.tokens import Claims, TokenPolicy, is_about_time, mint, read, verify

ALGS = pytest.mark.parametrize("alg", ["EdDSA", "ES256"])
CLAIMS = {"aud": AUDIENCE, "sub": DEVICE, "iat": NOW, "exp": NOW + 3600}
POLICY = TokenPolicy(audience=AUDIENCE)
KEY = signing_key("EdDSA")
KID = KEY.public.jwk["kid"]


def as_json(value):
    return value if isinstance(value, bytes) else json.dumps(value).encode()


def crafted(header=None, claims=None, *, key=KEY, sign=None):
    """A token of any header and claims (objects, or bytes taken as they are), signed with a real key."""
    header = {"alg": key.alg, "kid": key.public.jwk["kid"], "typ": "JWT"} if header is None else header
    text = f"{b64url(as_json(header))}.{b64url(as_json(CLAIMS if claims is None else claims))}"
    return f"{text}.{b64url((sign or key.sign)(text.encode()))}"


def proven(token, *keys, now_s=NOW, policy=POLICY):
    return verify(read(token), keys or [KEY.public], policy=policy, now_s=now_s)


def refusal(token, *keys, **arguments):
    with pytest.raises(TokenRejected) as caught:
        proven(token, *keys, **arguments)
    return str(caught.value)


@ALGS
@given(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=50),
    st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=9), max_size=3),
)
def test_mint_read_verify(alg, subject, jti, roles):
    """What is minted is proven, claim by claim."""
    key = signing_key(alg)
    token = mint(
        key, audience=AUDIENCE, subject=subject, issued_at=NOW, expires_at=NOW + 60, issuer="me", jti=jti, roles=roles
    )
    claims, by = proven(token, signing_key(alg, "other").public, key.public)
    assert claims == Claims(aud=AUDIENCE, sub=subject, iat=NOW, exp=NOW + 60, iss="me", jti=jti, roles=tuple(roles))
    assert by == key.public


@ALGS
def test_pyjwt_accepts_our_tokens(alg):
    """An independent implementation verifies what we mint, and sees the header of section 2."""
    key = signing_key(alg)
    token = mint(key, audience=AUDIENCE, subject=DEVICE, issued_at=NOW, expires_at=NOW + 60, roles=["a"])
    options = {"verify_exp": False, "verify_iat": False}
    claims = jwt.decode(token, key.key.public_key(), algorithms=[alg], audience=AUDIENCE, options=options)
    assert claims == {"aud": AUDIENCE, "sub": DEVICE, "iat": NOW, "exp": NOW + 60, "roles": ["a"]}
    assert jwt.get_unverified_header(token) == {"alg": alg, "kid": key.public.jwk["kid"], "typ": "JWT"}


@pytest.mark.parametrize("alg", ["EdDSA", "ES256", "RS256", "PS256"])
@pytest.mark.parametrize("headers", [None, {"typ": None}])
def test_we_accept_pyjwts_tokens(alg, headers):
    """Tokens that an independent implementation signs are proven here, for all four algorithms, with or without typ."""
    private = signing_key(alg).key if alg in ("EdDSA", "ES256") else rsa.generate_private_key(65537, 2048)
    key = verify_key_from_jwk({**public_members(private.public_key()), "alg": alg})
    claims, by = proven(jwt.encode(CLAIMS, private, algorithm=alg, headers=headers), key)
    assert (claims.sub, by) == (DEVICE, key)
    with_kid = jwt.encode(CLAIMS, private, algorithm=alg, headers={"kid": key.jwk["kid"]})
    assert proven(with_kid, key)[1] == key


def test_rs256_and_ps256_keys_are_not_one_another():
    """An RSA key registered for RS256 proves no PS256 token, nor the reverse."""
    private = rsa.generate_private_key(65537, 2048)
    members = public_members(private.public_key())
    for alg, other in (("RS256", "PS256"), ("PS256", "RS256")):
        token = jwt.encode(CLAIMS, private, algorithm=alg)
        key = verify_key_from_jwk({**members, "alg": other})
        assert refusal(token, key) == "not-proven: no valid key of this client proves the token"


NOT_PROVEN = "not-proven: no valid key of this client proves the token"


def public_pem():
    return KEY.key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def hs256(secret):
    return lambda data: hmac.new(secret, data, hashlib.sha256).digest()


@pytest.mark.parametrize(
    ("token", "message"),
    [
        (crafted({"alg": "none"}, sign=lambda _: b""), NOT_PROVEN),
        (crafted({"alg": "None"}), NOT_PROVEN),
        (crafted({"alg": "HS256"}, sign=hs256(public_pem())), NOT_PROVEN),
        (crafted({"alg": "HS256"}, sign=hs256(unb64url(KEY.public.jwk["x"]))), NOT_PROVEN),
        (crafted({"alg": "HS256"}, sign=hs256(b"")), NOT_PROVEN),
        (crafted({"alg": "ES256"}), NOT_PROVEN),
        (crafted({"alg": "EdDSA", "kid": "unknown"}), NOT_PROVEN),
        (crafted({"alg": "EdDSA", "kid": ""}), NOT_PROVEN),
        (crafted({"alg": "EdDSA", "kid": signing_key("EdDSA", "other").public.jwk["kid"]}), NOT_PROVEN),
        (crafted(key=signing_key("EdDSA", "other")), NOT_PROVEN),
        (crafted({"alg": "EdDSA"}, key=signing_key("EdDSA", "other")), NOT_PROVEN),
        (crafted(sign=lambda _: b""), NOT_PROVEN),
        (crafted(sign=lambda _: bytes(64)), NOT_PROVEN),
        (crafted(sign=lambda data: KEY.sign(data) + b"\0"), NOT_PROVEN),
    ],
)
def test_forged_tokens_all_read_the_same(token, message):
    """none, HMAC with the public key, another algorithm, key or kid, and a bad signature tell an attacker nothing."""
    assert refusal(token) == message


def test_an_unknown_device_reads_like_a_wrong_key():
    """Without any key for the name, the answer is that of a wrong key."""
    with pytest.raises(TokenRejected) as caught:
        verify(read(crafted()), [], policy=POLICY, now_s=NOW)
    assert str(caught.value) == NOT_PROVEN


def test_es256_signature_forms():
    """Only r||s of 64 bytes is a signature: not DER, not longer, not swapped."""
    key = signing_key("ES256")

    def der(data):
        return key.key.sign(data, ec.ECDSA(hashes.SHA256()))

    assert proven(crafted(key=key), key.public)
    forms = [der, lambda data: key.sign(data) + b"\0", lambda data: b"\0" + key.sign(data)]
    forms += [
        lambda data: key.sign(data)[32:] + key.sign(data)[:32],
        lambda data: key.sign(data)[:63],
        lambda _: bytes(64),
    ]
    for sign in forms:
        assert refusal(crafted(key=key, sign=sign), key.public) == NOT_PROVEN


@pytest.mark.parametrize("name", ["jwk", "jku", "x5u", "x5c", "x5t", "crit", "b64", "zip", "enc", "cty", "KID", "x"])
def test_no_other_header_member(name):
    """A header has alg, kid and typ and nothing else, whatever it would mean."""
    value = {"jwk": dict(KEY.public.jwk), "crit": ["b64"], "b64": False}.get(name, "x")
    message = f"token-malformed: header member {name!r}: expected only alg, kid, typ"
    assert refusal(crafted({"alg": "EdDSA", name: value})) == message


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({}, "header: expected alg, and strings only"),
        ({"kid": KID}, "header: expected alg, and strings only"),
        ({"alg": None}, "header: expected alg, and strings only"),
        ({"alg": ["EdDSA"]}, "header: expected alg, and strings only"),
        ({"alg": "EdDSA", "kid": 1}, "header: expected alg, and strings only"),
        ({"alg": "EdDSA", "kid": None}, "header: expected alg, and strings only"),
        ({"alg": "EdDSA", "typ": True}, "header: expected alg, and strings only"),
        ({"alg": "EdDSA", "typ": "at+jwt"}, "header typ: expected JWT, or none"),
        ({"alg": "EdDSA", "typ": ""}, "header typ: expected JWT, or none"),
        (["alg"], "header: expected a JSON object"),
        (b"null", "header: expected a JSON object"),
        (b'{"alg":"HS256","alg":"EdDSA"}', "header: expected a UTF-8 JSON object with unique members"),
        (b'{"alg":"EdDSA","\\u0061lg":"EdDSA"}', "header: expected a UTF-8 JSON object with unique members"),
        (b'{"alg":"EdDSA"} x', "header: expected a UTF-8 JSON object with unique members"),
        (b'{"alg":"EdDSA"', "header: expected a UTF-8 JSON object with unique members"),
        (b"\xef\xbb\xbf" + b'{"alg":"EdDSA"}', "header: expected a UTF-8 JSON object with unique members"),
        ('{"alg":"EdDSA"}'.encode("utf-16"), "header: expected a UTF-8 JSON object with unique members"),
        ('{"alg":"EdDSA"}'.encode("utf-32-le"), "header: expected a UTF-8 JSON object with unique members"),
        (b'{"alg":"EdDSA","kid":"\xff"}', "header: expected a UTF-8 JSON object with unique members"),
        (b'{"alg":"EdDSA","kid":"\\ud800"}', "header: expected a UTF-8 JSON object with unique members"),
        (b"", "header: expected a UTF-8 JSON object with unique members"),
    ],
)
def test_header_rules(header, message):
    """The header is one JSON object of strings, in UTF-8, each member once."""
    assert refusal(crafted(header)) == f"token-malformed: {message}"


def changed(**members):
    return {name: value for name, value in (CLAIMS | members).items() if value is not ...}


INTEGER = ": expected an integer of seconds, from 0, below 2^53"
OBJECT = "payload: expected a UTF-8 JSON object with unique members"


@pytest.mark.parametrize(
    ("claims", "message"),
    [
        (changed(aud=...), "aud: expected this claim"),
        (changed(sub=...), "sub: expected this claim"),
        (changed(iat=...), "iat: expected this claim"),
        (changed(exp=...), "exp: expected this claim"),
        (changed(aud=[AUDIENCE]), "aud: expected a string"),
        (changed(sub=1), "sub: expected a string"),
        (changed(sub=None), "sub: expected a string"),
        (changed(iss=["x"]), "iss: expected a string"),
        (changed(iss=None), "iss: expected a string"),
        (changed(jti=1), "jti: expected a string"),
        (changed(iat=str(NOW)), "iat" + INTEGER),
        (changed(iat=float(NOW)), "iat" + INTEGER),
        (changed(iat=True), "iat" + INTEGER),
        (changed(iat=None), "iat" + INTEGER),
        (changed(iat=-1), "iat" + INTEGER),
        (changed(iat=2**53), "iat" + INTEGER),
        (changed(exp=str(NOW)), "exp" + INTEGER),
        (changed(exp=NOW + 0.5), "exp" + INTEGER),
        (changed(exp=2**53), "exp" + INTEGER),
        (changed(exp=10**400), "exp" + INTEGER),
        (changed(nbf="0"), "nbf" + INTEGER),
        (changed(nbf=False), "nbf" + INTEGER),
        (changed(roles="admin"), "roles: expected an array of strings"),
        (changed(roles={"admin": 1}), "roles: expected an array of strings"),
        (changed(roles=["a", 1]), "roles: expected an array of strings"),
        (changed(roles=None), "roles: expected an array of strings"),
        ([], "payload: expected a JSON object"),
        (b'"x"', "payload: expected a JSON object"),
        (b"", OBJECT),
        (json.dumps(CLAIMS)[:-1].encode() + b',"sub":"other"}', OBJECT),
        (json.dumps(CLAIMS)[:-1].encode() + b',"x":{"a":1,"a":2}}', OBJECT),
        (json.dumps(CLAIMS)[:-1].encode() + b',"x":NaN}', OBJECT),
        (json.dumps(CLAIMS)[:-1].encode() + b',"x":-Infinity}', OBJECT),
        (json.dumps(CLAIMS)[:-1].encode() + b',"x":"\xff"}', OBJECT),
        (json.dumps(CLAIMS)[:-1].encode() + b',"x":["\\ud800"]}', OBJECT),
        (json.dumps(CLAIMS)[:-1].encode() + b',"x":' + b"[" * 5000 + b"}", OBJECT),
        (json.dumps(CLAIMS)[:-1].encode() + b',"x":' + b"9" * 5000 + b"}", OBJECT),
        (json.dumps(CLAIMS).encode("utf-16"), OBJECT),
    ],
)
def test_claim_rules(claims, message):
    """Claims have their types, each stands once, and the text is UTF-8 JSON."""
    assert refusal(crafted(claims=claims)) == f"token-malformed: {message}"


def test_largest_integer_passes():
    """2^53 - 1 is an integer of seconds."""
    claims = read(crafted(claims=changed(exp=2**53 - 1, nbf=2**53 - 1, iat=0))).claims
    assert (claims.exp, claims.nbf, claims.iat) == (2**53 - 1, 2**53 - 1, 0)


HEADER, PAYLOAD, SIGNATURE = crafted().split(".")


def unused_bits(part):
    """The same bytes in another spelling: the last character's unused bits set."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    assert len(part) % 4 in (2, 3)
    return part[:-1] + alphabet[alphabet.index(part[-1]) | 1]


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("", "expected three parts joined by dots"),
        ("a.b", "expected three parts joined by dots"),
        (f"{HEADER}.{PAYLOAD}", "expected three parts joined by dots"),
        (f"{HEADER}.{PAYLOAD}.{SIGNATURE}.", "expected three parts joined by dots"),
        (f"{HEADER}.{PAYLOAD}.{SIGNATURE}.x.y", "expected three parts joined by dots"),
        (f"{HEADER}.{PAYLOAD}.{SIGNATURE}==", "signature: expected base64url without padding"),
        (f"{HEADER}.{PAYLOAD}.{SIGNATURE}\n", "signature: expected base64url without padding"),
        (f" {HEADER}.{PAYLOAD}.{SIGNATURE}", "header: expected base64url without padding"),
        (f"{HEADER}. {PAYLOAD}.{SIGNATURE}", "payload: expected base64url without padding"),
        (f"{HEADER}.{PAYLOAD[:8]}\n{PAYLOAD[8:]}.{SIGNATURE}", "payload: expected base64url without padding"),
        (f"{HEADER}.{PAYLOAD}.+/{SIGNATURE[2:]}", "signature: expected base64url without padding"),
        (
            f"{HEADER}.{PAYLOAD}.{unused_bits(SIGNATURE)}",
            "signature: expected canonical base64url (unused bits must be zero)",
        ),
        (f"{HEADER}.{PAYLOAD}.\u00e9", "expected ASCII"),
        (f"{HEADER}.{PAYLOAD}.\u00e9".encode(), "expected ASCII"),
        (f"{HEADER}.{PAYLOAD}.{SIGNATURE}".encode("utf-16"), "expected ASCII"),
    ],
)
def test_compact_form(token, message):
    """Three parts, canonical base64url, nothing around them."""
    assert refusal(token) == f"token-malformed: {message}"


def test_a_part_that_is_no_base64_length_is_refused():
    """A part of 4n + 1 characters encodes no bytes."""
    assert refusal(f"{HEADER}.{PAYLOAD}.{SIGNATURE}AAA") == (
        "token-malformed: signature: expected base64url without padding"
    )


@pytest.mark.parametrize("size", [8191, 8192, 8193])
def test_token_size_limit(size):
    """8 KiB are read, a byte more is refused before anything is decoded."""
    tokens = (
        crafted(b'{"alg":"EdDSA"%s}' % (b" " * blanks), json.dumps(CLAIMS | {"x": "x" * pad}).encode())
        for blanks in range(4)
        for pad in range(5900, 6100)
    )
    token = next(token for token in tokens if len(token) == size)
    if size <= 8192:
        assert proven(token)
        assert proven(token.encode())
    else:
        assert refusal(token) == refusal(token.encode()) == "token-malformed: 8193 bytes, at most 8192 are allowed"
    assert refusal("a" * 10_000_000) == "token-malformed: 10000000 bytes, at most 8192 are allowed"


@pytest.mark.parametrize(
    ("now_s", "message"),
    [
        (NOW + 3659, None),
        (NOW + 3659.999, None),
        (NOW + 3660, f"token-expired: expired at {NOW + 3600}, it is {NOW + 3660}"),
        (NOW + 3661, f"token-expired: expired at {NOW + 3600}, it is {NOW + 3661}"),
        (NOW - 59, None),
        (NOW - 60, None),
        (NOW - 60.5, f"token-not-yet-valid: valid from {NOW}, it is {NOW - 61}"),
        (NOW - 61, f"token-not-yet-valid: valid from {NOW}, it is {NOW - 61}"),
    ],
)
def test_times_to_the_second(now_s, message):
    """A token is over at exp + skew, and holds from iat - skew."""
    if message is None:
        assert proven(crafted(), now_s=now_s)
    else:
        assert refusal(crafted(), now_s=now_s) == message


def test_nbf_counts_where_it_is_later():
    """A token is valid from the later of iat and nbf, less the skew, and the text names that time."""
    token = crafted(claims=changed(nbf=NOW + 100))
    assert proven(token, now_s=NOW + 40)
    assert refusal(token, now_s=NOW + 39) == f"token-not-yet-valid: valid from {NOW + 100}, it is {NOW + 39}"


def test_skew_is_settable():
    """With no skew the claims' own seconds count."""
    policy = TokenPolicy(audience=AUDIENCE, skew_s=0)
    assert proven(crafted(), policy=policy, now_s=NOW)
    assert proven(crafted(), policy=policy, now_s=NOW + 3599)
    assert refusal(crafted(), policy=policy, now_s=NOW + 3600).startswith("token-expired")
    assert refusal(crafted(), policy=policy, now_s=NOW - 1).startswith("token-not-yet-valid")


@pytest.mark.parametrize("more", [-1, 0, 1])
def test_lifetime_limit(more):
    """24 hours are allowed, a second more is not; so for any limit."""
    token = crafted(claims=changed(exp=NOW + 86400 + more))
    if more <= 0:
        assert proven(token)
    else:
        assert refusal(token) == "token-lifetime: exp - iat: expected 1 to 86400 seconds"
    short = TokenPolicy(audience=AUDIENCE, max_lifetime_s=3600 - more)
    if more <= 0:
        assert proven(crafted(), policy=short)
    else:
        assert refusal(crafted(), policy=short) == "token-lifetime: exp - iat: expected 1 to 3599 seconds"


@pytest.mark.parametrize("exp", [NOW, NOW - 1])
def test_a_token_expires_after_it_is_issued(exp):
    """A lifetime of nothing or less is no lifetime, skew or not."""
    assert refusal(crafted(claims=changed(exp=exp))).startswith("token-lifetime")


@pytest.mark.parametrize("aud", ["", "lockgate", AUDIENCE + "x", AUDIENCE.upper(), AUDIENCE + " "])
def test_audience_is_equal_or_wrong(aud):
    """The audience is compared whole, never as a part of another."""
    assert refusal(crafted(claims=changed(aud=aud))) == "wrong-audience: aud: expected 'lockgate-test'"


def test_required_jti():
    """The gateway's own tokens need a jti that is not empty."""
    policy = TokenPolicy(audience=AUDIENCE, require_jti=True)
    message = "token-without-id: jti: expected one in a token of this issuer"
    assert refusal(crafted(), policy=policy) == refusal(crafted(claims=changed(jti="")), policy=policy) == message
    assert proven(crafted(claims=changed(jti="1")), policy=policy)


def test_signature_comes_before_claims():
    """Who proves nothing learns nothing of audience or clock."""
    bad = crafted(claims=changed(aud="x", exp=NOW - 1000, iat=NOW - 2000), key=signing_key("EdDSA", "other"))
    assert refusal(bad) == NOT_PROVEN


def test_what_a_right_clock_helps():
    """Only time rules earn the server's time."""
    for now_s in (NOW + 10**6, NOW - 10**6):
        with pytest.raises(TokenRejected) as caught:
            proven(crafted(), now_s=now_s)
        assert is_about_time(caught.value)
    with pytest.raises(TokenRejected) as caught:
        proven(crafted(), signing_key("EdDSA", "other").public)
    assert not is_about_time(caught.value)


def test_no_flipped_character_passes():
    """Any one character of a token changed makes it another token, refused."""
    token = crafted()
    for n, character in enumerate(token):
        other = "A" if character != "A" else "B"
        assert ": " in refusal(token[:n] + other + token[n + 1 :])


@given(st.text(max_size=60) | st.binary(max_size=60))
def test_noise_is_refused(token):
    """Any text or bytes in place of a token are refused with a rule."""
    assert refusal(token).startswith("token-malformed: ")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"audience": ""}, "audience '': expected 1 to 255 characters of '!' to '~'"),
        ({"audience": "a b"}, "audience 'a b': expected 1 to 255"),
        ({"expires_at": NOW}, r"expected 0 <= issued_at < expires_at < 2\^53"),
        ({"issued_at": -1}, r"expected 0 <= issued_at < expires_at < 2\^53"),
        ({"expires_at": 2**53}, r"expected 0 <= issued_at < expires_at < 2\^53"),
    ],
)
def test_mint_refuses_nonsense(changes, message):
    """Nobody mints a token that no gateway could accept."""
    arguments = {"audience": AUDIENCE, "subject": DEVICE, "issued_at": NOW, "expires_at": NOW + 1, **changes}
    with pytest.raises(ValueError, match=message):
        mint(KEY, **arguments)


def test_tokens_do_not_show():
    """The text of a token is not in the repr of what was read from it."""
    token = crafted()
    assert token not in repr(read(token))
    assert SIGNATURE not in repr(read(token))


def test_jose_reads_its_own_signatures():
    """The same JWS serves key sets and proofs: no typ there, any object, any limit."""
    text = jose.sign(b'{"a":[1]}', KEY)
    jws = jose.parse(text, limit=len(text))
    assert (jws.header, jws.payload) == ({"alg": "EdDSA", "kid": KID}, {"a": [1]})
    assert jose.verify(jws, [signing_key("ES256").public, KEY.public]) == KEY.public
    with pytest.raises(TokenRejected, match="at most"):
        jose.parse(text, limit=len(text) - 1)
