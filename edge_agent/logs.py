"""Logging of the daemon: fixed event names with key=value fields, through the standard library.

Identifiers and sizes only: never a payload, a token or a key.
"""

from __future__ import annotations

import logging
from typing import Any, Final

import msgspec

_log: Final = logging.getLogger("edge_agent")
_FORMAT: Final = "%(asctime)s %(levelname)s %(message)s"


def info(event: str, **fields: Any) -> None:
    """Log what an operator wants to see."""
    _log.info("%s", _Line(event, fields))


def debug(event: str, **fields: Any) -> None:
    """Log what helps to find a fault."""
    _log.debug("%s", _Line(event, fields))


def warning(event: str, **fields: Any) -> None:
    """Log what somebody should look at."""
    _log.warning("%s", _Line(event, fields))


def error(event: str, *, exc_info: bool = False, **fields: Any) -> None:
    """Log what stops work."""
    _log.error("%s", _Line(event, fields), exc_info=exc_info)


def set_up(level: str) -> None:
    """Write to standard error; called by the command line only."""
    logging.basicConfig(level=level.upper(), format=_FORMAT)


class _Line:
    """Formatted only if somebody reads it."""

    def __init__(self, event: str, fields: dict[str, Any]) -> None:
        self._event = event
        self._fields = fields

    def __str__(self) -> str:
        return " ".join(
            (self._event, *(f"{name}={_text(value)}" for name, value in self._fields.items() if value is not None))
        )


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return text if text and text.isprintable() and not set(text) & set(' "=') else msgspec.json.encode(text).decode()
