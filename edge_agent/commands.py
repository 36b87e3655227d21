"""What the commands of `edge-agent` do. Results go to standard output, messages to standard error."""

from __future__ import annotations

import os
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import msgspec

from edge_agent import daemon, logs
from edge_agent.access import read_key, read_trust
from edge_agent.agent import CLOCK_OFFSET, Agent
from edge_agent.clock import Clock
from edge_agent.enroll import enroll as enroll_device
from edge_agent.errors import AgentError, ConfigError, EventInvalid, UsageError, cause_of
from edge_agent.home import Home, find_home
from edge_agent.outbox import Outbox
from edge_agent.rows import Depth, Quarantined
from edge_agent.settings import Settings, parse_address
from edge_agent.setup import make_home
from edge_agent.stop import Stop
from edge_agent.token import TokenKeeper
from edge_agent.trust import read_signing_key
from edge_agent.uplink import CONNECTION
from edge_protocol.errors import TopicInvalid
from edge_protocol.ids import device_id, is_audience

_CHUNK_BYTES: Final = 64 * 1024
_MAX_LINE_BYTES: Final = 1024 * 1024


def init(args: Namespace) -> None:
    """Make keys and a home; print the public key on one line."""
    home = find_home(args.home)
    try:
        device_id(args.id)
    except TopicInvalid as exc:
        raise UsageError(str(exc)) from exc
    if args.gateway:
        try:
            parse_address(args.gateway)
        except ConfigError as exc:
            raise UsageError(f"--{exc}") from exc
    if args.audience and not is_audience(args.audience):
        raise UsageError(f"--audience {args.audience!r}: expected 1 to 255 characters of '!' to '~'")
    signing_key = read_signing_key(args.signing_key) if args.signing_key else None
    key = make_home(
        home,
        args.id,
        gateway=args.gateway or "",
        audience=args.audience or "",
        ca=_read_pem(args.ca) if args.ca else None,
        signing_key=signing_key,
        alg=args.alg,
    )
    _result(key.public.jwk)
    if signing_key is None or not args.audience or not args.gateway:
        _message(f"made {home.path}; next: `edge-agent enroll CODE` with the code of `gateway device add {args.id}`")
    else:
        _message(f"made {home.path}; register the key above with the gateway, then `edge-agent run`")


def enroll(args: Namespace) -> None:
    """Enrol with a one-time code."""
    trust = enroll_device(find_home(args.home), args.code, url=args.url)
    _message(f"enrolled at {trust.audience} ({', '.join(trust.file.mqtt)}); next: `edge-agent run`")


def run(args: Namespace) -> None:
    """Run the daemon until SIGTERM or SIGINT."""
    home = find_home(args.home)
    logs.set_up(home.settings().log.level)
    with closing(Stop()) as stop:
        daemon.stop_on_signals(stop)
        daemon.run(home, stop)


def emit(args: Namespace) -> None:
    """Emit one event, or one for each line of standard input; print ids, each when it is on disk."""
    if args.type == "-" and args.data is not None:
        raise UsageError("emit -: expected no DATA; each line of standard input is {type, data}")
    with Agent.open(find_home(args.home)) as agent:
        if "-" in (args.type, args.data):
            _emit_lines(agent, args)
        else:
            _print_ids([agent.emit(args.type, _data(args), **_options(args))])


def status(args: Namespace) -> None:
    """Show how the agent is, whether the daemon runs or not."""
    home = find_home(args.home)
    settings = home.settings()
    with closing(home.outbox(settings)) as outbox:
        report = _report(home, settings, outbox)
    if args.json:
        _result(report)
    else:
        sys.stdout.write("".join(f"{name:<16}{value}\n" for name, value in _rows(report)))


def token(args: Namespace) -> None:
    """Print a token and nothing else."""
    home = find_home(args.home)
    settings = home.settings()
    trust = read_trust(home, settings)
    if not trust.audience:
        raise ConfigError(
            "the gateway's audience is not known; expected `edge-agent enroll CODE`, or `init --audience`"
        )
    with closing(home.outbox(settings)) as outbox:
        clock = Clock(outbox.noted(CLOCK_OFFSET) or 0.0)
    keeper = TokenKeeper(
        read_key(home),
        audience=trust.audience,
        device=settings.id,
        lifetime_s=settings.uplink.token_lifetime,
        clock=clock,
    )
    sys.stdout.write(keeper.mint() + "\n")


def quarantine_list(args: Namespace) -> None:
    """Show what the gateway refused."""
    with _outbox(args) as outbox:
        for each in outbox.quarantined():
            if args.json:
                _result(_quarantined(each))
            else:
                sys.stdout.write(f"{each.id}  0x{each.code:02X}  {_event_type(each)}  {each.reason}\n")


def quarantine_retry(args: Namespace) -> None:
    """Put refused events back at the end of the outbox; print their ids."""
    _change(args, Outbox.retry)


def quarantine_discard(args: Namespace) -> None:
    """Delete refused events; print their ids."""
    if not args.ids and not args.all:
        raise UsageError("quarantine discard: expected ids, or --all")
    _change(args, Outbox.discard)


def _print_ids(events: Iterable[str]) -> None:
    """Print ids at once: whoever reads one may rely on the event."""
    sys.stdout.write("".join(f"{event}\n" for event in events))
    sys.stdout.flush()


def _options(args: Namespace) -> dict[str, Any]:
    return {"subject": args.subject, "time": args.time, "content_type": args.content_type}


