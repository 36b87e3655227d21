"""The explanation names things that are there: tests of promises, folders, listeners."""

from __future__ import annotations

import ast
import re

import pytest
from pages import DOCS, ROOT, sections

PROMISES = sections(DOCS / "explanation" / "promises.md", "## ")
ARCHITECTURE = DOCS / "explanation" / "architecture.md"
_TEST = re.compile(r"- `(tests/[\w/]+\.py)::(test_\w+)`")


def test_there_are_seven_promises() -> None:
    """P1 to P7, in order, each as a sentence of its own."""
    assert [name.partition(":")[0] for name in PROMISES] == [f"P{n}" for n in range(1, 8)]
    assert all("\n> " in text for text in PROMISES.values())


@pytest.mark.parametrize("name", PROMISES)
def test_every_promise_has_its_tests(name: str) -> None:
    """Each names two tests or more, and every one of them exists."""
    named = _TEST.findall(PROMISES[name])
    assert len(named) >= 2
    for file, test in named:
        tree = ast.parse((ROOT / file).read_text())
        functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        assert test in functions, f"{file}::{test}"


def test_the_layout_is_the_repositorys() -> None:
    """Every package of the gateway is in the architecture's layout, and every path there exists."""
    layout = ARCHITECTURE.read_text().partition("## Layout")[2].partition("## ")[0]
    named = re.findall(r"^\| `([\w./]+)`", layout, re.MULTILINE)
    assert all((ROOT / path).exists() for path in named), named
    packages = {f"gateway/{path.name}/" for path in (ROOT / "gateway").iterdir() if (path / "__init__.py").exists()}
    packages |= {"gateway/rules/", "gateway/ports/"}
    assert packages <= set(named)
