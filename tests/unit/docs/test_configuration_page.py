"""docs/reference/configuration.md lists every key of both files with its default, no more and no less."""

from __future__ import annotations

import tomllib
from dataclasses import fields, is_dataclass
from typing import Any

import msgspec
from msgspec import NODEFAULT, Struct, inspect
from pages import REFERENCE, codes, rows

from edge_agent.settings import Settings as AgentSettings
from gateway.config import Settings, _decode

PAGE = REFERENCE / "configuration.md"
REQUIRED = object()


def _gateway_keys(kind: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Every key with its type and default; `[]` for what may be repeated."""
    found: dict[str, tuple[Any, Any]] = {}
    for field in inspect.type_info(kind).fields:
        if (key := prefix + field.name) == "base":
            continue  # the folder of the file, no setting
        default = REQUIRED if field.default is NODEFAULT and field.default_factory is NODEFAULT else field.default
        if field.default_factory is not NODEFAULT:
            default = field.default_factory()
        inner, suffix = _inner(field.type)
        if inner is None or suffix or default is None or kind is not Settings:
            found[key] = (kind.__annotations__[field.name], default)
        if inner is not None:
            found |= _gateway_keys(inner, f"{key}{suffix}.")
    return found


def _inner(info: Any) -> tuple[Any, str]:
    if isinstance(info, inspect.VarTupleType) and isinstance(info.item_type, inspect.StructType):
        return info.item_type.cls, "[]"
    if isinstance(info, inspect.UnionType):
        return next((_inner(each) for each in info.types if isinstance(each, inspect.StructType)), (None, ""))
    return (info.cls, "") if isinstance(info, inspect.StructType) else (None, "")


def _agent_keys(kind: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    found: dict[str, tuple[Any, Any]] = {}
    for field in fields(kind):
        if is_dataclass(field.default):
            found |= _agent_keys(type(field.default), f"{prefix}{field.name}.")
        else:
            found[prefix + field.name] = (field.metadata["parse"], field.default)
    return found


def _shown(of: str) -> dict[str, str]:
    """The default of each key of one of the two files, as the page has it."""
    gateway, agent = PAGE.read_text().split("\n## agent.toml")
    return {codes(cells[0])[0]: cells[2] for cells in rows(gateway if of == "gateway" else agent) if len(cells) == 4}


def _toml(cell: str) -> Any:
    return tomllib.loads(f"value = {codes(cell)[0]}")["value"]


def test_every_gateway_key_is_on_the_page() -> None:
    """Neither the page nor `gateway.config.Settings` has a key that the other has not."""
    assert sorted(_shown("gateway")) == sorted(_gateway_keys(Settings))


def test_gateway_defaults_are_the_programs() -> None:
    """What the page calls the default means, read as TOML, what the program uses."""
    shown = _shown("gateway")
    for key, (_, default) in _gateway_keys(Settings).items():
        if default is REQUIRED:
            assert shown[key] == "required", key
        elif default is None:
            assert shown[key] == "none", key
        else:
            kind = type(default)
            value = msgspec.convert(_toml(shown[key]), kind, dec_hook=_decode, strict=not isinstance(default, float))
            assert value == default or (isinstance(default, Struct) and _toml(shown[key]) == {}), key


def test_every_agent_key_is_on_the_page() -> None:
    """Neither the page nor `edge_agent.settings.Settings` has a key that the other has not."""
    assert sorted(_shown("agent")) == sorted(_agent_keys(AgentSettings))


def test_agent_defaults_are_the_programs() -> None:
    """Likewise for agent.toml; `id` alone is required."""
    shown = _shown("agent")
    for key, (parse, default) in _agent_keys(AgentSettings).items():
        if key == "id":
            assert shown[key] == "required"
        else:
            assert parse(_toml(shown[key])) == default, key
