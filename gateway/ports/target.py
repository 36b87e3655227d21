"""How dispatch hands events to a cloud service, and what the service made of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable
from urllib.parse import SplitResult

from edge_protocol.events import Event


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetConfig:
    """What a target is opened with, from one `[[handlers]]` table.

    Attributes:
        handler: The handler's name.
        url: Where to deliver.
        timeout_s: One delivery may take this long, in seconds.
        secret: Signs requests where the scheme can (Standard Webhooks); "" for none.
        headers: Added to every request where the scheme has headers.
        concurrency: Requests at a time.
        batch: Events a request at most; with more than 1 the scheme's form for batches is used, for single events too.
    """

    handler: str
    url: SplitResult
    timeout_s: float = 10.0
    secret: str = field(default="", repr=False)
    headers: Mapping[str, str] = field(default_factory=dict)
    concurrency: int = 16
    batch: int = 1


@dataclass(frozen=True, slots=True)
class Delivered:
    """The service has it."""


@dataclass(frozen=True, slots=True)
class Failed:
    """This event failed this time (timeout, 408, 5xx, an exception): try again, it uses up an attempt.

    Attributes:
        retry_after_s: The service asked for at least this delay, in seconds.
    """

    cause: str
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """The service will never take this event (4xx): a dead letter at once."""

    cause: str


@dataclass(frozen=True, slots=True)
class Down:
    """The service is not there (connection error, 429, 503): pause the subscription, use up no attempt."""

    cause: str
    retry_after_s: float | None = None


Verdict = Delivered | Failed | Refused | Down


class Deliverer(Protocol):
    """An open target."""

    async def deliver(self, event: Event, *, key: str, attempt: int) -> Verdict:
        """Hand over one event. Never raises but CancelledError.

        Args:
            event: With `stream`, `sequence` and all attributes set.
            key: Idempotency key: the same for every delivery of this event to this handler, replays included.
            attempt: From 1.
        """
        ...

    async def aclose(self) -> None:
        """Let go of connections."""
        ...


@runtime_checkable
class BatchDeliverer(Deliverer, Protocol):
    """An open target that can take several events in one request."""

    async def deliver_batch(self, events: Sequence[bytes], *, key: str) -> Verdict:
        """Hand over events, all or none. Never raises but CancelledError.

        Whatever the verdict, if it is not `Delivered` the events come again; after `Failed` and `Refused` one by one.

        Args:
            events: In order, each in the CloudEvents JSON format.
            key: Idempotency key of this composition; the events' own are made of source and id.
        """
        ...


@dataclass(frozen=True, slots=True)
class Target:
    """One file in `gateway/targets` exports one of these, named `target`.

    Attributes:
        schemes: URL schemes it serves.
        open: Makes the deliverer. Raises ConfigError for a URL or module it cannot use.
    """

    schemes: tuple[str, ...]
    open: Callable[[TargetConfig], Awaitable[Deliverer]]
