"""The embedded store: one SQLite file in WAL mode, `synchronous=FULL`, one writer thread, group commit.

This module opens the parts and connects them. URLs: `sqlite:///relative/path`, `sqlite:////absolute/path`; with
`?vfs=NAME` through a VFS registered with APSW (tests of failing disks).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import parse_qs, unquote

import apsw

from gateway.errors import BusUnavailable, ConfigError
from gateway.ports.state import Change
from gateway.storage import Backend, Storage, StorageConfig
from gateway.storage.sqlite.bus import SqliteBus
from gateway.storage.sqlite.readers import Readers
from gateway.storage.sqlite.schema import lock
from gateway.storage.sqlite.state import SqliteState
from gateway.storage.sqlite.subscriptions import SqliteSubscriptions
from gateway.storage.sqlite.writer import Hooks, Writer
from gateway.storage.watching import Watchers


class _Store:
    """The parts of one open file and their common end."""

    def __init__(self, path: Path, vfs: str | None, config: StorageConfig) -> None:
        path.touch(mode=0o600)  # SQLite gives the files beside it the same mode
        self._lock = lock(path, config.url)
        self._watchers = Watchers()
        self._readers = Readers(path, vfs)
        hooks = Hooks(committed=self._committed, reopening=self._readers.forget)
        self._writer = Writer(path, vfs, config, hooks)
        self._bus = SqliteBus(path, config, self._writer, self._readers, close=self.aclose)
        self._closing: asyncio.Future[None] | None = None

    async def open(self) -> Storage:
        loop = asyncio.get_running_loop()
        try:
            self._bus.note_end(await loop.run_in_executor(None, self._writer.open))
        except BaseException:
            os.close(self._lock)
            raise
        subscriptions = SqliteSubscriptions(self._writer, self._readers)
        return Storage(self._bus, subscriptions, SqliteState(self._writer, self._readers, self._watchers), self.aclose)

    def _committed(self, end: int, changes: Sequence[Change]) -> None:
        self._bus.note_end(end)
        self._watchers.tell(changes)

    async def aclose(self) -> None:
        if self._closing is None:
            self._bus.stop()
            self._closing = asyncio.get_running_loop().run_in_executor(None, self._close)
        await asyncio.shield(self._closing)
        self._watchers.close()

    def _close(self) -> None:
        self._writer.close()
        self._readers.close()
        os.close(self._lock)


async def open_sqlite(config: StorageConfig) -> Storage:
    """Open or create the file a URL names.

    Raises:
        ConfigError: No such directory, another process has it, it is of a newer version, or not ours.
        BusUnavailable: The disk fails.
    """
    path, vfs = _parse(config.url)
    try:
        return await _Store(path, vfs, config).open()
    except apsw.NotADBError as exc:
        raise ConfigError("bus.url", config.url, "a store of Lockgate; this file is no database") from exc
    except (apsw.Error, OSError) as exc:
        raise BusUnavailable(f"{path} cannot be opened: {exc}") from exc


def _parse(url: str) -> tuple[Path, str | None]:
    location, _, query = url.removeprefix("sqlite://").partition("?")
    path = unquote(location[1:])
    options = parse_qs(query)
    if not location.startswith("/") or path in ("", "/") or "\0" in path or options.keys() - {"vfs"}:
        raise ConfigError("bus.url", url, "sqlite:///relative/path or sqlite:////absolute/path")
    file = Path(path).absolute()
    if not file.parent.is_dir():
        raise ConfigError("bus.url", url, f"a file in a directory that exists; there is no {file.parent}")
    return file, options.get("vfs", [None])[0]


backend = Backend(scheme="sqlite", open=open_sqlite, check=_parse)
