"""The whole system for tests: `gateway` and `edge-agent` as users install and run them, and the plug to pull."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from gateway.demo.stage import Stage, program

Done = subprocess.CompletedProcess[str]


class System(Stage):
    """A gateway with its agents in a folder of its own."""

    def kill(self, name: str) -> None:
        """SIGKILL, as a power cut would for the process."""
        process = self.running.pop(name)
        process.kill()
        process.wait()

    def terminate(self, name: str, timeout_s: float = 20) -> int:
        """SIGTERM; give the exit code."""
        process = self.running.pop(name)
        process.terminate()
        return process.wait(timeout_s)

    def gateway(self, *arguments: str, check: bool = True) -> Done:
        """Run a gateway command."""
        return _checked(self.run(program("gateway"), *arguments), check=check)

    def agent(self, *arguments: str, home: Path, text: str | None = None, check: bool = True) -> Done:
        """Run an agent command."""
        return _checked(self.run(program("edge-agent"), *arguments, "--home", str(home), text=text), check=check)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()


def _checked(done: Done, *, check: bool) -> Done:
    if check:
        assert done.returncode == 0, f"{done.args}: {done.stderr}\n{done.stdout}"
    return done


def eventually(condition: Callable[[], object], *, within_s: float = 30.0, what: str = "it did not come true") -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)
