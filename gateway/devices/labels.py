"""Labels of all devices, in memory: handlers that select by label must know them for every event, connected or not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from gateway.devices.records import decode
from gateway.devices.registry import PREFIX
from gateway.ports.state import StateStore

_PAGE: Final = 1000
_NONE: Final[Mapping[str, str]] = {}


class Labels:
    """Labels by device id; devices without any take no memory."""

    def __init__(self, state: StateStore) -> None:
        self._state = state
        self._changes = state.watch(PREFIX)  # from here on, so that nothing is missed between `load` and `run`
        self._labels: dict[str, Mapping[str, str]] = {}

    async def load(self) -> None:
        """Read the whole registry once."""
        after = ""
        while page := await self._state.scan(PREFIX, after, _PAGE):
            for entry in page:
                self._note(entry.key, entry.value)
            after = page[-1].key

    async def run(self) -> None:
        """Keep up with the registry, until the store is closed."""
        async for change in self._changes:
            self._note(change.key, change.value)

    def of(self, device: str) -> Mapping[str, str]:
        """Labels of a device; none for an unknown one."""
        return self._labels.get(device, _NONE)

    def _note(self, key: str, document: bytes | None) -> None:
        device = key.removeprefix(PREFIX)
        labels = decode(document).labels if document is not None else _NONE
        if labels:
            self._labels[device] = labels
        else:
            self._labels.pop(device, None)
