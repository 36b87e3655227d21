"""Lockgate's gateway; and for services it runs, `from gateway import Event, handler`.

Import-light: this works with the base install. What is below needs `pip install 'lockgate[gateway]'`.
"""

from importlib.metadata import PackageNotFoundError, version

from edge_protocol.events import Event
from gateway.handlers import RejectEvent, ServiceDown, handler

__all__ = ["Event", "RejectEvent", "ServiceDown", "__version__", "handler"]

try:
    __version__ = version("lockgate")
except PackageNotFoundError:  # run from a checkout that is not installed
    __version__ = "0.1.0"
