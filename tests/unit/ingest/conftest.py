"""Fixtures: a store in memory and a started pipeline on it."""

import ingest_parts as parts
import pytest


@pytest.fixture
async def bus():
    storage = await parts.memory()
    yield storage.bus
    await storage.aclose()


@pytest.fixture
async def pipeline(bus):
    pipeline = parts.pipeline_on(bus)
    await pipeline.start()
    yield pipeline
    await pipeline.aclose()
