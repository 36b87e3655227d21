"""What the registry remembers across a restart, on the embedded store."""

import device_parts as parts
import pytest

from edge_protocol.errors import TokenRejected
from gateway.errors import Conflict
from gateway.storage import open_storage


async def test_registry_and_used_tokens_survive_a_restart(tmp_path):
    """Devices, epochs, claimed keys and used token ids are there when the store is opened again."""
    url = f"sqlite:///{tmp_path}/bus.db"
    storage = await open_storage(url, min_free_disk_bytes=0)
    site = parts.Site(storage.state, parts.Clock(), replay_protection=True)
    await site.add("dev1")
    await site.registry.remove("dev1")
    key = await site.add("dev1")
    token = parts.token(key, jti="once")
    assert (await site.connect(token)).epoch == 2
    await storage.aclose()

    storage = await open_storage(url, min_free_disk_bytes=0)
    site = parts.Site(storage.state, parts.Clock(), replay_protection=True)
    assert (await site.registry.show("dev1")).epoch == 2
    with pytest.raises(Conflict, match="is registered for device 'dev1' already"):
        await site.add("dev2", key=key)
    with pytest.raises(TokenRejected, match="token-replayed"):
        await site.connect(token)
    assert (await site.connect(parts.token(key, jti="twice"))).epoch == 2
    await storage.aclose()
