"""Who is let in, who is not, and what each is told."""

import base64
import hashlib
import hmac
import json
from math import inf

import device_parts as parts
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from structlog.testing import capture_logs

from edge_protocol.errors import TokenRejected
from edge_protocol.jwk import b64url
from edge_protocol.keys import new_signing_key
from gateway.devices import AuthSettings, GatewayAuthenticator, Registry, create_token
from gateway.errors import ConfigError
from gateway.ports.identity import Principal, PrincipalKind

NOT_PROVEN = "not-proven: no valid key of this client proves the token"


@pytest.fixture
async def site():
    async with parts.site() as site:
        yield site


async def refusal(site, token, client_id="dev1", **more):
    """The message a refused client reads, and the rule the operator reads."""
    with capture_logs() as logs, pytest.raises(TokenRejected) as caught:
        await site.connect(token, client_id, **more)
    (entry,) = logs
    assert entry["event"] == "token_refused"
    return str(caught.value), entry["rule"]


def claims(**more):
    return {"aud": parts.AUDIENCE, "sub": "dev1", "iat": parts.NOW_S, "exp": parts.NOW_S + 60, **more}


async def test_a_device_is_let_in_by_its_token(site):
    """A good token gives the device's principal, its role's permissions, and ends with the token."""
    key = await site.add("dev1")
    grant = await site.connect(parts.token(key, jti="t1", roles=["operator"]))
    assert grant.principal == Principal(PrincipalKind.DEVICE, "", "dev1")
    assert (grant.expires_at_s, grant.epoch, grant.jti) == (parts.NOW_S + 3600, 1, "t1")
    assert grant.permissions == parts.POLICY.permissions(["device"], device="dev1"), (
        "roles in its token count for nothing"
    )


async def test_what_cannot_be_proven_reads_the_same(site):
    """Unknown device, wrong key, bad signature, disabled device, unknown issuer: one message; the log tells them apart."""
    key, other = await site.add("dev1"), await site.add("dev2")
    await site.add("dev3")
    await site.registry.set_enabled("dev3", enabled=False)
    await site.add("dev4", key=(late := new_signing_key()), nbf=parts.NOW_S + 1)
    good = parts.token(key)
    found = [
        await refusal(site, parts.token(key, "ghost"), "ghost"),
        await refusal(site, parts.token(new_signing_key())),
        await refusal(site, good[:-6] + "AAAA" + good[-2:]),
        await refusal(site, parts.token(other)),
        await refusal(site, parts.token(key, "dev3"), "dev3"),
        await refusal(site, parts.token(late, "dev4"), "dev4"),
        await refusal(site, parts.token(key, issuer="https://id.example.com")),
    ]
    assert {message for message, _ in found} == {NOT_PROVEN}
    assert [rule for _, rule in found] == [
        "unknown-device",
        "bad-signature-or-key",
        "bad-signature-or-key",
        "bad-signature-or-key",
        "device-disabled",
        "no-valid-key",
        "unknown-issuer",
    ]


async def test_no_token_is_refused(site):
    """Without a token there is nothing to prove, not even on loopback, unless a role for it is configured."""
    assert await refusal(site, None) == ("no-token: expected a JWT as the password", "no-token")
    assert await refusal(site, None, is_loopback=True) == ("no-token: expected a JWT as the password", "no-token")
    assert (await refusal(site, b""))[0] == "token-malformed: expected three parts joined by dots"


async def test_another_devices_token_is_refused(site):
    """A good token of dev2 does not let anybody in as dev1."""
    await site.add("dev1")
    key = await site.add("dev2")
    assert (await refusal(site, parts.token(key, "dev2")))[0] == (
        "wrong-subject: sub: expected the client id, found 'dev2'"
    )


