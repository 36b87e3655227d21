"""A reader at a terminal: one bash in a folder of its own, programs in other terminals, what is copied and pasted."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

from gateway.demo.stage import free_port

PORTS = ("8883", "8080", "8443", "9000", "8084")
"""What the pages write. Another process may listen there, so each session has free ones in their place."""

PASTED = {
    "CODE": r"^code +(\S+)$",
    "AUDIENCE": r"^audience +(\S+)$",
    "EVENT_ID": r"^([0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12})$",
    "DEAD_LETTER": r"^([\w.-]+:\d+)\b",
}
"""Words that stand for what a reader copies from an earlier command's output: the last match."""

TIMEOUT_S = 60.0
_DONE = re.compile(rb"\x1e(\d+)\x1e")


class Session:
    """Runs commands as a reader would, from top to bottom."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = {port: str(free_port()) for port in PORTS}
        self.output = ""
        self._pids: dict[str, int] = {}
        self._seen: dict[str, int] = {}
        self._logs = folder.with_name(folder.name + ".logs")
        for path in (folder, self._logs):
            path.mkdir()
        self._bash = subprocess.Popen(
            ["bash", "--norc"],
            cwd=folder,
            env=self._environ(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
            start_new_session=True,
        )

    def _environ(self) -> dict[str, str]:
        """Programs of this installation first, a home of its own, the gateway on this session's ports."""
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith(("LOCKGATE_", "EDGE_AGENT_"))},
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(self.folder),
            "PYTHONUNBUFFERED": "1",
            "LOCKGATE_MQTT__LISTEN": f'["mqtts://127.0.0.1:{self.ports["8883"]}"]',
            "LOCKGATE_HTTP__LISTEN": f"127.0.0.1:{self.ports['8080']}",
            "LOCKGATE_HTTP__DEVICE_LISTEN": f"https://127.0.0.1:{self.ports['8443']}",
            "LOCKGATE_LIMITS__OPENER_PROCESSES": "1",
        }

    def put(self, text: str) -> str:
        """Text of a page with this session's ports, and with what a reader pastes."""
        for port, free in self.ports.items():
            text = re.sub(rf"(?<![\d.]){port}(?!\d)", free, text)
        for word, pattern in PASTED.items():
            if re.search(rf"\b{word}\b", text):
                found = re.findall(pattern, self.output, re.MULTILINE)
                assert found, f"nothing to paste for {word} in:\n{self.output}"
                text = re.sub(rf"\b{word}\b", lambda _, last=found[-1]: last, text)
        return text

    def run(self, command: str, *, timeout_s: float = TIMEOUT_S) -> tuple[int, str]:
        """Run a command; its exit code and what it printed."""
        assert self._bash.stdin
        self._bash.stdin.write(f"{{ {command}\n}} </dev/null; printf '\\036%d\\036' $?\n".encode())
        code, output = self._read(command, time.monotonic() + timeout_s)
        self.output += output
        return code, output

    def start(self, name: str, command: str) -> None:
        """Run a command in a terminal of its own."""
        (self._logs / name).write_text("")  # what an earlier program of this name said is gone
        code, pid = self.run(f"(exec {command}) >{self._logs / name} 2>&1 & echo $!")
        assert code == 0, pid
        self._pids[name], self._seen[name] = int(pid), 0

    def stop(self, name: str) -> None:
        """End what runs in another terminal, as Ctrl-C there would."""
        pid = self._pids.pop(name)
        self.run(f"kill -TERM {pid}; wait {pid} || true")

    def wait_for(self, name: str, text: str) -> None:
        """Wait until another terminal shows a text below what was waited for before."""
        deadline_s = time.monotonic() + TIMEOUT_S
        while (at := (log := self._log(name)).find(text, self._seen[name])) < 0:
            assert time.monotonic() < deadline_s, f"{name} does not show {text!r}, but:\n{log}"
            time.sleep(0.05)
        self._seen[name] = at + len(text)

    def _log(self, name: str) -> str:
        return (self._logs / name).read_text(errors="replace")

    def _read(self, command: str, deadline_s: float) -> tuple[int, str]:
        assert self._bash.stdout
        data = b""
        while (done := _DONE.search(data)) is None:
            ready, _, _ = select.select([self._bash.stdout], [], [], max(0.0, deadline_s - time.monotonic()))
            part = os.read(self._bash.stdout.fileno(), 65536) if ready else b""
            assert part, f"{command!r} did not end, but printed:\n{data.decode(errors='replace')}"
            data += part
        return int(done[1]), data[: done.start()].decode(errors="replace")

    def close(self) -> None:
        """End everything that was started here."""
        try:
            for name in reversed(list(self._pids)):
                self.stop(name)
        finally:
            os.killpg(self._bash.pid, signal.SIGKILL)  # the session's own group; whatever has not ended by itself
            self._bash.wait()
            for pipe in (self._bash.stdin, self._bash.stdout):
                if pipe:
                    pipe.close()
