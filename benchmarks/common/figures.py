"""Figures: medians of alternating rounds, what they are compared with, what they must reach, and how they are shown."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Round = Callable[[], float]


def alternate(rounds: int, contenders: Mapping[str, Round]) -> dict[str, list[float]]:
    """Measure contenders in turn, so that what disturbs the machine disturbs all of them.

    Every other time they go in the opposite order: none always profits from what the one before it left behind.
    """
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for n in range(rounds):
        for name in list(contenders)[:: -1 if n % 2 else 1]:
            found[name].append(contenders[name]())
    return found


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One measured thing.

    Attributes:
        name: What was measured.
        value: Median, in `unit`.
        unit: Of value and floor.
        rounds: Every round's value.
        floor: Median of what it is compared with, from the same run; None if nothing is.
        floor_name: What that is.
        at_least: What the ratio, or the value without a floor, must reach; None if nothing is asked.
        aim: Likewise, what we want.
        less_is_better: Whether bounds are upper bounds.
        notes: Figures beside it, for the JSON.
    """

    name: str
    value: float
    unit: str
    rounds: Sequence[float] = ()
    floor: float | None = None
    floor_name: str = ""
    at_least: float | None = None
    aim: float | None = None
    less_is_better: bool = False
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ratio(self) -> float | None:
        """Value to floor."""
        return self.value / self.floor if self.floor else None

    @property
    def verdict(self) -> str:
        """`aim`, `at least` or `MISSED`; nothing if nothing is asked."""
        judged = self.value if self.ratio is None else self.ratio
        if self._reaches(judged, self.aim):
            return "aim"
        if self._reaches(judged, self.at_least):
            return "at least"
        return "" if self.at_least is None else "MISSED"

    def _reaches(self, judged: float, bound: float | None) -> bool:
        return bound is not None and (judged <= bound if self.less_is_better else judged >= bound)

    def document(self) -> dict[str, Any]:
        """For JSON."""
        names = (
            "name",
            "value",
            "unit",
            "floor_name",
            "floor",
            "ratio",
            "at_least",
            "aim",
            "less_is_better",
            "verdict",
        )
        return {name: getattr(self, name) for name in names} | {"rounds": list(self.rounds), **self.notes}


def compare(name: str, unit: str, found: Mapping[str, Sequence[float]], ours: str, floor: str, **bounds: Any) -> Figure:
    """Make a figure of the medians of two contenders."""
    return Figure(
        name=name,
        unit=unit,
        value=statistics.median(found[ours]),
        rounds=found[ours],
        floor=statistics.median(found[floor]),
        floor_name=floor,
        **{"notes": {"floor_rounds": list(found[floor])}} | bounds,
    )


def print_figures(figures: Sequence[Figure]) -> None:
    """Print a table."""
    table: list[tuple[str, ...]] = [("MEASURE", "MEDIAN", "SPREAD", "AGAINST", "RATIO", "AT LEAST", "AIM", "")]
    table += [_cells(figure) for figure in figures]
    widths = [max(len(row[n]) for row in table) for n in range(len(table[0]))]
    for row in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _cells(figure: Figure) -> tuple[str, ...]:
    against = "" if figure.floor is None else f"{figure.floor_name}: {_number(figure.floor)}"
    spread = f"{_number(min(figure.rounds))}..{_number(max(figure.rounds))}" if len(figure.rounds) > 1 else ""
    ratio = "" if figure.ratio is None else f"{figure.ratio:.2f} x"
    bounds = ("" if bound is None else _number(bound) for bound in (figure.at_least, figure.aim))
    return (figure.name, f"{_number(figure.value)} {figure.unit}", spread, against, ratio, *bounds, figure.verdict)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
