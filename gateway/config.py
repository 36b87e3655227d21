"""Configuration: gateway.toml and the environment, read once into frozen, typed settings.

A setting that is unknown, of the wrong type or out of range stops the start with its key, the value and what was
expected. Nothing reads the environment later. The reference page `docs/reference/configuration.md` lists every field; a
test compares the two.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import SplitResult, urlsplit

import msgspec
from msgspec import Meta, inspect

from edge_protocol.ids import is_audience
from gateway.errors import ConfigError

ENV_PREFIX: Final = "LOCKGATE_"
_SECURE: Final = {"mqtts": "mqtts", "mqtt": "mqtts", "wss": "wss", "ws": "wss"}
_ORIGIN = re.compile(r"https?://[^/?#\s]+")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SIZE = re.compile(r"(\d+)(B|KiB|MiB|GiB|TiB)?")
_SECONDS: Final = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
_BYTES: Final = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}

_NAME: Final = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
_WORDS: Final = {
    f"str matching regex '{_NAME}'": "1 to 64 of A-Z a-z 0-9 _ . -, first a letter or digit",
    "str of length >= 1": "a text that is not empty",
    "str": "a text in quotes",
    "bool": "true or false",
    "array": "a list, [...]",
    "object": "a table",
    "int": "an integer",
    "float": "a number",
}
"""msgspec's words and ours, the longer first."""

Count = Annotated[int, Meta(ge=1)]


class _Table:
    """Shown in place of a table's values, one of which may be a secret."""

    def __repr__(self) -> str:
        return "a table"


_TABLE: Final = _Table()


class Duration(float):
    """Seconds; written as `10s`, `500ms`, `5m`, `24h`, `7d`."""

    __slots__ = ()


