"""The second implementation against published numbers, before anything is compared with it."""

import pytest
from protocol_strategies import fixed
from unit.protocol import by_hand

INFO = bytes.fromhex("4f6465206f6e2061204772656369616e2055726e")
PLAINTEXT = bytes.fromhex("4265617574792069732074727574682c20747275746820626561757479")
# RFC 9180, appendix A.1.1 and A.3.1 (base mode), sequence number 0: facts, taken from the RFC.
VECTORS = {
    -70002: {
        "skE": "52c4a758a802cd8b936eceea314432798d5baf2d7e9235dc084ab1b9cfa2f736",
        "skR": "4612c550263fc8ad58375df3f557aac531d26850903e55a9f23f21d8534e8ac8",
        "enc": "37fda3567bdbd628e88668c3c8d7e97d1d1253b6d4ea6d44c150f741f1bf4431",
        "shared_secret": "fe0e18c9f024ce43799ae393c7e8fe8fce9d218875e8227b0187c04e7d2ea1fc",
        "key": "4531685d41d65f03dc48f6b8302c05b0",
        "base_nonce": "56d890e5accaaf011cff4b7d",
        "ct": "f938558b5d72f1a23810b4be2ab4f84331acc02fc97babc53a52ae8218a355a96d8770ac83d07bea87e13c512a",
    },
    -70003: {
        "skE": "4995788ef4b9d6132b249ce59a77281493eb39af373d236a1fe415cb0c2d7beb",
        "skR": "f3ce7fdae57e1a310d87f1ebbde6f328be0a99cdbcadf4d6589cf29de4b8ffd2",
        "enc": "04a92719c6195d5085104f469a8b9814d5838ff72b60501e2c4466e5e67b325ac98536d7b61a1af4b78e5b7f951c0900be863c403c"
        "e65c9bfcb9382657222d18c4",
        "shared_secret": "c0d26aeab536609a572b07695d933b589dcf363ff9d93c93adea537aeabb8cb8",
        "key": "868c066ef58aae6dc589b6cfdd18f97e",
        "base_nonce": "4e0bc5018beba4bf004cca59",
        "ct": "5ad590bb8baa577f8619db35a36311226a896e7342a6d836d8b7bcd2f20b6c7f9076ac232e3ab2523f39513434",
    },
}


@pytest.mark.parametrize("suite", VECTORS)
def test_our_hpke_by_hand_gives_the_numbers_of_rfc_9180(suite):
    """Every step of the second implementation equals the RFC's appendix, aad included."""
    vector = {name: bytes.fromhex(value) for name, value in VECTORS[suite].items()}
    kem = by_hand.KEMS[suite]
    shared_secret, enc = kem.encap(kem.public(vector["skR"]), vector["skE"])
    assert (enc, shared_secret) == (vector["enc"], vector["shared_secret"])
    assert kem.decap(enc, vector["skR"]) == shared_secret
    assert by_hand.key_schedule(suite, shared_secret, INFO) == (vector["key"], vector["base_nonce"])
    sealed = by_hand.hpke_seal(
        suite, kem.public(vector["skR"]), INFO, PLAINTEXT, ephemeral=vector["skE"], aad=b"Count-0"
    )
    assert sealed == vector["enc"] + vector["ct"]


def test_cbor_by_hand_gives_the_examples_of_rfc_8949():
    """The CBOR writer equals the rows of RFC 8949, appendix A, that an envelope can hold."""
    rows = {0: "00", 23: "17", 24: "1818", 1000: "1903e8", 1000000000000: "1b000000e8d4a51000", -1: "20", -100: "3863"}
    for value, wanted in rows.items():
        assert by_hand.cbor(value).hex() == wanted
    assert by_hand.cbor({"b": [2, 3], "a": 1}).hex() == "a26161016162820203"
    assert by_hand.cbor(b"\1\2\3\4").hex() == "4401020304"
    assert by_hand.cbor("IETF").hex() == "6449455446"
    assert by_hand.Reader(by_hand.cbor({1: -70001, "a": [b"x", "y"]})).value() == {1: -70001, "a": [b"x", "y"]}


def test_xwing_public_key_has_the_size_of_the_draft():
    """An X-Wing public key is 1184 + 32 bytes, an encapsulated key 1088 + 32."""
    private = fixed("xwing", 96)
    public = by_hand.XWing().public(private)
    secret, enc = by_hand.XWing().encap(public, fixed("ephemeral"))
    assert (len(public), len(enc), len(secret)) == (1216, 1120, 32)
    assert by_hand.XWing().decap(enc, private) == secret
