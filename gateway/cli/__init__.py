"""The command `gateway`: nouns, then verbs; results on stdout, messages on stderr; exit 0, 1 (failure), 2 (wrong use).

One file a noun. Knows how to ask and how to print; what is done stands in `gateway/operations.py`, reached through the
socket of a running gateway or on the files of a stopped one (`client.py`).
"""

from __future__ import annotations

import sys
from typing import Final

_OWN: Final = frozenset(("gateway", "edge_protocol"))
_EXTRA_OF: Final = {"flask": "demo"}


def main() -> None:
    """Run the command line; the console entry."""
    try:
        from gateway.cli.app import run  # noqa: PLC0415  # what is not installed shall be named, not traced back

        code = run()
    except ModuleNotFoundError as exc:
        name = (exc.name or "").partition(".")[0]
        if name in _OWN:
            raise
        print(f"error: this command needs the Python package {name}, which is not installed. Run", file=sys.stderr)
        print(f"pip install 'lockgate[{_EXTRA_OF.get(name, 'gateway')}]'", file=sys.stderr)
        code = 1
    sys.exit(code)
