"""Topic names as a tree: all that fall under a filter, at a cost that does not grow with the number of topics.

The mirror of `trie`, which finds the filters that a topic falls under; both answer what `edge_protocol.topics.matches`
defines, and property tests hold them to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

from edge_protocol.topics import TopicFilter, TopicName

V = TypeVar("V")


class _Node(Generic[V]):
    __slots__ = ("children", "value")

    def __init__(self) -> None:
        self.children: dict[str, _Node[V]] = {}
        self.value: V | None = None


class TopicTree(Generic[V]):
    """One value a topic."""

    def __init__(self) -> None:
        self._root: _Node[V] = _Node()

    def get(self, topic: TopicName) -> V | None:
        """The value of a topic."""
        node = self._root
        for level in topic.split("/"):
            child = node.children.get(level)
            if child is None:
                return None
            node = child
        return node.value

    def put(self, topic: TopicName, value: V) -> V | None:
        """Set the value of a topic; give back the one it replaces."""
        node = self._root
        for level in topic.split("/"):
            node = node.children.setdefault(level, _Node())
        old, node.value = node.value, value
        return old

    def pop(self, topic: TopicName) -> V | None:
        """Take the value of a topic out; None if there was none."""
        path = [self._root]
        levels = topic.split("/")
        for level in levels:
            child = path[-1].children.get(level)
            if child is None:
                return None
            path.append(child)
        old, path[-1].value = path[-1].value, None
        for parent, level, node in reversed(list(zip(path, levels, path[1:], strict=False))):
            if node.value is not None or node.children:
                break
            del parent.children[level]
        return old

    def under(self, filter_: TopicFilter) -> Iterator[V]:
        """Values of all topics that fall under a filter (MQTT 5.0, section 4.7). The tree must not change meanwhile."""
        nodes: list[_Node[V]] = [self._root]
        for depth, level in enumerate(filter_.split("/")):
            if level == "#":
                yield from _values(nodes, hides=not depth)
                return
            below: list[_Node[V]] = []
            for node in nodes:
                if level == "+":
                    below += _children(node, hides=not depth)
                elif (child := node.children.get(level)) is not None:
                    below.append(child)
            nodes = below
        yield from (node.value for node in nodes if node.value is not None)


def _children(node: _Node[V], *, hides: bool) -> list[_Node[V]]:
    """Of the first level those with `$` are hidden from wildcards [MQTT-4.7.2-1]."""
    return [child for level, child in node.children.items() if not (hides and level.startswith("$"))]


def _values(nodes: list[_Node[V]], *, hides: bool) -> Iterator[V]:
    """`#` is its parent and all below; without recursion, since a topic may have 32,000 levels."""
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node.value is not None:
            yield node.value
        waiting += _children(node, hides=hides and node is nodes[0])
