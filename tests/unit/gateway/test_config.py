"""gateway.toml to settings: every refusal names the key, the value and what was expected."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.config import Duration, Size, load, parse
from gateway.errors import ConfigError

MINIMAL = {"audience": "lockgate-test"}


def _with(**sections: object) -> dict[str, object]:
    return {**MINIMAL, **sections}


def test_everything_but_the_audience_has_a_default():
    """A file that names only its audience is complete, with the defaults of the wire protocol."""
    settings = parse(MINIMAL)
    assert settings.strict_311
    assert (settings.limits.event_bytes, settings.limits.envelope_bytes) == (256 << 10, 1 << 20)
    assert (settings.bus.deduplication_window, settings.auth.clock_skew) == (72 * 3600, 60)


@pytest.mark.parametrize(
    ("text", "seconds"), [("500ms", 0.5), ("10s", 10), ("1.5s", 1.5), ("5m", 300), ("24h", 86400), ("7d", 604800)]
)
def test_durations(text, seconds):
    """A duration is a number with a unit, and becomes seconds."""
    assert parse(_with(auth={"clock_skew": text}, bus={"deduplication_window": "30d"})).auth.clock_skew == seconds
    assert isinstance(parse(_with(auth={"clock_skew": "1s"})).auth.clock_skew, Duration)


@pytest.mark.parametrize("wrong", [60, "60", "-1s", "1 s", "1w", "", "s", True])
def test_durations_that_are_none(wrong):
    """A number without a unit is refused: nobody should guess whether seconds were meant."""
    with pytest.raises(ConfigError, match=r"auth\.clock_skew: expected a duration such as 500ms, 10s, 5m, 24h or 7d"):
        parse(_with(auth={"clock_skew": wrong}))


@pytest.mark.parametrize(
    ("value", "size"),
    [(4096, 4096), ("4096", 4096), ("7B", 7), ("64KiB", 65536), ("10MiB", 10 << 20), ("1TiB", 1 << 40)],
)
def test_sizes(value, size):
    """A size is bytes, or a number with a binary unit."""
    found = parse(_with(limits={"event_bytes": value})).limits.event_bytes
    assert found == size
    assert isinstance(found, Size)


@pytest.mark.parametrize("wrong", ["1kB", "1 MiB", "-1", -1, 1.5, True, "MiB"])
def test_sizes_that_are_none(wrong):
    """Anything else names the forms there are."""
    with pytest.raises(ConfigError, match=r"limits\.event_bytes: expected a size such as 4096, 64KiB, 10MiB or 10GiB"):
        parse(_with(limits={"event_bytes": wrong}))


@pytest.mark.parametrize(("events", "fits"), [(0, False), (1, True), (999, True), (1000, True), (1001, False)])
def test_events_in_a_publish_are_bounded_by_the_position(events, fits):
    """A publish may have 1 to 1,000 events: a position has ten bits for the place in it."""
    document = _with(limits={"events": events})
    if fits:
        assert parse(document).limits.events == events
    else:
        with pytest.raises(ConfigError, match=r"limits\.events: expected an integer (>= 1|<= 1000), found"):
            parse(document)


@pytest.mark.parametrize(
    ("batch", "fits"), [(0, False), (1, True), (2, True), (999, True), (1000, True), (1001, False)]
)
def test_events_a_request_are_bounded(batch, fits):
    """A handler takes 1 to 1,000 events a request."""
    document = _with(handlers=[{"name": "a", "url": "http://x", "batch": batch}])
    if fits:
        assert parse(document).handlers[0].batch == batch
    else:
        with pytest.raises(ConfigError, match=r"handlers\[0\]\.batch: expected an integer (>= 1|<= 1000), found"):
            parse(document)


def test_the_window_is_longer_than_an_envelope_may_be_old():
    """P6: a deduplication window of twice the clock skew or less leaves no time for anything to be accepted."""
    auth = {"clock_skew": "60s"}
    for window in ("119s", "120s"):
        with pytest.raises(ConfigError, match=r"bus\.deduplication_window: expected more than twice clock_skew"):
            parse(_with(auth=auth, bus={"deduplication_window": window}))
    assert parse(_with(auth=auth, bus={"deduplication_window": "121s"})).bus.deduplication_window == 121


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({}, "audience: expected a value, found None"),
        ({"audience": "two words"}, "audience: expected 1 to 255 characters of '!' to '~', found 'two words'"),
        ({"audience": "a" * 256}, "audience: expected 1 to 255 characters"),
        (_with(mqqt={}), "mqqt: expected no such setting, but one of audience, strict_311, state_dir, mqtt"),
        (_with(mqtt={"listn": []}), "mqtt.listn: expected no such setting, but one of listen, certificate"),
        (_with(log={"level": "loud"}), "log.level: expected one of debug, error, info, warning, found 'loud'"),
        (_with(mqtt={"listen": ["mqtt://0.0.0.0:1883"]}), "mqtt.listen[0]: expected a loopback address, or mqtt.allow"),
        (_with(mqtt={"listen": ["http://x:1"]}), "mqtt.listen[0]: expected mqtt"),
        (_with(mqtt={"listen": ["mqtts://x"]}), "mqtt.listen[0]: expected mqtt"),
        (_with(http={"listen": "8080"}), "http.listen: expected"),
        (_with(auth={"anonymous_role": "x"}), "auth.anonymous_role: expected one of"),
        (_with(auth={"compat": ["google-iot-core"]}), "auth.compat: expected it to be left empty"),
        (
            _with(policy=[{"role": "a"}, {"role": "a"}]),
            "policy[1].role: expected a role that is not taken yet, found 'a'",
        ),
        (_with(handlers=[{"name": "a b", "url": "http://x"}]), "handlers[0].name: expected 1 to 64 of A-Z a-z 0-9"),
        (_with(handlers=[{"name": "a"}]), "handlers[0].url: expected a value"),
        (_with(handlers={"name": "a", "secret": "x"}), "handlers: expected a list, [...], found a table"),
        (_with(handler=[{"name": "a", "secret": "x"}]), "handler: expected no such setting, but one of"),
        (_with(mqtt={"listen": "mqtts://x:1"}), "mqtt.listen: expected a list, [...], found 'mqtts://x:1'"),
        (_with(strict_311="yes"), "strict_311: expected true or false, found 'yes'"),
        (_with(limits={"sessions": 0}), "limits.sessions: expected an integer >= 1, found 0"),
        (_with(limits={"sessions": "x"}), "limits.sessions: expected an integer, found 'x'"),
        (_with(state_dir=5), "state_dir: expected a text in quotes, found 5"),
        (_with(policy=[{"role": ""}]), "policy[0].role: expected a text that is not empty, found ''"),
        (_with(limits=5), "limits: expected a table, found 5"),
        (
            _with(handlers=[{"name": "a", "url": "http://x", "retry": {"first": "10s", "max": "1s"}}]),
            "handlers[0].retry.first: expected at most retry.max",
        ),
    ],
)
def test_refusals_name_key_value_and_expectation(document, message):
    """A person can mend the file from the message alone."""
    with pytest.raises(ConfigError) as refused:
        parse(document)
    assert str(refused.value).startswith(message)
    assert "secret" not in str(refused.value)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "configs" / "gateway.toml"
    path.parent.mkdir()
    path.write_text('audience = "lockgate-test"\n[mqtt]\nlisten = ["mqtts://0.0.0.0:8883"]\n')
    return path


def test_the_environment_overrides_any_key(file):
    """LOCKGATE_SECTION__KEY wins over the file; plain words need no quotes, other values are TOML."""
    environ = {
        "LOCKGATE_AUDIENCE": "other",
        "LOCKGATE_MQTT__LISTEN": '["mqtt://127.0.0.1:1883"]',
        "LOCKGATE_LOG__LEVEL": "debug",
        "LOCKGATE_STRICT_311": "false",
        "PATH": "/bin",
    }
    settings = load(file, environ)
    assert (settings.audience, settings.mqtt.listen) == ("other", ("mqtt://127.0.0.1:1883",))
    assert (settings.log.level, settings.strict_311) == ("debug", False)


def test_a_misspelt_variable_is_refused(file):
    """A variable that overrides nothing is an error, not a silence."""
    with pytest.raises(ConfigError, match=r"mqtt\.lisen: expected no such setting"):
        load(file, {"LOCKGATE_MQTT__LISEN": "x"})
    with pytest.raises(ConfigError, match="LOCKGATE_AUDIENCE__X: expected a section, and audience is none"):
        load(file, {"LOCKGATE_AUDIENCE__X": "x"})


def test_paths_start_where_configs_lies(file, tmp_path):
    """Relative paths do not depend on the current directory."""
    assert load(file, {}).path("state") == tmp_path / "state"
    beside = tmp_path / "gateway.toml"
    beside.write_text('audience = "a"')
    assert load(beside, {}).state == tmp_path / "state"


def test_a_file_that_cannot_be_read(tmp_path):
    """A missing file says how to make one; a broken one says where it breaks."""
    with pytest.raises(ConfigError, match="`gateway init` makes one"):
        load(tmp_path / "none.toml", {})
    broken = tmp_path / "broken.toml"
    broken.write_text("audience = ")
    with pytest.raises(ConfigError, match=r"-c FILE: expected TOML \("):
        load(broken, {})
    broken.write_text('audience = "a"\nbase = "/"\n')
    with pytest.raises(ConfigError, match="base: expected no such setting"):
        load(broken, {})
