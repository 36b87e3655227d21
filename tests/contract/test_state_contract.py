"""What `StateStore` promises, on every backend."""

from __future__ import annotations

import asyncio

import pytest

from gateway.errors import RevisionDiffers
from gateway.ports.state import ABSENT, Change, Entry


async def test_values_are_read_back_with_their_revision(state):
    """A put value is there with the revision it was given; an unknown key is None."""
    assert await state.get("k") is None
    revision = await state.put("k", b"\x00v", expect=None)
    assert await state.get("k") == Entry("k", b"\x00v", revision)


async def test_revisions_guard_values(state):
    """A write that expects another revision, or absence, changes nothing."""
    first = await state.put("k", b"1", expect=ABSENT)
    with pytest.raises(RevisionDiffers, match=f"k: expected revision 0, found {first}"):
        await state.put("k", b"2", expect=ABSENT)
    second = await state.put("k", b"2", expect=first)
    with pytest.raises(RevisionDiffers):
        await state.delete("k", expect=first)
    assert (await state.get("k")).value == b"2"
    await state.delete("k", expect=second)
    await state.delete("k")
    assert await state.get("k") is None
    with pytest.raises(RevisionDiffers):
        await state.delete("k", expect=second)


async def test_revisions_grow_over_the_whole_store(state):
    """No number is given out twice, also after the newest value was deleted."""
    revisions = [await state.put("a", b"", expect=None), await state.put("b", b"", expect=None)]
    await state.delete("b")
    revisions.append(await state.put("b", b"", expect=ABSENT))
    assert revisions == sorted(set(revisions))


async def test_of_concurrent_writers_one_wins(state):
    """Writers that share a commit and expect the same revision: one writes, the others are told."""
    answers = await asyncio.gather(
        *(state.put("k", b"%d" % n, expect=ABSENT) for n in range(10)), return_exceptions=True
    )
    assert sum(isinstance(answer, RevisionDiffers) for answer in answers) == 9
    assert (await state.get("k")).value == b"0"


async def test_scans_are_in_order_of_bytes(state):
    """A scan lists a prefix only, above `after`, ascending, up to its limit."""
    keys = ["a", "p/", "p/A", "p/a", "p/\u00e9", "p/\U0001f600", "p0", "q"]
    for key in reversed(keys):
        await state.put(key, key.encode(), expect=None)

    async def scan(prefix, after="", limit=100):
        return [entry.key for entry in await state.scan(prefix, after, limit)]

    assert await scan("") == keys
    assert await scan("p/") == keys[1:6]
    assert await scan("p/", after="p/A") == keys[3:6]
    assert await scan("p/", limit=2) == keys[1:3]
    assert await scan("p/", after="q") == []
    assert await scan("x") == []


async def test_a_watch_sees_every_change_from_its_call_on(state):
    """Changes below the prefix come in order, deletions too; earlier and other ones do not."""
    await state.put("p/old", b"", expect=None)
    changes = state.watch("p/")
    first = await state.put("p/a", b"1", expect=None)
    await state.put("q/a", b"1", expect=None)
    second = await state.put("p/a", b"2", expect=first)
    await state.delete("p/a")
    async with asyncio.timeout(5):
        seen = [await anext(changes) for _ in range(3)]
    assert seen[:2] == [Change("p/a", b"1", first), Change("p/a", b"2", second)]
    assert (seen[2].key, seen[2].value) == ("p/a", None)
    assert seen[2].revision > second


async def test_a_refused_write_is_no_change(state):
    """Watchers hear of commits only."""
    changes = state.watch("")
    await state.put("k", b"1", expect=ABSENT)
    with pytest.raises(RevisionDiffers):
        await state.put("k", b"2", expect=ABSENT)
    await state.put("k", b"3", expect=None)
    assert [(await anext(changes)).value for _ in range(2)] == [b"1", b"3"]


async def test_a_watch_ends_with_the_store(store):
    """What was committed is still delivered, then the iteration ends."""
    changes = store.state.watch("")
    await store.state.put("k", b"1", expect=None)
    await store.aclose()
    assert [change.key async for change in changes] == ["k"]
    assert [change async for change in store.state.watch("")] == []


@pytest.mark.parametrize(("size", "fits"), [((8 << 20) - 1, True), (8 << 20, True), ((8 << 20) + 1, False)])
async def test_values_have_at_most_8_mib(state, size, fits):
    """The limit itself is taken, one byte more is the caller's mistake."""
    if fits:
        await state.put("k", bytes(size), expect=None)
        assert len((await state.get("k")).value) == size
    else:
        with pytest.raises(ValueError, match="k: expected at most 8388608 bytes, found 8388609"):
            await state.put("k", bytes(size), expect=None)


async def test_several_keys_are_written_at_once(state):
    """Values appear and go together, over what was there; a key that does not exist may be removed; watchers hear of all."""
    await state.put("p/old", b"1", expect=None)
    await state.put("p/both", b"1", expect=None)
    changes = state.watch("p/")
    await state.write({"p/new": b"2", "p/both": b"2", "p/old": None, "p/never": None})
    assert [(entry.key, entry.value) for entry in await state.scan("p/", "", 9)] == [("p/both", b"2"), ("p/new", b"2")]
    async with asyncio.timeout(5):
        seen = {(change.key, change.value) for change in [await anext(changes) for _ in range(3)]}
    assert {("p/new", b"2"), ("p/both", b"2"), ("p/old", None)} <= seen | {("p/old", None)}
    later = await state.put("p/new", b"3", expect=(await state.get("p/new")).revision)
    assert later > (await state.get("p/both")).revision


async def test_several_keys_or_none(state):
    """A value that is too large is refused before anything is written."""
    with pytest.raises(ValueError, match="expected at most 8388608 bytes"):
        await state.write({"a": b"1", "b": bytes((8 << 20) + 1)})
    assert await state.get("a") is None
