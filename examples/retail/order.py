"""Order service: what was bought. Handles `order_placed`."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from service import Service, main

SCHEMA = 'CREATE TABLE IF NOT EXISTS "order"(number TEXT PRIMARY KEY, cart TEXT, items INTEGER, total_cents INTEGER);'


def place(db: sqlite3.Connection, data: dict) -> None:
    """Take an order. No ON CONFLICT here: an order handled twice would fail loudly."""
    db.execute('INSERT INTO "order" VALUES (:number, :cart, :items, :total_cents)', data)


def make(database: Path) -> Service:
    """Build the service."""
    service = Service("order", database, SCHEMA)
    service.shows("/order", 'SELECT * FROM "order" ORDER BY number')
    service.handles("order_placed", place)
    service.raises("order_placed")
    return service


if __name__ == "__main__":
    main(make, port=9003)