def _emit_lines(agent: Agent, args: Namespace) -> None:
    """One event a line; what has arrived together shares an fsync, and nothing waits for more."""
    number = 1
    for lines in _arriving_lines():
        try:
            _print_ids(agent.emit_many((_typed(args, line) for line in lines if line), **_options(args)))
        except EventInvalid:
            _emit_one_by_one(agent, args, lines, number)
        number += len(lines)


def _emit_one_by_one(agent: Agent, args: Namespace, lines: list[bytes], number: int) -> None:
    for line_number, line in enumerate(lines, number):
        try:
            if line:
                _print_ids(agent.emit_many([_typed(args, line)], **_options(args)))
        except EventInvalid as exc:
            raise AgentError(f"line {line_number}: {exc}; the lines before it are on disk") from exc


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    type: str
    data: msgspec.Raw = msgspec.Raw(b"null")


def _typed(args: Namespace, line: bytes) -> tuple[str, msgspec.Raw]:
    """Type and data of a line: the data of TYPE, or `{type, data}` where TYPE is `-`."""
    if args.type != "-":
        return args.type, msgspec.Raw(line)
    try:
        event = msgspec.json.decode(line, type=_Line)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise EventInvalid(f"{exc}; expected a JSON object {{type, data}}") from exc
    return event.type, event.data


def _arriving_lines() -> Iterator[list[bytes]]:
    """Complete lines of standard input, stripped, as many as have arrived; the last may lack its end."""
    rest = b""
    while chunk := os.read(sys.stdin.fileno(), _CHUNK_BYTES):
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) > _MAX_LINE_BYTES:
            raise AgentError(f"a line of more than {_MAX_LINE_BYTES} bytes; expected one event a line")
        if lines:
            yield [line.strip() for line in lines]
    if rest.strip():
        yield [rest.strip()]


def _data(args: Namespace) -> Any:
    if args.data is None:
        return None
    if not args.data.startswith("@"):
        return args.data.encode(errors="surrogateescape") if args.content_type else msgspec.Raw(os.fsencode(args.data))
    try:
        content = Path(args.data[1:]).expanduser().read_bytes()
    except OSError as exc:
        raise UsageError(f"{args.data}: {cause_of(exc)}; expected @FILE") from exc
    return content if args.content_type else msgspec.Raw(content)


def _report(home: Home, settings: Settings, outbox: Outbox) -> dict[str, Any]:
    depth, trust = outbox.depth(), read_trust(home, settings)
    is_running = daemon.is_running(home)
    connection = outbox.noted(CONNECTION) or {"state": "never"}
    return {
        "id": settings.id,
        "home": str(home.path),
        "running": is_running,
        "connection": connection if is_running else {**connection, "state": "stopped"},
        "pending": depth.events,
        "bytes": depth.bytes,
        "oldest_age_s": _age_s(depth),
        "quarantined": depth.quarantined,
        "last_receipt_ms": outbox.noted("last_receipt_ms"),
        "clock_offset_s": outbox.noted(CLOCK_OFFSET) or 0.0,
        "stream": outbox.stream().id,
        "audience": trust.audience,
        "key_set_version": trust.file.key_set_version,
        "enrolled": trust.is_pinned,
    }


def _age_s(depth: Depth) -> float | None:
    return None if depth.oldest_ms is None else round(max(0.0, time.time() - depth.oldest_ms / 1000), 1)


def _rows(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    connection, oldest, receipt_ms = report["connection"], report["oldest_age_s"], report["last_receipt_ms"]
    yield "device", report["id"]
    yield "daemon", "running" if report["running"] else "not running"
    yield (
        "connection",
        " ".join(filter(None, (connection["state"], connection.get("gateway"), connection.get("reason")))),
    )
    age = "" if oldest is None else f", the oldest for {oldest} s"
    noun = "event" if report["pending"] == 1 else "events"
    yield "pending", f"{report['pending']} {noun}, {report['bytes']} bytes{age}"
    yield "quarantined", str(report["quarantined"])
    yield "last receipt", f"{time.time() - receipt_ms / 1000:.0f} s ago" if receipt_ms else "none"
    yield "clock offset", f"{report['clock_offset_s']:.1f} s"
    yield "enrolled", f"at {report['audience']}" if report["enrolled"] else "no"


def _outbox(args: Namespace) -> Any:
    home = find_home(args.home)
    return closing(home.outbox(home.settings()))


def _change(args: Namespace, change: Callable[[Outbox, list[str] | None], list[str]]) -> None:
    with _outbox(args) as outbox:
        changed = change(outbox, args.ids or None)
    _print_ids(changed)
    if missing := sorted(set(args.ids) - set(changed)):
        raise ConfigError(f"not in quarantine: {', '.join(missing)}; expected ids of `edge-agent quarantine list`")


def _quarantined(each: Quarantined) -> dict[str, Any]:
    return {
        "id": each.id,
        "emitted_ms": each.emitted_ms,
        "refused_ms": each.refused_ms,
        "code": each.code,
        "reason": each.reason,
        "event": msgspec.Raw(each.body),
    }


def _event_type(each: Quarantined) -> str:
    return str(msgspec.json.decode(each.body)["type"])


def _read_pem(path: str) -> bytes:
    try:
        data = Path(path).expanduser().read_bytes()
    except OSError as exc:
        raise UsageError(f"--ca {path}: {cause_of(exc)}; expected a PEM file") from exc
    if b"-----BEGIN CERTIFICATE-----" not in data:
        raise UsageError(f"--ca {path}: expected a certificate in PEM")
    return data


def _result(value: Any) -> None:
    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")


def _message(text: str) -> None:
    sys.stderr.write(text + "\n")
