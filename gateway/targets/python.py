"""Target `python:`: calls functions in this process. `python:module:function`, or `python:module` for all marked ones.

An `async` function is awaited; any other runs in a thread of the target's own, so that it cannot stop the gateway.
Returning is success, `RejectEvent` refuses for good, `ServiceDown` pauses the handler, any other exception is a failed attempt.
Of an exception only type and message are kept, on one line and bounded: a traceback could hold the event's data.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import sys
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from importlib import import_module
from types import ModuleType
from typing import Any, Final

from edge_protocol.events import Event
from gateway.errors import ConfigError
from gateway.handlers import RejectEvent, ServiceDown, handled_types, handles
from gateway.ports.target import Delivered, Deliverer, Down, Failed, Refused, Target, TargetConfig, Verdict

_MESSAGE_CHARS: Final = 256
_EXPECTED: Final = "python:package.module:function, or python:package.module with functions marked @handler(...)"

Function = Callable[[Event], Any]
Call = Callable[[Event], Awaitable[Any]]


class PythonDeliverer:
    """Calls functions by event type.

    Args:
        functions: Each with the types it takes (none for all); the first that takes an event gets it.
        config: For timeout and number of threads.
    """

    def __init__(self, functions: list[tuple[tuple[str, ...], Function]], config: TargetConfig) -> None:
        self._timeout_s = config.timeout_s
        self._threads = ThreadPoolExecutor(config.concurrency, thread_name_prefix=f"handler-{config.handler}")
        self._calls = [(types, self._as_call(function)) for types, function in functions]
        self._by_type: dict[str, Call | None] = {}

    async def deliver(self, event: Event, *, key: str, attempt: int) -> Verdict:  # noqa: ARG002  # functions get the event alone
        """Call the function that takes this type."""
        call = self._call_for(event.type)
        if call is None:
            return Refused(f"no function takes events of type {event.type}")
        try:
            async with asyncio.timeout(self._timeout_s) as limit:
                await call(event)
        except RejectEvent as exc:
            return Refused(_line(exc))
        except ServiceDown as exc:
            return Down(_line(exc), exc.retry_after_s)
        except Exception as exc:  # noqa: BLE001  # the service's code: anything may come
            if isinstance(exc, TimeoutError) and limit.expired():
                return Failed(f"timed out after {self._timeout_s:g} s")
            return Failed(_line(exc))
        return Delivered()

    async def aclose(self) -> None:
        """Let go of the threads; a function that still runs ends by itself."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _call_for(self, type_: str) -> Call | None:
        if type_ not in self._by_type:
            if len(self._by_type) >= 4096:  # devices choose types: bound what they can make us remember
                self._by_type.clear()
            found = (call for types, call in self._calls if handles(types, type_))
            self._by_type[type_] = next(found, None)
        return self._by_type[type_]

    def _as_call(self, function: Function) -> Call:
        if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None)):  # noqa: B004  # asks what kind, not whether
            return function

        async def call(event: Event) -> None:
            context = copy_context()
            await asyncio.get_running_loop().run_in_executor(self._threads, context.run, function, event)

        return call


def _line(exc: BaseException) -> str:
    message = " ".join(str(exc).split())[:_MESSAGE_CHARS]
    if isinstance(exc, RejectEvent | ServiceDown) and message:
        return message
    return f"{type(exc).__name__}: {message}" if message else type(exc).__name__


async def _open(config: TargetConfig) -> Deliverer:
    module_name, _, function_name = config.url.path.partition(":")
    if not module_name:
        raise ConfigError(f"handlers.{config.handler}.url", config.url.geturl(), _EXPECTED)
    module = await asyncio.to_thread(_import, module_name, config)
    return PythonDeliverer(_functions(module, function_name, config), config)


def _import(name: str, config: TargetConfig) -> ModuleType:
    if (here := os.getcwd()) not in sys.path:  # noqa: PTH109  # sys.path holds text
        sys.path.insert(0, here)
    try:
        return import_module(name)
    except Exception as exc:
        why = f"a module that can be imported from {here} ({_line(exc)})"
        raise ConfigError(f"handlers.{config.handler}.url", config.url.geturl(), why) from exc


def _functions(module: ModuleType, name: str, config: TargetConfig) -> list[tuple[tuple[str, ...], Function]]:
    if name:
        function = getattr(module, name, None)
        if not callable(function):
            why = f"a function {name!r} in module {module.__name__}"
            raise ConfigError(f"handlers.{config.handler}.url", config.url.geturl(), why)
        return [(handled_types(function) or (), function)]
    marked = [(types, value) for value in vars(module).values() if (types := handled_types(value)) is not None]
    if not marked:
        why = f"functions marked @handler(...) in module {module.__name__}"
        raise ConfigError(f"handlers.{config.handler}.url", config.url.geturl(), why)
    return sorted(marked, key=lambda entry: not entry[0])  # those for all types come last


target = Target(schemes=("python",), open=_open)
