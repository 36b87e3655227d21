"""The gateway's own keys."""

import pytest

from edge_protocol.envelope_keys import Suite
from edge_protocol.errors import KeySetRejected
from edge_protocol.key_set import verify_key_set
from gateway.devices import create_identity, load_identity
from gateway.devices.files import write_private
from gateway.devices.identity import DAY_S
from gateway.errors import ConfigError, Conflict

NOW_S = 1_800_000_000


def read(identity, jws, now_s=NOW_S, min_version=0):
    return verify_key_set(
        jws, [identity.signing.public], audience="lockgate-test", min_version=min_version, now_s=now_s
    )


def publish(identity, now_s=NOW_S):
    return identity.key_set(audience="lockgate-test", now_s=now_s)


def test_what_is_made_is_what_is_loaded(tmp_path):
    """A signing key, an operator key of its own, and one envelope key for each suite survive a restart."""
    made = create_identity(tmp_path)
    loaded = load_identity(tmp_path)
    assert loaded.signing_jwk == made.signing_jwk
    assert loaded.operator.public.jwk == made.operator.public.jwk
    assert loaded.operator.public.jwk != loaded.signing_jwk
    assert loaded.open_keys(NOW_S).keys() == made.open_keys(NOW_S).keys()
    assert [key.suite for key in loaded.current_keys()] == list(Suite)


def test_private_files_are_for_their_owner_only(tmp_path):
    """Every file has mode 0600, the folder 0700, and no key shows in a `repr`."""
    identity = create_identity(tmp_path)
    publish(identity)
    keys = tmp_path / "keys"
    assert oct(keys.stat().st_mode & 0o777) == "0o700"
    assert {oct(file.stat().st_mode & 0o777) for file in keys.iterdir()} == {"0o600"}
    assert sorted(file.name for file in keys.iterdir()) == [
        "envelope.json",
        "key-set.json",
        "operator.pem",
        "signing.pem",
    ]
    secrets = [identity.current_keys()[0].raw.hex(), str(identity.current_keys()[0].raw)]
    assert not any(secret in repr(identity) for secret in secrets)


def test_keys_are_never_overwritten(tmp_path):
    """A second `gateway init` changes nothing; one that was cut short is done again."""
    create_identity(tmp_path)
    before = (tmp_path / "keys" / "signing.pem").read_bytes()
    with pytest.raises(Conflict, match=r"signing.pem exists already: the gateway's keys are never overwritten"):
        create_identity(tmp_path)
    assert (tmp_path / "keys" / "signing.pem").read_bytes() == before
    (tmp_path / "keys" / "signing.pem").unlink()
    assert create_identity(tmp_path).signing_jwk == load_identity(tmp_path).signing_jwk


@pytest.mark.parametrize("name", ["signing.pem", "operator.pem", "envelope.json"])
@pytest.mark.parametrize("damage", [None, b"", b"\0\0", b"[]"])
def test_missing_or_damaged_keys_stop_the_start(tmp_path, name, damage):
    """Nothing is made up in place of a key that cannot be read: the file is named."""
    create_identity(tmp_path)
    file = tmp_path / "keys" / name
    if damage is None:
        file.unlink()
    else:
        file.write_bytes(damage)
    with pytest.raises(ConfigError) as caught:
        load_identity(tmp_path)
    assert str(file) in str(caught.value)


def test_a_key_set_proves_itself(tmp_path):
    """The key set is signed by the pinned key, for the audience, valid for 30 days to the second."""
    identity = create_identity(tmp_path)
    jws = publish(identity)
    key_set = read(identity, jws)
    assert (key_set.version, key_set.expires_at) == (1, NOW_S + 30 * DAY_S)
    assert [key.kid for key in key_set.keys] == [key.kid for key in identity.current_keys()]
    assert read(identity, jws, now_s=NOW_S + 30 * DAY_S - 1)
    with pytest.raises(KeySetRejected, match="key-set-expired"):
        read(identity, jws, now_s=NOW_S + 30 * DAY_S)


def test_a_key_set_is_signed_again_daily_and_its_version_only_grows(tmp_path):
    """Within a day the same text is given, also after a restart; later, or for another audience, a newer version."""
    identity = create_identity(tmp_path)
    first = publish(identity)
    assert publish(load_identity(tmp_path), NOW_S + DAY_S - 1) == first
    second = publish(load_identity(tmp_path), NOW_S + DAY_S)
    assert read(identity, second).version == 2
    identity.key_set(audience="other", now_s=NOW_S + DAY_S)
    assert read(identity, publish(identity, NOW_S + DAY_S)).version == 4
    assert read(identity, publish(identity, NOW_S - 5)).version == 5, "a clock set back makes a new one"


def test_retired_envelope_keys_open_for_30_days(tmp_path):
    """After a rotation devices seal to the new keys; the old ones still open for 30 days, to the second."""
    identity = create_identity(tmp_path)
    old = {key.kid for key in identity.current_keys()}
    version = read(identity, publish(identity)).version
    identity.rotate_envelope_keys(now_s=NOW_S)
    for each in (identity, load_identity(tmp_path)):
        new = {key.kid for key in each.current_keys()}
        assert not old & new
        assert {key.kid for key in read(each, publish(each)).keys} == new
        assert each.open_keys(NOW_S + 30 * DAY_S - 1).keys() == old | new
        assert each.open_keys(NOW_S + 30 * DAY_S).keys() == new
    assert read(identity, publish(identity)).version == version + 1
    identity.rotate_envelope_keys(now_s=NOW_S + 30 * DAY_S)
    assert not old & load_identity(tmp_path).open_keys(NOW_S).keys(), "what opens nothing is forgotten"


def test_a_write_that_was_cut_short_leaves_the_old_file(tmp_path):
    """A file is replaced as a whole; what a crash left beside it does not stop the next write."""
    file = tmp_path / "key"
    (tmp_path / ".key.new").write_bytes(b"half")
    write_private(file, b"one")
    write_private(file, b"two")
    assert (file.read_bytes(), list(tmp_path.iterdir())) == (b"two", [file])
