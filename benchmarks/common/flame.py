"""Flame graphs with py-spy, of all threads and child processes of a gateway, native code included."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def record(pid: int, file: str) -> Iterator[None]:
    """Record until the block ends, at 250 samples a second.

    The format follows the name: `.svg` a flame graph, anything else the raw stacks, a line each with its count.
    """
    form = "flamegraph" if file.endswith(".svg") else "raw"
    command = [str(Path(sys.executable).parent / "py-spy"), "record", "--pid", str(pid), "--output", file]
    command += ["--rate", "250", "--duration", "3600", "--threads", "--subprocesses", "--format", form]
    recorder = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        recorder.send_signal(2)  # it writes the file on Ctrl-C
        recorder.wait(60)
