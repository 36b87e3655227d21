"""`events_read`, behind `gateway events tail`: what was stored before the call is shown, however the log is paged."""

from __future__ import annotations

from contextlib import aclosing
from pathlib import Path

import pytest
from batches import plain_batch
from gateway_here import serving, settings_in

from gateway.cli.client import call
from gateway.parts import open_storage


async def test_what_was_stored_since_the_last_call_is_shown_by_the_next(tmp_path: Path):
    """A page of the log may end where the log once ended: such a page, with nothing wanted in it, is not the answer."""
    settings = settings_in(tmp_path)
    async with serving(settings):

        async def shown() -> list[str]:
            page = await call(settings, "events_read", start="beginning", types=["order.*"])
            return [event["id"] for event in page["events"]]

        await call(settings, "events_publish", type="cart.updated", id="cart")
        assert await shown() == []
        for n in range(1, 4):
            await call(settings, "events_publish", type="order.placed", id=f"order-{n}")
            assert await shown() == [f"order-{m}" for m in range(1, n + 1)]


@pytest.mark.parametrize(("unwanted", "first"), [(15, ["wanted"]), (16, []), (17, [])])
async def test_a_call_ends_after_so_many_pages(tmp_path: Path, unwanted: int, first: list[str]):
    """What is wanted stands behind more than one call looks through, 16 pages: the answer is short, and `next` goes on."""
    settings = settings_in(tmp_path)
    async with aclosing(await open_storage(settings)) as storage:
        page = [plain_batch(f"e{n}", type_="cart.updated", pad=1 << 20) for n in range(unwanted)]
        await storage.bus.append([*page, plain_batch("wanted", type_="order.placed")])
    answer = await call(settings, "events_read", start="beginning", types=["order.*"])
    assert [event["id"] for event in answer["events"]] == first
    rest = await call(settings, "events_read", after=answer["next"], types=["order.*"])
    assert [event["id"] for event in (*answer["events"], *rest["events"])] == ["wanted"]
    end = await call(settings, "events_read", after=rest["next"], types=["order.*"])
    assert (end["events"], end["next"]) == ([], rest["next"])
