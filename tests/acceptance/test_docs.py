"""Every command of README.md and of docs/ runs, in the order a reader would type them.

A page is a session, or several: its ```sh blocks run from top to bottom in one bash in an empty folder, with this
installation first in PATH and ports that are free (`page_session.PORTS`). A command that ends with another exit code
than 0 fails the test, which names page and line. Words such as CODE stand for what a reader copies from the output
(`page_session.PASTED`). What cannot be run in a test is listed in NOT_RUN, with the reason.

Marks, HTML comments that readers do not see, say what prose tells the reader. Above a block:

    given: NAME           a new session, prepared as GIVENS says
    file: PATH            the block is saved as this file; `append: PATH` adds it
    run                   a Python block is run
    background: NAME      its last command keeps running, in a terminal of that name

Below one:

    prints: TEXT          the last command prints this, however it is spaced; it is repeated until it does
    NAME shows: TEXT      another terminal shows this, sooner or later
    stop: NAME            Ctrl-C in that terminal
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from page_session import TIMEOUT_S, Session
from pages import DOCS, ROOT, Block, blocks
from system import eventually

PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
RUNNABLE = [page for page in PAGES if any(block.language in ("sh", "python", "toml") for block in blocks(page))]


def _name(page: Path) -> str:
    return os.path.relpath(page, ROOT)


NOT_RUN = {
    r"make demo\b": "downloads packages into .venv; what it runs then, `gateway demo`, runs in commands.md",
    r"make test\b": "runs this test",
    r"(python3 -m )?pip install\b": "downloads packages; the tests run this installation",
    r"sudo\b": "changes the machine: users, units, packages",
}


def _running_gateway(session: Session) -> None:
    _ok(session, "gateway init")
    _serve(session)


def _serve(session: Session) -> None:
    session.start("gateway", "gateway serve")
    session.wait_for("gateway", "gateway_ready")


def _simple_device(session: Session) -> None:
    _running_gateway(session)
    _ok(session, "gateway device add dev0 --role simple-device")  # shows the audience
    at = session.put("--gateway mqtts://localhost:8883 --audience AUDIENCE --ca certs/ca.pem")
    _ok(session, f"edge-agent init dev1 {at} >dev1.jwk")
    _ok(session, "gateway device add dev1 --role simple-device --key dev1.jwk")


def _sealing_device(session: Session) -> None:
    _running_gateway(session)
    _ok(session, "gateway device add dev1")
    _ok(session, session.put("edge-agent init dev1 --gateway mqtts://localhost:8883"))
    _ok(session, session.put("edge-agent enroll CODE --url https://localhost:8443"))
    session.start("agent", "edge-agent run")


def _code(session: Session) -> None:
    _running_gateway(session)
    _ok(session, "gateway device add dev1")


def _two_dead_letters(session: Session) -> None:
    _ok(session, "gateway init")
    (session.folder / "shop.py").write_text(
        "from gateway import RejectEvent\ndef refuse(event): raise RejectEvent('no')\n"
    )
    with (session.folder / "configs" / "gateway.toml").open("a") as file:
        file.write('\n[[handlers]]\nname = "orders"\nurl = "python:shop:refuse"\n')
    _serve(session)
    for number in range(2):
        _ok(session, f"gateway events publish order_placed {number}")
    eventually(lambda: _ok(session, "gateway dead-letters list").count("orders:") == 2)


def _clone(session: Session) -> None:
    for package in ("edge_protocol", "gateway"):
        shutil.copytree(ROOT / package, session.folder / package, ignore=shutil.ignore_patterns("__pycache__"))


GIVENS: dict[str, Callable[[Session], None]] = {
    "an empty folder": lambda _: None,
    "a running gateway": _running_gateway,
    "a running gateway and dev1, a simple device": _simple_device,
    "a running gateway and dev1 with its agent": _sealing_device,
    "a running gateway and a code": _code,
    "a running gateway with two dead letters": _two_dead_letters,
    "a clone": _clone,
}


def _value(block: Block, name: str) -> str:
    return next((mark.partition(": ")[2] for mark in block.before if mark.startswith(f"{name}: ")), "")


def sessions(page: Path) -> list[list[Block]]:
    """The blocks of a page, cut where a new session is given."""
    found: list[list[Block]] = []
    for block in blocks(page):
        if not found or _value(block, "given"):
            found.append([])
        found[-1].append(block)
    return found


CASES = [
    pytest.param(page, number, id=f"{_name(page)}-{number}")
    for page in RUNNABLE
    for number, part in enumerate(sessions(page), 1)
    if any(block.language == "sh" or block.before for block in part)
]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("page", "number"), CASES)
def test_every_command_of_a_page_runs(page: Path, number: int, tmp_path: Path) -> None:
    """Each command of the page succeeds, in the order in which it stands there."""
    _run_session(page, sessions(page)[number - 1], tmp_path / "session")


def test_a_command_that_fails_is_named(tmp_path: Path) -> None:
    """The failure says which command of which line it was, its exit code, and what it printed."""
    page = tmp_path / "page.md"
    page.write_text("# Page\n\n```sh\nA=1\n\necho $A; \\\n  test $A = 2\ntrue\n```\n")
    with pytest.raises(AssertionError, match=r"page.md:6: .*ended with exit code 1 and said:\s+1\s"):
        _run_session(page, blocks(page), tmp_path / "session")


def _run_session(page: Path, part: list[Block], folder: Path) -> None:
    session, last = Session(folder), ""
    try:
        GIVENS[_value(part[0], "given") or "an empty folder"](session)
        for block in part:
            where = f"{_name(page)}:{block.line}"
            last = _run_block(session, block, where) or last
            _look(session, block, where, last)
    finally:
        session.close()


def _run_block(session: Session, block: Block, where: str) -> str:
    if block.language == "sh":
        return _run_commands(session, block, where)
    if path := _value(block, "file") or _value(block, "append"):
        file = session.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a" if _value(block, "append") else "w") as out:
            out.write("\n" * bool(_value(block, "append")) + session.put(block.text))
    elif "run" in block.before:
        script = session.folder / "page.py"
        script.write_text(session.put(block.text))
        _ok(session, "python3 page.py", where)
    return ""


def _run_commands(session: Session, block: Block, where: str) -> str:
    page, line = where.rsplit(":", 1)
    parts = [(int(line) + at, text) for at, text in commands(block.text) if not _is_listed(text)]
    name, text = _value(block, "background"), ""
    for n, (at, command) in enumerate(parts, 1):
        text = session.put(command)
        if name and n == len(parts):
            session.start(name, text)
        else:
            _ok(session, text, f"{page}:{at}")
    return text


def _look(session: Session, block: Block, where: str, last: str) -> None:
    for mark in block.after:
        what, _, text = mark.partition(": ")
        if what == "prints":
            deadline_s = time.monotonic() + TIMEOUT_S
            while text not in " ".join((printed := _ok(session, last, where)).split()):
                assert time.monotonic() < deadline_s, f"{where}: {last!r} does not print {text!r}, but:\n{printed}"
        elif what == "stop":
            session.stop(text)
        else:
            assert what.endswith(" shows"), f"{where}: unknown mark {mark!r}"
            session.wait_for(what.removesuffix(" shows"), session.put(text))


def _ok(session: Session, command: str, where: str = "") -> str:
    code, output = session.run(command)
    assert code == 0, f"{where}: {command!r} ended with exit code {code} and said:\n{output}"
    return output


def _is_listed(command: str) -> bool:
    return any(re.match(pattern, command) for pattern in NOT_RUN)


def commands(text: str) -> Iterator[tuple[int, str]]:
    """Whole commands, with the number of their first line from 0: bash says where one ends."""
    start, gathered = 0, ""
    for number, line in enumerate(text.splitlines()):
        if not gathered:
            start = number
        gathered += line + "\n"
        if not line.endswith("\\") and _is_whole(gathered):
            if gathered.strip() and not gathered.lstrip().startswith("#"):
                yield start, gathered.rstrip()
            gathered = ""
    assert not gathered, f"not a command: {gathered}"


def _is_whole(text: str) -> bool:
    return subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("page", RUNNABLE, ids=_name)
def test_blocks_are_what_they_say(page: Path) -> None:
    """TOML and Python can be parsed, shell blocks are all ```sh, and every given is known."""
    for block in blocks(page):
        assert block.language in ("", "sh", "python", "toml", "json", "ini", "text"), f"{page}:{block.line}"
        if block.language == "toml":
            tomllib.loads(block.text)
        if block.language == "python":
            ast.parse(block.text)
        assert _value(block, "given") in ("", *GIVENS), f"{page}:{block.line}"


def test_what_is_not_run_stands_in_a_page() -> None:
    """No exception is kept for a command that no page has any more."""
    texts = [
        text
        for page in RUNNABLE
        for block in blocks(page)
        if block.language == "sh"
        for _, text in commands(block.text)
    ]
    unused = [pattern for pattern in NOT_RUN if not any(re.match(pattern, text) for text in texts)]
    assert not unused


_LINK = re.compile(r"(?<!\!)\[[^\]]*\]\(([^)\s]+)\)")


def test_relative_links_resolve() -> None:
    """Every relative link of every page in the repository names a file that is there, and a heading that is in it."""
    names = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    broken = [f"{name}: {link}" for name in names for link in _links(ROOT / name) if not _resolves(ROOT / name, link)]
    assert not broken


def _links(page: Path) -> list[str]:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL) if page.exists() else ""
    return [link for link in _LINK.findall(text) if not re.match(r"[a-z]+:", link)]


def _resolves(page: Path, link: str) -> bool:
    path, _, anchor = link.partition("#")
    target = (page.parent / path) if path else page
    if not target.exists():
        return False
    return not anchor or anchor in {_anchor(line) for line in target.read_text().splitlines() if line.startswith("#")}


def _anchor(heading: str) -> str:
    """As GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lstrip("#").strip().lower()).replace(" ", "-")
