"""How a process of the opener pool begins: imported by the fork server, so that every process starts with it loaded."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading

from gateway.ingest import opener

__all__ = ["begin", "opener", "ready"]


def begin() -> None:
    """Set a process up.

    Ctrl-C goes to the whole process group: the gateway still needs the pool to finish what it took. A gateway that was
    killed cannot end its pool, so each process watches for that itself.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, name="end-with-parent", daemon=True).start()


def ready() -> int:
    """Answer once the process can work; tells its id."""
    return os.getpid()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
