"""Cart service: what lies in the carts now. Handles `cart_updated`."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from service import Service, main

SCHEMA = "CREATE TABLE IF NOT EXISTS cart(cart TEXT PRIMARY KEY, items INTEGER, total_cents INTEGER, updates INTEGER);"


def update(db: sqlite3.Connection, data: dict) -> None:
    """Remember a cart's newest content: right only because a device's events come in order."""
    db.execute(
        "INSERT INTO cart VALUES (:cart, :items, :total_cents, 1) ON CONFLICT(cart) "
        "DO UPDATE SET items = :items, total_cents = :total_cents, updates = updates + 1",
        data,
    )


def make(database: Path) -> Service:
    """Build the service."""
    service = Service("cart", database, SCHEMA)
    service.shows("/cart", "SELECT * FROM cart ORDER BY cart")
    service.handles("cart_updated", update)
    service.raises("cart_updated")
    return service


if __name__ == "__main__":
    main(make, port=9002)
