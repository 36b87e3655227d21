"""Bursts of CloudEvents, one a payload, which are taken as runs: their ids are still compared with all that is stored."""

from __future__ import annotations

import ingest_parts as parts
import pytest
from mqtt_kit import publish
from run_site import acknowledged, serving

from gateway.mqtt.codec import Puback, Version

EVENTS = "devices/dev1/events"
N = 300


@pytest.mark.parametrize("version", list(Version))
async def test_a_burst_of_cloud_events(version):
    """CloudEvents, one a payload, are stored in their order with their own ids; sent again, they are acknowledged alone."""
    async with serving() as site:
        client = await site.run.client(version=version)
        sent = [parts.event(n, id_=f"e{n}") for n in range(1, N + 1)]
        for first in (1, N + 1):
            client.send(*(publish(EVENTS, each, packet_id=first + n) for n, each in enumerate(sent)))
            found = await acknowledged(client, N)
            assert found == [Puback(packet_id=n) for n in range(first, first + N)]
        events = await parts.stored(site.bus.inner)
        assert [(event.id, event.data) for event in events] == [(f"e{n}", {"n": n}) for n in range(1, N + 1)]
        assert (site.pipeline.stats.events, site.pipeline.stats.duplicates) == (N, N)
        assert 2 <= len(site.bus.appends) <= site.pipeline.runs
        assert site.pipeline.runs >= 4


NOT_LIKE_THE_OTHERS = {
    "an envelope": parts.sealed(device="dev1"),
    "a batch": b"[" + parts.event(1, id_="in-a-batch") + b"]",
    "not JSON": b"{",
    "another's": parts.event(1, source="/devices/dev2"),
    "large": parts.event(1, id_="large", data="x" * 5000),
}


@pytest.mark.parametrize("other", NOT_LIKE_THE_OTHERS)
async def test_one_among_cloud_events(other):
    """Whatever else comes among CloudEvents is answered as it is alone, and its neighbours are stored."""
    async with serving() as site:
        client = await site.run.client()
        alone = await client.publish(EVENTS, NOT_LIKE_THE_OTHERS[other])
        sent = [parts.event(n, id_=f"e{n}") for n in range(1, 51)]
        sent[24] = NOT_LIKE_THE_OTHERS[other]
        client.send(*(publish(EVENTS, each, packet_id=n) for n, each in enumerate(sent, 1)))
        found = await acknowledged(client, 50)
        assert [packet.reason_code for packet in found] == [0] * 24 + [alone.reason_code] + [0] * 25
        assert found[24].properties == alone.properties
        ids = [event.id for event in await parts.stored(site.bus.inner)]
        assert [id_ for id_ in ids if id_.startswith("e")] == [f"e{n}" for n in range(1, 51) if n != 25]
