"""The device registry."""

import asyncio

import device_parts as parts
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from edge_protocol.errors import KeyInvalid, TopicInvalid
from edge_protocol.keys import VerifyKey, new_signing_key
from gateway.devices import Registry
from gateway.errors import Conflict, NotFound


@pytest.fixture
async def site():
    async with parts.site() as site:
        yield site


async def test_a_device_is_registered_with_its_first_key(site):
    """`add` stores id, role, labels and the key with its one algorithm; `show` and `list` tell them."""
    key = await site.add("dev1", labels={"site": "north"})
    document = await site.registry.show("dev1")
    assert (document.id, document.epoch, document.enabled, document.role) == ("dev1", 1, True, "device")
    assert (document.labels, document.created) == ({"site": "north"}, parts.NOW_S)
    assert [(each.kid, each.alg, each.exp) for each in document.keys] == [(key.public.jwk["kid"], "EdDSA", None)]
    assert await site.registry.list() == [document]


@pytest.mark.parametrize("device", ["", "+", "#", "a/b", "-a", ".a", "a b", "a\0", "x" * 129, "$SYS"])
async def test_an_id_is_one_topic_level(site, device):
    """What could mean something in a topic is no id (CVE-2017-7650)."""
    with pytest.raises(TopicInvalid, match="expected 1 to 128 of A-Z a-z 0-9"):
        await site.add(device)


async def test_an_unknown_role_is_refused_with_those_there_are(site):
    """A misspelt role would allow nothing, so it is refused at once."""
    with pytest.raises(NotFound, match="role 'devise': the policy has device, operator, service, simple-device"):
        await site.add("dev1", role="devise")


async def test_a_device_is_added_once(site):
    """A second `add` of an id changes nothing."""
    key = await site.add("dev1")
    with pytest.raises(Conflict, match="device 'dev1' exists already; `gateway device show dev1` shows it"):
        await site.add("dev1")
    assert await site.connect(parts.token(key))


async def test_a_public_key_is_registered_once_in_the_whole_registry(site):
    """The same key for a second device, or again for the first, is refused, and says whose it is."""
    key = await site.add("dev1")
    with pytest.raises(Conflict, match="is registered for device 'dev1' already; a public key is registered once"):
        await site.add("dev2", key=key)
    with pytest.raises(Conflict, match="is registered for this device already"):
        await site.registry.add_key("dev1", key.public)
    with pytest.raises(NotFound):
        await site.registry.show("dev2")
    await site.registry.remove("dev1")
    await site.add("dev2", key=key)


async def test_two_devices_cannot_race_for_a_key(site):
    """Of two adds of one key at the same time, one wins."""
    key = new_signing_key()
    results = await asyncio.gather(site.add("dev1", key=key), site.add("dev2", key=key), return_exceptions=True)
    assert sorted(type(result).__name__ for result in results) == ["Conflict", "SigningKey"]
    assert len(await site.registry.list()) == 1


async def test_a_claim_left_by_a_crash_is_taken_over_after_a_minute(site):
    """A crash between claim and document blocks the key for a minute, not for ever."""
    key = new_signing_key()
    await site.registry._claims.take(key.public.jwk["kid"], "dead")
    site.clock.now_s += 59
    with pytest.raises(Conflict, match="is registered for device 'dead' already"):
        await site.add("dev1", key=key)
    site.clock.now_s += 1
    await site.add("dev1", key=key)


async def test_a_removed_device_leaves_no_state(site):
    """What it reported last goes with it: a new registration of the id does not inherit it."""
    await site.add("dev1")
    await site.state.put("state/dev1", b"{}", expect=None)
    await site.registry.remove("dev1")
    assert await site.state.get("state/dev1") is None


async def test_state_left_by_a_removal_that_was_cut_short_is_nobodys(site):
    """A state that is still there when its id is registered again was an earlier device's."""
    await site.state.put("state/dev1", b"{}", expect=None)
    await site.add("dev1")
    assert await site.state.get("state/dev1") is None


async def test_a_removed_id_added_again_is_a_new_registration(site):
    """The epoch grows with each removal, so nothing of the old registration is inherited."""
    for epoch in (1, 2, 3):
        key = await site.add("dev1")
        grant = await site.connect(parts.token(key))
        assert (grant.epoch, (await site.registry.show("dev1")).epoch) == (epoch, epoch)
        await site.registry.remove("dev1")
        await parts.until(lambda: "dev1" not in site.registry._memory._records)
    with pytest.raises(NotFound, match="no device 'dev1'; `gateway device list` shows those there are"):
        await site.registry.remove("dev1")


async def test_devices_are_listed_in_pages(site):
    """A page holds at most `limit` devices and goes on after the last id."""
    for number in range(5):
        await site.add(f"dev{number}")
    first = await site.registry.list(limit=3)
    rest = await site.registry.list(after=first[-1].id, limit=3)
    assert [each.id for each in (*first, *rest)] == [f"dev{number}" for number in range(5)]


