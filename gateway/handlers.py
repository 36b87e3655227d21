"""What a cloud service written in Python needs to be run by the gateway: mark functions, refuse events.

Import-light, and works with the base install, so that a service's tests need no gateway.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

from gateway.rules.selection import matches_pattern

_F = TypeVar("_F", bound=Callable[..., Any])

_TYPES: Final = "__lockgate_types__"


class RejectEvent(Exception):  # reads as what a handler does: raise RejectEvent("no such cart")
    """Raised by a handler: this event will never be taken; it becomes a dead letter at once, with the message."""


class ServiceDown(Exception):
    """Raised by a handler: what it needs is not there; deliveries pause and resume, and no attempt is used up.

    Attributes:
        retry_after_s: Pause at least this long, in seconds.
    """

    def __init__(self, message: str = "", *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


def handler(*types: str) -> Callable[[_F], _F]:
    """Mark a function, `async` or not, as the handler of event types.

    Args:
        types: Exact, or with a final `*`; none for all. A target `python:module` finds the function by them; a target
            `python:module:function` refuses other types.

    Raises:
        TypeError: Used without parentheses.
    """
    if any(not isinstance(type_, str) for type_ in types):
        raise TypeError('use it with parentheses: @handler("order_placed"), or @handler() for all types')

    def mark(function: _F) -> _F:
        setattr(function, _TYPES, types)
        return function

    return mark


def handled_types(function: object) -> tuple[str, ...] | None:
    """Tell the types a function was marked with; None if it was not marked."""
    types = getattr(function, _TYPES, None)
    return types if isinstance(types, tuple) else None


def handles(types: tuple[str, ...], type_: str) -> bool:
    """Tell whether a function marked with these types takes an event of this type."""
    return not types or any(matches_pattern(pattern, type_) for pattern in types)
