"""What only a running gateway knows, and what a stopped one says in its place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from gateway.errors import Conflict


class Live(Protocol):
    """A running gateway, as the operations see it."""

    def handler(self, name: str) -> Mapping[str, Any]:
        """State, rate and counters of a handler's dispatcher."""
        ...

    def wake(self, name: str) -> None:
        """Let a handler look at its deferred entries now."""
        ...

    async def revoke_all_tokens(self) -> int:
        """Replace the operator key, and cut off everybody that it vouched for; tell how many connections that were.

        Raises:
            Conflict: What they left cannot be discarded now.
        """
        ...

    async def remove_cursor(self, name: str, *, dry_run: bool) -> Sequence[str]:
        """Remove a durable MQTT subscription and end the sessions that hold it; give their client ids.

        Raises:
            Conflict: One of their clients is connected, or nobody can know.
        """
        ...

    def is_connected(self, device: str) -> bool | None:
        """Whether a device is connected; None if nobody can know."""
        ...

    def addresses(self) -> tuple[Sequence[str], str | None]:
        """Where devices connect: MQTT URLs, and the URL for enrolment."""
        ...

    def stats(self) -> Mapping[str, Any]:
        """Counters of all parts."""
        ...


class Stopped:
    """The answers of a gateway that does not run.

    Attributes:
        mqtt, enrol: Where devices will connect, by the configuration.
    """

    def __init__(self, mqtt: Sequence[str], enrol: str | None) -> None:
        self.mqtt, self.enrol = mqtt, enrol

    def handler(self, name: str) -> Mapping[str, Any]:
        """Nothing is being delivered."""
        return {"state": "stopped", "rate_per_s": 0.0, "delivered": 0, "failed": 0, "cause": ""}

    def wake(self, name: str) -> None:
        """Nobody sleeps."""

    async def revoke_all_tokens(self) -> int:
        """The sessions that were opened with the tokens are discarded, too, and only a running gateway does that."""
        raise Conflict("all tokens are revoked on a running gateway; start it")

    async def remove_cursor(self, name: str, *, dry_run: bool) -> Sequence[str]:  # as `Live` has it
        """Sessions hold it, and only a running gateway knows them."""
        raise Conflict(f"handler {name!r}: a subscription of MQTT clients is removed from a running gateway; start it")

    def is_connected(self, device: str) -> bool | None:
        """Nobody is."""
        return False

    def addresses(self) -> tuple[Sequence[str], str | None]:
        """By the configuration."""
        return self.mqtt, self.enrol

    def stats(self) -> Mapping[str, Any]:
        """Nothing has been counted."""
        return {}
