"""Clients that know no rules, a store that is slow and fails, revocations in between: in the end nothing is left of it.

What is sent is well formed, but comes in any order: answers to what was never asked, identifiers used again, PUBREL before
PUBREC, a socket that is gone in the middle of it all.
"""

from __future__ import annotations

import asyncio
import gc
import random
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import pytest
from gates import StateGate
from mqtt_kit import connect, eventually, properties, publish, running, stored, token
from structlog.testing import capture_logs

from gateway.errors import BusUnavailable
from gateway.mqtt.codec import (
    Pingreq,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Subscribe,
    Subscription,
    Unsubscribe,
    Version,
    encode,
)
from gateway.mqtt.connection import Connection
from gateway.ports.identity import Principal, PrincipalKind
from gateway.rules.flows import OVERHEAD_BYTES

ROUNDS = 15  # connections of each client
LIMITS = {
    "queue_messages": 20,
    "queue_bytes": 8000,
    "queues_bytes": 20_000,
    "receive_maximum": 20,
    "connection_inflight_bytes": 20_000,
    "linger_s": 0.2,
}
FILTERS = ("chat/#", "chat/+", "$share/g/chat/#")


class MoodyState(StateGate):
    """A store that takes its time, and now and then takes nothing."""

    def __init__(self, inner, chance):
        super().__init__(inner)
        self.chance, self.is_bad = chance, False

    async def _pass(self):
        await asyncio.sleep(self.chance.choice([0, 0, 0.001, 0.005]) if self.is_bad else 0)
        if self.is_bad and self.chance.random() < 0.03:
            raise BusUnavailable("a bad moment")


class Rogue:
    """One that connects again and again, as a device or as an operator; now and then it takes another's session over."""

    def __init__(self, run, chance, number):
        self.run, self.chance, self.number = run, chance, number

    async def connects(self):
        chance = self.chance
        number = self.number if chance.random() < 0.9 else 1
        is_device = chance.random() < 0.5
        name = f"dev{number}" if is_device else f"tool{number}"
        self.topics = [f"devices/{name}/events/t", f"devices/{name}/state"] if is_device else ["chat/a"]
        proof = token(name) if is_device else token("ann", "operator", iss="id", jti=chance.choice(["one", "two"]))
        version = chance.choice(list(Version))
        said = properties(session_expiry_interval=600, receive_maximum=chance.choice([None, 1]))
        options = {"properties": said} if version is Version.V5 else {}
        client = await self.run.raw(version)
        self.run.clients.remove(client)
        client.send(connect(name, token_=proof, version=version, clean_start=chance.random() < 0.3, **options))
        with suppress(OSError):
            await client.read()
            for _ in range(chance.randrange(6)):
                with suppress(TimeoutError):
                    await self._talks(client)
        client.writer.write(encode(self._packet(), version)[:-1])
        if chance.random() < 0.5:
            client.writer.transport.abort()
        await client.aclose()

    async def _talks(self, client):
        client.send(*(self._packet() for _ in range(self.chance.choice([1, 3, 20]))))
        for _ in range(self.chance.choice([0, 3, 30])):
            packet = await client.read(0.01)
            if packet is None:
                return
            if isinstance(packet, Publish) and packet.qos:
                client.send((Puback if packet.qos == 1 else Pubrec)(packet_id=packet.packet_id))

    def _packet(self):
        chance, packet_id = self.chance, self.chance.randint(1, 6)
        qos = chance.choice([0, 1, 2, 2])
        match chance.randrange(10):
            case 0 | 1 | 2 | 3:
                topic = chance.choice(self.topics)
                return publish(topic, b'{"a": 1}', qos=qos, packet_id=packet_id if qos else 0)
            case 4 | 5:
                return Pubrel(packet_id=packet_id)
            case 6:
                return chance.choice([Puback, Pubrec, Pubcomp])(packet_id=packet_id)
            case 7:
                wanted = Subscription(topic_filter=chance.choice(FILTERS), qos=qos)
                return Subscribe(packet_id=packet_id, subscriptions=(wanted,))
            case 8:
                return Unsubscribe(packet_id=packet_id, topic_filters=(chance.choice(FILTERS),))
        return Pingreq()


async def revoke_now_and_then(run, chance):
    while True:
        await asyncio.sleep(chance.uniform(0, 0.1))
        if chance.random() < 0.5:
            run.server.disconnect_token("id", "one")
        else:
            run.server.disconnect(Principal(PrincipalKind.DEVICE, "", "dev1"))


@asynccontextmanager
async def on_a_moody_store(chance):
    async with stored() as storage:
        state = MoodyState(storage.state, chance)
        async with running(storage=replace(storage, state=state), limits=LIMITS) as run:
            await run.register("dev0")
            state.is_bad = True
            yield run, state


@pytest.mark.parametrize("seed", range(3))
async def test_nothing_is_left_of_disorder(seed):
    """No error, no connection, no task; what was taken is answered or given back; queues count what is in them."""
    chance = random.Random(seed)
    with capture_logs() as logs:
        async with on_a_moody_store(chance) as (run, state):
            hub = run.server._hub
            revoking = asyncio.create_task(revoke_now_and_then(run, chance))
            async with asyncio.TaskGroup() as tasks:
                for n in range(6):
                    tasks.create_task(connects_often(Rogue(run, random.Random(seed * 10 + n), n)))
            revoking.cancel()
            state.is_bad = False
            await eventually(lambda: not hub.sockets and not hub.journal._is_running, 30)
            await eventually(lambda: hub.budget.used_bytes == 0)
            assert run.server.stats.connections == 0
            assert hub.clients._by_principal == {}
            assert all(not session.receiver._waiting for session in hub.sessions)
            queued = [each for session in hub.sessions for each in session._out._queue]
            assert hub.stats.queues.size_bytes == sum(each.size_bytes + OVERHEAD_BYTES for each in queued)
            await eventually(lambda: not connections_of(hub))
    assert [entry for entry in logs if entry["log_level"] in {"error", "critical"}] == []


def connections_of(hub):
    gc.collect()
    return [each for each in gc.get_objects() if isinstance(each, Connection) and each._hub is hub]


async def connects_often(rogue):
    for _ in range(ROUNDS):
        await rogue.connects()