async def test_another_audiences_token_is_refused(site):
    """A token for another gateway is refused, and the right audience is told."""
    key = await site.add("dev1")
    for audience in ("lockgate-tes", "lockgate-testx", "lockgate-other"):
        message, _ = await refusal(site, parts.token(key, audience=audience))
        assert message == "wrong-audience: aud: expected 'lockgate-test'"


@pytest.mark.parametrize(
    ("iat", "exp", "message"),
    [
        (-3600, -59, None),
        (-3600, -60, "token-expired: expired at 1799999940, it is 1800000000"),
        (60, 120, None),
        (61, 120, "token-not-yet-valid: valid from 1800000061, it is 1800000000"),
        (0, 24 * 3600, None),
        (0, 24 * 3600 + 1, "token-lifetime: exp - iat: expected 1 to 86400 seconds"),
        (0, 0, "token-lifetime: exp - iat: expected 1 to 86400 seconds"),
    ],
)
async def test_times_and_lifetime_are_checked_to_the_second(site, iat, exp, message):
    """Skew is 60 seconds, the lifetime at most 24 hours: tried on either side."""
    key = await site.add("dev1")
    token = parts.by_hand(key, claims(iat=parts.NOW_S + iat, exp=parts.NOW_S + exp))
    if message is None:
        assert (await site.connect(token)).expires_at_s > parts.NOW_S
    else:
        assert (await refusal(site, token))[0] == message


async def test_alg_none_and_hmac_are_refused(site):
    """`none` and HS256, keyed with the public key in any form, prove nothing (CVE-2022-29217)."""
    key = await site.add("dev1")
    public = key.public.key
    secrets = [
        public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH),
        public.public_bytes_raw(),
        json.dumps(key.public.jwk).encode(),
        b"",
    ]
    body = b64url(json.dumps(claims()).encode())
    for secret in secrets:
        head = b64url(json.dumps({"alg": "HS256", "typ": "JWT"}).encode())
        mac = hmac.new(secret, f"{head}.{body}".encode(), hashlib.sha256).digest()
        assert (await refusal(site, f"{head}.{body}.{b64url(mac)}"))[0] == NOT_PROVEN
    for name in ("none", "None", "NONE", "", "ES256", "RS256"):
        head = b64url(json.dumps({"alg": name}).encode())
        assert (await refusal(site, f"{head}.{body}."))[0] == NOT_PROVEN
        assert (await refusal(site, parts.by_hand(key, claims(), {"alg": name})))[0] == NOT_PROVEN


async def test_a_kid_must_be_a_key_of_this_device(site):
    """Another device's kid, an unknown one or an empty one refuses a token that is otherwise good (CVE-2026-27962)."""
    key, other = await site.add("dev1"), await site.add("dev2")
    for kid in (other.public.jwk["kid"], "unknown", "", "../../key"):
        token = parts.by_hand(key, claims(), {"alg": "EdDSA", "kid": kid})
        assert (await refusal(site, token))[0] == NOT_PROVEN
    assert await site.connect(parts.by_hand(key, claims(), {"alg": "EdDSA"}))


@pytest.mark.parametrize("member", ["jwk", "jku", "x5u", "x5c", "crit", "b64", "zip", "cty", "x"])
async def test_no_other_header_member_is_allowed(site, member):
    """Headers that bring or point to keys, or change the meaning, are refused unseen (CVE-2026-32597)."""
    key = await site.add("dev1")
    token = parts.by_hand(key, claims(), {"alg": "EdDSA", member: "x"})
    assert (await refusal(site, token))[0] == f"token-malformed: header member '{member}': expected only alg, kid, typ"


UNIQUE = "expected a UTF-8 JSON object with unique members"
GOOD = json.dumps({"aud": parts.AUDIENCE, "sub": "dev1", "iat": parts.NOW_S, "exp": parts.NOW_S + 60})


