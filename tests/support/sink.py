"""A cloud service for tests: a real HTTP server with a ledger, which can be told to fail, to be slow, or to be gone."""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Received:
    """One delivery, as it came."""

    key: str
    source: str
    type: str
    id: str
    sequence: int
    data: object
    headers: dict[str, str]


class Sink:
    """Applies an event once for each idempotency key; `deliveries` has every request, `applied` every effect."""

    def __init__(self, answer: Callable[[Received], int] = lambda _: 204) -> None:
        self.answer = answer
        self.deliveries: list[Received] = []
        self.applied: dict[str, list[Received]] = defaultdict(list)
        self._keys: set[str] = set()
        self._lock = threading.Lock()
        self._server: ThreadingHTTPServer | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/events"

    def start(self) -> Sink:
        sink = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                status = sink.take(self.headers, body)
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, *_: object) -> None:
                pass  # a gateway that is killed breaks its connections

        self._server = Server(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def take(self, headers: Message, body: bytes) -> int:
        """Take a request; one with several events is answered as the worst of them."""
        is_batch = headers["Content-Type"] == "application/cloudevents-batch+json"
        received = _read_batch(headers, body) if is_batch else [_read(headers, body)]
        with self._lock:
            self.deliveries += received
            status = max(map(self.answer, received))
            for each in received if status < 300 else ():
                if each.key not in self._keys:
                    self._keys.add(each.key)
                    self.applied[each.source].append(each)
        return status

    @property
    def count(self) -> int:
        with self._lock:
            return len(self._keys)


def _read(headers: Message, body: bytes) -> Received:
    return Received(
        key=headers["Idempotency-Key"],
        source=headers["ce-source"],
        type=headers["ce-type"],
        id=headers["ce-id"],
        sequence=int(headers.get("ce-sequence", 0)),
        data=json.loads(body) if body else None,
        headers=dict(headers.items()),
    )


def _read_batch(headers: Message, body: bytes) -> list[Received]:
    """Of each event by itself; its key is what it would have been alone."""
    return [
        Received(
            key=f"{event['source']}#{event['id']}",
            source=event["source"],
            type=event["type"],
            id=event["id"],
            sequence=int(event.get("sequence", 0)),
            data=event.get("data"),
            headers=dict(headers.items()),
        )
        for event in json.loads(body)
    ]
