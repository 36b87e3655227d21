"""The ports in plain dicts: for tests of other parts, and for users' tests. Nothing outlives the process.

Passes the same contract suites as every other backend. `memory://` opens a store of its own each time.
"""

from __future__ import annotations

from gateway.storage import Backend, Storage, StorageConfig
from gateway.storage.memory.bus import MemoryBus
from gateway.storage.memory.log import Log
from gateway.storage.memory.state import MemoryState
from gateway.storage.memory.subscriptions import MemorySubscriptions


async def open_memory(config: StorageConfig) -> Storage:
    """Open an empty store."""
    log = Log(config)
    state = MemoryState(log)
    subscriptions = MemorySubscriptions(log)
    bus = MemoryBus(log, subscriptions)

    async def aclose() -> None:
        log.close()
        state.close()

    bus.on_close = aclose
    return Storage(bus, subscriptions, state, aclose)


backend = Backend(scheme="memory", open=open_memory)
