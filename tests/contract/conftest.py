"""Every suite here runs against every backend: a new one gains all by one more entry in `URLS`."""

from __future__ import annotations

import pytest

from gateway.storage import open_storage

URLS = {"memory": "memory://", "sqlite": "sqlite:///{directory}/bus.db"}


@pytest.fixture(params=sorted(URLS))
async def opened(request, tmp_path):
    """Open a store of the backend under test; all are closed at the end."""
    stores = []

    async def open_one(**settings):
        settings.setdefault("min_free_disk_bytes", 0)
        stores.append(await open_storage(URLS[request.param].format(directory=tmp_path), **settings))
        return stores[-1]

    yield open_one
    for store in stores:
        await store.aclose()


@pytest.fixture
async def store(opened):
    """An open store with default settings."""
    return await opened()


@pytest.fixture
def bus(store):
    """Its event bus."""
    return store.bus


@pytest.fixture
def subscriptions(store):
    """Its subscriptions."""
    return store.subscriptions


@pytest.fixture
def state(store):
    """Its state."""
    return store.state
