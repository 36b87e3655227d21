"""One open gateway for all conformance tests of a run; each test has names of its own."""

import uuid

import pytest
from open_gateway import open_gateway


@pytest.fixture(scope="session")
def running(tmp_path_factory):
    with open_gateway(tmp_path_factory.mktemp("conformance") / "gateway") as gateway:
        yield gateway


@pytest.fixture
def gateway(running):
    """The gateway; what a test connected is closed behind it."""
    yield running
    running.forget()


@pytest.fixture
def name():
    """A topic and client id that no other test uses."""
    return f"t{uuid.uuid4().hex[:12]}"
