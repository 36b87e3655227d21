"""How to deliver, one file a URL scheme.

Each module of this package that exports `target = Target(schemes, open)` is a target; a new one is a new file and
nothing else. Nothing is imported before a target is opened.
"""

from __future__ import annotations

import pkgutil
from functools import cache
from importlib import import_module

from gateway.errors import ConfigError
from gateway.ports.target import BatchDeliverer, Deliverer, Target, TargetConfig

__all__ = ["open_target", "schemes"]


async def open_target(config: TargetConfig) -> Deliverer:
    """Open the target that a handler's URL names.

    Raises:
        ConfigError: No target serves the scheme, or the target cannot use the URL or batches.
    """
    target = _targets().get(config.url.scheme)
    if target is None:
        expected = "a URL with one of the schemes " + ", ".join(schemes())
        raise ConfigError(f"handlers.{config.handler}.url", config.url.geturl(), expected)
    deliverer = await target.open(config)
    if config.batch > 1 and not isinstance(deliverer, BatchDeliverer):
        await deliverer.aclose()
        expected = f"1: {config.url.scheme}: takes one event at a time"
        raise ConfigError(f"handlers.{config.handler}.batch", config.batch, expected)
    return deliverer


def schemes() -> tuple[str, ...]:
    """List the schemes that can be delivered to, sorted."""
    return tuple(sorted(_targets()))


@cache
def _targets() -> dict[str, Target]:
    found: dict[str, Target] = {}
    for module in pkgutil.iter_modules(__path__, f"{__name__}."):
        target = getattr(import_module(module.name), "target", None)
        if isinstance(target, Target):
            found.update(dict.fromkeys(target.schemes, target))
    return found
