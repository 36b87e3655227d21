"""The course of the demo: set the stage, play the script at an even pace, wait for the last event, count."""

from __future__ import annotations

import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Final

from gateway.demo.report import Result, print_table
from gateway.demo.script import Line, metrics, shopping
from gateway.demo.stage import SERVICES, DemoFailed, Stage, program

CARTS: Final = ("cart-1", "cart-2", "cart-3")
MACHINE: Final = "machine"
TICK_S: Final = 0.05
SHOW_S: Final = 1.0
DRAIN_S: Final = 60.0
HANDLER_OF: Final = {event: name for name, event in SERVICES.items()} | {"machine_metrics": "monitor"}


@dataclass
class Course:
    """What the devices say, evenly over the time they have.

    Attributes:
        lines: For each device, all its events.
        said: How many of them it has said.
    """

    lines: dict[str, list[Line]]
    said: dict[str, int] = field(default_factory=dict)

    def due(self, device: str, share: float) -> list[Line]:
        """What a device says now, `share` of the time being over."""
        begin = self.said.get(device, 0)
        end = self.said[device] = min(len(self.lines[device]), round(len(self.lines[device]) * share))
        return self.lines[device][begin:end]

    @property
    def emitted(self) -> dict[str, int]:
        """Events said, for each handler."""
        said = Counter(HANDLER_OF[kind] for name, count in self.said.items() for kind, _ in self.lines[name][:count])
        return {name: said[name] for name in HANDLER_OF.values()}


def run(seconds: float | None, events: int) -> int:
    """Play the demo.

    Args:
        seconds: How long the devices speak; None for about 10 s.
        events: How many events in all.

    Returns:
        Exit code: 0 if nothing was lost and nothing was handled twice.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    with tempfile.TemporaryDirectory(prefix="lockgate-demo-") as folder:
        stage = Stage(Path(folder))
        try:
            result = _play(stage, 10.0 if seconds is None else seconds, events)
        except DemoFailed as exc:
            print(f"error: {exc}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
            return 130
        finally:
            stage.stop()
    print_table(result)
    return 0 if result.is_clean else 1


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _play(stage: Stage, seconds: float, events: int) -> Result:
    _say("making certificates and keys, starting the gateway and three cloud services")
    stage.init_gateway()
    token = stage.call(program("gateway"), "token", "create", "--role", "service", "--name", "order").strip()
    bus = {"EVENT_BUS_URL": f"http://127.0.0.1:{stage.http_port}/event_bus", "EVENT_BUS_TOKEN": token}
    stage.start_services(bus)
    stage.add_handlers(*_handlers(stage))
    stage.start_gateway()
    _say(f"enrolling {len(CARTS) + 1} devices by one-time codes, and sending in an intruder with a wrong key")
    homes = {device: stage.add_agent(device) for device in (*CARTS, MACHINE)}
    _intrude(stage, homes[CARTS[0]])
    course = _course(events)
    _speak(stage, course, homes, seconds)
    _wait_until_handled(stage, course)
    return _count(stage, course, homes)


def _handlers(stage: Stage) -> list[str]:
    tables = [
        f'name = "{name}"\ntypes = ["{event}"]\nurl = "{stage.services[name]}/event_handler/{event}"'
        for name, event in SERVICES.items()
    ]
    return [*tables, 'name = "monitor"\ntypes = ["machine_metrics"]\nurl = "python:gateway.demo.monitor:watch_load"']


def _course(events: int) -> Course:
    share = max(1, events // (len(CARTS) + 1))
    lines = {cart: list(shopping(cart, share)) for cart in CARTS}
    return Course({**lines, MACHINE: list(metrics(max(1, events - share * len(CARTS))))})


def _intrude(stage: Stage, victim: Path) -> None:
    """Somebody with a key of his own claims to be a cart that is enrolled."""
    home = stage.init_agent(CARTS[0], home="intruder")
    for public in ("gateway.json", "ca.pem"):  # what he can learn; the cart's key he cannot
        (home / public).write_bytes((victim / public).read_bytes())
    intruder = stage.speaker("intruder", home)
    intruder.say([("order_placed", {"number": "stolen", "cart": CARTS[0], "items": 1, "total_cents": 1})])
    intruder.close()
    stage.start("intruder", program("edge-agent"), "run", "--home", str(home))


def _speak(stage: Stage, course: Course, homes: dict[str, Path], seconds: float) -> None:
    speakers = {device: stage.speaker(device, home) for device, home in homes.items()}
    begun = shown = time.monotonic()
    share = 0.0
    while share < 1:
        time.sleep(TICK_S)
        share = min(1.0, (time.monotonic() - begun) / seconds)
        for device, speaker in speakers.items():
            speaker.say(course.due(device, share))
        if time.monotonic() - shown > SHOW_S:
            _progress(stage, course)
            shown = time.monotonic()
    durable = sum(speaker.close() for speaker in speakers.values())
    if durable != sum(course.emitted.values()):
        raise DemoFailed(f"{sum(course.emitted.values())} events were said, {durable} are in the outboxes")


def _wait_until_handled(stage: Stage, course: Course) -> None:
    deadline = time.monotonic() + DRAIN_S
    while time.monotonic() < deadline:
        stage.check_alive()
        if _progress(stage, course) >= sum(course.emitted.values()):
            break
        time.sleep(0.2)
    print(file=sys.stderr)


def _delivered(stage: Stage) -> dict[str, int]:
    counts = {name: handled for name, (handled, _) in stage.handled().items()}
    return counts | {"monitor": int(stage.handlers()["monitor"]["delivered"])}


def _progress(stage: Stage, course: Course) -> int:
    handled = sum(_delivered(stage).values())
    emitted = sum(course.emitted.values())
    print(f"\r  emitted {emitted:6,}   handled {handled:6,}", end="", file=sys.stderr, flush=True)
    return handled


def _count(stage: Stage, course: Course, homes: dict[str, Path]) -> Result:
    stats: dict[str, Any] = stage.stats()
    outboxes = [stage.outbox(home) for home in homes.values()]
    emitted = sum(course.emitted.values())
    delivered = _delivered(stage)
    orders = len(stage.show("order"))
    return Result(
        emitted=emitted,
        acknowledged=emitted - sum(outbox["pending"] + outbox["quarantined"] for outbox in outboxes),
        stored=stats["ingest"]["events"],
        delivered=delivered,
        expected=course.emitted,
        repeated=sum(repeated for _, repeated in stage.handled().values()) + stats["ingest"]["duplicates"],
        refused=stats["mqtt"]["refused"],
        twice=max(0, orders - course.emitted["order"]),
        p50_s=stats["latency"]["p50_s"],
        p99_s=stats["latency"]["p99_s"],
    )


def _say(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)
