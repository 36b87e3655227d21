"""What the gateway raises: each branch tells the caller what to do next, each leaf what happened."""

from __future__ import annotations


class GatewayError(Exception):
    """Root of what `gateway` raises."""


class ConfigError(GatewayError):
    """Stop at start-up: a setting is wrong.

    Attributes:
        key: The setting, as written in gateway.toml (`mqtt.listen[0]`).
        value: What was found.
        expected: What would have been right.
    """

    def __init__(self, key: str, value: object, expected: str) -> None:
        super().__init__(f"{key}: expected {expected}, found {value!r}")
        self.key, self.value, self.expected = key, value, expected


class Conflict(GatewayError):
    """The caller's view is old, or the thing exists already: look again, then decide."""


class NotFound(GatewayError):
    """There is no such thing; the message names it and says how to list what there is."""


class SubscriptionDiffers(Conflict):
    """A subscription of this name exists with another specification."""


class RevisionDiffers(Conflict):
    """A value was changed since it was read."""


class Fenced(Conflict):
    """Another owner claimed the subscription since: stop, save nothing."""


class Unavailable(GatewayError):
    """Ours or the network's: the same call may succeed later."""


class BusUnavailable(Unavailable):
    """The storage did not take the batches; nothing of them is acknowledged. Repeat with the same batches."""


class BusFull(Unavailable):
    """Retention or the disk's floor leaves no room (answered 0x97). Repeat later with the same batches.

    Attributes:
        retry_after_s: When it is worth asking again, in seconds.
    """

    def __init__(self, detail: str, *, retry_after_s: float = 30.0) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class Trimmed(GatewayError):
    """The position asked for is no longer stored.

    Attributes:
        first: The oldest position that still is.
    """

    def __init__(self, first: int) -> None:
        super().__init__(f"events before position {first} have been removed by retention")
        self.first = first
