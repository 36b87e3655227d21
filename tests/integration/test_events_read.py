"""`events_read`, behind `gateway events tail`: what was stored before the call is shown, however the log is paged."""

from __future__ import annotations

from pathlib import Path

from gateway_here import serving, settings_in

from gateway.cli.client import call
from gateway.operations import events


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


async def test_a_call_ends_after_so_many_pages(tmp_path: Path, monkeypatch):
    """What is wanted stands behind more than one call looks through: the answer is short, and `next` goes on."""
    monkeypatch.setattr(events, "_PAGE_BYTES", 1)  # one event a page
    monkeypatch.setattr(events, "_PAGES", 3)
    settings = settings_in(tmp_path)
    async with serving(settings):
        for n in range(1, 8):
            await call(settings, "events_publish", type="order.placed" if n in (3, 7) else "cart.updated", id=f"e{n}")
        answers = []
        after: dict[str, str] = {"start": "beginning"}
        while not answers or answers[-1]["next"] != after.get("after"):
            after = {"after": answers[-1]["next"]} if answers else after
            answers.append(await call(settings, "events_read", types=["order.*"], **after))
        assert [[event["id"] for event in answer["events"]] for answer in answers] == [["e3"], [], ["e7"], []]
