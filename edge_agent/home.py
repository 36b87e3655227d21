"""The agent's folder: what is in it and where. Light to import: an application that emits needs nothing else.

agent.toml (settings), key.pem (0600), gateway.json (what it trusts), ca.pem, outbox.db, outbox.bell
(see `bell`), run.lock. The folder is 0700.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edge_agent.outbox import Outbox
from edge_agent.settings import Settings, load_settings

HOME_VARIABLE: Final = "EDGE_AGENT_HOME"
DEFAULT_HOME: Final = "~/.edge-agent"
CA_FILE: Final = "ca.pem"


@dataclass(frozen=True, slots=True)
class Home:
    """Names of the files in an agent's folder."""

    path: Path

    @property
    def settings_file(self) -> Path:
        """agent.toml."""
        return self.path / "agent.toml"

    @property
    def key_file(self) -> Path:
        """The device's private key."""
        return self.path / "key.pem"

    @property
    def trust_file(self) -> Path:
        """gateway.json."""
        return self.path / "gateway.json"

    @property
    def outbox_file(self) -> Path:
        """The outbox."""
        return self.path / "outbox.db"

    @property
    def lock_file(self) -> Path:
        """Held by the daemon while it runs."""
        return self.path / "run.lock"

    def settings(self) -> Settings:
        """Read agent.toml; ConfigError if it is missing or wrong."""
        return load_settings(self.settings_file)

    def outbox(self, settings: Settings, *, durable: bool = True) -> Outbox:
        """Use the outbox."""
        return Outbox(self.outbox_file, max_bytes=settings.outbox.max_bytes, durable=durable)


def find_home(given: str | os.PathLike[str] | None = None) -> Home:
    """The folder named, else `EDGE_AGENT_HOME`, else `~/.edge-agent`."""
    return Home(Path(given or os.environ.get(HOME_VARIABLE) or DEFAULT_HOME).expanduser())
