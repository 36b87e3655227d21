"""The command `edge-agent`: its arguments, and how errors are shown. What commands do is in `commands`."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from typing import Any, Final

from edge_agent import commands
from edge_agent.errors import AgentError, EventInvalid, UsageError
from edge_agent.home import DEFAULT_HOME, HOME_VARIABLE

FAILURE: Final = 1
WRONG_USE: Final = 2
_Command = Callable[[Namespace], None]


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command and exit: 0 success, 1 failure, 2 wrong use."""
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        args.command(args)
        sys.stdout.flush()
    except (UsageError, EventInvalid) as exc:
        sys.exit(_complain(exc, WRONG_USE))
    except AgentError as exc:
        sys.exit(_complain(exc, FAILURE))
    except BrokenPipeError:  # the reader went away, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILURE)
    except KeyboardInterrupt:
        sys.exit(FAILURE)


def _complain(exc: Exception, code: int) -> int:
    sys.stderr.write(f"edge-agent: {exc}\n")
    return code


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="edge-agent",
        description="Store events on this device, deliver them to the gateway, forget them on its receipt.",
        epilog="example:\n  edge-agent emit temperature '{\"celsius\": 21.5}'",
        formatter_class=RawDescriptionHelpFormatter,
    )
    nouns = parser.add_subparsers(required=True, metavar="COMMAND")
    _init(nouns)
    _enroll(nouns)
    _add(nouns, "run", commands.run, "the daemon: delivers events until SIGTERM or SIGINT", "edge-agent run")
    _emit(nouns)
    status = _add(
        nouns, "status", commands.status, "outbox, last receipt, connection, clock", "edge-agent status --json"
    )
    status.add_argument("--json", action="store_true", help="as one JSON object")
    _add(
        nouns, "token", commands.token, "print a JWT, for MQTT client tools",
        'mosquitto_pub ... -i dev1 -u dev1 -P "$(edge-agent token)"',
    )  # fmt: skip
    _quarantine(nouns)
    return parser


def _init(nouns: Any) -> None:
    parser = _add(
        nouns, "init", commands.init, "make keys and a home, print the public JWK; overwrites nothing",
        "edge-agent init dev1 --gateway mqtts://gateway.example.com:8883",
    )  # fmt: skip
    parser.add_argument("id", metavar="ID", help="1 to 128 of A-Z a-z 0-9 - . _ ~, first a letter or digit")
    parser.add_argument("--gateway", metavar="URL", help="mqtts://HOST:8883 (default: what enrolment names)")
    parser.add_argument(
        "--ca", metavar="FILE", help="CA certificate in PEM (default: from enrolment, else the system's)"
    )
    parser.add_argument("--audience", metavar="A", help="the gateway's audience (default: from enrolment)")
    parser.add_argument("--signing-key", metavar="FILE|JWK", help="the gateway's signing key (default: from enrolment)")
    parser.add_argument("--alg", choices=("EdDSA", "ES256"), default="EdDSA", help="of the new key (default: EdDSA)")


def _enroll(nouns: Any) -> None:
    parser = _add(
        nouns, "enroll", commands.enroll, "prove the key with a one-time code, fetch the gateway's keys and CA",
        "edge-agent enroll q7Z...kA.mJ3...4w --url https://gateway.example.com:8443",
    )  # fmt: skip
    parser.add_argument("code", metavar="CODE", help="as `gateway device add ID` printed it")
    parser.add_argument("--url", help="https://HOST:8443 (default: port 8443 of the gateway)")


def _emit(nouns: Any) -> None:
    parser = _add(
        nouns, "emit", commands.emit, "store an event, durably, and print its id",
        'edge-agent emit cart_updated \'{"cart": 7}\'\n  sensor | edge-agent emit temperature -\n  edge-agent emit - < events.jsonl',
    )  # fmt: skip
    parser.add_argument(
        "type", metavar="TYPE", help="dotted levels of A-Z a-z 0-9 _ -; or - alone: each line is {type, data}"
    )
    parser.add_argument(
        "data", metavar="DATA|-|@FILE", nargs="?", help="JSON text, - for one event a line, @FILE (default: null)"
    )
    parser.add_argument("--subject", help="what the event is about")
    parser.add_argument("--time", help="when it happened, RFC 3339 (default: now)")
    parser.add_argument("--content-type", metavar="TYPE", help="DATA is not JSON but this (default: JSON)")


def _quarantine(nouns: Any) -> None:
    parser = nouns.add_parser("quarantine", help="events the gateway refused", **_texts("edge-agent quarantine list"))
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    listing = _add(verbs, "list", commands.quarantine_list, "show them", "edge-agent quarantine list --json")
    listing.add_argument("--json", action="store_true", help="one JSON object a line, with the event")
    for verb, command, text in (
        ("retry", commands.quarantine_retry, "send them again under new numbers, all or these"),
        ("discard", commands.quarantine_discard, "delete them for good"),
    ):
        changing = _add(verbs, verb, command, text, f"edge-agent quarantine {verb} --all")
        changing.add_argument("ids", metavar="ID", nargs="*", help="ids of events")
        changing.add_argument("--all", action="store_true", help="all of them")


def _add(nouns: Any, name: str, command: _Command, text: str, example: str) -> ArgumentParser:
    parser: ArgumentParser = nouns.add_parser(name, help=text, **_texts(example, text))
    parser.add_argument(
        "--home", metavar="DIR", help=f"the agent's folder (default: ${HOME_VARIABLE}, else {DEFAULT_HOME})"
    )
    parser.set_defaults(command=command)
    return parser


def _texts(example: str, description: str | None = None) -> dict[str, Any]:
    return {
        "description": description,
        "epilog": f"example:\n  {example}",
        "formatter_class": RawDescriptionHelpFormatter,
    }


if __name__ == "__main__":
    main()
