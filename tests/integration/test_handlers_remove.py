"""`gateway handlers remove` against a whole gateway: durable subscriptions whose clients will not come back."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog
from gateway_here import Here, run, serving, settings_in
from mqtt_kit import Client, properties

from gateway.cli import client as command_line
from gateway.cli.client import OperationFailed
from gateway.errors import Conflict
from gateway.mqtt.codec import Subscribe, Subscription, Unsubscribe

SHARED = "$share/billing/devices/+/events/#"
NAME = "mqtt:service/billing:devices/+/events/#"
LASTING = {"properties": properties(session_expiry_interval=600), "clean_start": False}


async def call(here: Here, operation: str, **arguments: object) -> Any:
    return await command_line.call(here.settings, operation, **arguments)


async def service(here: Here, client_id: str, *filters: str) -> Client:
    """Connect as billing, and subscribe."""
    made = await call(here, "token_create", role="service", name="billing")
    client = await Client.open(here.mqtt_port)
    await client.connect(client_id, token_=made["token"].encode(), **LASTING)
    assert client.connack.reason_code == 0
    for filter_ in filters:
        client.send(Subscribe(packet_id=9, subscriptions=(Subscription(topic_filter=filter_, qos=1),)))
        assert (await client.read()).reason_codes == (1,)
    return client


async def names(here: Here) -> list[str]:
    return [row["name"] for row in await call(here, "handlers_list")]


async def until_names(here: Here, *wanted: str) -> None:
    async with asyncio.timeout(10):
        while await names(here) != sorted(wanted):  # noqa: ASYNC110 - cursors close when they are done
            await asyncio.sleep(0.02)


async def removed(here: Here, name: str, **arguments: object) -> dict[str, Any]:
    """Remove it, as soon as it is noticed that its clients are gone."""
    async with asyncio.timeout(10):
        while await is_held(here, name):  # noqa: ASYNC110 - told by nobody
            await asyncio.sleep(0.02)
    return await call(here, "handlers_remove", name=name, **arguments)


async def is_held(here: Here, name: str) -> bool:
    """Whether a client that has it is connected."""
    try:
        await call(here, "handlers_remove", name=name, dry_run=True)
    except OperationFailed as exc:
        return "is connected" in str(exc)
    return False


@pytest.mark.parametrize("filter_", [SHARED, "devices/+/events/#"])
def test_remove_a_subscription_whose_clients_are_away(tmp_path: Path, filter_: str) -> None:
    """It is gone with its lag, the sessions that held it end, and who comes back is told to subscribe again."""

    async def scenario() -> None:
        async with serving(settings_in(tmp_path)) as here:
            members = [await service(here, name, filter_) for name in ("one", "two")[: 2 if filter_ == SHARED else 1]]
            (name,) = await names(here)
            with pytest.raises(
                OperationFailed, match="'one' is connected and has it; it can unsubscribe, or be revoked"
            ):
                await call(here, "handlers_remove", name=name)
            for client in members:
                await client.aclose()
            await call(here, "events_publish", type="t")
            shown = await removed(here, name, dry_run=True)
            assert shown == {
                "name": name,
                "lag": 1,
                "waiting": 0,
                "blocked": 0,
                "dead": 0,
                "sessions": ["one", "two"][: len(members)],
            }
            assert await names(here) == [name]
            with structlog.testing.capture_logs() as logs:
                assert await removed(here, name) == shown
            (entry,) = [each for each in logs if each["event"] == "handler_removed"]
            assert (entry["handler"], entry["lag"], entry["sessions"]) == (name, 1, len(members))
            await until_names(here)
            again = await service(here, "one")
            assert not again.connack.session_present
            await again.aclose()

    run(scenario())


def test_other_subscriptions_of_an_ended_session_end_with_it(tmp_path: Path) -> None:
    """A session ends as a whole: its own cursor goes, one that is shared is kept for others, for its time."""

    async def scenario() -> None:
        async with serving(settings_in(tmp_path)) as here:
            client = await service(here, "one", SHARED, "$share/other/devices/+/events/#", "devices/a/events/#")
            assert len(await names(here)) == 3
            await client.aclose()
            assert (await removed(here, NAME))["sessions"] == ["one"]
            await until_names(here, "mqtt:service/other:devices/+/events/#")
            states = [row["state"] for row in await call(here, "handlers_list")]
            assert states == ["no session"]
            await removed(here, "mqtt:service/other:devices/+/events/#")
            await until_names(here)

    run(scenario())


def test_retired_subscription(tmp_path: Path) -> None:
    """One that nobody holds any more need not wait for its time to be over; and the name can be used again."""

    async def scenario() -> None:
        async with serving(settings_in(tmp_path)) as here:
            client = await service(here, "one", SHARED)
            client.send(Unsubscribe(packet_id=3, topic_filters=(SHARED,)))
            await client.read()
            assert (await removed(here, NAME))["sessions"] == []
            await until_names(here)
            client.send(Subscribe(packet_id=9, subscriptions=(Subscription(topic_filter=SHARED, qos=1),)))
            assert (await client.read()).reason_codes == (1,)
            assert await names(here) == [NAME]
            await client.aclose()

    run(scenario())


def test_handlers_of_the_configuration(tmp_path: Path) -> None:
    """A configured handler is not removed; taken out of the configuration it is, also while the gateway is stopped."""
    table = '[{name = "orders", url = "http://127.0.0.1:9/"}, {name = "bills", url = "http://127.0.0.1:9/"}]'

    async def scenario() -> None:
        settings = settings_in(tmp_path, HANDLERS=table)
        async with serving(settings) as here:
            with pytest.raises(OperationFailed, match="'orders' is in the configuration; take its table out"):
                await call(here, "handlers_remove", name="orders")
            with pytest.raises(
                OperationFailed, match="no handler 'nobody'; `gateway handlers list` shows those there are"
            ):
                await call(here, "handlers_remove", name="nobody")
            await (await service(here, "one", SHARED)).aclose()
            assert await names(here) == ["bills", NAME, "orders"]
        settings = msgspec.structs.replace(settings, handlers=())
        answer = await command_line.call(settings, "handlers_remove", name="bills")
        assert answer["sessions"] == []
        with pytest.raises(Conflict, match="removed from a running gateway; start it"):
            await command_line.call(settings, "handlers_remove", name=NAME)
        async with serving(settings) as here:
            assert await names(here) == [NAME, "orders"]
            await call(here, "handlers_remove", name="orders")
            assert await names(here) == [NAME]

    run(scenario())
