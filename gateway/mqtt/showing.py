"""What a new subscription is shown: retained messages and the last states of devices, as fast as its session takes them.

A session's queue is bounded, and what is kept may be much more: so each message waits until the queue is less than half
full. What was replaced meanwhile is left out: the newer message has gone to the subscription as it was published.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

import structlog

from edge_protocol.topics import TopicFilter
from gateway.errors import GatewayError
from gateway.mqtt.states import states_under

if TYPE_CHECKING:
    from gateway.mqtt.hub import Hub
    from gateway.mqtt.messages import Message
    from gateway.mqtt.retained import Kept
    from gateway.mqtt.router import Subscribed
    from gateway.mqtt.session import Session

log = structlog.get_logger()

_LOOK_S: Final = 0.02
_LOOK_SELDOM_S: Final = 2.0
"""How often a session without room is looked at: at first, and in the end. It may be away for days."""


def show(hub: Hub, session: Session, filter_: TopicFilter, subscription: Subscribed) -> None:
    """Show what is kept under a filter; shared subscriptions are shown nothing (MQTT 5.0, section 4.8.2)."""
    if filter_.startswith("$share/"):
        return
    hub.router.show_retained(filter_, session, subscription)
    showing = _Showing(hub, session, filter_, subscription)
    rest = showing.begin(hub.retained.under(filter_))
    if rest or states_under(filter_) is not None:
        hub.tasks.start(showing.go_on(rest), name="retained")


class _Showing:
    def __init__(self, hub: Hub, session: Session, filter_: TopicFilter, subscription: Subscribed) -> None:
        self._hub = hub
        self._session = session
        self._filter = filter_
        self._subscription = subscription

    def begin(self, found: list[Kept]) -> list[Kept]:
        """Show what there is room for now; give back the rest."""
        for n, kept in enumerate(found):
            if not self._session.has_spare_room:
                return found[n:]
            self._show(kept)
        return []

    async def go_on(self, rest: Iterable[Kept]) -> None:
        """Show the rest, then states, while the subscription lives."""
        for kept in rest:
            if not await self._has_room():
                return
            if self._hub.retained.holds(kept):
                self._show(kept)
        try:
            await self._show_states()
        except GatewayError as error:
            log.warning("states_not_shown", client=self._session.client_id, error=type(error).__name__)

    async def _show_states(self) -> None:
        with self._hub.states.changed() as changed:
            async for device, state in self._hub.states.under(self._filter):
                if not await self._has_room():
                    return
                if device not in changed:
                    self._offer(state)

    def _show(self, kept: Kept) -> None:
        is_own = kept.owner[:2] == (self._session.principal, self._session.client_id)
        if not (is_own and self._subscription.no_local):  # [MQTT-3.8.3-3]
            self._offer(kept.message)

    def _offer(self, message: Message) -> None:
        self._hub.router.offer_retained(message, self._session, self._subscription)

    async def _has_room(self) -> bool:
        look_s = _LOOK_S
        while self._is_wanted():
            if self._session.has_spare_room:
                return True
            await asyncio.sleep(look_s)
            look_s = min(2 * look_s, _LOOK_SELDOM_S)
        return False

    def _is_wanted(self) -> bool:
        return self._session.subscriptions.get(self._filter) is self._subscription
