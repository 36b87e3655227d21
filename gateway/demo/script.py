"""What the demo's devices say: the shopping of the retail example, and this machine's own load. Pure but for `metrics`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import Any

Line = tuple[str, dict[str, Any]]
"""Event type and data."""

SHELF = (("apple", "Apple", 45), ("bread", "Bread", 320), ("coffee", "Coffee", 790), ("milk", "Milk", 135))


def shopping(cart: str, count: int) -> Iterator[Line]:
    """The events of one smart cart: products put in, the cart's content, now and then an order."""
    items = total = 0
    for n in range(count):
        step = n % 10
        if step in (0, 5):
            sku, name, price = SHELF[n % len(SHELF)]
            yield "product_added", {"sku": sku, "name": name, "price_cents": price, "quantity": 10}
        elif step == 9:
            yield "order_placed", {"number": f"{cart}-{n}", "cart": cart, "items": items, "total_cents": total}
            items = total = 0
        else:
            items, total = items + 1, total + SHELF[n % len(SHELF)][2]
            yield "cart_updated", {"cart": cart, "items": items, "total_cents": total}


def metrics(count: int) -> Iterator[Line]:
    """This machine's load and free disk, read anew for every event."""
    for _ in range(count):
        disk = shutil.disk_usage("/")
        yield "machine_metrics", {"load_1m": os.getloadavg()[0], "disk_free_bytes": disk.free}
