"""The pages of the documentation, taken apart: fenced blocks with their marks, tables, links.

A mark is an HTML comment, which readers never see. `test_docs.py` says what each does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
REFERENCE = DOCS / "reference"

_MARK = re.compile(r"<!-- (.+?) -->")
_FENCE = re.compile(r"```(\S*)")
_CODE = re.compile(r"`([^`]+)`")


@dataclass
class Block:
    """A fenced block.

    Attributes:
        line: Of its first line of text, from 1.
        language: Behind the fence; "" for none.
        text: Between the fences.
        before: Marks above it, in order.
        after: Marks between it and the next block.
    """

    line: int
    language: str
    text: str
    before: list[str] = field(default_factory=list)
    after: list[str] = field(default_factory=list)


_BEFORE = ("given", "file", "append", "background", "run")


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page, each with the marks that belong to it."""
    found: list[Block] = []
    waiting: list[str] = []
    lines = iter(enumerate(page.read_text().splitlines(), 1))
    for number, line in lines:
        if mark := _MARK.fullmatch(line.strip()):
            text = mark[1]
            (waiting if text.partition(":")[0] in _BEFORE else found[-1].after).append(text)
        elif fence := _FENCE.fullmatch(line.strip()):
            found.append(Block(number + 1, fence[1], _fenced(lines, page), before=waiting))
            waiting = []
    assert not waiting, f"{page}: a mark without a block: {waiting}"
    return found


def _fenced(lines: Iterator[tuple[int, str]], page: Path) -> str:
    text = []
    for _, line in lines:
        if line.strip() == "```":
            return "\n".join(text) + "\n"
        text.append(line)
    raise AssertionError(f"{page}: a fence without an end")


def rows(text: str) -> Iterator[list[str]]:
    """Cells of every table row that begins with code, as Markdown text; a bar with a backslash belongs to its cell."""
    for line in text.splitlines():
        if line.startswith("| `"):
            yield [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def codes(cell: str) -> list[str]:
    """What stands in backquotes in a cell."""
    return _CODE.findall(cell)


def sections(page: Path, level: str = "### ") -> dict[str, str]:
    """Text under each heading of a level, by its code if it has some, else by its words."""
    found: dict[str, str] = {}
    name = ""
    for line in page.read_text().splitlines():
        if line.startswith("#"):
            title = line.lstrip("# ")
            name = (codes(title) or [title])[0] if line.startswith(level) else ""
            if name:
                found[name] = ""
        elif name:
            found[name] += line + "\n"
    return found
