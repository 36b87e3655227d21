"""What can go wrong on the device: one tree, each branch says what the caller does next."""

from __future__ import annotations


def cause_of(exc: Exception) -> str:
    """What the system or a library says of an error, without numbers, and names that the message around it has already."""
    return (exc.strerror if isinstance(exc, OSError) else None) or str(exc) or type(exc).__name__


class AgentError(Exception):
    """Root of what `edge_agent` raises; the message is for the person at the device."""


class ConfigError(AgentError):
    """A setting, key or file is missing or wrong: stop and name it."""


class UsageError(ConfigError):
    """An argument on the command line is not what it should be."""


class EventInvalid(AgentError, ValueError):
    """The event breaks a rule of the wire protocol: emitting the same again gives the same answer."""


class OutboxFull(AgentError):
    """The outbox or the disk is full and the event was not taken: emit it again when the gateway was reached."""


class OutboxUnavailable(AgentError):
    """The outbox cannot be written or read now (disk error, locked for long); the event was not taken."""


class AlreadyRunning(AgentError):
    """Another daemon serves this home."""


class EnrolmentFailed(AgentError):
    """The gateway refused the code, or is not the one the code names."""
