"""gateway.targets.python: functions of a service called with events; and what such a service imports."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import textwrap
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

import gateway
from gateway import Event, RejectEvent, ServiceDown, handler
from gateway.errors import ConfigError
from gateway.ports.target import Delivered, Down, Failed, Refused, TargetConfig
from gateway.targets import open_target
from gateway.targets.python import PythonDeliverer

CONFIG = TargetConfig(handler="orders", url=urlsplit("python:x"), timeout_s=5)


def event(type_: str = "order_placed") -> Event:
    return Event(id="1", source="/devices/d", type=type_, payload=b'{"secret": 1}')


async def verdict_of(function: Any, config: TargetConfig = CONFIG, type_: str = "order_placed") -> Any:
    target = PythonDeliverer([((), function)], config)
    try:
        return await target.deliver(event(type_), key="k", attempt=1)
    finally:
        await target.aclose()


async def test_async_and_plain_functions() -> None:
    """An async function is awaited on the loop, any other runs in a thread."""
    threads = []

    async def coroutine(event: Event) -> None:
        threads.append((event.data, threading.get_ident()))

    def plain(event: Event) -> None:
        threads.append((event.data, threading.get_ident()))

    assert await verdict_of(coroutine) == Delivered()
    assert await verdict_of(plain) == Delivered()
    (data, here), (data2, there) = threads
    assert data == data2 == {"secret": 1}
    assert here == threading.get_ident() != there


@pytest.mark.parametrize(
    ("raised", "verdict"),
    [
        (RejectEvent("no such cart"), Refused("no such cart")),
        (RejectEvent(), Refused("RejectEvent")),
        (ServiceDown("database is away", retry_after_s=3), Down("database is away", 3)),
        (ValueError("bad\nline"), Failed("ValueError: bad line")),
        (KeyError(), Failed("KeyError")),
        (TimeoutError("upstream"), Failed("TimeoutError: upstream")),
        (ValueError("x" * 999), Failed("ValueError: " + "x" * 256)),
    ],
)
@pytest.mark.parametrize("is_async", [True, False])
async def test_exceptions(raised: Exception, verdict: object, is_async: bool) -> None:
    """Each exception means what the module says, on one line and bounded."""

    async def coroutine(_: Event) -> None:
        raise raised

    def plain(_: Event) -> None:
        raise raised

    assert await verdict_of(coroutine if is_async else plain) == verdict


async def test_timeout() -> None:
    """A function that does not return in time failed."""

    async def forever(_: Event) -> None:
        await asyncio.Event().wait()

    config = TargetConfig(handler="orders", url=urlsplit("python:x"), timeout_s=0.01)
    assert await verdict_of(forever, config) == Failed("timed out after 0.01 s")


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncIterator[Any]:
    """Open `python:...` targets from modules written to the current directory."""
    path, modules = list(sys.path), set(sys.modules)
    targets = []

    async def open_one(url: str, batch: int = 1, **modules: str) -> Any:
        for name, text in modules.items():
            (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
        targets.append(await open_target(TargetConfig(handler="orders", url=urlsplit(url), batch=batch)))
        return targets[-1]

    with contextlib.chdir(tmp_path):
        yield open_one
    for target in targets:
        await target.aclose()
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]


SERVICE = """
    from gateway import Event, handler
    taken = []
    def plain(event): taken.append(("plain", event.type))
    @handler()
    async def rest(event: Event): taken.append(("rest", event.type))
    @handler("order_placed", "cart_*")
    async def place(event: Event): taken.append(("place", event.type))
"""


async def test_module_is_dispatched_by_type(opened: Any) -> None:
    """`python:module` gives each event to the marked function of its type; unmarked ones are not called."""
    target = await opened("python:shop_one", shop_one=SERVICE)
    for type_ in ("order_placed", "cart_updated", "product_added"):
        assert await target.deliver(event(type_), key="k", attempt=1) == Delivered()
    taken = sys.modules["shop_one"].taken  # type: ignore[attr-defined]
    assert taken == [("place", "order_placed"), ("place", "cart_updated"), ("rest", "product_added")]


async def test_named_function(opened: Any) -> None:
    """`python:module:function` calls that one, marked or not; a marked one refuses other types."""
    target = await opened("python:shop_two:plain", shop_two=SERVICE)
    assert await target.deliver(event("anything"), key="k", attempt=1) == Delivered()
    target = await opened("python:shop_two:place")
    assert await target.deliver(event("x"), key="k", attempt=1) == Refused("no function takes events of type x")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("python:shop_three.none:f", r"a module that can be imported from .* \(ModuleNotFoundError: No module named"),
        ("python:shop_three:none", "expected a function 'none' in module shop_three, found 'python:shop_three:none'"),
        ("python:shop_three", r"expected functions marked @handler\(...\) in module shop_three"),
        ("python:", r"expected python:package.module:function, or python:package.module with functions marked"),
    ],
)
async def test_what_is_missing_is_told(opened: Any, url: str, message: str) -> None:
    """A missing module or function is a configuration error that says which."""
    with pytest.raises(ConfigError, match=message):
        await opened(url, shop_three="x = 1")


def test_decorator_needs_parentheses() -> None:
    """Used as a bare decorator it says how to use it."""
    with pytest.raises(TypeError, match="use it with parentheses"):
        handler(lambda event: None)  # type: ignore[arg-type]


def test_import_is_light() -> None:
    """`from gateway import Event, handler` imports no server: it works with the base install."""
    code = "import sys; from gateway import Event, handler; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"aiohttp", "structlog", "uvloop", "typer", "asyncio", "aiomqtt"} & set(loaded.split())


def test_version() -> None:
    """The version is the distribution's."""
    assert gateway.__version__ == "0.1.0"


async def test_takes_no_batches(opened: Any) -> None:
    """A function is called with one event; a handler that asks for more a request is told so at start."""
    text = "async def place(event): ..."
    with pytest.raises(
        ConfigError, match=r"handlers\.orders\.batch: expected 1: python: takes one event at a time, found 2"
    ):
        await opened("python:shop:place", batch=2, shop=text)
    await opened("python:shop:place", batch=1, shop=text)