async def test_a_device_has_at_most_three_keys(site):
    """A fourth key needs room: an ended key makes it, and can then be registered anew."""
    first = await site.add("dev1")
    for _ in range(2):
        await site.registry.add_key("dev1", new_signing_key().public)
    fourth = new_signing_key()
    with pytest.raises(Conflict, match="device 'dev1' has 3 keys that have not ended; expire one first"):
        await site.registry.add_key("dev1", fourth.public)
    await site.registry.expire_key("dev1", first.public.jwk["kid"])
    await site.registry.add_key("dev1", fourth.public)
    kids = [key.kid for key in await site.registry.list_keys("dev1")]
    assert len(kids) == 3
    assert first.public.jwk["kid"] not in kids
    await site.add("dev2", key=first)


async def test_expiring_a_key_never_prolongs_it(site):
    """An end that is later than the key's own changes nothing; an unknown key is named."""
    key = await site.add("dev1", exp=parts.NOW_S + 10)
    kid = key.public.jwk["kid"]
    document = await site.registry.expire_key("dev1", kid, at_s=parts.NOW_S + 20)
    assert document.keys[0].exp == parts.NOW_S + 10
    with pytest.raises(NotFound, match=f"device 'dev1' has no key 'nope'; its keys: {kid}"):
        await site.registry.expire_key("dev1", "nope")


@pytest.mark.parametrize("exp", [parts.NOW_S, parts.NOW_S - 1])
async def test_a_key_that_has_ended_is_not_registered(site, exp):
    """An end that is not in the future is a mistake."""
    with pytest.raises(KeyInvalid, match="expected exp after now"):
        await site.add("dev1", exp=exp)


async def test_keys_are_valid_within_their_times_only(site):
    """`nbf` is the first second, `exp` the first one too late."""
    key = await site.add("dev1", nbf=parts.NOW_S + 10, exp=parts.NOW_S + 20)
    await site.registry.find("dev1")
    valid = [bool(site.registry.signing_keys("dev1", now_s=parts.NOW_S + at)) for at in (9, 10, 19, 20)]
    assert valid == [False, True, True, False]
    assert set(site.registry.signing_keys("dev1", now_s=parts.NOW_S + 10)) == {key.public.kid}


async def test_envelopes_of_unknown_and_disabled_devices_find_no_key(site):
    """An unknown device and a disabled one have no signing keys."""
    await site.add("dev1")
    await site.registry.find("dev1")
    assert site.registry.signing_keys("dev1", now_s=parts.NOW_S)
    await site.registry.set_enabled("dev1", enabled=False)
    assert site.registry.signing_keys("dev1", now_s=parts.NOW_S) == {}
    assert site.registry.signing_keys("nobody", now_s=parts.NOW_S) == {}


async def test_memory_follows_changes_made_elsewhere(site):
    """What another registry on the same store writes is seen without being asked for."""
    await site.add("dev1")
    await site.registry.find("dev1")
    elsewhere = Registry(site.state, parts.POLICY, clock=site.clock)
    await elsewhere.set_enabled("dev1", enabled=False)
    await parts.until(lambda: not site.registry.signing_keys("dev1", now_s=parts.NOW_S))
    await elsewhere.set_enabled("dev1", enabled=True)
    await parts.until(lambda: site.registry.signing_keys("dev1", now_s=parts.NOW_S))


async def test_a_change_during_a_read_wins(site):
    """A record that changes while it is being read into memory is not remembered as it was."""
    await site.add("dev1")
    state, read = site.state, asyncio.Event()

    class SlowState:
        def __getattr__(self, name):
            return getattr(state, name)

        async def get(self, key):
            entry = await state.get(key)
            read.set()
            await asyncio.sleep(0.05)
            return entry

    slow = Registry(SlowState(), parts.POLICY, clock=site.clock)
    watching = asyncio.create_task(slow.run())
    await asyncio.sleep(0)
    loading = asyncio.create_task(slow.find("dev1"))
    await read.wait()
    await site.registry.set_enabled("dev1", enabled=False)
    record = await loading
    assert not record.document.enabled
    assert not slow._memory._loading
    assert not slow._memory._late
    watching.cancel()


async def test_memory_is_bounded(site):
    """The record that was asked for longest ago makes room."""
    small = Registry(site.state, parts.POLICY, clock=site.clock, capacity=2)
    for number in range(3):
        await site.add(f"dev{number}")
    for device in ("dev0", "dev1", "dev0", "dev2"):
        await small.find(device)
    known = [device for device in ("dev0", "dev1", "dev2") if small.signing_keys(device, now_s=parts.NOW_S)]
    assert known == ["dev0", "dev2"]


@pytest.mark.parametrize(("bits", "is_taken"), [(1024, False), (2048, True)])
async def test_rsa_keys_have_2048_bits_or_more(site, bits, is_taken):
    """RSA is for tokens of old fleets, and never short."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    from edge_protocol.keys import load_verify_key

    public = rsa.generate_private_key(65537, bits).public_key()
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    if is_taken:
        key = load_verify_key(pem)
        assert isinstance(key, VerifyKey)
        assert (await site.registry.add("old", key, role="device")).keys[0].alg == "RS256"
    else:
        with pytest.raises(KeyInvalid, match="RSA of at least 2048 bits"):
            load_verify_key(pem)


async def test_labels_are_bounded(site):
    """At most 64 labels of at most 256 characters."""
    with pytest.raises(Conflict, match="labels: expected at most 64, each of 1 to 256 characters"):
        await site.add("dev1", labels={str(n): "x" for n in range(65)})
    await site.add("dev1", labels={str(n): "x" for n in range(64)})
