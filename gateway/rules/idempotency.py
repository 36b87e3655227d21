"""Idempotency keys: what a service deduplicates by."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from urllib.parse import quote

_PLAIN = re.compile(r"[A-Za-z0-9/_.~:@!$&*+=-]*")
_SAFE = "/_.~:@!$&*+=-"
_MAX_LENGTH = 255


def idempotency_key(source: str, id_: str) -> str:
    """Name an event for good: the same for every delivery, redelivery and replay, on every gateway.

    `{source}#{id}`, both percent-encoded as UTF-8 outside `A-Z a-z 0-9 / _ . ~ : @ ! $ & * + = -`, so it is one printable ASCII
    word, legal in a header; beyond 255 characters `sha256:` and the digest of that in hexadecimal. Two events share a
    key only if they share source and id (CloudEvents 1.0.2, section 3.1: those identify an event).
    """
    key = f"{_encoded(source)}#{_encoded(id_)}"
    return key if len(key) <= _MAX_LENGTH else f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"


def batch_key(keys: Iterable[str]) -> str:
    """Name a request with several events: the same whenever it holds the same events in the same order.

    `batch:sha256:` and the digest of their keys, a line each, in hexadecimal. It is no event's key: it has no `#`.

    Args:
        keys: Of the events.
    """
    lines = "\n".join(keys)
    return f"batch:sha256:{hashlib.sha256(lines.encode()).hexdigest()}"


def _encoded(text: str) -> str:
    return text if _PLAIN.fullmatch(text) else quote(text, safe=_SAFE)
