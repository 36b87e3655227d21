"""`/readyz` of a whole gateway: it says why events are refused, in words that can be acted on."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from gateway_here import serving, settings_in

from gateway.cli.client import OperationFailed, call

FINE = {"listeners": "ok", "bus": "ok", "disk": "ok"}


async def test_ready(tmp_path: Path):
    """A gateway that takes events says so."""
    async with serving(settings_in(tmp_path)) as gateway:
        assert await gateway.ready() == (200, {"ready": True, "checks": FINE})


async def test_the_disk_is_below_its_floor(tmp_path: Path):
    """It tells what is left and what is wanted, and so does whoever is refused."""
    settings = settings_in(tmp_path, BUS__MIN_FREE_DISK="900TiB")
    async with serving(settings) as gateway:
        status, answer = await gateway.ready()
        assert (status, answer["ready"], answer["checks"] | {"disk": ""}) == (503, False, FINE | {"disk": ""})
        assert answer["checks"]["disk"].endswith("iB free, bus.min_free_disk is 900 TiB")
        with pytest.raises(OperationFailed, match=r"^the disk has .*iB left, less than bus\.min_free_disk, 900 TiB$"):
            await call(settings, "events_publish", type="t")


async def test_the_bus_is_over_its_size(tmp_path: Path):
    """While a handler needs all that is stored the bus takes nothing more: not ready, and why."""
    handler = '[{name = "h", url = "http://127.0.0.1:1/"}]'
    settings = settings_in(tmp_path, BUS__RETENTION='{size = "128KiB"}', HANDLERS=handler)
    async with serving(settings) as gateway:
        assert (await gateway.ready())[0] == 200
        for n in range(4):
            with suppress(OperationFailed):  # by then it is known, a second after it was true
                await call(settings, "events_publish", type="t", id=str(n), data="x" * 40_000)
        full = "the bus is over the 128 KiB of bus.retention, and live subscriptions need all of it"
        assert await gateway.ready() == (503, {"ready": False, "checks": FINE | {"bus": full}})
