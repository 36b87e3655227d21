"""agent.toml, read once into frozen typed settings; an unknown key or a bad value is named and refused.

Owns the names, defaults and ranges of the settings. What comes with enrolment is not here (`trust`).
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from edge_agent.errors import ConfigError, cause_of
from edge_protocol.errors import TopicInvalid
from edge_protocol.ids import device_id, is_audience

_T = TypeVar("_T")

KIB: Final = 1024
MIB: Final = 1024 * KIB
_SUITES: Final = (-70001, -70002, -70003)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE = re.compile(r"(\d+)(B|KiB|MiB|GiB)")
_BYTES: Final = {"B": 1, "KiB": KIB, "MiB": MIB, "GiB": KIB * MIB}
_LOOPBACK: Final = frozenset(("localhost", "127.0.0.1", "::1"))
_DEFAULT_PORT: Final = {"mqtts": 8883, "mqtt": 1883}
LEVELS: Final = ("debug", "info", "warning", "error")


@dataclass(frozen=True, slots=True)
class Address:
    """Where the gateway listens."""

    host: str
    port: int
    tls: bool

    @property
    def url(self) -> str:
        """As a URL."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'mqtts' if self.tls else 'mqtt'}://{host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether it is this machine."""
        return self.host in _LOOPBACK


def parse_address(text: str) -> Address:
    """Read `mqtts://HOST[:PORT]` or `mqtt://HOST[:PORT]`.

    Raises:
        ConfigError: It is something else.
    """
    try:
        parts = urlsplit(text)
        port = parts.port or _DEFAULT_PORT.get(parts.scheme, 0)
    except ValueError as exc:
        raise ConfigError(f"gateway {text!r}: {exc}") from exc
    if (
        parts.scheme not in _DEFAULT_PORT
        or not parts.hostname
        or parts.path.strip("/")
        or parts.query
        or parts.username
    ):
        raise ConfigError(f"gateway {text!r}: expected mqtts://HOST:8883, or mqtt://localhost:1883")
    return Address(parts.hostname, port, tls=parts.scheme == "mqtts")


def _string(value: Any) -> str:
    if type(value) is not str:
        raise ValueError("a string")
    return value


def _flag(value: Any) -> bool:
    if type(value) is not bool:
        raise ValueError("true or false")
    return value


def _count(low: int, high: int) -> Callable[[Any], int]:
    def parse(value: Any) -> int:
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f"an integer from {low} to {high}")
        return value

    return parse


def _size(low: int, high: int) -> Callable[[Any], int]:
    def parse(value: Any) -> int:
        found = _SIZE.fullmatch(value) if isinstance(value, str) else None
        size = int(found[1]) * _BYTES[found[2]] if found else value
        if type(size) is not int or not low <= size <= high:
            raise ValueError(f'a size such as "256KiB" or "1GiB", from {low} to {high} bytes')
        return size

    return parse


def _duration(low_s: float, high_s: float) -> Callable[[Any], float]:
    def parse(value: Any) -> float:
        found = _DURATION.fullmatch(value) if isinstance(value, str) else None
        seconds = float(found[1]) * _SECONDS[found[2]] if found else -1.0
        if not low_s <= seconds <= high_s:
            raise ValueError(f'a duration such as "50ms", "30s" or "1h", from {low_s:g} to {high_s:g} seconds')
        return seconds

    return parse


def _suites(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not value or not all(item in _SUITES for item in value):
        raise ValueError(f"a list of suites, best first, of {', '.join(map(str, _SUITES))}")
    return tuple(value)


def _level(value: Any) -> str:
    if value not in LEVELS:
        raise ValueError(f"one of {', '.join(LEVELS)}")
    return str(value)


def _audience(value: Any) -> str:
    if value != "" and not (isinstance(value, str) and is_audience(value)):
        raise ValueError("1 to 255 characters of '!' to '~', or \"\" for the one that comes with enrolment")
    return str(value)


def _device(value: Any) -> str:
    try:
        return device_id(_string(value))
    except TopicInvalid as exc:
        raise ValueError(str(exc).partition("expected ")[2]) from exc


def _gateway(value: Any) -> str:
    if value:
        parse_address(_string(value))
    return _string(value)


def _setting(default: Any, parse: Callable[[Any], Any]) -> Any:
    return field(default=default, metadata={"parse": parse})


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxSettings:
    """What may wait. Sizes in bytes."""

    max_bytes: int = _setting(1024 * MIB, _size(64 * KIB, 2**50))
    max_event_bytes: int = _setting(256 * KIB, _size(256, 256 * KIB))


@dataclass(frozen=True, slots=True, kw_only=True)
class UplinkSettings:
    """How events travel. Durations in seconds, sizes in bytes."""

    max_batch: int = _setting(100, _count(1, 1000))
    max_batch_bytes: int = _setting(512 * KIB, _size(KIB, 4 * MIB))
    linger: float = _setting(0.05, _duration(0, 60))
    window: int = _setting(16, _count(1, 1000))
    keepalive: float = _setting(60.0, _duration(5, 3600))
    connect_timeout: float = _setting(10.0, _duration(0.1, 300))
    receipt_timeout: float = _setting(120.0, _duration(1, 3600))
    token_lifetime: float = _setting(3600.0, _duration(1, 86400))
    insecure_plaintext: bool = _setting(default=False, parse=_flag)


@dataclass(frozen=True, slots=True, kw_only=True)
class SealSettings:
    """How envelopes are sealed: with one of these suites, the first that the gateway has, and never another."""

    suites: tuple[int, ...] = _setting((-70001,), _suites)
    compress: bool = _setting(default=True, parse=_flag)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSettings:
    """What the daemon writes to standard error."""

    level: str = _setting("info", _level)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All of agent.toml. `gateway` and `audience` are "" if they come with enrolment."""

    id: str = _setting("", _device)
    gateway: str = _setting("", _gateway)
    audience: str = _setting("", _audience)
    outbox: OutboxSettings = OutboxSettings()
    uplink: UplinkSettings = UplinkSettings()
    seal: SealSettings = SealSettings()
    log: LogSettings = LogSettings()


def load_settings(path: Path) -> Settings:
    """Read agent.toml.

    Raises:
        ConfigError: The file is missing or is not TOML, a key is unknown, a value is not what it should be.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as exc:
        raise ConfigError(f"{path}: not found; expected the file that `edge-agent init ID` makes") from exc
    except OSError as exc:
        raise ConfigError(f"{path}: {cause_of(exc)}") from exc
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise ConfigError(f"{path}: not TOML: {exc}") from exc
    if "id" not in table:
        raise ConfigError(f"{path}: id is missing; expected this device's id")
    return _read(Settings, table, f"{path}: ")


def _read(cls: type[_T], table: Mapping[str, Any], where: str) -> _T:
    known = {each.name: each for each in fields(cls)}  # type: ignore[arg-type]  # every _T is a dataclass
    values: dict[str, Any] = {}
    for name, value in table.items():
        if name not in known:
            raise ConfigError(f"{where}{name} = {value!r}: unknown key; expected one of {', '.join(known)}")
        values[name] = _value(known[name], value, where)
    return cls(**values)


def _value(setting: Field[Any], value: Any, where: str) -> Any:
    if "parse" not in setting.metadata:  # a section
        if not isinstance(value, dict):
            raise ConfigError(f"{where}{setting.name} = {value!r}: expected a table [{setting.name}]")
        return _read(type(setting.default), value, f"{where}{setting.name}.")
    try:
        return setting.metadata["parse"](value)
    except ValueError as exc:
        raise ConfigError(f"{where}{setting.name} = {value!r}: expected {exc}") from exc
