"""agent.toml: what is read, what is refused, and that configs/agent.toml shows all of it."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path

import pytest

from edge_agent.errors import ConfigError
from edge_agent.settings import Settings, load_settings, parse_address

REFERENCE = Path(__file__).parents[3] / "configs" / "agent.toml"


def load(tmp_path, text):
    file = tmp_path / "agent.toml"
    file.write_text(text)
    return load_settings(file)


def test_the_reference_file_shows_every_default():
    """configs/agent.toml names every setting with its default."""
    assert load_settings(REFERENCE) == Settings(id="dev1")
    table = tomllib.loads(REFERENCE.read_text())
    for setting in dataclasses.fields(Settings):
        assert setting.name in table
        if dataclasses.is_dataclass(setting.default):
            assert set(table[setting.name]) == {each.name for each in dataclasses.fields(setting.default)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "id is missing"),
        ('id = "a/b"', "id = 'a/b': expected 1 to 128 of A-Z a-z 0-9 - . _ ~, first a letter or digit"),
        ('id = "a"\nudience = "x"', "udience = 'x': unknown key; expected one of id, gateway, audience"),
        ('id = "a"\n[uplink]\nwindows = 3', "uplink.windows = 3: unknown key; expected one of max_batch"),
        ('id = "a"\n[uplink]\nwindow = 0', "uplink.window = 0: expected an integer from 1 to 1000"),
        ('id = "a"\n[uplink]\nwindow = true', "uplink.window = True: expected an integer from 1 to 1000"),
        ('id = "a"\n[uplink]\nlinger = 5', 'uplink.linger = 5: expected a duration such as "50ms"'),
        ('id = "a"\n[uplink]\ntoken_lifetime = "25h"', "from 1 to 86400 seconds"),
        ('id = "a"\n[outbox]\nmax_bytes = "1GB"', "outbox.max_bytes = '1GB': expected a size such as \"256KiB\""),
        ('id = "a"\n[outbox]\nmax_event_bytes = 262145', "from 256 to 262144 bytes"),
        ('id = "a"\n[seal]\nsuites = [1]', "expected a list of suites, best first, of -70001, -70002, -70003"),
        ('id = "a"\nseal = 1', "seal = 1: expected a table \\[seal\\]"),
        ('id = "a"\naudience = "a b"', "audience = 'a b': expected 1 to 255 characters"),
        ('id = "a"\ngateway = "http://x"', "gateway 'http://x': expected mqtts://HOST:8883"),
        ("id =", "Invalid value"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, message):
    """The message has the key, the value and what was expected."""
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, text)


@pytest.mark.parametrize("window", [1, 1000])
def test_limits_are_inclusive(tmp_path, window):
    """Both ends of a range are allowed; the values just outside are refused above and here."""
    assert load(tmp_path, f'id = "a"\n[uplink]\nwindow = {window}').uplink.window == window
    with pytest.raises(ConfigError):
        load(tmp_path, 'id = "a"\n[uplink]\nwindow = 1001')


@pytest.mark.parametrize(
    ("url", "host", "port", "tls"),
    [
        ("mqtts://gw.example.com", "gw.example.com", 8883, True),
        ("mqtts://gw:1", "gw", 1, True),
        ("mqtt://localhost", "localhost", 1883, False),
        ("mqtts://[::1]:8883", "::1", 8883, True),
    ],
)
def test_addresses_are_read(url, host, port, tls):
    """Scheme, host and port, with the default ports of MQTT."""
    address = parse_address(url)
    assert (address.host, address.port, address.tls) == (host, port, tls)


@pytest.mark.parametrize(
    "url", ["gw:8883", "mqtts://", "mqtts://gw/x", "mqtts://u@gw", "mqtts://gw:70000", "wss://gw", "mqtts://gw?x"]
)
def test_other_addresses_are_refused(url):
    """Anything else is refused by name."""
    with pytest.raises(ConfigError, match="gateway"):
        parse_address(url)
