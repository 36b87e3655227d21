"""`edge-agent run`: one process a home, from its files to a clean end."""

from __future__ import annotations

import fcntl
import signal
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Final

from edge_agent import logs
from edge_agent.access import address_of, read_key, read_trust, tls_context
from edge_agent.bell import Bell
from edge_agent.errors import AlreadyRunning, ConfigError
from edge_agent.home import Home
from edge_agent.stop import Stop
from edge_agent.uplink import Uplink

_LOCK_TRIES: Final = 20
_LOCK_TRY_S: Final = 0.05


def run(home: Home, stop: Stop) -> None:
    """Deliver the outbox of a home until told to stop.

    Raises:
        ConfigError: Something that delivery needs is missing or wrong.
        AlreadyRunning: Another process does it.
        OutboxUnavailable: The outbox cannot be opened.
    """
    settings, key = home.settings(), read_key(home)
    trust = read_trust(home, settings)
    if not (trust.is_pinned and trust.audience):
        missing = "signing key" if trust.audience else "audience"
        raise ConfigError(
            f"{home.trust_file}: the gateway's {missing} is not known, and nothing can be sealed without it; expected "
            "`edge-agent enroll CODE`, or `edge-agent init` with --audience and --signing-key"
        )
    address = address_of(home, settings, trust)
    tls = tls_context(home, trust) if address.tls else None
    with locked(home), closing(home.outbox(settings, durable=False)) as outbox, closing(Bell(outbox.bell)) as bell:
        logs.info("started", device=settings.id, gateway=address.url)
        Uplink(settings, address=address, tls=tls, key=key, trust=trust, outbox=outbox, stop=stop, bell=bell).run()
        logs.info("stopped")


def stop_on_signals(stop: Stop) -> None:
    """Let SIGTERM and SIGINT end the daemon cleanly; called by the command line only."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())


@contextmanager
def locked(home: Home, *, wait: bool = True) -> Iterator[None]:
    """Hold the home's lock; the kernel gives it back however the process ends.

    Args:
        home: Whose lock.
        wait: Try for a second: `edge-agent status` holds it for a moment.

    Raises:
        AlreadyRunning: Another process holds it.
    """
    with home.lock_file.open("a") as file:
        for tries_left in reversed(range(_LOCK_TRIES if wait else 1)):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as exc:
                if not tries_left:
                    raise AlreadyRunning(f"{home.path}: an `edge-agent run` serves this home already") from exc
                time.sleep(_LOCK_TRY_S)
        yield


def is_running(home: Home) -> bool:
    """Tell whether a daemon serves a home."""
    try:
        with locked(home, wait=False):
            return False
    except AlreadyRunning:
        return True
