"""What an operator can do: one set of operations, called by the command line and by the admin API alike."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

Operation = Callable[..., Awaitable[Any]]
"""Takes keyword arguments and gives a value, both of JSON's kinds; raises GatewayError or ProtocolError."""

Operations = Mapping[str, Operation]
"""By name, such as `device_add`. A running gateway serves them on state/gateway.sock; a stopped one is opened to run them."""
