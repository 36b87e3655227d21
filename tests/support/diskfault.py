"""A disk that fails and a machine that loses power: an APSW VFS over the real one.

Files live on the real file system, which plays the page cache: what SQLite writes is read back at once. Beside it the
shim keeps, for each file, what the disk has: content is copied there by a sync that succeeds. A sync that fails is as
on Linux: the pages it covered are taken for written and the next sync succeeds without them (only writing them again
brings them to the disk). `crash` leaves on the real file system what the disk has, with some of the unsynced writes if
a seed is given.

    disk = FaultyDisk("faulty")
    disk.fail("xSync", 3, apsw.IOError(...))   # or fail_from
    ... open "sqlite:////path?vfs=faulty" ...
    disk.crash()
"""

from __future__ import annotations

import random
import threading
from dataclasses import dataclass, field
from pathlib import Path

import apsw

PAGE = 4096
CALLS = ("xWrite", "xSync", "xTruncate")


def error(name, extended):
    """An error as the operating system's VFS raises it: `IOError` or `FullError`."""
    exc = getattr(apsw, name)(f"injected {name}")
    exc.extendedresult = extended
    return exc


def eio():
    return error("IOError", apsw.SQLITE_IOERR_WRITE)


def eio_sync():
    return error("IOError", apsw.SQLITE_IOERR_FSYNC)


def enospc():
    return error("FullError", apsw.SQLITE_FULL)


@dataclass
class Content:
    """What the disk has of one file, and what it was told since the last sync."""

    durable: bytearray = field(default_factory=bytearray)
    exists: bool = False  # the name too: the directory was synced, or the file was
    pending: list = field(default_factory=list)  # (offset, bytes) or (size,)

    def apply(self, change):
        if len(change) == 1:
            del self.durable[change[0] :]
            self.durable.extend(bytes(change[0] - len(self.durable)))
            return
        offset, data = change
        self.durable.extend(bytes(max(0, offset + len(data) - len(self.durable))))
        self.durable[offset : offset + len(data)] = data

    def sync(self):
        for change in self.pending:
            self.apply(change)
        self.pending.clear()
        self.exists = True


class FaultyDisk(apsw.VFS):
    """Registered under its name while it lives; one at a time for a name."""

    def __init__(self, name):
        self.files: dict[str, Content] = {}
        self.calls = 0
        self.log = []
        self._plan = None
        self._crashed = False
        self._lock = threading.RLock()
        self._name = name
        super().__init__(name, "")

    # -- what a test says

    def fail(self, nth, make_error, *, forever=False):
        """Fail the nth call (of writes, syncs and truncations together, from now on), or all from it on."""
        self._plan = (self.calls + nth, make_error, forever)

    def heal(self):
        self._plan = None

    def crash(self, seed=None):
        """Cut the power: files hold what was synced (and, with a seed, some of the rest); later calls fail."""
        with self._lock:
            self._crashed = True
            chance = None if seed is None else random.Random(seed)
            for name, content in self.files.items():
                self._settle(Path(name), content, chance)

    @staticmethod
    def _settle(path, content, chance):
        if chance is not None:
            for change in content.pending:
                for part in _pages(change):
                    if chance.random() < 0.5:
                        content.apply(part)
                        content.exists = True
        if content.exists:
            path.write_bytes(bytes(content.durable))
        else:
            path.unlink(missing_ok=True)

    # -- what SQLite and the shim's files call

    def count(self, what, name):
        with self._lock:
            if self._crashed:
                raise error("IOError", apsw.SQLITE_IOERR)
            self.calls += 1
            self.log.append((what, name.rpartition("/")[2]))
            if self._plan is None:
                return
            nth, make_error, forever = self._plan
            if self.calls == nth or (forever and self.calls > nth):
                raise make_error()

    def xOpen(self, name, flags):  # noqa: N802  # SQLite's name
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        return FaultyFile(self, path, name, flags)

    def xDelete(self, filename, syncdir):  # noqa: N802
        super().xDelete(filename, syncdir)
        self.files.pop(filename, None)


def _pages(change):
    """A write reaches the disk page by page."""
    if len(change) == 1:
        return [change]
    offset, data = change
    cuts = range(0, len(data), PAGE)
    return [(offset + cut, data[cut : cut + PAGE]) for cut in cuts]


class FaultyFile(apsw.VFSFile):
    def __init__(self, disk, path, name, flags):
        self._disk, self._path = disk, path
        super().__init__("", name, flags)
        with disk._lock:
            if path not in disk.files:
                real = Path(path)
                known = real.read_bytes() if real.exists() else b""
                disk.files[path] = Content(bytearray(known), exists=bool(known))
            self._content = disk.files[path]

    def xWrite(self, data, offset):  # noqa: N802
        data = bytes(data)
        self._disk.count("xWrite", self._path)
        with self._disk._lock:
            super().xWrite(data, offset)
            self._content.pending.append((offset, data))

    def xTruncate(self, size):  # noqa: N802
        self._disk.count("xTruncate", self._path)
        with self._disk._lock:
            super().xTruncate(size)
            self._content.pending.append((size,))

    def xSync(self, flags):  # noqa: N802
        try:
            self._disk.count("xSync", self._path)
        except apsw.Error:
            self._content.pending.clear()  # the kernel marks the pages clean and forgets
            raise
        with self._disk._lock:
            self._content.sync()
