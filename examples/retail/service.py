"""What the three retail services share: a database with an inbox, and the way to the gateway's event bus.

The inbox makes a service handle every event once, however often it is delivered: the idempotency key of the delivery
and the effect of the event go into one transaction, so a repeat finds the key and changes nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from flask import Flask, Response, request
from werkzeug.serving import WSGIRequestHandler, make_server

Apply = Callable[[sqlite3.Connection, dict], None]

EVENT_BUS_URL = "http://127.0.0.1:8080/event_bus"  # of a gateway on this machine, as it is by default

INBOX = """
CREATE TABLE IF NOT EXISTS inbox(key TEXT PRIMARY KEY, source TEXT, sequence INTEGER) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS tally(handled INTEGER, repeated INTEGER);
INSERT INTO tally SELECT 0, 0 WHERE NOT EXISTS (SELECT * FROM tally);
"""


class Service:
    """One cloud service: a Flask app over a SQLite file of its own."""

    def __init__(self, name: str, database: Path, schema: str) -> None:
        self.app = Flask(name)
        self.database = database
        with closing(self.connect()) as db, db:
            db.executescript("PRAGMA journal_mode = WAL;" + INBOX + schema)

    def connect(self) -> sqlite3.Connection:
        """Open the database; a connection serves one request."""
        db = sqlite3.connect(self.database, timeout=10, isolation_level="IMMEDIATE")
        db.row_factory = sqlite3.Row
        return db

    def handles(self, event: str, apply: Apply) -> None:
        """Handle an event type at POST /event_handler/EVENT, once for each idempotency key."""

        def handle() -> Response:
            key, source = request.headers.get("Idempotency-Key"), request.headers.get("ce-source")
            if not key or not source:
                return Response("expected a delivery of the gateway: Idempotency-Key and ce- headers\n", status=400)
            with closing(self.connect()) as db, db:
                row = (key, source, request.headers.get("ce-sequence"))
                new = db.execute("INSERT INTO inbox VALUES (?, ?, ?) ON CONFLICT DO NOTHING", row).rowcount
                if new:
                    apply(db, request.get_json())
                db.execute("UPDATE tally SET handled = handled + ?, repeated = repeated + ?", (new, 1 - new))
            return Response(status=204)

        self.app.add_url_rule(f"/event_handler/{event}", f"handle_{event}", handle, methods=["POST"])

    def raises(self, event: str) -> None:
        """Raise an event type at POST /event/EVENT: hand the request's JSON to the gateway's event bus."""

        def publish() -> Response:
            raised = urllib.request.Request(
                os.environ.get("EVENT_BUS_URL", EVENT_BUS_URL),
                method="POST",
                data=json.dumps(
                    {
                        "specversion": "1.0",
                        "id": request.headers.get("Idempotency-Key") or os.urandom(16).hex(),
                        "source": f"/services/{self.app.name}",
                        "type": event,
                        "datacontenttype": "application/json",
                        "data": request.get_json(),
                    }
                ).encode(),
                headers={
                    "Content-Type": "application/cloudevents+json",
                    "Authorization": f"Bearer {os.environ.get('EVENT_BUS_TOKEN', '')}",
                },
            )
            try:
                with urllib.request.urlopen(raised, timeout=10) as answer:
                    return Response(answer.read(), status=answer.status, mimetype="application/json")
            except urllib.error.HTTPError as refused:  # the gateway says why
                return Response(refused.read(), status=refused.code, mimetype="application/problem+json")
            except OSError as failed:
                return Response(f"{raised.full_url}: {failed}\n", status=503)

        self.app.add_url_rule(f"/event/{event}", f"raise_{event}", publish, methods=["POST"])

    def shows(self, path: str, query: str) -> None:
        """Show what the service knows at GET PATH, with how many events it handled and how many came again."""

        def show() -> dict:
            with closing(self.connect()) as db, db:
                rows = [dict(row) for row in db.execute(query)]
                handled, repeated = db.execute("SELECT handled, repeated FROM tally").fetchone()
            return {path.strip("/"): rows, "handled": handled, "repeated": repeated}

        self.app.add_url_rule(path, "show", show, methods=["GET"])


def main(make: Callable[[Path], Service], *, port: int) -> None:
    """Run a service: `python FILE [--port N] [--database FILE]`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=port, help="port on 127.0.0.1; 0 takes a free one and prints it")
    parser.add_argument("--database", type=Path, default=Path(f"{Path(make.__code__.co_filename).stem}.db"))
    arguments = parser.parse_args()
    WSGIRequestHandler.protocol_version = "HTTP/1.1"  # keep connections open between deliveries
    WSGIRequestHandler.log_request = lambda *_: None
    server = make_server("127.0.0.1", arguments.port, make(arguments.database).app, threaded=True)
    print(f"listening on http://127.0.0.1:{server.port}", flush=True)
    server.serve_forever()