class Size(int):
    """Bytes; written as `64MiB`, `10GiB`, or a plain number."""

    __slots__ = ()


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One table of gateway.toml."""


class MqttSettings(_Section, frozen=True, kw_only=True):
    """`[mqtt]`: where devices connect."""

    listen: tuple[str, ...] = ("mqtts://0.0.0.0:8883",)
    certificate: str = "certs/server.pem"
    private_key: str = "certs/server-key.pem"
    client_ca: str = ""
    allow_plaintext: bool = False
    origins: tuple[str, ...] = ()
    proxy_protocol: tuple[str, ...] = ()


class IssuerSettings(_Section, frozen=True, kw_only=True):
    """`[[auth.issuers]]`: an OpenID Connect issuer of operators and services."""

    issuer: str
    roles_claim: str = "roles"


class AuthSettings(_Section, frozen=True, kw_only=True):
    """`[auth]`: what a token must satisfy."""

    max_token_lifetime: Duration = Duration(24 * 3600)
    clock_skew: Duration = Duration(60)
    replay_protection: bool = False
    anonymous_role: str = ""
    compat: tuple[str, ...] = ()
    issuers: tuple[IssuerSettings, ...] = ()


class RateSettings(_Section, frozen=True, kw_only=True):
    """`rate` of a policy: what one connection of the role may send; more is answered by not reading the socket."""

    events_per_s: Annotated[float, Meta(gt=0)] = 1000
    bytes_per_s: Size = Size(1 << 20)
    burst: Annotated[float, Meta(ge=1)] = 2.0


class PolicySettings(_Section, frozen=True, kw_only=True):
    """`[[policy]]`: what a role may do; nothing else is allowed."""

    role: Annotated[str, Meta(min_length=1)]
    publish: tuple[str, ...] = ()
    subscribe: tuple[str, ...] = ()
    deny_publish: tuple[str, ...] = ()
    deny_subscribe: tuple[str, ...] = ()
    emit: tuple[str, ...] = ()
    require_envelope: bool | None = None
    rate: RateSettings | None = None


class RetentionSettings(_Section, frozen=True, kw_only=True):
    """`retention` of the bus."""

    age: Duration = Duration(7 * 86400)
    size: Size = Size(10 << 30)


class BusSettings(_Section, frozen=True, kw_only=True):
    """`[bus]`: where events are stored."""

    url: str = "sqlite:///state/bus.db"
    retention: RetentionSettings = RetentionSettings()
    min_free_disk: Size = Size(1 << 30)
    deduplication_window: Duration = Duration(72 * 3600)
    cursor_retention: Duration = Duration(7 * 86400)


class RetrySettings(_Section, frozen=True, kw_only=True):
    """`retry` of a handler: for failures of the event."""

    max_attempts: Count = 10
    first: Duration = Duration(1)
    max: Duration = Duration(300)


class HandlerSettings(_Section, frozen=True, kw_only=True):
    """`[[handlers]]`: a durable subscription and the cloud service it delivers to."""

    name: Annotated[str, Meta(pattern=_NAME)]
    url: Annotated[str, Meta(min_length=1)]
    types: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    labels: dict[str, str] = {}
    ordering: Literal["device", "none"] = "device"
    concurrency: Annotated[int, Meta(ge=1, le=1024)] = 16
    batch: Annotated[int, Meta(ge=1, le=1000)] = 1
    timeout: Duration = Duration(10)
    retry: RetrySettings = RetrySettings()
    give_up_after: Duration = Duration(24 * 3600)
    on_dead_letter: Literal["continue", "block"] = "continue"
    secret: str = ""
    headers: dict[str, str] = {}
    schema: str = ""


class LimitSettings(_Section, frozen=True, kw_only=True):
    """`[limits]`: every limit of the wire protocol."""

    connections: Count = 10_000
    connects_per_s: Annotated[float, Meta(gt=0)] = 2000
    inflight_bytes: Size = Size(64 << 20)
    event_bytes: Size = Size(256 << 10)
    envelope_bytes: Size = Size(1 << 20)
    inflated_bytes: Size = Size(8 << 20)
    events: Annotated[int, Meta(ge=1, le=1000)] = 1000
    json_depth: Annotated[int, Meta(ge=2, le=256)] = 32
    receive_maximum: Annotated[int, Meta(ge=1, le=65535)] = 256
    connect_timeout: Duration = Duration(5)
    keep_alive: Annotated[int, Meta(ge=5, le=65535)] = 1200
    queue_messages: Count = 1000
    queue_bytes: Size = Size(4 << 20)
    queues_bytes: Size = Size(256 << 20)
    sessions: Count = 1000
    session_expiry: Duration = Duration(365 * 86400)
    session_expiry_311: Duration = Duration(7 * 86400)
    retained_messages: Count = 10_000
    retained_bytes: Size = Size(64 << 20)
    opener_processes: Annotated[int, Meta(ge=0, le=64)] = 0


class HttpSettings(_Section, frozen=True, kw_only=True):
    """`[http]`: the admin listener, and the one that devices reach; "" for none."""

    listen: str = "127.0.0.1:8080"
    device_listen: str = "https://0.0.0.0:8443"


class LogSettings(_Section, frozen=True, kw_only=True):
    """`[log]`."""

    format: Literal["auto", "console", "json"] = "auto"
    level: Literal["debug", "info", "warning", "error"] = "info"


class Settings(_Section, frozen=True, kw_only=True):
    """The whole of gateway.toml.

    Attributes:
        base: Folder that relative paths start from: the one that holds `configs/`, else the file's own.
    """

    audience: str
    strict_311: bool = True
    state_dir: str = "state"
    mqtt: MqttSettings = MqttSettings()
    auth: AuthSettings = AuthSettings()
    policy: tuple[PolicySettings, ...] = ()
    bus: BusSettings = BusSettings()
    handlers: tuple[HandlerSettings, ...] = ()
    limits: LimitSettings = LimitSettings()
    http: HttpSettings = HttpSettings()
    log: LogSettings = LogSettings()
    base: str = "."

    def path(self, relative: str) -> Path:
        """A path of the configuration, from its base."""
        return Path(self.base) / relative

    @property
    def state(self) -> Path:
        """The state folder."""
        return self.path(self.state_dir)


def load(file: Path, environ: Mapping[str, str] = os.environ) -> Settings:
    """Read a configuration file, with what the environment overrides.

    Raises:
        ConfigError: The file is missing or not TOML, or a setting is wrong.
    """
    try:
        document = tomllib.loads(file.read_text())
    except OSError as exc:
        raise ConfigError("-c FILE", str(file), f"a readable file ({exc.strerror}); `gateway init` makes one") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ConfigError("-c FILE", str(file), f"TOML ({exc})") from exc
    if "base" in document:
        raise ConfigError("base", document["base"], "no such setting")
    _override(document, environ)
    folder = file.resolve().parent
    document["base"] = str(folder.parent if folder.name == "configs" else folder)
    return parse(document)


def parse(document: Mapping[str, Any]) -> Settings:
    """Check a document and make it settings.

    Raises:
        ConfigError: A setting is unknown, of the wrong type, or out of range.
    """
    try:
        settings = msgspec.convert(document, Settings, dec_hook=_decode)
    except msgspec.ValidationError as exc:
        raise _explain(str(exc), document) from exc
    _check(settings)
    return settings


def duration(text: object) -> Duration:
    """Read a duration, such as `500ms`, `10s`, `5m`, `24h` or `7d`.

    Raises:
        ValueError: It is none; the message is what was expected.
    """
    match = _DURATION.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ValueError("a duration such as 500ms, 10s, 5m, 24h or 7d")
    return Duration(float(match[1]) * _SECONDS[match[2]])


def listen_url(text: str, key: str, schemes: tuple[str, ...]) -> SplitResult:
    """Read a listener's address.

    Raises:
        ConfigError: Another scheme, no host, or no port.
    """
    url = urlsplit(text)
    try:
        fine = url.scheme in schemes and url.hostname and url.port is not None
    except ValueError:
        fine = False
    if not fine:
        raise ConfigError(key, text, " or ".join(f"{scheme}://HOST:PORT" for scheme in schemes))
    return url


def _override(document: dict[str, Any], environ: Mapping[str, str]) -> None:
    for name, text in environ.items():
        if not name.startswith(ENV_PREFIX):
            continue
        *sections, key = name.removeprefix(ENV_PREFIX).lower().split("__")
        table = document
        for section in sections:
            table = table.setdefault(section, {})
            if not isinstance(table, dict):
                raise ConfigError(name, text, f"a section, and {section} is none")
        table[key] = _toml_value(text)


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text  # a plain word needs no quotes in the environment


def _decode(kind: type, value: Any) -> Any:
    if kind is Duration:
        return duration(value)
    match = _SIZE.fullmatch(str(value)) if isinstance(value, (str, int)) and not isinstance(value, bool) else None
    if match is None:
        raise ValueError("a size such as 4096, 64KiB, 10MiB or 10GiB")
    return Size(int(match[1]) * _BYTES[match[2] or "B"])


def _explain(message: str, document: Mapping[str, Any]) -> ConfigError:
    """Turn msgspec's message into key, value and expectation."""
    what, _, where = message.partition(" - at `$")
    key = where.rstrip("`").lstrip(".")
    if unknown := re.search(r"unknown field `(.+?)`", what):
        expected = f"one of {', '.join(_names_at(key))}"
        key = f"{key}.{unknown[1]}" if key else unknown[1]
        return ConfigError(key, _value_at(document, key), f"no such setting, but {expected}")
    if missing := re.search(r"missing required field `(.+?)`", what):
        return ConfigError(f"{key}.{missing[1]}" if key else missing[1], None, "a value")
    expected = what.removeprefix("Expected ").partition(", got")[0].replace("`", "")
    if what.startswith("Invalid enum"):
        expected = f"one of {', '.join(_names_at(key))}"
    for word, ours in _WORDS.items():
        if expected.startswith(word):
            expected = ours + expected.removeprefix(word)
            break
    return ConfigError(key, _value_at(document, key), expected)


