"""A service that is down is not a poisoned event."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from sink import Received, Sink
from system import System, eventually

from edge_agent import Agent

FAST_RETRY = 'retry = { max_attempts = 3, first = "10ms", max = "50ms" }'


def _emit(home: Path, *numbers: int) -> list[str]:
    with Agent.open(home) as agent:
        return [agent.emit("measured", {"n": n}) for n in numbers]


def _numbers(sink: Sink, device: str) -> list[int]:
    return [received.data["n"] for received in sink.applied[f"/devices/{device}"]]


@pytest.mark.timeout(120)
def test_a_target_that_is_down_longer_than_all_retries_costs_nothing(system: System, sink: Sink) -> None:
    """While the service is away nothing is dead-lettered; when it is back everything comes, in order, by itself."""
    system.add_handlers(f'name = "ledger"\nurl = "{sink.url}"\n{FAST_RETRY}')
    sink.stop()
    system.start_gateway()
    home = system.add_agent("dev1")
    _emit(home, *range(50))
    eventually(lambda: system.handlers()["ledger"]["state"] == "down", what="the handler is not shown as down")
    time.sleep(2)  # far longer than 3 attempts of at most 50 ms
    assert system.handlers()["ledger"]["dead"] == 0

    sink.start()
    eventually(lambda: sink.count == 50, what=f"{sink.count} of 50 arrived")
    assert _numbers(sink, "dev1") == list(range(50))
    assert system.handlers()["ledger"]["dead"] == 0


@pytest.mark.timeout(120)
def test_a_poisoned_event_becomes_a_dead_letter_and_replays_under_its_key(system: System, sink: Sink) -> None:
    """The event that fails is retried and put aside with its cause, others flow, and replay delivers it alone again."""
    poisoned = {"on": True}

    def answer(received: Received) -> int:
        return 500 if poisoned["on"] and received.data["n"] == 3 else 204

    sink.answer = answer
    system.add_handlers(f'name = "ledger"\nurl = "{sink.url}"\n{FAST_RETRY}')
    system.start_gateway()
    home = system.add_agent("dev1")
    ids = _emit(home, *range(10))
    eventually(lambda: sink.count == 9, what=f"{sink.count} of 9 arrived")
    eventually(lambda: system.handlers()["ledger"]["dead"] == 1, what="no dead letter")
    assert _numbers(sink, "dev1") == [0, 1, 2, 4, 5, 6, 7, 8, 9]

    (letter,) = json.loads(system.gateway("dead-letters", "list", "--json").stdout)
    assert letter["event_id"] == ids[3]
    assert letter["attempts"] == 3
    assert "500" in letter["cause"]
    (shown,) = json.loads(system.gateway("events", "show", ids[3], "--json").stdout)["events"]
    assert shown["handlers"][0]["state"] == "dead"

    tried = [received for received in sink.deliveries if received.id == ids[3]]
    assert len(tried) == 3
    poisoned["on"] = False
    system.gateway("dead-letters", "replay", letter["id"])
    eventually(lambda: sink.count == 10, what="the replayed event did not arrive")
    again = [received for received in sink.deliveries if received.id == ids[3]][-1]
    assert again.key == tried[0].key
    assert len(sink.deliveries) == 9 + 3 + 1, "replay touched other events"
    assert system.handlers()["ledger"]["dead"] == 0


@pytest.mark.timeout(120)
def test_a_second_start_after_kill_needs_no_hand(system: System, sink: Sink) -> None:
    """After SIGKILL the gateway starts again on the same files, and SIGTERM ends it cleanly with exit code 0."""
    system.add_handlers(f'name = "ledger"\nurl = "{sink.url}"')
    system.start_gateway()
    home = system.add_agent("dev1")
    _emit(home, 1)
    eventually(lambda: sink.count == 1)
    system.kill("gateway")
    _emit(home, 2)
    system.start_gateway()
    eventually(lambda: sink.count == 2, what="the agent did not come back")
    assert system.terminate("gateway") == 0
    assert not (system.folder / "state" / "gateway.sock").exists()
