"""The grammar of topic names and topic filters on the wire (sections 4.7 and 4.8.2).

Whether a name falls under a filter, and who may use which, is decided elsewhere.
"""

from __future__ import annotations

from typing import Final

from gateway.mqtt.codec.faults import CodecError, Rule

SHARE_PREFIX: Final = "$share/"
"""What a shared subscription's filter begins with (4.8.2)."""


def has_wildcard(text: str) -> bool:
    """Tell whether a wildcard character is in a name (4.7.1)."""
    return "+" in text or "#" in text


def check_topic_name(topic: str) -> None:
    """Refuse a name that is empty or holds a wildcard.

    Raises:
        CodecError: `TOPIC_EMPTY`, `TOPIC_WILDCARD`.
    """
    if not topic:
        raise CodecError(Rule.TOPIC_EMPTY)
    if has_wildcard(topic):
        raise CodecError(Rule.TOPIC_WILDCARD)


def check_topic_filter(topic_filter: str) -> None:
    """Refuse what is not a topic filter, plain or `$share/NAME/FILTER`, in either version.

    3.1.1 does not know shared subscriptions, but the gateway offers them there too; a malformed one would otherwise be
    a plain filter that takes another way through authorization.

    Raises:
        CodecError: `FILTER_*`, `SHARE_*`.
    """
    if topic_filter.startswith(SHARE_PREFIX):
        topic_filter = _shared_filter(topic_filter)
    if not topic_filter:
        raise CodecError(Rule.FILTER_EMPTY)
    if not has_wildcard(topic_filter):
        return
    *levels, last = topic_filter.split("/")
    if any("#" in level for level in levels) or ("#" in last and last != "#"):
        raise CodecError(Rule.FILTER_MULTI_LEVEL)
    if any("+" in level and level != "+" for level in (*levels, last)):
        raise CodecError(Rule.FILTER_SINGLE_LEVEL)


def _shared_filter(topic_filter: str) -> str:
    name, _, shared = topic_filter.removeprefix(SHARE_PREFIX).partition("/")
    if not name:
        raise CodecError(Rule.SHARE_NAME_EMPTY)
    if has_wildcard(name):
        raise CodecError(Rule.SHARE_NAME_WILDCARD)
    if not shared:
        raise CodecError(Rule.SHARE_FILTER_MISSING)
    return shared
