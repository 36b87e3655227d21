"""A flag that a signal handler may set and a loop may wait for.

Not `threading.Event`: its lock is not reentrant, so a handler that sets it can block the very thread that waits.
"""

from __future__ import annotations

import os
import select


class Stop:
    """Set once, from a signal handler or another thread."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._is_set = False

    @property
    def is_set(self) -> bool:
        """Whether somebody asked to stop."""
        return self._is_set

    def fileno(self) -> int:
        """Readable once it is set, for `select`."""
        return self._read

    def set(self) -> None:
        """Ask to stop."""
        if not self._is_set:
            self._is_set = True
            os.write(self._write, b"\0")

    def wait(self, timeout_s: float) -> bool:
        """Wait until it is set, at most so many seconds; returns whether it is."""
        if not self._is_set:
            select.select([self._read], [], [], max(0.0, timeout_s))
        return self._is_set

    def close(self) -> None:
        """Free its two file descriptors."""
        os.close(self._read)
        os.close(self._write)
