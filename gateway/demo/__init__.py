"""`gateway demo`: the whole system on one machine, every part a process of its own, talking over real TLS.

Three retail services, a gateway, smart carts running `edge-agent`, a device that reports this machine's own metrics, and
an intruder with a wrong key. It ends with a count of every event, and fails if one was lost or handled twice.
"""

from __future__ import annotations

from gateway.demo.play import run

__all__ = ["run"]
