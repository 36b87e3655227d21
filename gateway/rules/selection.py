"""Which events a subscription wants: patterns over event type and device id, and labels. Pure; labels are handed in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

CONNECTED: Final = "device.connected"
DISCONNECTED: Final = "device.disconnected"
PRESENCE_TYPES: Final = frozenset((CONNECTED, DISCONNECTED))
"""Types that only the gateway raises: no policy lets a client or a service use them, and they reach only those who name
them. Whoever asks for everything means what devices and services have to say, not when they come and go."""

_DEVICES = "/devices/"


def matches_pattern(pattern: str, text: str) -> bool:
    """Tell whether a text is a pattern's: equal to it, or, with a final `*`, beginning with what stands before it."""
    return text.startswith(pattern[:-1]) if pattern.endswith("*") else text == pattern


@lru_cache(maxsize=4096)  # types repeat with every event; devices choose them, so the memory is bounded
def _matches_any(patterns: tuple[str, ...], text: str) -> bool:
    return any(matches_pattern(pattern, text) for pattern in patterns)


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What a subscription selects; an empty field is no condition.

    Attributes:
        types: Event types, exact or with a final `*`; empty for all but `PRESENCE_TYPES`.
        devices: Device ids, exact or with a final `*`; events of services then never match.
        labels: Labels a device must have, all of them; likewise.
    """

    types: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()

    @property
    def asks_labels(self) -> bool:
        """Whether `wants_source` needs a device's labels."""
        return bool(self.labels)

    def wants_type(self, type_: str) -> bool:
        """Tell whether an event of this type may match."""
        return _matches_any(self.types, type_) if self.types else type_ not in PRESENCE_TYPES

    def wants_any(self, types: Iterable[str]) -> bool:
        """Tell whether a batch that holds these types can hold an event that matches."""
        return any(self.wants_type(type_) for type_ in types)

    def wants_source(self, source: str, labels: Mapping[str, str]) -> bool:
        """Tell whether events of this source may match.

        Args:
            source: CloudEvents `source`.
            labels: The device's; empty for a service.
        """
        if not self.devices and not self.labels:
            return True
        if not source.startswith(_DEVICES):
            return False
        device = source[len(_DEVICES) :]
        known = not self.devices or any(matches_pattern(pattern, device) for pattern in self.devices)
        return known and all(labels.get(name) == value for name, value in self.labels)
