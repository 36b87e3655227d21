"""`Agent`: what may be emitted, and that it arrives in the outbox as the gateway will read it."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
from contextlib import closing
from datetime import UTC, datetime

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_agent import Agent, ConfigError, EventInvalid, OutboxFull
from edge_agent.home import Home
from edge_agent.setup import make_home
from edge_protocol.events import Limits, decode_event


@pytest.fixture
def home(tmp_path):
    made = Home(tmp_path / "home")
    make_home(made, "dev1", gateway="", audience="", ca=None, signing_key=None, alg="EdDSA")
    return made


@pytest.fixture
def agent(home):
    with Agent.open(home.path) as opened:
        yield opened


def stored(home):
    with closing(home.outbox(home.settings())) as outbox:
        cut = outbox.cut(1, None, events=1000, size=10**9)
    return [decode_event(row.body, limits=Limits(), source="/devices/dev1") for row in cut.rows] if cut else []


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=("Cs",))),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=("Cs",))), inner, max_size=4)
    ),
    max_leaves=20,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(json_values)
def test_any_json_value_arrives_unchanged(home, agent, value):
    """What goes in as data comes out as data."""
    event_id = agent.emit("thing", value)
    event = stored(home)[-1]
    assert (event.id, event.type, event.data) == (event_id, "thing", value)


def test_an_event_has_what_the_protocol_asks_for(home, agent):
    """Id UUIDv7, source, time with a zone, subject, extensions."""
    moment = datetime(2026, 11, 23, 9, 30, tzinfo=UTC)
    agent.emit("cart.updated", {"n": 1}, subject="cart/7", time=moment, extensions={"partitionkey": "7"})
    (event,) = stored(home)
    assert event.id[14] == "7"
    assert (event.source, event.subject, event.time) == ("/devices/dev1", "cart/7", "2026-11-23T09:30:00.000Z")
    assert event.extensions == {"partitionkey": "7"}


def test_bytes_keep_their_content_type(home, agent):
    """Bytes travel as they are; without a content type they are application/octet-stream."""
    agent.emit("photo", b"\x00\xff", content_type="image/png")
    agent.emit("blob", b"\x00\xff")
    png, blob = stored(home)
    assert (png.data, png.datacontenttype) == (b"\x00\xff", "image/png")
    assert (blob.data, blob.datacontenttype) == (b"\x00\xff", "application/octet-stream")


def test_raw_json_is_kept_as_written(home, agent):
    """`msgspec.Raw` is JSON text: numbers keep their digits."""
    agent.emit("price", msgspec.Raw(b'{"eur": 1.10}'))
    assert stored(home)[0].payload == b'{"eur": 1.10}'


@pytest.mark.parametrize(
    ("kind", "data", "message"),
    [
        ("bad type", 1, "expected dotted levels of A-Z a-z 0-9 _ -, at most 255"),
        ("", 1, "bad-type"),
        ("x" * 256, 1, "at most 255"),
        ("t", math.nan, "expected a JSON value or bytes"),
        ("t", math.inf, "expected a JSON value or bytes"),
        ("t", {1, 2}, "expected a JSON value or bytes"),
        ("t", datetime(2026, 1, 1, tzinfo=UTC), "expected a JSON value or bytes"),
        ("t", "\ud800", "expected a JSON value or bytes"),
        ("t", msgspec.Raw(b"{"), "bad-json"),
        ("t", json.loads("[" * 31 + "]" * 31), None),
        ("t", json.loads("[" * 32 + "]" * 32), "json-too-deep: nests deeper than the 32 levels allowed"),
    ],
)
def test_what_the_gateway_would_refuse_is_refused_at_once(home, agent, kind, data, message):
    """An event that breaks a rule is not taken, and the message names the rule."""
    if message is None:
        agent.emit(kind, data)
        return
    with pytest.raises(EventInvalid, match=message):
        agent.emit(kind, data)
    assert not stored(home)


def test_a_time_without_a_zone_is_refused(agent):
    """A naive datetime means nothing elsewhere."""
    with pytest.raises(EventInvalid, match="expected a datetime with a time zone"):
        agent.emit("t", time=datetime(2026, 1, 1))  # noqa: DTZ001  # the point
    with pytest.raises(EventInvalid, match="expected RFC 3339"):
        agent.emit("t", time="yesterday")


@pytest.mark.parametrize("more", [-1, 0, 1])
def test_the_limit_of_an_event_is_exact(home, more):
    """max_event_bytes counts the whole JSON text: n-1 and n pass, n+1 is refused by name."""
    limit = 1000
    home.settings_file.write_text(home.settings_file.read_text() + f"[outbox]\nmax_event_bytes = {limit}\n")
    with Agent.open(home.path) as agent:
        agent.emit("t", "")
        with closing(home.outbox(home.settings())) as outbox:
            empty = len(outbox.cut(1, None, events=1, size=1).rows[0].body)
        text = "x" * (limit - empty + more)
        if more > 0:
            with pytest.raises(EventInvalid, match="event-too-large: 1001 bytes, at most 1000 are allowed"):
                agent.emit("t", text)
        else:
            agent.emit("t", text)


def test_many_are_all_or_none(home, agent):
    """One bad event among many: none is taken."""
    with pytest.raises(EventInvalid):
        agent.emit_many([("good", 1), ("bad type", 2)])
    assert not stored(home)
    ids = agent.emit_many([("good", 1), ("good", 2)])
    assert [event.id for event in stored(home)] == ids


def test_a_full_outbox_refuses_and_keeps_what_it_has(home):
    """OutboxFull: the new event is not taken, the old ones stay."""
    home.settings_file.write_text(home.settings_file.read_text() + '[outbox]\nmax_bytes = "64KiB"\n')
    with Agent.open(home.path) as agent:
        kept = [agent.emit("t", "x" * 10_000) for _ in range(6)]
        with pytest.raises(OutboxFull, match="of 65536 bytes are taken"):
            agent.emit("t", "x" * 10_000)
    assert [event.id for event in stored(home)] == kept


def test_threads_share_an_agent(home, agent):
    """Emitting from several threads loses nothing."""
    ids = []

    def work():
        ids.extend(agent.emit("t", n) for n in range(20))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(event.id for event in stored(home)) == sorted(ids)


def test_a_missing_agent_is_named(tmp_path):
    """Opening where `init` was not run says so."""
    with pytest.raises(ConfigError, match="expected the file that `edge-agent init ID` makes"):
        Agent.open(tmp_path)


def test_the_import_is_light():
    """An application that emits loads no network, no TLS, no cryptography."""
    code = "import sys, edge_agent; print([m for m in ('paho', 'ssl', 'cryptography', 'jwt', 'aiohttp') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
