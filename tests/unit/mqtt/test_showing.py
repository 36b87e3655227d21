"""gateway.mqtt.showing: what waits for a session without room."""

import asyncio
from contextlib import suppress

from edge_protocol.topics import TopicFilter
from gateway.mqtt.router import Subscribed
from gateway.mqtt.showing import _Showing

FILTER = TopicFilter("a/#")


class Full:
    """A session whose queue stays full: its client may be away for days."""

    def __init__(self, subscription):
        self.subscriptions = {FILTER: subscription}
        self.looks = 0

    @property
    def has_spare_room(self):
        self.looks += 1
        return False


async def test_a_session_without_room_is_looked_at_seldom():
    """The longer it has none, the longer until the next look, so that thousands of them cost next to nothing."""
    subscription = Subscribed(qos=1)
    session = Full(subscription)
    with suppress(TimeoutError):
        async with asyncio.timeout(1.5):
            await _Showing(None, session, FILTER, subscription)._has_room()
    assert 4 < session.looks < 10
