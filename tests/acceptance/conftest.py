from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sink import Sink
from system import System


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    """A gateway that is initialised, not started."""
    stage = System(tmp_path)
    stage.init_gateway()
    yield stage
    stage.stop()


@pytest.fixture
def sink() -> Iterator[Sink]:
    """A cloud service that takes everything."""
    service = Sink().start()
    yield service
    service.stop()