@pytest.mark.parametrize(
    ("body", "header", "message"),
    [
        (GOOD[:-1] + ',"sub":"dev1"}', None, f"payload: {UNIQUE}"),
        (GOOD, '{"alg":"EdDSA","alg":"EdDSA"}', f"header: {UNIQUE}"),
        (GOOD[:-1] + ',"x":NaN}', None, f"payload: {UNIQUE}"),
        ("[]", None, "payload: expected a JSON object"),
        (claims(exp=str(parts.NOW_S + 60)), None, "exp: expected an integer of seconds, from 0, below 2^53"),
        (claims(iat=parts.NOW_S + 0.5), None, "iat: expected an integer of seconds, from 0, below 2^53"),
        (claims(nbf=True), None, "nbf: expected an integer of seconds, from 0, below 2^53"),
        (claims(exp=2**53), None, "exp: expected an integer of seconds, from 0, below 2^53"),
        (claims(exp=-1), None, "exp: expected an integer of seconds, from 0, below 2^53"),
        (claims(aud=[parts.AUDIENCE]), None, "aud: expected a string"),
        (claims(sub=None), None, "sub: expected a string"),
        (claims(jti=7), None, "jti: expected a string"),
        (claims(iss=["x"]), None, "iss: expected a string"),
        (claims(roles="operator"), None, "roles: expected an array of strings"),
        ({"aud": parts.AUDIENCE, "sub": "dev1", "iat": 1}, None, "exp: expected this claim"),
        (GOOD, {"alg": 1}, "header: expected alg, and strings only"),
        (GOOD, {"kid": "x"}, "header: expected alg, and strings only"),
    ],
)
async def test_malformed_tokens_are_refused_by_name(site, body, header, message):
    """Wrong types, missing claims and duplicate members are refused before any key is looked at."""
    key = await site.add("dev1")
    assert (await refusal(site, parts.by_hand(key, body, header)))[0] == f"token-malformed: {message}"


async def test_encodings_are_canonical(site):
    """Padding, blanks, unused bits and other alphabets are refused."""
    key = await site.add("dev1")
    good = parts.token(key)
    head, body, signature = good.split(".")
    padded = base64.b64encode(base64.urlsafe_b64decode(head + "==")).decode()
    unused = signature[:-1] + chr(ord(signature[-1]) + 1)
    for bad in (f"{padded}=.{body}.{signature}", f"{head}.{body}.{signature}\n", f"{head}.{body}.{unused}"):
        message, rule = await refusal(site, bad)
        assert rule == "token-malformed", message
    assert (await refusal(site, good + "\u00e9"))[0] == "token-malformed: expected ASCII"
    assert (await refusal(site, good + "."))[0] == "token-malformed: expected three parts joined by dots"


@pytest.mark.parametrize("excess", [-1, 0, 1])
async def test_a_token_has_at_most_8_kib(site, excess):
    """8 KiB are read, one byte more is not."""
    key = await site.add("dev1")
    heads = ({"alg": "EdDSA"}, {"alg": "EdDSA", "typ": "JWT"}, None)  # not every length can be had with each
    made = (parts.by_hand(key, claims(x="y" * pad), head) for head in heads for pad in range(5800, 6200))
    token = next(token for token in made if len(token) == 8192 + excess)
    if excess <= 0:
        assert await site.connect(token)
    else:
        message = f"token-malformed: {len(token)} bytes, at most 8192 are allowed"
        assert (await refusal(site, token))[0] == message


async def test_keys_rotate_without_outage(site):
    """While two keys overlap both let the device in; afterwards the new one does; envelopes likewise."""
    old = await site.add("dev1", exp=parts.NOW_S + 100)
    new = new_signing_key("ES256")
    await site.registry.add_key("dev1", new.public, nbf=parts.NOW_S + 50)
    assert (await site.connect(parts.token(old))).expires_at_s == parts.NOW_S + 100, "not beyond its key"
    assert (await refusal(site, parts.token(new)))[0] == NOT_PROVEN
    site.clock.now_s += 50
    for key in (old, new):
        assert await site.connect(parts.token(key))
        assert key.public.kid in site.registry.signing_keys("dev1", now_s=site.clock())
    site.clock.now_s += 50
    assert (await refusal(site, parts.token(old)))[0] == NOT_PROVEN
    assert await site.connect(parts.token(new))