def _names_at(key: str) -> list[str]:
    """What may stand at a key: the names of a section's settings, or the words of a choice."""
    info: Any = inspect.type_info(Settings)
    for part in re.findall(r"[^.\[\]]+", key):
        if isinstance(info, inspect.StructType):
            info = next(field.type for field in info.fields if field.name == part)
        elif isinstance(info, inspect.VarTupleType):
            info = info.item_type
    if isinstance(info, inspect.LiteralType):
        return [str(value) for value in info.values]
    return [field.name for field in info.fields if field.name != "base"]


def _value_at(document: Any, key: str) -> Any:
    for part in re.findall(r"[^.\[\]]+", key):
        try:
            document = document[int(part) if isinstance(document, list) else part]
        except (KeyError, IndexError, ValueError, TypeError):
            return None
    if isinstance(document, list):
        return [_TABLE if isinstance(each, dict) else each for each in document]
    return _TABLE if isinstance(document, dict) else document


def _check(settings: Settings) -> None:
    if not is_audience(settings.audience):
        raise ConfigError("audience", settings.audience, "1 to 255 characters of '!' to '~'")
    _check_listeners(settings)
    _check_unavailable(settings)
    _check_names("policy", "role", [rule.role for rule in settings.policy])
    _check_names("handlers", "name", [handler.name for handler in settings.handlers])
    roles = {rule.role for rule in settings.policy}
    if settings.auth.anonymous_role and settings.auth.anonymous_role not in roles:
        raise ConfigError("auth.anonymous_role", settings.auth.anonymous_role, f"one of {', '.join(sorted(roles))}")
    if settings.bus.deduplication_window <= 2 * settings.auth.clock_skew:
        raise ConfigError("bus.deduplication_window", settings.bus.deduplication_window, "more than twice clock_skew")
    for n, handler in enumerate(settings.handlers):
        if handler.retry.first > handler.retry.max:
            raise ConfigError(f"handlers[{n}].retry.first", handler.retry.first, "at most retry.max")


