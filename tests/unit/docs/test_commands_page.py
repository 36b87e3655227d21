"""docs/reference/commands.md says what `gateway` and `edge-agent` take, no more and no less."""

from __future__ import annotations

import argparse
import re
from typing import Any, NamedTuple

import pytest
import typer
from pages import REFERENCE, codes, sections

from edge_agent.cli import _parser
from gateway.cli.app import app

PAGE = REFERENCE / "commands.md"


class Command(NamedTuple):
    """What a command takes: options with their defaults (`None` for none), and arguments."""

    options: dict[str, str | None]
    arguments: list[str]


def _of_gateway(command: Any, path: str) -> dict[str, Command]:
    if hasattr(command, "commands"):
        inner = [_of_gateway(each, f"{path} {name}") for name, each in command.commands.items()]
        return {name: found for each in inner for name, found in each.items()}
    options, arguments = {}, []
    for each in command.params:
        if each.param_type_name == "option":
            default = None if each.default in (None, False) or callable(each.default) else str(each.default)
            options |= dict.fromkeys((*each.opts, *each.secondary_opts), default)
        else:
            arguments.append(each.metavar)
    return {path: Command(options, arguments)}


def _of_agent(parser: argparse.ArgumentParser, path: str) -> dict[str, Command]:
    options, arguments = {}, []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            inner = [_of_agent(each, f"{path} {name}") for name, each in action.choices.items()]
            return {name: found for each in inner for name, found in each.items()}
        default = None if action.default in (None, False, argparse.SUPPRESS) else str(action.default)
        options |= dict.fromkeys((name for name in action.option_strings if "help" not in action.dest), default)
        if not action.option_strings:
            arguments.append(action.metavar)
    return {path: Command(options, arguments)}


PROGRAM = _of_gateway(typer.main.get_command(app), "gateway") | _of_agent(_parser(), "edge-agent")
TEXT = sections(PAGE)


def test_every_command_has_a_section_and_every_section_a_command() -> None:
    """Neither the page nor the programs have a command that the other has not."""
    assert sorted(TEXT) == sorted(PROGRAM)


@pytest.mark.parametrize("name", sorted(PROGRAM))
def test_options_and_arguments_are_the_programs(name: str) -> None:
    """A section lists exactly the options of its command, and its usage exactly the arguments, in order."""
    text, command = TEXT[name], PROGRAM[name]
    listed = [code for line in text.splitlines() if line.startswith("| `-") for code in codes(line.split(" | ")[0])]
    also = [code for part in re.findall(r"Also\s([^.]*)\.", text) for code in codes(part)]
    assert sorted(code.split()[0] for code in (*listed, *also)) == sorted(command.options)
    usage = codes(text)[0].removeprefix(name).replace("[", "").replace("]", "").split()
    assert usage == command.arguments


@pytest.mark.parametrize("name", sorted(PROGRAM))
def test_defaults_are_the_programs(name: str) -> None:
    """The row of an option shows its default, if it has one; common options are described once."""
    for option, default in PROGRAM[name].options.items():
        row = next((line for line in TEXT[name].splitlines() if line.startswith(f"| `{option}")), None)
        if default is not None and row is not None:
            assert default in row, f"{option} of {name}"


@pytest.mark.parametrize("name", sorted(PROGRAM))
def test_every_command_has_an_example(name: str) -> None:
    """Each section shows its command in a shell block, which `test_docs.py` runs."""
    block = TEXT[name].partition("```sh\n")[2].partition("```")[0]
    assert name in block