async def test_a_token_accepted_by_skew_ends_with_the_skew(site):
    """A device whose clock is late is not cut off at once: its token ends when the skew is used up."""
    key = await site.add("dev1")
    grant = await site.connect(parts.token(key, now_s=parts.NOW_S - 100, ttl_s=90))
    assert grant.expires_at_s == parts.NOW_S - 10 + 60


async def test_a_cached_token_is_worth_nothing_after_revocation(site):
    """A token that was verified before is refused once its device is disabled, its key ended, or its time over."""
    key = await site.add("dev1")
    token = parts.token(key)
    assert await site.connect(token)
    assert await site.connect(token)
    await site.registry.set_enabled("dev1", enabled=False)
    assert (await refusal(site, token))[1] == "device-disabled"
    await site.registry.set_enabled("dev1", enabled=True)
    assert await site.connect(token)
    await site.registry.add_key("dev1", new_signing_key().public)
    await site.registry.expire_key("dev1", key.public.jwk["kid"])
    assert (await refusal(site, token))[1] == "bad-signature-or-key"
    key = await site.add("dev2")
    token = parts.token(key, "dev2")
    assert await site.connect(token, "dev2")
    assert (await refusal(site, token, "dev1"))[1] == "wrong-subject"
    site.clock.now_s += 3600 + 60
    assert (await refusal(site, token, "dev2"))[1] == "token-expired"


async def test_a_removed_device_is_out_at_once(site):
    """Remove, and add again with another key: the old token proves nothing."""
    key = await site.add("dev1")
    token = parts.token(key)
    await site.connect(token)
    await site.registry.remove("dev1")
    await parts.until(lambda: site.revoked)
    assert (await refusal(site, token))[1] == "unknown-device"
    await site.add("dev1")
    assert (await refusal(site, token))[1] == "bad-signature-or-key"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda site, _: site.registry.set_enabled("dev1", enabled=False), "device disabled"),
        (lambda site, _: site.registry.remove("dev1"), "device removed"),
        (lambda site, kid: site.registry.expire_key("dev1", kid), "key expired"),
    ],
)
async def test_revocation_is_told_once(site, change, reason):
    """Disable, remove and key expiry each end the connection, with the reason, once."""
    key = await site.add("dev1")
    await site.add("dev2")
    await site.connect(parts.token(key))
    with capture_logs() as logs:
        await change(site, key.public.jwk["kid"])
        await parts.until(lambda: site.revoked)
        await site.registry.set_enabled("dev2", enabled=True)
    assert site.revoked == [("dev1", reason)]
    told = [(entry["device"], entry["reason"]) for entry in logs if entry["event"] == "device_revoked"]
    assert told == [("dev1", reason)]


async def test_a_change_by_another_process_revokes_too(site):
    """Revocation comes by the store, whoever made the change."""
    key = await site.add("dev1")
    await site.connect(parts.token(key))
    await Registry(site.state, parts.POLICY, clock=site.clock).set_enabled("dev1", enabled=False)
    await parts.until(lambda: site.revoked)
    assert site.revoked == [("dev1", "device disabled")]


async def test_the_end_of_a_key_no_longer_used_cuts_nothing(site):
    """After a rotation the old key may end without the connection, which the new one proved, being cut."""
    old, new = await site.add("dev1"), new_signing_key()
    await site.connect(parts.token(old))
    await site.registry.add_key("dev1", new.public)
    await site.connect(parts.token(new))
    await site.registry.expire_key("dev1", old.public.jwk["kid"])
    assert site.revoked == []
    await site.registry.expire_key("dev1", new.public.jwk["kid"])
    assert site.revoked == [("dev1", "key expired")]


