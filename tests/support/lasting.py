"""What tests of sessions share: operators that keep one, a clock that can be moved, what is on disk."""

from __future__ import annotations

import time

from mqtt_kit import Client, Running, eventually, properties, token

from gateway.mqtt.codec import Pingreq, Pingresp, Subscribe, Subscription, Version
from gateway.ports.identity import Principal, PrincipalKind

ANN = Principal(PrincipalKind.CLIENT, "id", "ann")


class Clock:
    """Unix time that a test can move."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead_s


def lasting(version: Version = Version.V5, expiry_s: int = 100, **more: object) -> dict[str, object]:
    """Options of a CONNECT that keeps its session."""
    if version is Version.V311:
        return {"version": version, "clean_start": False}
    return {
        "version": version,
        "clean_start": False,
        "properties": properties(session_expiry_interval=expiry_s, **more),
    }


async def operator(
    run: Running,
    client_id: str = "tool",
    *filters: str,
    qos: int = 1,
    options: dict[str, object] | None = None,
    **connecting: object,
) -> Client:
    """Connect as ann, and subscribe."""
    client = await run.client(client_id, token_=token("ann", "operator", iss="id"), **connecting)
    if filters:
        wanted = tuple(Subscription(topic_filter=each, qos=qos, **(options or {})) for each in filters)
        client.send(Subscribe(packet_id=1, subscriptions=wanted))
        assert all(code == qos for code in (await client.read()).reason_codes)
    return client


async def gone(run: Running, client: Client) -> None:
    """Disconnect without a word, and wait until that is noticed."""
    before = run.server.stats.connections
    await client.aclose()
    await eventually(lambda: run.server.stats.connections < before)


async def alive(client: Client) -> bool:
    """Whether the next packet is the answer to a PINGREQ: nothing else was sent."""
    client.send(Pingreq())
    return await client.read() == Pingresp()


async def kept(run: Running, part: str = "") -> list[str]:
    """Keys of sessions on disk, those with a part (`/out/`)."""
    return [key for key in await run.state.kept("session/") if part in key]


async def number_kept(run: Running, part: str = "") -> int:
    """How many these are."""
    return len(await kept(run, part))


async def clients_kept(run: Running) -> set[str]:
    """Client ids of the sessions on disk."""
    return {key.split("/")[4] for key in await kept(run)}
