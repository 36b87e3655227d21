"""Last wills: when one is due, and publishing it with what its client may do by then (MQTT 5.0, section 3.1.2.5).

A will belongs to its session. It is due when its delay has passed or the session ends, whichever is first [MQTT-3.1.2-8];
a client that is back before takes it with it [MQTT-3.1.3-9].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import structlog

from gateway.errors import GatewayError
from gateway.mqtt.publishing import publish_will

if TYPE_CHECKING:
    from gateway.mqtt.codec import Will
    from gateway.mqtt.hub import Hub
    from gateway.mqtt.session import Session
    from gateway.rules.policy import Permissions

log = structlog.get_logger()

NEVER_EXPIRES: Final = 0xFFFFFFFF  # (3.1.2.11.2)
_NEVER_S: Final = float("inf")


def expires_at_s(session: Session) -> float:
    """Unix time at which a session without a connection ends."""
    if session.left_at_s is None or session.expiry_s == NEVER_EXPIRES:
        return _NEVER_S
    return session.left_at_s + session.expiry_s


def due_at_s(session: Session) -> float:
    """Unix time at which the will of a session without a connection is published."""
    if session.will is None or session.left_at_s is None:
        return _NEVER_S
    return min(session.left_at_s + (session.will.properties.will_delay_interval or 0), expires_at_s(session))


def fire(hub: Hub, session: Session, permissions: Permissions | None = None) -> None:
    """Publish the will of a session, once; what its client may do now is looked up if it is not given."""
    will, session.will = session.will, None
    if will is None:
        return
    if permissions is not None:
        publish_will(hub, session.principal, permissions, session.epoch, will)
    else:
        hub.tasks.start(_publish(hub, session, will), name="will")


async def _publish(hub: Hub, session: Session, will: Will) -> None:
    principal = session.principal
    try:
        permissions = await hub.authenticator.permissions_of(principal, session.roles, session.epoch)
    except GatewayError as error:
        log.warning("will_dropped", principal=str(principal), client=session.client_id, error=type(error).__name__)
        return
    publish_will(hub, principal, permissions, session.epoch, will)
    session.keep_head()


class Absence:
    """A session without a connection, on the wheel (`Timed`)."""

    def __init__(self, hub: Hub, session: Session, ended: Callable[[Session], object]) -> None:
        self._hub = hub
        self._session = session
        self._ended = ended
        self.check_at_s = _NEVER_S

    def begin(self) -> None:
        """Wait for what is due first; what is due now happens now."""
        at_s = self.check(self._hub.loop.time())
        if at_s < _NEVER_S:
            self._hub.wheel.schedule(self, at_s)

    def end(self) -> None:
        """The session has a connection again, or is no more."""
        self._hub.wheel.forget(self)

    def check(self, now_s: float) -> float:
        """Publish the will or end the session, as is due."""
        unix_s = self._hub.clock()
        if unix_s >= expires_at_s(self._session):
            self._ended(self._session)
            return _NEVER_S
        if unix_s >= due_at_s(self._session):
            fire(self._hub, self._session)
        at_s = min(due_at_s(self._session), expires_at_s(self._session))
        return now_s + at_s - unix_s
