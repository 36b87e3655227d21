"""A closed SQLite store: looked into, or damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import apsw


def run_sql(path: Path, sql: str) -> list[tuple[Any, ...]]:
    """Run one statement on a store that nobody has open."""
    connection = apsw.Connection(str(path))
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()
