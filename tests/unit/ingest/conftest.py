"""Fixtures: a store in memory and a started pipeline on it."""

import asyncio

import ingest_parts as parts
import pytest
from gates import BusGate


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


@pytest.fixture(scope="module")
def runner():
    """One event loop with one pool of two processes for all examples of a module."""
    with asyncio.Runner() as runner:
        bus = BusGate()
        pipeline = parts.pipeline_on(bus, processes=2)
        runner.run(pipeline.start())
        yield runner, pipeline, bus
        runner.run(pipeline.aclose())
