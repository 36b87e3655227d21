"""Durable delivery of events to MQTT subscribers: a subscription of the bus, without a `[[handlers]]` table.

Who subscribes over MQTT brings the deliverer; dispatch brings order per device, lag, pauses and dead letters.
"""

from __future__ import annotations

from typing import Final, Protocol

from gateway.ports.subscriptions import SubscriptionSpec
from gateway.ports.target import Deliverer

NAME_PREFIX: Final = "mqtt:"
"""What the name of every such subscription begins with; no handler can have it."""

SESSION_PREFIX: Final = f"{NAME_PREFIX}session:"
"""What the name of one that belongs to a single session begins with: it ends with it."""


class Cursor(Protocol):
    """A subscription that is being delivered."""

    def wake(self) -> None:
        """Somebody can take events again: end a pause that a `Down` began, at once."""
        ...

    async def aclose(self) -> None:
        """Deliver nothing more, and save; the subscription stays where it is. Release the deliverer before."""
        ...

    async def retire(self) -> None:
        """As `aclose`; and unless it is opened again in time (7 days, a setting), the subscription is removed."""
        ...

    async def remove(self) -> None:
        """As `aclose`; and the subscription is removed, with what it put aside."""
        ...


class Cursors(Protocol):
    """Where MQTT subscriptions become subscriptions of the bus."""

    async def open(self, spec: SubscriptionSpec, deliverer: Deliverer) -> Cursor:
        """Deliver from where the subscription stands, or, if there is none yet, from now on.

        Durable on return: what is appended afterwards will be delivered. One that was retired is kept again. A name is
        open once at a time.

        Args:
            spec: Its name begins with `NAME_PREFIX`.
            deliverer: Takes events as soon as this returns, perhaps before; closing it is the caller's.

        Raises:
            BusUnavailable: Nothing was opened.
        """
        ...

    async def remove(self, name: str) -> None:
        """Forget one that is not open, with what it put aside; one that does not exist is no error.

        Raises:
            BusUnavailable: Repeat.
        """
        ...

    async def settle(self) -> None:
        """After a start, when all are open whose sessions lived on: those of groups are retired, the others removed.

        Raises:
            BusUnavailable: Repeat.
        """
        ...
