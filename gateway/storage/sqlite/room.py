"""Is there room: the disk's floor, and the size that retention allows while live subscriptions hold the log."""

from __future__ import annotations

import os
from pathlib import Path

import apsw

from gateway.ports.bus import position
from gateway.rules.sizes import size_text
from gateway.storage import StorageConfig
from gateway.storage.sqlite.schema import scalar

# How far each subscription needs the log: from behind its floor, or from its oldest blocked reference.
NEEDED = """min(floor, coalesce(
    (SELECT min(position) - 1 FROM deferred WHERE deferred.subscription = name AND state = 'blocked'), floor))"""


def free_bytes(path: Path) -> int:
    """Bytes that the file system has left for us."""
    disk = os.statvfs(path.parent)
    return disk.f_bavail * disk.f_frsize


def used_bytes(connection: apsw.Connection) -> int:
    """Bytes of the database that hold something (freed pages are used again)."""
    pages = int(connection.pragma("page_count")) - int(connection.pragma("freelist_count"))
    return pages * int(connection.pragma("page_size"))


def fullness(connection: apsw.Connection, path: Path, config: StorageConfig) -> str:
    """Tell why appends must wait; "" if they need not."""
    free = free_bytes(path)
    if free < config.min_free_disk_bytes:
        floor = size_text(config.min_free_disk_bytes)
        return f"the disk has {size_text(free)} left, less than bus.min_free_disk, {floor}"
    keep = config.retention
    if keep is None or used_bytes(connection) <= keep.size_bytes or _may_shrink(connection):
        return ""
    return f"the bus is over the {size_text(keep.size_bytes)} of bus.retention, and live subscriptions need all of it"


def _may_shrink(connection: apsw.Connection) -> bool:
    needed = scalar(connection, f"SELECT min({NEEDED}) FROM subscription WHERE live")  # noqa: S608  # a constant
    oldest = connection.execute(
        "SELECT position, coalesce(CAST(count AS INTEGER), 1) FROM batch ORDER BY position LIMIT 1"
    ).fetchone()
    return needed is None or (oldest is not None and position(oldest[0], oldest[1] - 1) < needed)
