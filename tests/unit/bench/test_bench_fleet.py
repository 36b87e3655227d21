"""Devices of the generator: registered whole or not at all, kept in a file that only the owner reads; targets and loads."""

import stat

import pytest

from edge_protocol import tokens
from gateway.bench import BenchFailed, Load, Target, read_fleet, register, write_fleet
from gateway.errors import GatewayError

NEEDS = {"audience": "a", "signing_key": {"kty": "OKP"}}


class Registry:
    """Remembers what it was asked; the n-th device is one too many."""

    def __init__(self, room=10):
        self.room, self.ids, self.removed = room, [], []

    async def call(self, name, *, id, **arguments):  # noqa: A002  # the interface's word
        if name == "device_remove":
            self.removed.append(id)
            return {}
        if len(self.ids) == self.room:
            raise GatewayError("no more")
        self.ids.append(id)
        assert arguments["role"] == "simple-device"
        return NEEDS


async def test_devices_are_registered_with_keys_of_their_own():
    """Every device has its own id and key, and a token that says so."""
    registry = Registry()
    devices = await register(registry.call, 3, role="simple-device")
    assert [device.id for device in devices] == registry.ids
    assert len({device.pem for device in devices}) == 3
    claims = tokens.read(devices[0].token()).claims
    assert (claims.sub, claims.aud) == (devices[0].id, "a")


async def test_a_fleet_that_cannot_be_registered_whole_is_removed():
    """When one device fails those before it do not stay behind."""
    registry = Registry(room=2)
    with pytest.raises(GatewayError, match="no more"):
        await register(registry.call, 3, role="simple-device")
    assert registry.removed == registry.ids
    assert len(registry.ids) == 2


async def test_a_fleet_survives_its_file_which_is_secret_and_never_overwritten(tmp_path):
    """What is written is read again; the file has mode 0600; a second fleet needs another file."""
    file = tmp_path / "fleet.jsonl"
    devices = await register(Registry().call, 2, role="simple-device")
    write_fleet(file, devices)
    assert read_fleet(file) == devices
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    with pytest.raises(BenchFailed, match="exists; remove its devices with --remove-devices"):
        write_fleet(file, devices)


@pytest.mark.parametrize("text", ["", "{}", "not json", '{"id":"d","pem":"x","audience":"a","signing_key":{}}'])
def test_a_file_that_is_no_fleet_is_refused_by_name(tmp_path, text):
    """The message names the file and what was expected."""
    file = tmp_path / "fleet.jsonl"
    file.write_text(text)
    with pytest.raises(BenchFailed, match=r"fleet\.jsonl: expected"):
        read_fleet(file)


@pytest.mark.parametrize("url", ["http://h:1", "mqtt://h", "mqtt://:1", "mqtts://h:x", "h:1883"])
def test_a_url_that_is_no_mqtt_server_is_refused(url):
    """Only mqtt and mqtts with host and port are targets."""
    with pytest.raises(BenchFailed, match="expected mqtt://HOST:PORT or mqtts://HOST:PORT"):
        _ = Target(url=url).address


@pytest.mark.parametrize(
    ("host", "is_loopback"),
    [
        *((host, True) for host in ("127.0.0.1", "127.1.2.3", "localhost", "[::1]")),
        *((host, False) for host in ("10.0.0.1", "gw.example.com", "localhost.example.com")),
    ],
)
def test_what_is_on_this_machine_is_known_by_its_address(host, is_loopback):
    """Names other than localhost count as remote: nobody knows where they lead."""
    assert Target(url=f"mqtt://{host}:1883").is_loopback is is_loopback


@pytest.mark.parametrize(
    ("load", "publishes"),
    [
        (Load(seconds=10), None),
        (Load(seconds=10, events=1), 20_000),
        (Load(seconds=10, structured=True), 20_000),
        (Load(count=7, events=1), 7),
        (Load(seconds=2, rate=50), 100),
        (Load(seconds=2, rate=50, count=99), 99),
        (Load(seconds=2, rate=50, count=101), 100),
    ],
)
def test_how_much_has_to_be_prepared_follows_from_the_bounds(load, publishes):
    """The tightest bound counts; what differs each time always has one, since it is written beforehand."""
    assert load.publishes == publishes
