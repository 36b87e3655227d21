"""A run in one process: connect devices, prepare what they send, start the clock, stop, add up."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from gateway.bench.fleet import BenchDevice
from gateway.bench.histogram import Histogram
from gateway.bench.load import BenchFailed, Load, Target
from gateway.bench.packets import prepare
from gateway.bench.sender import Sender
from gateway.bench.session import Session

TICK_S: Final = 0.001  # an open loop looks so often what is due; libuv's timers are no finer
LAST_ACKS_S: Final = 30.0
_CONNECTING: Final = 64  # handshakes at a time


@dataclass(kw_only=True)
class Result:
    """What a run measured, of one process or of all.

    Attributes:
        connections: Devices.
        sent: Publishes written.
        acknowledged: Publishes acknowledged; at QoS 0 those handed to the socket.
        refused: How many of them with a failure, by reason.
        elapsed_s: From the first publish to the last acknowledgement.
        cpu_s: Processor time of the generator meanwhile.
        connect_s: It took to connect all devices.
        prepare_s: It took to write all packets.
        latencies: Of acknowledgements.
        lags: How late publishes were sent, in an open loop.
    """

    connections: int = 0
    sent: int = 0
    acknowledged: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    elapsed_s: float = 0.0
    cpu_s: float = 0.0
    connect_s: float = 0.0
    prepare_s: float = 0.0
    processes: int = 1
    latencies: Histogram = field(default_factory=Histogram)
    lags: Histogram = field(default_factory=Histogram)

    @property
    def rate(self) -> float:
        """Publishes acknowledged a second."""
        return self.acknowledged / self.elapsed_s if self.elapsed_s else 0.0

    @property
    def busy(self) -> float:
        """Share of one core that each process of the generator used, on average: near 1, the generator is what is measured."""
        return self.cpu_s / self.elapsed_s / self.processes if self.elapsed_s else 0.0

    @property
    def ceiling(self) -> float:
        """Publishes a second that the generator would reach if it never had to wait."""
        return self.acknowledged / self.cpu_s * self.processes if self.cpu_s else 0.0

    def add(self, other: Result) -> None:
        """Take in what another process measured at the same time."""
        self.connections += other.connections
        self.sent += other.sent
        self.acknowledged += other.acknowledged
        self.refused += other.refused
        self.cpu_s += other.cpu_s
        self.elapsed_s = max(self.elapsed_s, other.elapsed_s)
        self.connect_s = max(self.connect_s, other.connect_s)
        self.prepare_s = max(self.prepare_s, other.prepare_s)
        self.latencies.add(other.latencies)
        self.lags.add(other.lags)


Gate = Callable[[], Awaitable[None]]


async def run_share(target: Target, devices: Sequence[BenchDevice], load: Load, gate: Gate) -> Result:
    """Run the load of some devices on this loop.

    Args:
        target: Where to.
        devices: Of this share.
        load: Of this share.
        gate: Waited for between preparation and the start.
    """
    connect_at = time.perf_counter()
    sessions = await connect_all(target, devices, load)
    prepare_at = time.perf_counter()
    try:
        senders = await _senders(sessions, load)
        result = Result(connections=len(devices))
        result.connect_s, result.prepare_s = prepare_at - connect_at, time.perf_counter() - prepare_at
        await gate()
        await _send(senders, load, result)
    finally:
        for session in sessions:
            session.close()
        await asyncio.sleep(0)  # closing is done by the loop
    return result


async def connect_all(target: Target, devices: Sequence[BenchDevice], load: Load) -> list[Session]:
    """Connect devices, some at a time.

    Raises:
        BenchFailed: One was refused; those connected are let go.
    """
    tls, free, sessions = target.tls(), asyncio.Semaphore(_CONNECTING), []

    async def connect(device: BenchDevice) -> None:
        async with free:
            sessions.append(await Session.open(target, tls, device, load))

    try:
        async with asyncio.TaskGroup() as tasks:
            for device in devices:
                tasks.create_task(connect(device))
    except BaseException as exc:
        for session in sessions:
            session.transport.abort()
        raise _first(exc) from exc
    return sessions


def _first(exc: BaseException) -> BaseException:
    return exc.exceptions[0] if isinstance(exc, BaseExceptionGroup) else exc


async def _senders(sessions: Sequence[Session], load: Load) -> list[Sender]:
    seal_key = await sessions[0].seal_key(load.suite) if load.events else None
    senders = []
    for n, session in enumerate(sessions):
        total = load.publishes
        count = None if total is None else total // len(sessions) + (n < total % len(sessions))
        window = min(load.window, session.receive_maximum)
        packets = prepare(session.device, replace(load, window=window), count, seal_key, session.stream)
        senders.append(Sender(session, packets, window=window, qos=load.qos, version=load.version))
    return senders


async def _send(senders: Sequence[Sender], load: Load, result: Result) -> None:
    cpu_at, start_ns = time.process_time(), time.perf_counter_ns()
    interval_ns = 1e9 * len(senders) / load.rate if load.rate else 0.0
    for n, sender in enumerate(senders):
        sender.begin(start_ns + int(n * interval_ns / len(senders)), interval_ns)
    try:
        await _until_over(senders, load)
    except TimeoutError as exc:
        raise BenchFailed(f"not everything was acknowledged within {LAST_ACKS_S:.0f} s of the end") from exc
    result.cpu_s = time.process_time() - cpu_at
    result.elapsed_s = (max(sender.last_ns for sender in senders) - start_ns) / 1e9
    for sender in senders:
        result.sent += sender.packets.taken
        result.acknowledged += sender.packets.acknowledged
        result.refused += sender.refused
        result.latencies.add(sender.latencies)
        result.lags.add(sender.lags)


async def _until_over(senders: Sequence[Sender], load: Load) -> None:
    """Wait until everything is sent or time is up, then for the last acknowledgements."""
    over = asyncio.gather(*(sender.done for sender in senders))
    ticker = asyncio.create_task(_tick(senders), name="bench-ticker") if load.rate else None
    try:
        await asyncio.wait([over], timeout=load.seconds)
        for sender in senders:
            sender.stop()
        async with asyncio.timeout(LAST_ACKS_S):
            await over
    finally:
        if ticker:
            ticker.cancel()


async def _tick(senders: Sequence[Sender]) -> None:
    while True:
        await asyncio.sleep(TICK_S)
        for sender in senders:
            sender.pump()
