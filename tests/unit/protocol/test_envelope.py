"""The envelope: round trips, a second implementation, known answers, and no altered byte that passes."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from protocol_strategies import AUDIENCE, DEVICE, NOW, SOURCE, events, fixed, open_key, signing_key
from unit.protocol import by_hand

from edge_protocol import envelope
from edge_protocol.envelope import AgeLimits, Place, open_envelope, seal
from edge_protocol.envelope_keys import Suite, open_key_from_jwk
from edge_protocol.errors import EnvelopeRejected, EventRejected, ResealNeeded
from edge_protocol.events import Limits, encode_batch, encode_event
from edge_protocol.keys import load_verify_key

BATCH = b'[{"specversion":"1.0","id":"a","type":"t","data":{"x":1}},{"specversion":"1.0","id":"b","type":"t"}]'
ALGS = {"EdDSA": -8, "ES256": -7}
VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "envelopes.json").read_text())["envelopes"]
PLACE = Place("019b0000-0000-7000-8000-0000000000aa", 5, 4)
suites = pytest.mark.parametrize("suite", list(Suite))


def sealed(suite=Suite.X25519_AES128, alg="EdDSA", *, batch=BATCH, **changes):
    arguments = {"audience": AUDIENCE, "device": DEVICE, "issued_at": NOW, **changes}
    return seal(batch, key=signing_key(alg), to=open_key(suite).public, **arguments)


def opened(data, **changes):
    open_keys = {open_key(suite).kid: open_key(suite) for suite in Suite}
    signing_keys = {signing_key(alg).public.kid: signing_key(alg).public for alg in ALGS}
    arguments = {
        "audience": AUDIENCE,
        "device": DEVICE,
        "open_key": open_keys.get,
        "signing_key": signing_keys.get,
        "limits": Limits(),
        "ages": AgeLimits(),
        "now_s": NOW,
        **changes,
    }
    return open_envelope(data, **arguments)


def refusal(data, **changes):
    with pytest.raises((EnvelopeRejected, EventRejected)) as caught:
        opened(data, **changes)
    return str(caught.value)


def crafted(header=None, *, signed=None, payload=BATCH, suite=Suite.X25519_AES128, key=None, **more):
    """An envelope by hand: any header, or any bytes in place of the COSE_Sign1."""
    key = key or signing_key("EdDSA")
    aad = by_hand.external_aad(AUDIENCE, DEVICE)
    if header is None:
        header = by_hand.signed_header(-8, key.public.kid, NOW) | more
    signed = by_hand.sign1(header, payload, key.sign, aad) if signed is None else signed
    to = open_key(suite)
    public = by_hand.KEMS[suite].public(to.raw)
    return by_hand.encrypt0(suite.value, to.kid, public, signed, aad, ephemeral=fixed("ephemeral"))


@suites
@pytest.mark.parametrize("alg", ALGS)
@settings(max_examples=15, deadline=None)
@given(st.lists(events(), min_size=1, max_size=4), st.booleans(), st.none() | st.just(PLACE))
def test_open_gives_what_was_sealed(suite, alg, sent, compress, place):
    """Events, place and key come out as they went in, for every suite and signature algorithm."""
    batch = encode_batch(map(encode_event, sent))
    got = opened(sealed(suite, alg, batch=batch, compress=compress, place=place))
    assert got.events == sent
    assert (got.place, got.issued_at, got.kid) == (place, NOW, signing_key(alg).public.kid)
    assert got.encoding == "" or compress
    assert sealed(suite, alg).startswith(envelope.FIRST_BYTES)


@suites
@pytest.mark.parametrize("alg", ALGS)
def test_the_second_implementation_opens_our_envelopes(suite, alg):
    """What `seal` writes is what wire-protocol section 5 says, byte by byte, to a reader written from it alone."""
    data = sealed(suite, alg, place=PLACE)
    header, text, signature, signed = by_hand.open_signed(data, open_key(suite).raw, AUDIENCE, DEVICE)
    kid = signing_key(alg).public.kid
    place = {"stream": PLACE.stream, "first": 5, "settled": 4}
    assert header == by_hand.signed_header(ALGS[alg], kid, NOW, enc="deflate", **place)
    assert text == BATCH
    assert signing_key(alg).public.verify(signature, signed)
    assert by_hand.cbor(by_hand.Tag(16, by_hand.Reader(data).value().value)) == data


@suites
@pytest.mark.parametrize("alg", ALGS)
@pytest.mark.parametrize("packed", [True, False])
def test_we_open_the_second_implementations_envelopes(suite, alg, packed):
    """An envelope written by hand from the page opens, whatever compressor made it."""
    key = signing_key(alg)
    header = by_hand.signed_header(ALGS[alg], key.public.kid, NOW) | ({"enc": "deflate"} if packed else {})
    data = crafted(header, payload=by_hand.deflate(BATCH) if packed else BATCH, suite=suite, key=key)
    got = opened(data)
    assert [(event.id, event.source, event.payload) for event in got.events] == [
        ("a", SOURCE, b'{"x":1}'),
        ("b", SOURCE, b""),
    ]
    assert got.encoding == ("deflate" if packed else "")


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_known_answers(vector):
    """The fixed envelopes of tests/vectors open, and each step on the way has its published bytes."""
    gateway = open_key_from_jwk(vector["gateway_private_jwk"])
    device = load_verify_key(json.dumps(vector["device_private_jwk"]))
    got = open_envelope(
        bytes.fromhex(vector["envelope"]),
        audience=vector["audience"],
        device=vector["device"],
        open_key={gateway.kid: gateway}.get,
        signing_key={device.kid: device}.get,
        limits=Limits(),
        ages=AgeLimits(),
        now_s=vector["iat"],
    )
    assert [event.payload for event in got.events] == [b'{"cart":7,"items":3}', b'{"cart":7,"items":4}']
    assert got.body.hex() == vector["payload"]
    assert got.place == (Place(vector["stream"], 41, 40) if "stream" in vector else None)
    aad, outer = by_hand.external_aad(AUDIENCE, DEVICE), bytes.fromhex(vector["outer_protected"])
    assert (aad.hex(), by_hand.info(outer, aad).hex()) == (vector["external_aad"], vector["hpke_info"])
    if ephemeral := vector.get("ephemeral_private"):
        public = by_hand.KEMS[vector["suite"]].public(gateway.raw)
        again = by_hand.encrypt0(
            vector["suite"],
            gateway.kid,
            public,
            bytes.fromhex(vector["sign1"]),
            aad,
            ephemeral=bytes.fromhex(ephemeral),
        )
        assert again.hex() == vector["envelope"]


@suites
@pytest.mark.parametrize("flip", [0x01, 0x80])
def test_no_flipped_byte_yields_an_event(suite, flip):
    """Whichever byte of an envelope is changed, it is refused."""
    data = sealed(suite)
    for n in range(len(data)):
        refusal(data[:n] + bytes([data[n] ^ flip]) + data[n + 1 :])


@suites
def test_no_flipped_byte_inside_yields_an_event(suite):
    """A holder of the public envelope key who changes any byte below the encryption is refused too."""
    key, aad = signing_key("ES256"), by_hand.external_aad(AUDIENCE, DEVICE)
    header = by_hand.signed_header(-7, key.public.kid, NOW)
    signed = by_hand.sign1(header, BATCH, key.sign, aad)
    for n in range(len(signed)):
        refusal(crafted(signed=signed[:n] + bytes([signed[n] ^ 1]) + signed[n + 1 :], suite=suite))


@suites
def test_no_truncation_or_extension_yields_an_event(suite):
    """An envelope cut anywhere, or with a byte more, is refused."""
    data = sealed(suite)
    for n in range(len(data)):
        refusal(data[:n])
    for more in (b"\0", b"\xf6", data):
        refusal(data + more)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"audience": "other"}, "cannot-decrypt: not sealed to this key for this audience and device, or altered"),
        ({"device": "dev-2"}, "cannot-decrypt: not sealed to this key for this audience and device, or altered"),
        ({"open_key": lambda _: None}, "unknown-envelope-key: no envelope key of this gateway has this kid and suite"),
        (
            {"open_key": lambda _: open_key(Suite.P256_AES128)},
            "unknown-envelope-key: no envelope key of this gateway has this kid and suite",
        ),
        ({"open_key": lambda _: open_key(Suite.X25519_AES128, "other")}, "cannot-decrypt: not sealed to this key"),
        (
            {"signing_key": lambda _: None},
            "unknown-signing-key: no valid key of this device has this kid and algorithm",
        ),
        (
            {"signing_key": lambda _: signing_key("ES256").public},
            "unknown-signing-key: no valid key of this device has this kid and algorithm",
        ),
        (
            {"signing_key": lambda _: signing_key("EdDSA", "other").public},
            "bad-signature: the signature does not verify",
        ),
    ],
)
def test_another_reader_refuses(changes, message):
    """Another audience, device or key never opens an envelope, and the rule says which."""
    assert message in refusal(sealed(), **changes)


def test_unknown_keys_ask_for_a_new_seal():
    """Only an unknown envelope or signing key is worth sealing again for."""
    for changes in ({"open_key": lambda _: None}, {"signing_key": lambda _: None}):
        with pytest.raises(ResealNeeded):
            opened(sealed(), **changes)
    with pytest.raises(EnvelopeRejected) as caught:
        opened(sealed(), audience="other")
    assert not isinstance(caught.value, ResealNeeded)


def test_the_signature_covers_audience_and_device():
    """A gateway key holder cannot re-encrypt one device's batch as another's: the signature binds both names."""
    aad, other = by_hand.external_aad(AUDIENCE, DEVICE), by_hand.external_aad(AUDIENCE, "dev-2")
    key = signing_key("EdDSA")
    signed = by_hand.sign1(by_hand.signed_header(-8, key.public.kid, NOW), BATCH, key.sign, other)
    assert refusal(crafted(signed=signed)) == "bad-signature: the signature does not verify"
    assert opened(crafted(signed=by_hand.sign1(by_hand.signed_header(-8, key.public.kid, NOW), BATCH, key.sign, aad)))


@pytest.mark.parametrize("more", [-1, 0, 1])
def test_size_limit(more):
    """An envelope of exactly the limit passes, one byte more does not."""
    data = sealed()
    limits = Limits(envelope_bytes=len(data) - more)
    if more <= 0:
        assert opened(data, limits=limits)
    else:
        assert refusal(data, limits=limits) == (
            f"envelope-too-large: {len(data)} bytes, at most {len(data) - 1} are allowed"
        )


AGES = AgeLimits(window_s=1000, skew_s=60)


@pytest.mark.parametrize(
    ("now_s", "accepted"),
    [(NOW - 61, False), (NOW - 60, True), (NOW, True), (NOW + 880, True), (NOW + 880.5, False), (NOW + 881, False)],
)
def test_age_without_a_stream(now_s, accepted):
    """Without a stream, iat lies within now - (window - 2 x skew) .. now + skew, both ends included."""
    if accepted:
        assert opened(sealed(), ages=AGES, now_s=now_s)
    else:
        message = refusal(sealed(), ages=AGES, now_s=now_s)
        assert re.fullmatch(r"outside-window: iat \d+: expected \d+ to \d+ without a stream", message)


def test_age_with_a_stream():
    """An envelope of a stream may be as old as it likes: a device may be offline for a year."""
    assert opened(sealed(place=PLACE), ages=AGES, now_s=NOW + 400 * 86400).place == PLACE


def test_age_comes_before_inflating():
    """Checks keep their order: what is too old is not inflated, and what is not signed is not even looked at."""
    bomb = by_hand.deflate(bytes(9 << 20))
    assert refusal(crafted(payload=bomb, enc="deflate"), now_s=NOW + 10**7).startswith("outside-window")
    assert refusal(crafted(payload=bomb, enc="deflate")) == "inflated-too-large: more than the 8388608 bytes allowed"


KID = signing_key("EdDSA").public.kid
GOOD = by_hand.signed_header(-8, KID, NOW)


def without(label):
    return {key: value for key, value in GOOD.items() if key != label}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (without(1), "signed header: expected exactly the labels of section 5"),
        (without(3), "signed header: expected exactly the labels of section 5"),
        (without(4), "signed header: expected exactly the labels of section 5"),
        (without(16), "signed header: expected exactly the labels of section 5"),
        (without("iat"), "signed header: expected exactly the labels of section 5"),
        (GOOD | {2: [1]}, "signed header: expected exactly the labels of section 5"),
        (GOOD | {"exp": 1}, "signed header: expected exactly the labels of section 5"),
        (GOOD | {1: -257}, "signed header: expected alg -8 (Ed25519) or -7 (ES256)"),
        (GOOD | {1: "EdDSA"}, "signed header: expected alg -8 (Ed25519) or -7 (ES256)"),
        (GOOD | {3: "application/json"}, "signed header: expected content type application/cloudevents-batch+json"),
        (GOOD | {16: "application/x"}, "and typ application/lockgate-events"),
        (GOOD | {4: KID[:-1]}, "signed header: expected kid of 32 bytes"),
        (GOOD | {4: KID.hex()}, "signed header: expected kid of 32 bytes"),
        (GOOD | {"enc": "gzip"}, 'signed header: expected enc "deflate" or none'),
        (GOOD | {"enc": ""}, 'signed header: expected enc "deflate" or none'),
        (GOOD | {"iat": -1}, "iat: expected an unsigned integer below 2^53"),
        (GOOD | {"iat": 1 << 53}, "iat: expected an unsigned integer below 2^53"),
        (GOOD | {"iat": str(NOW)}, "iat: expected an unsigned integer below 2^53"),
        (GOOD | {"first": 1}, "signed header: expected stream, first and settled, or none of them"),
        (GOOD | {"first": 1, "stream": "s"}, "signed header: expected stream, first and settled, or none of them"),
        (GOOD | {"first": 0, "stream": "s", "settled": 0}, "expected settled < first, and first from 1"),
        (GOOD | {"first": 5, "stream": "s", "settled": 5}, "expected settled < first, and first from 1"),
        (GOOD | {"first": -1, "stream": "s", "settled": 0}, "first: expected an unsigned integer below 2^53"),
        (GOOD | {"first": 1 << 53, "stream": "s", "settled": 0}, "first: expected an unsigned integer below 2^53"),
        (GOOD | {"first": 1, "stream": "s", "settled": -1}, "settled: expected an unsigned integer below 2^53"),
        (GOOD | {"first": 1, "stream": "", "settled": 0}, "stream: expected 1 to 64 printable characters"),
        (GOOD | {"first": 1, "stream": "s" * 65, "settled": 0}, "stream: expected 1 to 64 printable characters"),
        (GOOD | {"first": 1, "stream": "a\0", "settled": 0}, "stream: expected 1 to 64 printable characters"),
        (GOOD | {"first": 1, "stream": b"s", "settled": 0}, "stream: expected 1 to 64 printable characters"),
    ],
)
def test_signed_header_rules(header, message):
    """Each label of the signed header has exactly its type and range."""
    found = refusal(crafted(header))
    assert found.startswith("bad-shape: ")
    assert message in found


@pytest.mark.parametrize(
    "more",
    [
        {"iat": NOW, "first": (1 << 53) - 1, "stream": "s" * 64, "settled": (1 << 53) - 2},
        {"first": 1, "stream": "s", "settled": 0},
    ],
)
def test_signed_header_ends_of_ranges(more):
    """The last value of each range passes."""
    assert opened(crafted(**more)).place == Place(more["stream"], more["first"], more["settled"])


def encoded_map(pairs):
    return by_hand.head(5, len(pairs)) + b"".join(key + value for key, value in pairs)


PAIRS = [(by_hand.cbor(key), by_hand.cbor(value)) for key, value in GOOD.items()]
AT_ALG, AT_IAT = 0, 4


def with_pair(n, key=None, value=None):
    pairs = list(PAIRS)
    pairs[n] = (key or pairs[n][0], value or pairs[n][1])
    return encoded_map(pairs)


NOT_DETERMINISTIC = "not-deterministic: protected header: expected"


@pytest.mark.parametrize(
    ("protected", "message"),
    [
        (encoded_map([*PAIRS[1:], PAIRS[0]]), NOT_DETERMINISTIC + " labels in bytewise order (RFC 8949, 4.2.1)"),
        (encoded_map([*PAIRS, PAIRS[0]]), "bad-cbor: protected header"),
        (with_pair(AT_ALG, key=b"\x18\x01"), NOT_DETERMINISTIC + " the deterministic encoding (RFC 8949, 4.2.1)"),
        (with_pair(AT_ALG, key=b"\xc2\x41\x01"), "protected header"),
        (with_pair(AT_ALG, key=b"\xf5"), "protected header"),
        (with_pair(AT_ALG, key=b"\xf9\x3c\x00"), "protected header"),
        (with_pair(AT_IAT, value=b"\xfb" + b"\0" * 8), "expected"),
        (with_pair(AT_IAT, value=b"\x1b" + NOW.to_bytes(8, "big")), NOT_DETERMINISTIC),
        (with_pair(AT_IAT, value=b"\xc1\x1a" + NOW.to_bytes(4, "big")), "expected"),
        (with_pair(AT_IAT, key=b"\x7f\x63iat\xff"), "bad-cbor"),
        (b"\xbf" + encoded_map(PAIRS)[1:] + b"\xff", "bad-cbor"),
        (by_hand.cbor(GOOD) + b"\0", "protected header"),
        (by_hand.cbor(GOOD)[:-1], "bad-cbor: protected header: not CBOR of at most 4 levels"),
        (by_hand.cbor([GOOD]), "bad-shape: protected header: expected a map with integers and texts as labels"),
        (b"", "bad-cbor"),
        (b"\x81" * 100_000, "bad-cbor"),
        (b"\x9b\x00\x00\x01\x00\x00\x00\x00\x00", "bad-cbor"),
        (b"\x5b\x7f\xff\xff\xff\xff\xff\xff\xff", "bad-cbor"),
    ],
)
def test_signed_header_encodings(protected, message):
    """Another encoding of the same header is refused, though its signature verifies."""
    assert message in refusal(crafted(protected))


AAD = by_hand.external_aad(AUDIENCE, DEVICE)
PROTECTED = by_hand.cbor(GOOD)
SIGNATURE = signing_key("EdDSA").sign(by_hand.to_be_signed(PROTECTED, AAD, BATCH))
MEMBERS = [PROTECTED, {}, BATCH, SIGNATURE]
NESTED = by_hand.Tag(18, by_hand.Tag(18, MEMBERS))


@pytest.mark.parametrize(
    ("signed", "message"),
    [
        (by_hand.cbor(MEMBERS), "bad-shape: expected COSE_Sign1: tag 18 around an array of 4"),
        (by_hand.cbor(by_hand.Tag(98, MEMBERS)), "bad-shape: expected COSE_Sign1: tag 18 around an array of 4"),
        (by_hand.cbor(by_hand.Tag(61, by_hand.Tag(18, MEMBERS))), "bad-shape: expected COSE_Sign1: tag 18"),
        (by_hand.cbor(NESTED), "bad-shape: expected COSE_Sign1: tag 18"),
        (by_hand.cbor(by_hand.Tag(18, {1: 2})), "bad-shape: expected COSE_Sign1: tag 18"),
        (by_hand.cbor(by_hand.Tag(18, MEMBERS[:3])), "bad-shape: COSE_Sign1: expected 4 members, the second an empty"),
        (by_hand.cbor(by_hand.Tag(18, [*MEMBERS, b""])), "bad-shape: COSE_Sign1: expected 4 members"),
        (by_hand.cbor(by_hand.Tag(18, [PROTECTED, {4: b"x"}, BATCH, SIGNATURE])), "the second an empty map"),
        (by_hand.cbor(by_hand.Tag(18, [PROTECTED, b"", BATCH, SIGNATURE])), "the second an empty map"),
        (by_hand.cbor(by_hand.Tag(18, [GOOD, {}, BATCH, SIGNATURE])), "expected byte strings around the empty map"),
        (by_hand.cbor(by_hand.Tag(18, [PROTECTED, {}, "x", SIGNATURE])), "expected byte strings around the empty map"),
        (by_hand.cbor(by_hand.Tag(18, [PROTECTED, {}, BATCH, SIGNATURE[:-1]])), "bad-signature"),
        (by_hand.cbor(by_hand.Tag(18, [PROTECTED, {}, BATCH, SIGNATURE + b"\0"])), "bad-signature"),
        (by_hand.cbor(by_hand.Tag(18, MEMBERS)) + b"\0", "COSE_Sign1"),
        (b"\xd8\x12" + by_hand.cbor(MEMBERS), "not-deterministic: COSE_Sign1: expected the deterministic encoding"),
        (b"\xd2\x9f" + b"".join(map(by_hand.cbor, MEMBERS)) + b"\xff", "bad-cbor: COSE_Sign1"),
        (b"\xd2\x98\x04" + b"".join(map(by_hand.cbor, MEMBERS)), "not-deterministic: COSE_Sign1"),
        (b"\xd8\x1c" + by_hand.cbor(by_hand.Tag(18, MEMBERS)), "COSE_Sign1"),
        (b"", "bad-cbor: COSE_Sign1"),
    ],
)
def test_inner_shape(signed, message):
    """The COSE_Sign1 has its tag, four members of the right types, one encoding, and nothing after it."""
    assert message in refusal(crafted(signed=signed))


OUTER = by_hand.Reader(sealed()).value().value
CT = OUTER[2]
TO = open_key(Suite.X25519_AES128).kid


def outer(header, ciphertext=CT):
    return by_hand.cbor(
        by_hand.Tag(16, [header if isinstance(header, bytes) else by_hand.cbor(header), {}, ciphertext])
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (by_hand.cbor(OUTER), "bad-shape: expected COSE_Encrypt0: tag 16 around an array of 3"),
        (by_hand.cbor(by_hand.Tag(96, OUTER)), "bad-shape: expected COSE_Encrypt0: tag 16"),
        (by_hand.cbor(by_hand.Tag(16, by_hand.Tag(16, OUTER))), "bad-shape: expected COSE_Encrypt0: tag 16"),
        (b"\xd9\xd9\xf7" + by_hand.cbor(by_hand.Tag(16, OUTER)), "COSE_Encrypt0"),
        (
            by_hand.cbor(by_hand.Tag(16, [OUTER[0], {1: 1}, CT])),
            "COSE_Encrypt0: expected 3 members, the second an empty",
        ),
        (b"\xd8\x10" + by_hand.cbor(OUTER), "not-deterministic: COSE_Encrypt0"),
        (b"\xd0\x9f" + b"".join(map(by_hand.cbor, OUTER)) + b"\xff", "bad-cbor: COSE_Encrypt0"),
        (outer({1: -70002}), "bad-shape: outer header: expected exactly alg (1) and kid (4)"),
        (outer({1: -70002, 4: TO, 5: b""}), "bad-shape: outer header: expected exactly alg (1) and kid (4)"),
        (outer({1: -70004, 4: TO}), "unknown-suite: outer alg: expected one of -70001, -70002, -70003"),
        (outer({1: 1, 4: TO}), "unknown-suite: outer alg: expected one of -70001, -70002, -70003"),
        (outer({1: "HPKE", 4: TO}), "unknown-suite"),
        (outer({1: -70002, 4: TO + b"\0"}), "bad-shape: outer header: expected kid of 32 bytes"),
        (outer({1: -70002, 4: "x" * 32}), "bad-shape: outer header: expected kid of 32 bytes"),
        (outer({1: -70001, 4: TO}), "unknown-envelope-key"),
        (outer(b"\xa2\xf5" + by_hand.cbor(-70002) + b"\x04" + by_hand.cbor(TO)), "bad-shape: protected header"),
        (outer(b"\xa2\x04" + by_hand.cbor(TO) + b"\x01" + by_hand.cbor(-70002)), NOT_DETERMINISTIC),
        (outer({1: -70002, 4: TO}, b""), "cannot-decrypt"),
        (outer({1: -70002, 4: TO}, CT[:31]), "cannot-decrypt"),
        (outer({1: -70002, 4: TO}, bytes(32) + CT[32:]), "cannot-decrypt"),
        (b"{}", "bad-cbor"),
        (b"", "bad-cbor"),
        (b"\xd0" * 100_000, "bad-cbor: COSE_Encrypt0: not CBOR of at most 4 levels"),
        (b"\xd0\x83" + b"\x9b\x00\x00\x01\x00\x00\x00\x00\x00", "bad-cbor"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",  # the bytes hold fresh keys; xdist compares names
)
def test_outer_shape(data, message):
    """The COSE_Encrypt0 has its tag, three members of the right types, one encoding, and a known key."""
    assert message in refusal(data)


@given(st.binary(max_size=200))
@settings(deadline=None)
def test_noise_is_refused(data):
    """Whatever bytes come, also behind a right beginning, the answer is a refusal that names a rule."""
    assert re.match(r"[a-z0-9-]+: .", refusal(data))
    assert re.match(r"[a-z0-9-]+: .", refusal(b"\xd0\x83" + data))
    assert re.match(r"[a-z0-9-]+: .", refusal(crafted(signed=data)))
    assert re.match(r"[a-z0-9-]+: .", refusal(crafted(data)))


def test_wrong_source_and_bad_events_are_refused_whole():
    """An envelope is atomic: one wrong event refuses it, and the detail says which one."""
    bad = BATCH.replace(b'"id":"b"', b'"id":"b","source":"/devices/dev-2"')
    assert refusal(sealed(batch=bad)) == (
        "wrong-source: event 1: source '/devices/dev-2': expected '/devices/dev-1', or none"
    )
    assert refusal(sealed(batch=b"[]")) == "empty-batch: 0 events in a batch, expected 1 to 1000"


def test_es256_signature_in_der_is_refused():
    """An ECDSA signature is r||s of 64 bytes; DER of the same numbers is not."""
    key = signing_key("ES256")
    protected = by_hand.cbor(by_hand.signed_header(-7, key.public.kid, NOW))
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    der = key.key.sign(by_hand.to_be_signed(protected, AAD, BATCH), ec.ECDSA(hashes.SHA256()))
    signed = by_hand.cbor(by_hand.Tag(18, [protected, {}, BATCH, der]))
    assert refusal(crafted(signed=signed)) == "bad-signature: the signature does not verify"


def test_seal_does_not_compress_where_it_saves_nothing():
    """Bytes that do not shrink travel as they are, without `enc`."""
    tiny = b'[{"specversion":"1.0","id":"a","type":"t"}]'
    got = opened(sealed(batch=tiny, compress=True))
    assert got.body in (tiny, by_hand.deflate(tiny)) or len(got.body) < len(tiny)
    assert opened(sealed(batch=tiny, compress=False)).body == tiny


def test_place_is_a_value():
    """Places compare by value and cannot be changed."""
    assert replace(PLACE, first=6, settled=5) == Place(PLACE.stream, 6, 5)
