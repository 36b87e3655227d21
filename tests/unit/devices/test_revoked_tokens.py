"""Tokens of issuers that are accepted no more: at once, on disk, for as long as they could be accepted."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress

import device_parts as parts
import pytest

from edge_protocol.errors import TokenRejected
from edge_protocol.keys import new_signing_key
from gateway.devices.authenticator import ISSUER_PREFIX
from gateway.devices.revoked_tokens import PREFIX, RevokedTokens
from gateway.ports.identity import Principal, PrincipalKind

OWN = ISSUER_PREFIX + parts.AUDIENCE


@pytest.fixture
async def site():
    """A running site."""
    async with parts.site() as made:
        yield made


@asynccontextmanager
async def watching(revoked: RevokedTokens):
    """Loaded, and told of changes."""
    told: list[tuple[str, str]] = []
    revoked.on_revoked = lambda issuer, jti: told.append((issuer, jti))
    await revoked.load()
    task = asyncio.create_task(revoked.run())
    try:
        yield told
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def operators_token(site, jti: str, **more) -> str:
    return parts.token(site.operator_key, "ann", issuer=OWN, jti=jti, roles=("operator",), **more)


async def test_a_revoked_token_proves_nothing(site):
    """It is refused at CONNECT and as a fresh token, though its proof is cached; other tokens of the principal go on."""
    async with watching(site.authenticator.revoked) as told:
        first = await site.connect(operators_token(site, "one"), "tool")
        assert (await site.connect(operators_token(site, "one"), "tool")).jti == "one"
        await site.authenticator.revoked.revoke(OWN, "one", until_s=parts.NOW_S + 4000)
        await parts.until(lambda: told == [(OWN, "one")])
        assert site.authenticator.is_revoked(first.principal, "one")
        with pytest.raises(TokenRejected, match="no valid key of this client proves the token"):
            await site.connect(operators_token(site, "one"), "tool")
        later = operators_token(site, "one", ttl_s=4000)
        with pytest.raises(TokenRejected, match="no valid key of this client proves the token"):
            await site.authenticator.renew(first, later.encode())
        assert (await site.connect(operators_token(site, "two"), "tool")).jti == "two"


async def test_only_tokens_of_that_issuer(site):
    """An id belongs to its issuer: a device's token with the same one is another token."""
    async with watching(site.authenticator.revoked) as told:
        key = await site.add("dev1")
        await site.authenticator.revoked.revoke(OWN, "one", until_s=parts.NOW_S + 4000)
        await parts.until(lambda: told)
        assert (await site.connect(parts.token(key, jti="one"))).jti == "one"
        device = Principal(PrincipalKind.DEVICE, "", "dev1")
        assert not site.authenticator.is_revoked(device, "one")
        assert not site.authenticator.revoked.holds("https://other.example.com", "one")


async def test_known_after_a_restart(site):
    """What was revoked while nobody looked is known when `load` returns, also more than a page of it."""
    offline = RevokedTokens(site.state, site.clock)
    for n in range(501):
        await offline.revoke(OWN, f"{n}", until_s=parts.NOW_S + 4000)
    assert not site.authenticator.revoked.holds(OWN, "0")
    async with watching(site.authenticator.revoked):
        assert all(site.authenticator.revoked.holds(OWN, f"{n}") for n in range(501))


@pytest.mark.parametrize(("later_s", "pruned"), [(99, 0), (100, 1), (101, 1)])
async def test_forgotten_when_it_has_expired(site, later_s, pruned):
    """A revocation is kept until its token has expired, on disk and in memory."""
    revoked = site.authenticator.revoked
    async with watching(revoked) as told:
        await revoked.revoke(OWN, "one", until_s=parts.NOW_S + 100)
        await parts.until(lambda: told)
        site.clock.now_s += later_s
        assert await site.authenticator.prune() == pruned
        assert revoked.holds(OWN, "one") == (not pruned)
        assert len(await site.state.scan(PREFIX, "", 10)) == 1 - pruned


async def test_a_new_operator_key_ends_all_tokens(site):
    """What the old key signed proves nothing, though its proof is cached."""
    token = operators_token(site, "one")
    await site.connect(token, "tool")
    site.operator_key = new_signing_key()
    with pytest.raises(TokenRejected, match="no valid key of this client proves the token"):
        await site.connect(token, "tool")
    assert (await site.connect(operators_token(site, "two"), "tool")).jti == "two"
