"""Event loops (the MQTT server runs on uvloop, as in production), and the parts of an agent's scripted world."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import pytest
import uvloop
from agent_home import TENS, Broker, Cloud, home_for


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> Mapping[str, Callable[[], object]]:
    if item.path.name.startswith("test_mqtt_"):
        return {"uvloop": uvloop.new_event_loop}
    return {"asyncio": asyncio.new_event_loop}


@pytest.fixture
def cloud():
    return Cloud()


@pytest.fixture
def broker(cloud):
    with Broker(cloud) as running:
        yield running


@pytest.fixture
def home(cloud, broker, tmp_path):
    return home_for(cloud, tmp_path / "home", broker.url, more=TENS)
