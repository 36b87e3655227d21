"""What the device trusts, what time it is, and how the daemon's log reads."""

from __future__ import annotations

import logging
import time
from datetime import UTC, datetime, timedelta

import pytest

from edge_agent import logs
from edge_agent.clock import TOLERANCE_S, Clock
from edge_agent.errors import ConfigError
from edge_agent.stop import Stop
from edge_agent.trust import TrustFile, load_trust, save_trust
from edge_protocol.envelope_keys import Suite, new_open_key
from edge_protocol.errors import KeySetRejected
from edge_protocol.key_set import sign_key_set
from edge_protocol.keys import new_signing_key

NOW = 1_800_000_000


@pytest.fixture
def signer():
    return new_signing_key()


@pytest.fixture
def trust(signer, tmp_path):
    file = tmp_path / "gateway.json"
    save_trust(file, TrustFile(audience="aud", signing_key=signer.public.jwk))
    return load_trust(file, audience="")


def key_set(signer, *, version=1, audience="aud", expires_at=NOW + 100, suite=Suite.X25519_AES128):
    keys = [new_open_key(suite).public]
    return sign_key_set(keys, signer, version=version, audience=audience, issued_at=NOW, expires_at=expires_at)


def test_a_proven_key_set_is_kept_on_disk(trust, signer):
    """Taken once, it is there after a restart; the same again is nothing new."""
    text = key_set(signer)
    assert trust.offer(text.encode(), NOW) is True
    assert trust.offer(text, NOW) is False
    again = load_trust(trust.path, audience="")
    again.recall(NOW)
    assert again.seal_key([-70002], NOW) is not None


@pytest.mark.parametrize(("second", "usable"), [(NOW + 99, True), (NOW + 100, False), (NOW + 101, False)])
def test_an_expired_key_set_seals_nothing(trust, signer, second, usable):
    """At n-1 it is used, at its `exp` and after it is not."""
    trust.offer(key_set(signer), NOW)
    assert (trust.seal_key([-70002], second) is not None) is usable


def test_no_suite_but_those_allowed_is_used(trust, signer):
    """A gateway cannot talk the device into another suite."""
    trust.offer(key_set(signer), NOW)
    assert trust.seal_key([-70001, -70003], NOW) is None


def test_the_version_only_grows_also_past_expiry(trust, signer):
    """A lower version is refused even when the set seen before has expired and the process was restarted."""
    trust.offer(key_set(signer, version=5), NOW)
    again = load_trust(trust.path, audience="")
    with pytest.raises(KeySetRejected, match="key-set-expired"):
        again.recall(NOW + 1000)
    with pytest.raises(KeySetRejected, match="version 4, 5 has been seen"):
        again.offer(key_set(signer, version=4, expires_at=NOW + 9999), NOW + 1000)


def test_forged_and_foreign_key_sets_are_refused(trust, signer):
    """Another signer, another audience: refused, and the set in use stays."""
    trust.offer(key_set(signer), NOW)
    for bad in (key_set(new_signing_key(), version=9), key_set(signer, version=9, audience="other")):
        with pytest.raises(KeySetRejected):
            trust.offer(bad, NOW)
    assert trust.key_set.version == 1


def test_without_a_pinned_key_nothing_is_believed(tmp_path, signer):
    """The message names what is missing."""
    trust = load_trust(tmp_path / "none.json", audience="aud")
    with pytest.raises(KeySetRejected, match="`edge-agent enroll CODE`"):
        trust.offer(key_set(signer), NOW)


@pytest.mark.parametrize("text", ["{", '{"colour": 1}', '{"signing_key": {"kty": "OKP"}}'])
def test_a_damaged_file_is_named(tmp_path, text):
    """gateway.json that is not what it should be stops the start."""
    file = tmp_path / "gateway.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"gateway\.json"):
        load_trust(file, audience="")


@pytest.mark.parametrize(
    ("ahead_s", "corrects"), [(0, False), (TOLERANCE_S - 1, False), (TOLERANCE_S + 2, True), (1e9, True)]
)
def test_the_clock_follows_the_gateway(ahead_s, corrects):
    """Small differences are the network's; large ones are corrected, and given up when the clock is right again."""
    clock = Clock()
    told = datetime.now(UTC) + timedelta(seconds=ahead_s)
    assert clock.correct(told.isoformat()) is corrects
    assert abs(clock.now_s() - time.time() - (ahead_s if corrects else 0)) < 1
    clock.correct(datetime.now(UTC).isoformat())
    assert abs(clock.now_s() - time.time()) <= TOLERANCE_S + 1


@pytest.mark.parametrize("text", ["", "now", "2026-13-01T00:00:00Z"])
def test_a_time_that_cannot_be_read_is_ignored(text):
    """Garbage does not move the clock."""
    clock = Clock()
    assert clock.correct(text) is False
    assert clock.offset_s == 0


def test_log_lines_are_an_event_and_fields(caplog):
    """Values with blanks, quotes or control characters are quoted, so that one line stays one line; None is left out."""
    with caplog.at_level(logging.INFO):
        logs.info("disconnected", reason='a "b"\nc', code=None, wait_s=1.5, url="mqtts://x:1")
    assert caplog.messages == ['disconnected reason="a \\"b\\"\\nc" wait_s=1.5 url=mqtts://x:1']


def test_a_stop_is_noticed_at_once():
    """Waiting ends when it is set, and never starts when it was set before."""
    stop = Stop()
    assert stop.wait(0.01) is False
    stop.set()
    stop.set()
    started = time.monotonic()
    assert stop.wait(10) is True
    assert time.monotonic() - started < 5
    stop.close()