async def test_a_key_that_is_given_an_end_cuts_its_connection_then(site):
    """An end in the future is kept, though the connection was granted longer."""
    key = await site.add("dev1")
    await site.connect(parts.token(key))
    await site.registry.expire_key("dev1", key.public.jwk["kid"], at_s=parts.NOW_S + 1)
    assert site.revoked == []
    site.clock.now_s += 1
    await parts.until(lambda: site.revoked)
    assert site.revoked == [("dev1", "key expired")]


async def test_renewal_prolongs(site):
    """A fresh token of the same device gives a longer grant; one that ends no later is ignored."""
    key = await site.add("dev1")
    grant = await site.connect(parts.token(key, ttl_s=100))
    same = await site.authenticator.renew(grant, parts.token(key, ttl_s=100).encode())
    assert same is grant
    fresh = await site.authenticator.renew(grant, parts.token(key, ttl_s=101).encode())
    assert fresh.expires_at_s == parts.NOW_S + 101


async def test_renewal_must_prove_the_same_principal(site):
    """Another device's token, another issuer's, a bad one and a new registration's end the connection."""
    key, other = await site.add("dev1"), await site.add("dev2")
    grant = await site.connect(parts.token(key, ttl_s=100))
    operator = operator_token(site)
    await site.registry.remove("dev1")
    await parts.until(lambda: site.revoked)
    again = await site.add("dev1")
    for token, rule in (
        (parts.token(other, "dev2"), "wrong-subject"),
        (operator, "wrong-principal"),
        (parts.token(key), "not-proven"),
        (parts.token(again), "wrong-principal"),
        ("junk", "token-malformed"),
    ):
        with capture_logs() as logs, pytest.raises(TokenRejected) as caught:
            await site.authenticator.renew(grant, token.encode())
        assert caught.value.rule == rule
        assert [entry["event"] for entry in logs] == ["renewal_refused"]


def operator_token(site, role="operator", **more):
    settings = {"audience": parts.AUDIENCE, "now_s": site.clock(), **more}
    return create_token(site.operator_key, parts.POLICY, role=role, **settings)


async def test_an_operators_token_gives_its_roles(site):
    """The gateway's own issuer vouches for operators; the client id is free, and the namespace is theirs."""
    grant = await site.connect(operator_token(site, name="alice", ttl_s=60), "dev1")
    assert grant.principal == Principal(PrincipalKind.CLIENT, "lockgate:lockgate-test", "alice")
    assert (grant.expires_at_s, grant.epoch) == (parts.NOW_S + 60, 0)
    assert grant.jti
    assert grant.permissions == parts.POLICY.permissions(["operator"], device=None)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"jti": None}, "token-without-id: jti: expected one in a token of this issuer"),
        ({"roles": ["device"]}, "no-role: roles: expected a role of the policy that is not for devices"),
        ({"roles": ["admin"]}, "no-role: roles: expected a role of the policy that is not for devices"),
        ({"roles": []}, "no-role: roles: expected a role of the policy that is not for devices"),
        ({"subject": ""}, "bad-subject: sub: expected 1 to 255 printable characters"),
        ({"subject": "a\0b"}, "bad-subject: sub: expected 1 to 255 printable characters"),
        ({"audience": "other"}, "wrong-audience: aud: expected 'lockgate-test'"),
    ],
)
async def test_an_operators_token_must_be_whole(site, more, message):
    """Without `jti`, without a usable role, or without a subject an operator's token is refused."""
    settings = {"subject": "alice", "issuer": "lockgate:lockgate-test", "jti": "t", "roles": ["operator"], **more}
    assert (await refusal(site, parts.token(site.operator_key, **settings)))[0] == message


async def test_a_device_cannot_make_an_operators_token(site):
    """A token that names the gateway as issuer, but is signed by a device's key, proves nothing; nor the reverse."""
    key = await site.add("dev1")
    forged = parts.token(key, issuer="lockgate:lockgate-test", jti="t", roles=["operator"])
    assert (await refusal(site, forged))[0] == NOT_PROVEN
    assert (await refusal(site, parts.token(site.operator_key)))[0] == NOT_PROVEN


