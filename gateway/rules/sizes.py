"""How a number of bytes is told to people: in the units of gateway.toml."""

from __future__ import annotations

from typing import Final

_STEP: Final = 1024


def size_text(size_bytes: int) -> str:
    """Write a size, at least 0, with three digits or so: `512 B`, `1.5 KiB`, `76.7 GiB`."""
    size, unit = float(size_bytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < _STEP - 0.05:  # else it would be shown as 1024 of the smaller unit
            break
        size, unit = size / _STEP, larger
    return f"{size:.1f}".removesuffix(".0") + f" {unit}"
