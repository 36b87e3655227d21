"""Product service: what is on the shelves. Handles `product_added`."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from service import Service, main

SCHEMA = "CREATE TABLE IF NOT EXISTS product(sku TEXT PRIMARY KEY, name TEXT, price_cents INTEGER, stock INTEGER);"


def add(db: sqlite3.Connection, data: dict) -> None:
    """Put products on the shelf."""
    db.execute(
        "INSERT INTO product VALUES (:sku, :name, :price_cents, :quantity) "
        "ON CONFLICT(sku) DO UPDATE SET stock = stock + :quantity, price_cents = :price_cents",
        data,
    )


def make(database: Path) -> Service:
    """Build the service."""
    service = Service("product", database, SCHEMA)
    service.shows("/product", "SELECT * FROM product ORDER BY sku")
    service.handles("product_added", add)
    service.raises("product_added")
    return service


if __name__ == "__main__":
    main(make, port=9001)
