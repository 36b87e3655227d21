"""Topic filters as a tree: all that a topic falls under, at a cost that does not grow with the number of filters.

It answers what `edge_protocol.topics.matches` defines, filter by filter; a property test holds the two together.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Final, Generic, TypeVar

MAX_LEVELS: Final = 128
"""Of a filter that clients may put in here: a level may be one byte on the wire, and takes 300 in memory."""

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class _Node(Generic[K, V]):
    __slots__ = ("children", "entries")

    def __init__(self) -> None:
        self.children: dict[str, _Node[K, V]] = {}
        self.entries: dict[K, V] = {}


class Trie(Generic[K, V]):
    """For each filter, values by key; a key has one value a filter."""

    def __init__(self) -> None:
        self._root: _Node[K, V] = _Node()

    def put(self, filter_: str, key: K, value: V) -> V | None:
        """Set a key's value under a filter; give back the one it replaces."""
        node = self._root
        for level in filter_.split("/"):
            node = node.children.setdefault(level, _Node())
        old = node.entries.get(key)
        node.entries[key] = value
        return old

    def remove(self, filter_: str, key: K) -> V | None:
        """Take a key's value under a filter out; None if there was none."""
        path = [self._root]
        levels = filter_.split("/")
        for level in levels:
            child = path[-1].children.get(level)
            if child is None:
                return None
            path.append(child)
        old = path[-1].entries.pop(key, None)
        for parent, level, node in reversed(list(zip(path, levels, path[1:], strict=False))):
            if node.entries or node.children:
                break
            del parent.children[level]
        return old

    def matching(self, topic: str) -> Iterator[tuple[K, V]]:
        """Keys and values of every filter that a topic falls under (MQTT 5.0, section 4.7), in no order."""
        levels = topic.split("/")
        nodes = [self._root]
        for depth, level in enumerate(levels):
            hides = depth == 0 and level.startswith("$")  # [MQTT-4.7.2-1]
            below: list[_Node[K, V]] = []
            for node in nodes:
                if not hides:
                    yield from _entries(node.children.get("#"))
                    _append(below, node.children.get("+"))
                _append(below, node.children.get(level))
            nodes = below
        for node in nodes:
            yield from node.entries.items()
            yield from _entries(node.children.get("#"))


def _entries(node: _Node[K, V] | None) -> Iterator[tuple[K, V]]:
    if node is not None:
        yield from node.entries.items()


def _append(nodes: list[_Node[K, V]], node: _Node[K, V] | None) -> None:
    if node is not None:
        nodes.append(node)
