"""A token that is revoked: its connections and the sessions it proved last end, with their wills; others stay."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from gateway_here import Here, run, serving, settings_in
from lasting import alive, clients_kept, gone, lasting
from mqtt_kit import Client, becomes, eventually, publish, running, stored, token

from edge_protocol.keys import new_signing_key
from edge_protocol.tokens import mint
from gateway.cli import client as command_line
from gateway.devices.revoked_tokens import RevokedTokens
from gateway.errors import Conflict, NotFound
from gateway.mqtt.codec import ReasonCode, Subscribe, Subscription, Will

CHAT = Subscribe(packet_id=1, subscriptions=(Subscription(topic_filter="chat/#", qos=1),))


async def ann(run, client_id, jti, **options):
    """A durable session of ann, proven by one of her tokens."""
    proof = token("ann", "operator", iss="id", jti=jti)
    return await run.client(client_id, token_=proof, **(lasting() | options))


def sessions(run):
    return sorted(session.client_id for session in run.server._hub.sessions)


async def test_connections_and_sessions_of_a_token():
    """Connections that it proved end with 0x87; its sessions are gone, wills too; those of another token live on."""
    async with running() as run:
        other = await ann(run, "other", "two")
        other.send(CHAT)
        await other.read()
        will = Will(topic="chat/will", payload=b"", qos=1)
        live = await ann(run, "live", "one", will=will)
        await gone(run, await ann(run, "away", "one"))
        await gone(run, await ann(run, "stays", "two"))
        assert run.server.disconnect_token("elsewhere", "one") == 0
        assert run.server.disconnect_token("id", "one") == 1
        (last,) = await live.ended()
        assert (last.reason_code, last.properties.reason_string) == (ReasonCode.NOT_AUTHORIZED, "token revoked")
        assert sessions(run) == ["other", "stays"]
        assert await alive(other)
        await becomes(lambda: clients_kept(run), {"other", "stays"})


async def test_a_session_belongs_to_its_last_token(tmp_path):
    """A session that a later token resumed, or whose connection a fresh one renewed, outlives the earlier token."""
    async with running(folder=tmp_path) as run:
        await gone(run, await ann(run, "resumed", "one"))
        await gone(run, await ann(run, "resumed", "two"))
        renewed = await ann(run, "renewed", "one")
        fresh = token("ann", "operator", iss="id", jti="two", exp=time.time() + 7200)
        renewed.send(publish("gateway/token", fresh))
        assert (await renewed.read()).reason_code == 0
        assert run.server.disconnect_token("id", "one") == 0
        assert await alive(renewed)
        assert sessions(run) == ["renewed", "resumed"]
        await eventually(lambda: not run.server._hub.journal._is_running)
        crashed = run.crashed()
    async with running(folder=crashed) as run:
        assert sessions(run) == ["renewed", "resumed"]
        run.server.disconnect_token("id", "two")
        assert sessions(run) == []


async def test_revoked_while_the_gateway_was_stopped(tmp_path):
    """At the start the sessions of a revoked token are gone, on disk too."""
    async with running(folder=tmp_path) as run:
        await gone(run, await ann(run, "a", "one"))
        await gone(run, await ann(run, "b", "two"))
    async with stored(tmp_path) as storage:
        await RevokedTokens(storage.state, time.time).revoke("id", "one", until_s=time.time() + 3600)
    async with running(folder=tmp_path) as run:
        assert sessions(run) == ["b"]
        await becomes(lambda: clients_kept(run), {"b"})


@asynccontextmanager
async def service(here: Here, text: str) -> AsyncIterator[Client]:
    """Connect as billing, whether that is let in or not."""
    client = await Client.open(here.mqtt_port)
    try:
        await client.connect("svc", token_=text.encode(), **lasting())
        yield client
    finally:
        await client.aclose()


async def is_let_in(here: Here, text: str) -> bool:
    """Whether a token proves anything; a session of it is not there, anyway."""
    async with service(here, text) as client:
        assert client.connack.reason_code in {0, ReasonCode.NOT_AUTHORIZED}
        assert not client.connack.session_present
        return client.connack.reason_code == 0


async def created(here: Here) -> dict[str, str]:
    made: dict[str, str] = await command_line.call(here.settings, "token_create", role="service", name="billing")
    return made


@pytest.mark.parametrize("by", ["id", "token", "all"])
def test_the_command(tmp_path, by) -> None:
    """`gateway token revoke` works within a second: by id, by the token itself, for all."""

    async def scenario() -> None:
        async with serving(settings_in(tmp_path)) as here:
            made = await created(here)
            async with service(here, made["token"]) as client:
                if by == "all":
                    assert await command_line.call(here.settings, "token_revoke_all") == {"connections": 1}
                else:
                    answer = await command_line.call(here.settings, "token_revoke", id=made[by])
                    assert answer == {"id": made["id"]}
                assert [each.reason_code for each in await client.ended(1)] == [ReasonCode.NOT_AUTHORIZED]
            assert not await is_let_in(here, made["token"])
            assert await is_let_in(here, (await created(here))["token"])

    run(scenario())


def test_the_command_while_nobody_serves(tmp_path) -> None:
    """A token can be revoked on the files of a stopped gateway; all at once, and what is no token, cannot."""

    async def scenario() -> None:
        settings = settings_in(tmp_path)
        async with serving(settings) as here:
            made = await created(here)
            assert await is_let_in(here, made["token"])
        await command_line.call(settings, "token_revoke", id=made["id"])
        with pytest.raises(Conflict, match="all tokens are revoked on a running gateway; start it"):
            await command_line.call(settings, "token_revoke_all")
        foreign = mint(new_signing_key(), audience="x", subject="dev1", issued_at=1, expires_at=2, jti="1")
        for wrong in ("", foreign):
            with pytest.raises(NotFound, match="token: expected one of `gateway token create`"):
                await command_line.call(settings, "token_revoke", id=wrong)
        async with serving(settings) as here:
            assert not await is_let_in(here, made["token"])
            assert await is_let_in(here, (await created(here))["token"])

    run(scenario())
