"""docs/reference/errors.md names every rule by which a peer is refused, the codes of MQTT in use, and no others."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from pages import REFERENCE, ROOT, codes, rows, sections

from edge_agent.cli import FAILURE, WRONG_USE
from gateway.mqtt.codec.faults import Rule
from gateway.mqtt.codec.reasons import ReasonCode
from gateway.web.problems import _BY_RULE, status_of

PAGE = REFERENCE / "errors.md"
TEXT = sections(PAGE, "## ")

FOLDERS = (
    "edge_protocol",
    "gateway/ingest",
    "gateway/devices",
    "gateway/web",
    "gateway/mqtt",
    "gateway/rules",
    "gateway/storage",
)
RAISED = {
    *("Rejected", "TokenRejected", "EnvelopeRejected", "ResealNeeded", "EventRejected", "KeySetRejected"),
    *("EnrolmentRefused", "Refusal", "Misfit"),
}
"""What is called with the rule first."""
SAID = {"Receipt", "Refused", "refuse", "end"}
"""What is called with a code, then `rule: detail`."""
_RULE = re.compile(r"[a-z][a-z0-9]*(?:-[a-z0-9]+)*")


def _calls() -> Iterator[tuple[str, ast.Call]]:
    for folder in FOLDERS:
        for file in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Call):
                    yield getattr(node.func, "id", getattr(node.func, "attr", "")), node


def _text(node: ast.expr) -> str:
    """A text as far as it is fixed: what is formatted in becomes `*`."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "*" for part in node.values)
    return ""


def _rules() -> set[str]:
    found: set[str] = set()
    for name, call in _calls():
        if name in RAISED and call.args:
            found.add(_text(call.args[0]))
        if name in SAID and len(call.args) > 1 and ": " in (text := _text(call.args[1])):
            found.add(text.partition(":")[0])
        if name == "Forked":
            found.add(_text(call.args[-1]))
    return {rule for rule in found - {"*"} if _RULE.fullmatch(rule.replace("*", "x"))}


def _in_source(word: str) -> bool:
    return any(f'"{word}"' in file.read_text() for folder in FOLDERS for file in Path(ROOT / folder).rglob("*.py"))


def _on_page() -> set[str]:
    return {code for name in TEXT if name.startswith("Rules") for cells in rows(TEXT[name]) for code in codes(cells[0])}


def test_every_rule_in_the_code_is_on_the_page() -> None:
    """A rule that is made up from a name (`bad-*`) has at least one on the page that it can be."""
    shown = _on_page()
    for rule in _rules():
        pattern = re.escape(rule).replace(r"\*", r"[\w-]+")
        assert any(re.fullmatch(pattern, each) for each in shown), f"{rule} is not on the page"


def test_every_rule_on_the_page_is_in_the_code() -> None:
    """Likewise the other way; a rule that is chosen by a condition stands in the code as a text."""
    patterns = [re.escape(rule).replace(r"\*", r"[\w-]+") for rule in _rules()]
    for rule in _on_page():
        assert any(re.fullmatch(pattern, rule) for pattern in patterns) or _in_source(rule), f"{rule} is nowhere raised"


def _codes_used() -> set[int]:
    """Codes from 0x80 on that the MQTT server names, in its own modules or by a rule of its codec."""
    used = {rule.code for rule in Rule}
    for file in (*(ROOT / "gateway" / "mqtt").glob("*.py"), ROOT / "gateway" / "rules" / "session.py"):
        words = set(re.findall(r"\b[A-Z][A-Z0-9_]+\b", file.read_text()))
        used |= {ReasonCode[name] for name in words & set(ReasonCode.__members__)}
    return {int(code) for code in used if code >= 0x80}


def test_codes_on_the_page_are_those_in_use() -> None:
    """Every reason code from 0x80 on that the gateway can send is on the page, and no other."""
    shown = {int(codes(cells[0])[0], 16) for cells in rows(TEXT["Reason codes of MQTT"])}
    assert shown == _codes_used()


def test_http_statuses_of_rules_are_the_programs() -> None:
    """The statuses by rule that the page shows are the table of `gateway.web.problems`."""
    shown = {code: int(cells[1]) for cells in rows(TEXT["HTTP"]) for code in codes(cells[0])}
    assert shown == _BY_RULE
    assert status_of(ValueError()) == 500


def test_exit_codes_are_the_programs() -> None:
    """0, 1, 2 and 130."""
    shown = [int(code) for cells in rows(TEXT["Exit codes"]) for code in codes(cells[0])]
    assert shown == [0, FAILURE, WRONG_USE, 130]
