"""Agents for tests: a home that trusts a scripted cloud, and an uplink that runs in a thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Self

from scripted_broker import AUDIENCE, Broker, Cloud, wait_until

from edge_agent import Agent
from edge_agent.access import address_of, read_key, read_trust, tls_context
from edge_agent.home import Home
from edge_agent.setup import make_home
from edge_agent.stop import Stop
from edge_agent.uplink import Uplink

ONE_BY_ONE = "[uplink]\nmax_batch = 1\n"
TENS = "[uplink]\nmax_batch = 10\n"


def home_for(
    cloud: Cloud, path: Path, url: str, *, device: str = "dev1", more: str = "", ca: bytes | None = None
) -> Home:
    """A home whose key the cloud knows and which trusts the cloud; `more` is appended to agent.toml."""
    home = Home(path)
    key = make_home(
        home, device, gateway=url, audience=AUDIENCE, ca=ca, signing_key=cloud.signing_key.public.jwk, alg="EdDSA"
    )
    cloud.device_keys[key.public.kid] = key.public
    home.settings_file.write_text(home.settings_file.read_text() + more)
    return home


class Running:
    """An uplink in a thread, from entering to leaving; waits between connections are `jitter` times the ceiling."""

    def __init__(self, home: Home, *, jitter: Callable[[], float] = lambda: 0.0) -> None:
        settings = home.settings()
        trust = read_trust(home, settings)
        address = address_of(home, settings, trust)
        self.outbox = home.outbox(settings, durable=False)
        self.stop = Stop()
        self.uplink = Uplink(
            settings,
            address=address,
            tls=tls_context(home, trust) if address.tls else None,
            key=read_key(home),
            trust=trust,
            outbox=self.outbox,
            stop=self.stop,
            jitter=jitter,
        )
        self._thread = threading.Thread(target=self.uplink.run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self._thread.join(20)
        assert not self._thread.is_alive()
        self.outbox.close()
        self.stop.close()

    def wait_empty(self) -> None:
        wait_until(lambda: self.outbox.depth().events == 0)


def emit(home: Home, count: int, *, kind: str = "reading", start: int = 0) -> list[str]:
    with Agent.open(home) as agent:
        return agent.emit_many((kind, {"n": n}) for n in range(start, start + count))


__all__ = ["ONE_BY_ONE", "TENS", "Broker", "Cloud", "Running", "emit", "home_for", "wait_until"]
