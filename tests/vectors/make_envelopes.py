"""Writes envelopes.json: known answers for whoever implements the envelope in another language.

Made by the second implementation (tests/unit/protocol/by_hand.py), never by the code under test. Run it from `tests/`:
`python vectors/make_envelopes.py`; ES256 and ML-KEM draw random numbers, so the bytes differ each time it is run.
"""

import json
from pathlib import Path

from protocol_strategies import AUDIENCE, DEVICE, NOW, fixed, open_key, signing_key
from unit.protocol import by_hand

from edge_protocol.envelope_keys import Suite
from edge_protocol.jwk import b64url

NOTE = "TEST ONLY: every key here is public and must never be used. Bytes are hex. Made by tests/vectors/make_envelopes.py."
BATCH = (
    '[{"specversion":"1.0","id":"019b0000-0000-7000-8000-000000000001","type":"cart_updated","data":{"cart":7,"items":3}},'
    '{"specversion":"1.0","id":"019b0000-0000-7000-8000-000000000002","type":"cart_updated","data":{"cart":7,"items":4}}]'
)
STREAM = "019b0000-0000-7000-8000-0000000000aa"
CASES = (
    (Suite.XWING_AES256, "EdDSA", True, {"enc": "deflate", "stream": STREAM, "first": 41, "settled": 40}),
    (Suite.X25519_AES128, "EdDSA", False, {}),
    (Suite.P256_AES128, "ES256", True, {"enc": "deflate"}),
)


def private_jwk(key):
    jwk = dict(key.public.jwk)
    scalar = (
        fixed(f"device {key.alg}")
        if key.alg == "EdDSA"
        else key.key.private_numbers().private_value.to_bytes(32, "big")
    )
    return {**jwk, "d": b64url(scalar)}


def case(suite, alg, packed, more):
    key, gateway = signing_key(alg), open_key(suite)
    aad = by_hand.external_aad(AUDIENCE, DEVICE)
    payload = by_hand.deflate(BATCH.encode()) if packed else BATCH.encode()
    protected = by_hand.cbor(by_hand.signed_header({"EdDSA": -8, "ES256": -7}[alg], key.public.kid, NOW, **more))
    signed = by_hand.sign1(protected, payload, key.sign, aad)
    kem, ephemeral = by_hand.KEMS[suite], fixed(f"ephemeral {suite.value}")
    envelope = by_hand.encrypt0(suite.value, gateway.kid, kem.public(gateway.raw), signed, aad, ephemeral=ephemeral)
    outer = by_hand.cbor({1: suite.value, 4: gateway.kid})
    return {
        "name": f"suite {suite.value}, {alg}{', deflate' if packed else ''}{', stream' if 'stream' in more else ''}",
        "suite": suite.value,
        "audience": AUDIENCE,
        "device": DEVICE,
        "gateway_private_jwk": gateway.private_jwk(),
        "device_private_jwk": private_jwk(key),
        "batch": BATCH,
        "iat": NOW,
        **{name: more[name] for name in ("stream", "first", "settled") if name in more},
        "external_aad": aad.hex(),
        "payload": payload.hex(),
        "signed_protected": protected.hex(),
        "to_be_signed": by_hand.to_be_signed(protected, aad, payload).hex(),
        "sign1": signed.hex(),
        "outer_protected": outer.hex(),
        "hpke_info": by_hand.info(outer, aad).hex(),
        **({"ephemeral_private": ephemeral.hex()} if suite is not Suite.XWING_AES256 else {}),
        "envelope": envelope.hex(),
    }


if __name__ == "__main__":
    text = json.dumps({"note": NOTE, "envelopes": [case(*each) for each in CASES]}, indent=1)
    (Path(__file__).parent / "envelopes.json").write_text(text + "\n")
