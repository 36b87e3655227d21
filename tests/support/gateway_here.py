"""The whole gateway inside the test's own process and event loop, so that its disk can be made to fail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import uvloop
from fleet import make_folder

from gateway.config import Settings
from gateway.demo.stage import free_port
from gateway.service import Gateway

T = TypeVar("T")


@dataclass(frozen=True)
class Here:
    """A gateway that serves in this process."""

    settings: Settings
    mqtt_port: int
    http_port: int

    async def ready(self) -> tuple[int, dict[str, Any]]:
        """Status and body of `/readyz`."""
        url = f"http://127.0.0.1:{self.http_port}/readyz"
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            return answer.status, await answer.json()


def settings_in(folder: Path, **environ: str) -> Settings:
    """A gateway's folder with plain listeners on loopback, for a test that is about something else than TLS."""
    return make_folder(
        folder,
        **{
            "MQTT__LISTEN": f'["mqtt://127.0.0.1:{free_port()}"]',
            "HTTP__LISTEN": f"127.0.0.1:{free_port()}",
            "HTTP__DEVICE_LISTEN": "",
            "LIMITS__OPENER_PROCESSES": "1",
            "BUS__MIN_FREE_DISK": "1",
            **environ,
        },
    )


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[Here]:
    """Serve until the block ends; a gateway that fails fails the test."""
    stop, started = asyncio.Event(), asyncio.Event()
    running = asyncio.create_task(Gateway.run(settings, stop, started=started))
    starting = asyncio.create_task(started.wait())
    await asyncio.wait((running, starting), return_when=asyncio.FIRST_COMPLETED)
    starting.cancel()
    if running.done():
        running.result()
    mqtt, http = (int(url.rpartition(":")[2]) for url in (settings.mqtt.listen[0], settings.http.listen))
    try:
        yield Here(settings, mqtt, http)
    finally:
        stop.set()
        await running


def run(scenario: Coroutine[Any, Any, T]) -> T:
    """Run a scenario on the loop that serves in production."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(scenario)
