"""The Unix socket of a running gateway."""

import asyncio
import socket
import stat

import aiohttp
import pytest

from gateway.errors import BusUnavailable, Conflict, NotFound
from gateway.web.control import ControlServer, address_of, is_answering


async def echo(*, text, times=1):
    return {"said": [text] * times}


async def missing(*, name):
    raise NotFound(f"device {name!r}: there is none")


async def away():
    raise BusUnavailable("the disk is gone")


async def broken():
    raise RuntimeError("secret detail")


OPERATIONS = {"echo": echo, "missing": missing, "away": away, "broken": broken}


@pytest.fixture
async def path(tmp_path):
    where = tmp_path / "gateway.sock"
    server = await ControlServer.start(OPERATIONS, where)
    yield where
    await server.aclose()
    await server.aclose()
    assert not where.exists()


async def post(path, name, body=b"{}"):
    with address_of(path) as address:
        session = aiohttp.ClientSession(connector=aiohttp.UnixConnector(address))
        async with session, session.post(f"http://gateway/v1/{name}", data=body) as answer:
            return answer.status, await answer.json()


async def test_an_operation_is_called_with_its_arguments(path):
    """JSON in, JSON out."""
    assert await post(path, "echo", b'{"text": "hi", "times": 2}') == (200, {"said": ["hi", "hi"]})


@pytest.mark.parametrize(
    ("name", "body", "status", "error", "message"),
    [
        ("missing", b'{"name": "x"}', 404, "NotFound", "device 'x': there is none"),
        ("away", b"{}", 503, "BusUnavailable", "the disk is gone"),
        ("broken", b"{}", 500, "InternalError", "broken failed in a way nobody foresaw; the gateway's log says more"),
        ("echo", b"{}", 400, "GatewayError", "operation echo: missing a required argument: 'text'"),
        ("echo", b'{"text":"a","x":1}', 400, "GatewayError", "operation echo: got an unexpected keyword argument 'x'"),
        ("nope", b"{}", 400, "GatewayError", "operation 'nope': expected one of away, broken, echo, missing"),
    ],
)
async def test_errors_keep_their_class_and_message(path, name, body, status, error, message):  # noqa: PLR0917  # a table's columns
    """What an operation raises reaches the operator in its own words; a traceback never does."""
    assert await post(path, name, body) == (status, {"error": error, "message": message})


@pytest.mark.parametrize("body", [b"", b"[]", b"\xff", b"[" * 5000])
async def test_what_is_no_object_is_refused(path, body):
    """The message says what was expected."""
    status, answer = await post(path, "echo", body)
    assert status == 400
    assert answer["message"].startswith("expected a JSON object of keyword arguments")


async def test_only_the_owner_may_open_it(path):
    """Mode 0600, and no other file of it stays behind."""
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path]


async def test_a_stale_file_is_replaced(tmp_path):
    """What a killed gateway left does not stop the next."""
    path = tmp_path / "gateway.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert path.exists()
    assert not is_answering(path)
    server = await ControlServer.start(OPERATIONS, path)
    assert await asyncio.to_thread(is_answering, path)
    # The call comes behind the probe in the listener's queue, so the probe's connection is whole when the server closes:
    # asyncio of Python 3.11 leaks a socket that is accepted in the turn of Server.close (an assert in Server._attach).
    assert (await post(path, "echo", b'{"text": "hi"}'))[0] == 200
    await server.aclose()


async def test_a_second_gateway_is_refused(path):
    """Two gateways on one state folder would destroy it."""
    with pytest.raises(Conflict, match="a gateway is running already"):
        await ControlServer.start({}, path)
    assert (await post(path, "echo", b'{"text": "hi"}'))[0] == 200


async def test_a_path_of_any_length_works(tmp_path):
    """A Unix address has 108 bytes; folders may be deeper."""
    folder = tmp_path / ("d" * 100) / ("e" * 100)
    folder.mkdir(parents=True)
    server = await ControlServer.start(OPERATIONS, folder / "gateway.sock")
    assert (await post(folder / "gateway.sock", "echo", b'{"text": "hi"}'))[1] == {"said": ["hi"]}
    await server.aclose()
    assert not list(folder.iterdir())


def test_a_missing_file_answers_nothing(tmp_path):
    """No socket, no gateway; no folder, neither."""
    assert not is_answering(tmp_path / "gateway.sock")
    assert not is_answering(tmp_path / "none" / "gateway.sock")
