"""docs/reference/mqtt-conformance.md names every normative statement of both versions, and tests that exist."""

from __future__ import annotations

import ast
import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from pages import REFERENCE, ROOT, codes, rows

PAGE = REFERENCE / "mqtt-conformance.md"
INTRODUCTION, *_PARTS = PAGE.read_text().split("\n## ")
PARTS = dict(part.split("\n", 1) for part in _PARTS)

NUMBERS_5 = """1.5.4:3 1.5.5:1 1.5.7:1 2.1.3:1 2.2.1:2-6 2.2.2:1 3.1.0:2 3.1.2:30 3.1.3:12 3.1.4:6 3.2.0:2 3.2.2:22
3.3.1:13 3.3.2:20 3.3.4:10 3.4.2:3 3.5.2:3 3.6.1:1 3.6.2:3 3.7.2:3 3.8.1:1 3.8.3:5 3.8.4:8 3.9.2:2 3.9.3:2 3.10.1:1
3.10.3:2 3.10.4:6 3.11.2:2 3.11.3:2 3.12.4:1 3.14.0:1 3.14.1:1 3.14.2:4 3.14.4:3 3.15.1:1 3.15.2:3 4.1.0:2 4.2:1 4.3.1:1
4.3.2:5 4.3.3:13 4.4.0:2 4.5.0:2 4.6.0:6 4.7.0:1 4.7.1:2 4.7.2:1 4.7.3:4 4.8.2:6 4.9.0:3 4.12.0:7 4.12.1:2 4.13.1:1
4.13.2:1 6.0.0:4"""
"""Sections of MQTT 5.0 with the numbers of their statements: the last one, or first and last."""

NUMBERS_311 = """1.5.3:3 2.2.2:2 2.3.1:7 3.1.0:2 3.1.2:24 3.1.3:11 3.1.4:5 3.2.0:1 3.2.2:6 3.3.1:12 3.3.2:3 3.3.4:1 3.3.5:2 3.6.1:1
3.8.1:1 3.8.3:3 3-8.3:4-4 3.8.4:6 3.9.3:2 3.10.1:1 3.10.3:2 3.10.4:6 3.12.4:1 3.14.1:1 3.14.4:3 4.1.0:2 4.3.1:1 4.3.2:2
4.3.3:2 4.4.0:1 4.5.0:2 4.6.0:6 4.7.1:3 4.7.2:1 4.7.3:4 4.8.0:2 6.0.0:4 7.0.0:2 7.1.1:1 7.1.2:1"""
"""Likewise of MQTT 3.1.1; `3-8.3-4` is spelled so in the specification."""

COUNTS = {
    "MQTT 5.0": (NUMBERS_5, {"1": 5, "2": 7, "3": 175, "4": 60, "6": 4}),
    "MQTT 3.1.1": (NUMBERS_311, {"1": 3, "2": 9, "3": 95, "4": 26, "6": 4, "7": 4}),
}
VERSIONS = pytest.mark.parametrize("version", COUNTS)
_TEST = re.compile(r"(test_\w+\.py)::(test_\w+)(?:\[(.+)\])?")


def _expected(numbers: str) -> list[str]:
    found = []
    for entry in numbers.split():
        section, _, count = entry.partition(":")
        first, _, last = count.rpartition("-")
        found += [f"MQTT-{section}-{n}" for n in range(int(first or 1), int(last) + 1)]
    return found


@cache
def _tests(name: str) -> ast.Module:
    (file,) = (ROOT / "tests").rglob(name)
    return ast.parse(file.read_text())


@cache
def _names(name: str) -> frozenset[str]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return frozenset(node.name for node in _tests(name).body if isinstance(node, kinds))


@cache
def _cases(name: str) -> frozenset[str]:
    keys = (key for node in ast.walk(_tests(name)) if isinstance(node, ast.Dict) for key in node.keys)
    return frozenset(key.value for key in keys if isinstance(key, ast.Constant) and isinstance(key.value, str))


def _shown(cell: str) -> list[re.Match[str]]:
    return [match for code in codes(cell) if (match := _TEST.fullmatch(code))]


@VERSIONS
def test_every_statement_is_there(version: str) -> None:
    """The ids of the page are those of the specification, in its order, each once; so many a chapter."""
    numbers, by_chapter = COUNTS[version]
    ids = [codes(row[0])[0] for row in rows(PARTS[version])]
    assert ids == _expected(numbers)
    assert Counter(id_.removeprefix("MQTT-")[0] for id_ in ids) == by_chapter


@VERSIONS
def test_every_test_exists(version: str) -> None:
    """Each test that the page names is in the file it names, and each case in a table of that file."""
    for id_, _says, _who, shown in rows(PARTS[version]):
        for match in _shown(shown):
            file, test, case = match.groups()
            assert test in _names(file), f"{id_}: {file} has no {test}"
            assert case is None or case in _cases(file), f"{id_}: {file} has no case {case!r}"


@VERSIONS
def test_every_statement_is_shown(version: str) -> None:
    """Each row is complete: what is asked, of whom, and a test or a reason; a reason names no test that is none."""
    for id_, says, who, shown in rows(PARTS[version]):
        assert codes(id_)
        assert says, id_
        assert who in {"server", "both", "client"}, id_
        assert _shown(shown) or (len(shown) > 10 and "::" not in shown), f"{id_}: {shown!r}"
        assert who == "client" or shown != "clients only", f"{id_} concerns a server"


def test_pages_named_in_the_text_exist() -> None:
    """The folder and the file that the introduction names are there."""
    named = [Path(code) for code in codes(INTRODUCTION) if code.startswith("tests/")]
    assert named
    assert all((ROOT / path).exists() for path in named)