@pytest.mark.parametrize(
    ("role", "ttl_s", "message"),
    [
        ("device", 60, "role: expected a role that is not a device's: operator, service, found 'device'"),
        ("admin", 60, "role: expected a role that is not a device's: operator, service, found 'admin'"),
        ("operator", 0, "ttl: expected 1 to 86400 seconds (auth.max_token_lifetime), found 0"),
        ("operator", 86401, "ttl: expected 1 to 86400 seconds (auth.max_token_lifetime), found 86401"),
    ],
)
async def test_token_create_refuses_what_would_not_work(site, role, ttl_s, message):
    """Roles that are unknown or a device's, and lifetimes out of range, are refused with what is possible."""
    with pytest.raises(ConfigError) as caught:
        operator_token(site, role=role, ttl_s=ttl_s)
    assert str(caught.value) == message


async def test_token_create_takes_the_longest_lifetime(site):
    """The maximum itself is allowed, and accepted at CONNECT."""
    grant = await site.connect(operator_token(site, ttl_s=86400))
    assert grant.expires_at_s == parts.NOW_S + 86400
    assert grant.principal.sub.startswith("operator-")


async def test_an_anonymous_client_needs_loopback_and_no_token():
    """With `anonymous_role` a client without a token gets it on loopback; never elsewhere, never after a bad token."""
    async with parts.site(anonymous_role="operator") as site:
        grant = await site.connect(None, "mqtt-explorer", is_loopback=True)
        assert grant.principal == Principal(PrincipalKind.ANONYMOUS, "", "anonymous")
        assert grant.expires_at_s == inf
        assert grant.permissions == parts.POLICY.permissions(["operator"], device=None)
        assert (await refusal(site, None))[1] == "no-token"
        assert (await refusal(site, b"bad", is_loopback=True))[1] == "token-malformed"
        assert (await refusal(site, b"", is_loopback=True))[1] == "token-malformed"
        with pytest.raises(TokenRejected, match="expected a token of the client that this connection belongs to"):
            await site.authenticator.renew(grant, operator_token(site).encode())


async def test_replay_protection_accepts_a_token_once_across_restarts():
    """With `replay_protection` each `jti` of a principal is accepted once, also by a gateway started anew."""
    async with parts.site(replay_protection=True) as site:
        key, other = await site.add("dev1"), await site.add("dev2")
        token = parts.token(key, jti="one")
        grant = await site.connect(token)
        replayed = "token-replayed: jti: this token was used before; make a fresh one"
        assert (await refusal(site, token))[0] == replayed
        assert (await refusal(site, parts.token(key, jti="one", ttl_s=7200)))[0] == replayed
        assert await site.connect(parts.token(other, "dev2", jti="one"), "dev2"), "another principal's"
        assert (await refusal(site, parts.token(key)))[1] == "token-without-id"
        settings = AuthSettings(audience=parts.AUDIENCE, replay_protection=True)
        site.authenticator = GatewayAuthenticator(site.registry, parts.POLICY, site.state, settings, clock=site.clock)
        assert (await refusal(site, token))[0] == replayed
        assert await site.authenticator.renew(grant, token.encode()) is grant, "redelivery of a renewal is harmless"


async def test_used_token_ids_are_forgotten_when_they_cannot_be_used():
    """Pruning keeps a `jti` until its token's end plus the skew, to the second."""
    async with parts.site(replay_protection=True) as site:
        key = await site.add("dev1")
        await site.connect(parts.token(key, jti="one", ttl_s=100))
        site.clock.now_s += 159
        assert await site.authenticator.prune() == 0
        site.clock.now_s += 1
        assert await site.authenticator.prune() == 1
        assert await site.state.scan("jti/", "", 10) == []
