"""Fixtures: a SQLite store that can be opened again, and looked into while it is closed."""

import pytest

from gateway.storage import open_storage


@pytest.fixture
def path(tmp_path):
    return tmp_path / "bus.db"


@pytest.fixture
async def open_store(path):
    stores = []

    async def open_one(**settings):
        settings.setdefault("min_free_disk_bytes", 0)
        stores.append(await open_storage(f"sqlite:///{path}", **settings))
        return stores[-1]

    yield open_one
    for store in stores:
        await store.aclose()
