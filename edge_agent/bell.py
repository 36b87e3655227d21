"""The bell: whoever stores an event rings it, and the daemon, in another process, sends at once instead of looking.

A named pipe beside the outbox. It carries no data and promises nothing: a ring that nobody hears is an event that the
daemon finds when it looks next.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def ring(path: Path) -> None:
    """Wake the daemon, if one listens; never waits, never fails."""
    with contextlib.suppress(OSError):  # nobody listens (ENXIO, ENOENT), or it is ringing already (EAGAIN)
        bell = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            os.write(bell, b"\0")
        finally:
            os.close(bell)


class Bell:
    """The daemon's end; for `select`."""

    def __init__(self, path: Path) -> None:
        """Make the pipe if it is missing, and listen.

        Raises:
            OSError: The folder cannot be written, or something else has the name.
        """
        with contextlib.suppress(FileExistsError):
            os.mkfifo(path, 0o600)
        self._pipe = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)  # open for writing too: never at its end

    def fileno(self) -> int:
        """Readable when it has rung."""
        return self._pipe

    def clear(self) -> None:
        """Forget the rings so far."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self._pipe, 4096):
                pass

    def close(self) -> None:
        """Stop listening."""
        os.close(self._pipe)
