"""Storage backends, one package each, found by the scheme of their URL; nothing is edited to add one.

A backend implements all ports (`EventBus`, `Subscriptions`, `StateStore`) and exports `backend`. What each promises
stands in the ports; `tests/contract` checks it. This module knows no backend by name.
"""

from __future__ import annotations

import pkgutil
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib import import_module

from gateway.errors import ConfigError
from gateway.ports.bus import EventBus, Retention
from gateway.ports.state import StateStore
from gateway.ports.subscriptions import Subscriptions


@dataclass(frozen=True, kw_only=True)
class StorageConfig:
    """What every backend is opened with.

    Attributes:
        url: Where the store is; its scheme names the backend.
        deduplication_window_s: Events without a stream are deduplicated by id at least this long, in seconds.
        min_free_disk_bytes: With less room than this on the disk, appends raise BusFull.
        retention: Over its size, and with nothing that a live subscription lets go, appends raise BusFull. None for
            no bound.
        clock: Unix time in seconds.
    """

    url: str
    deduplication_window_s: float = 72 * 3600
    min_free_disk_bytes: int = 1 << 30
    retention: Retention | None = None
    clock: Callable[[], float] = time.time


@dataclass(frozen=True)
class Storage:
    """An open store.

    Attributes:
        aclose: Finishes what was accepted and closes all three; a second call does nothing. The same as `bus.aclose`.
    """

    bus: EventBus
    subscriptions: Subscriptions
    state: StateStore
    aclose: Callable[[], Awaitable[None]]


@dataclass(frozen=True)
class Backend:
    """One package in `gateway/storage` exports one of these, named `backend`.

    Attributes:
        scheme: Of its URLs, and the name of its package.
        open: Opens or creates a store. Raises ConfigError for a URL it cannot use.
        check: Raises ConfigError for a URL it cannot use, as far as that can be told without opening.
    """

    scheme: str
    open: Callable[[StorageConfig], Awaitable[Storage]]
    check: Callable[[str], object] = str  # any will do


async def open_storage(
    url: str,
    *,
    deduplication_window_s: float = StorageConfig.deduplication_window_s,
    min_free_disk_bytes: int = StorageConfig.min_free_disk_bytes,
    retention: Retention | None = None,
    clock: Callable[[], float] = time.time,
) -> Storage:
    """Open the store that a URL names: `sqlite:///relative/path`, `sqlite:////absolute/path`, `memory://`.

    Raises:
        ConfigError: There is no such backend, or its URL, file or version is wrong.
        BusUnavailable: The store cannot be read now.
    """
    config = StorageConfig(
        url=url,
        deduplication_window_s=deduplication_window_s,
        min_free_disk_bytes=min_free_disk_bytes,
        retention=retention,
        clock=clock,
    )
    return await _backend(url).open(config)


def check_url(url: str) -> None:
    """Check a URL without opening the store, which another process may have open.

    Raises:
        ConfigError: There is no such backend, or it cannot use this URL.
    """
    _backend(url).check(url)


def _backend(url: str) -> Backend:
    scheme, colon, _ = url.partition("://")
    schemes = sorted(module.name for module in pkgutil.iter_modules(__path__) if module.ispkg)
    if not colon or scheme not in schemes:
        raise ConfigError("bus.url", url, f"a URL that starts with {' or '.join(f'{name}://' for name in schemes)}")
    backend: Backend = import_module(f"{__name__}.{scheme}").backend
    return backend
