"""Events from agents to a service while everything in between is killed."""

from __future__ import annotations

import json
import random
import threading
import time
from pathlib import Path

import pytest
from sink import Sink
from soak import SOAK
from system import System, eventually

from edge_agent import Agent
from gateway.demo.stage import program

DEVICES = 5
EVENTS_EACH = 1000
GATEWAY_KILLS, AGENT_KILLS = 5, 2


def _emit(home: Path, count: int) -> None:
    with Agent.open(home) as agent:
        for n in range(count):
            agent.emit("measured", {"n": n})
            time.sleep(0.01)  # spreads the events over the time of the kills


@pytest.mark.soak
@pytest.mark.timeout(300 * SOAK)
def test_no_event_is_lost_and_none_is_applied_twice_through_kills(system: System, sink: Sink) -> None:
    """5,000 events of 5 agents reach the service once each and in order through 5 gateway and 2 agent SIGKILLs."""
    system.add_handlers(
        f'name = "ledger"\nurl = "{sink.url}"\nretry = {{ max_attempts = 1000, first = "10ms", max = "1s" }}'
    )
    system.start_gateway()
    homes = {f"dev{n}": system.add_agent(f"dev{n}") for n in range(DEVICES)}
    count = EVENTS_EACH * SOAK
    speakers = [threading.Thread(target=_emit, args=(home, count)) for home in homes.values()]
    for speaker in speakers:
        speaker.start()

    chance = random.Random()
    kills = ["gateway"] * GATEWAY_KILLS * SOAK + ["agent"] * AGENT_KILLS * SOAK
    chance.shuffle(kills)
    for victim in kills:
        time.sleep(chance.uniform(0.3, 2.0))
        if victim == "gateway":
            system.kill("gateway")
            system.start_gateway()
        else:
            device = chance.choice(list(homes))
            system.kill(device)
            system.start(device, program("edge-agent"), "run", "--home", str(homes[device]))
    for speaker in speakers:
        speaker.join()

    total = count * DEVICES
    eventually(lambda: sink.count >= total, within_s=120 * SOAK, what=f"{sink.count} of {total} events arrived")
    for device in homes:
        applied = [received.data["n"] for received in sink.applied[f"/devices/{device}"]]
        assert applied == list(range(count)), f"{device}: lost, repeated or out of order"
    assert json.loads(system.gateway("dead-letters", "list", "--json").stdout) == []