def _check_listeners(settings: Settings) -> None:
    for n, text in enumerate(settings.mqtt.listen):
        _check_mqtt_listener(text, f"mqtt.listen[{n}]", allow_plaintext=settings.mqtt.allow_plaintext)
    for n, text in enumerate(settings.mqtt.proxy_protocol):
        try:
            ip_network(text)
        except ValueError as exc:
            raise ConfigError(f"mqtt.proxy_protocol[{n}]", text, "a network such as 10.0.0.0/8, or an address") from exc
    for n, text in enumerate(settings.mqtt.origins):
        if text != "*" and not _ORIGIN.fullmatch(text):
            raise ConfigError(f"mqtt.origins[{n}]", text, "https://HOST or https://HOST:PORT, or *")
    if settings.http.listen:
        listen_url(f"http://{settings.http.listen}", "http.listen", ("http",))
    if settings.http.device_listen:
        listen_url(settings.http.device_listen, "http.device_listen", ("https",))


def _check_mqtt_listener(text: str, key: str, *, allow_plaintext: bool) -> None:
    url = listen_url(text, key, tuple(_SECURE))
    is_websocket = url.scheme in ("ws", "wss")
    if url.path not in {"", "/", "/mqtt" if is_websocket else ""}:
        raise ConfigError(key, text, f"{url.scheme}://HOST:PORT{'/mqtt' if is_websocket else ''}")
    if url.scheme != _SECURE[url.scheme] and not allow_plaintext and not is_loopback(url.hostname or ""):
        raise ConfigError(key, text, f"a loopback address, or mqtt.allow_plaintext = true, for plain {url.scheme}://")


def is_loopback(host: str) -> bool:
    """Tell whether a host can be reached from this machine only."""
    return host in ("localhost", "::1") or re.fullmatch(r"127\.\d+\.\d+\.\d+", host) is not None


def _check_unavailable(settings: Settings) -> None:
    """Say it plainly where a name is reserved for what this version does not do yet."""
    reserved = {
        "auth.compat": settings.auth.compat,
        "auth.issuers": settings.auth.issuers,
        **{f"handlers[{n}].schema": handler.schema for n, handler in enumerate(settings.handlers)},
    }
    for key, value in reserved.items():
        if value:
            raise ConfigError(key, value, "it to be left empty: this version does not have it yet")


def _check_names(section: str, field: str, names: list[str]) -> None:
    for n, name in enumerate(names):
        if name in names[:n]:
            raise ConfigError(f"{section}[{n}].{field}", name, f"a {field} that is not taken yet")
