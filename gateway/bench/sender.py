"""The hot path of the generator: one connection that sends prepared packets and times their acknowledgements.

Strategy: what is sent in one write shares one time stamp and stands as one entry in a FIFO; what comes back is compared,
a whole read at a time, with the bytes that must come next. Only what differs is read by the codec. So a publish costs
the generator well below a microsecond, in a closed loop.

In an open loop publish n is due at `start + n / rate`, and its latency counts from then, whether or not it could be sent:
a server that stalls is charged with all that it kept waiting (no "coordinated omission").
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from time import perf_counter_ns
from typing import Final

from gateway.bench.histogram import Histogram
from gateway.bench.load import BenchFailed
from gateway.bench.packets import Packets
from gateway.bench.session import Session
from gateway.mqtt.codec import CodecError, Decoder, Disconnect, Puback, Version

_ACK_BYTES: Final = 4
_QOS0_PIECE: Final = 64  # publishes a write at QoS 0, where nothing but the socket slows the sender down
_WRITE_HIGH: Final = 1 << 20


class Sender(asyncio.Protocol):
    """Sends one connection's packets.

    Attributes:
        latencies: From the time a publish was sent, or due in an open loop, to its acknowledgement.
        lags: How late publishes were sent in an open loop.
        refused: Acknowledgements with a failure, by reason.
        last_ns: When the last acknowledgement came.
        done: Finished once everything sent is acknowledged and nothing more will be sent.
    """

    def __init__(self, session: Session, packets: Packets, *, window: int, qos: int, version: Version) -> None:
        self.packets = packets
        self.latencies, self.lags = Histogram(), Histogram()
        self.refused: Counter[str] = Counter()
        self.last_ns = 0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._window, self._qos = min(window, session.receive_maximum), qos
        self._name = session.device.id
        self._waiting: deque[list[int]] = deque()  # [when, how many]: of the unacknowledged, oldest first
        self._decoder = Decoder(role="client", version=version)
        self._rest = b""
        self._is_paused = self._is_stopped = False
        self._start_ns, self._interval_ns = 0, 0.0
        self._transport = session.transport
        self._transport.set_protocol(self)
        self._transport.set_write_buffer_limits(high=_WRITE_HIGH)

    def begin(self, start_ns: int, interval_ns: float = 0) -> None:
        """Start the clock.

        Args:
            start_ns: When the first publish is due.
            interval_ns: Between two publishes, in an open loop; call `pump` as time goes by. 0: a closed loop.
        """
        self._start_ns, self._interval_ns = start_ns, interval_ns
        self.last_ns = start_ns
        self.pump()

    def stop(self) -> None:
        """Send nothing more."""
        self._is_stopped = True
        self._finish_if_done()

    def pump(self) -> None:
        """Send what is due, as far as the window allows."""
        if self._is_paused or self._is_stopped:
            self._finish_if_done()
            return
        now_ns = perf_counter_ns()
        count = min(self._due(now_ns), self._room(), self.packets.left)
        if count > 0:
            self._note(now_ns, count)
            self._transport.write(self.packets.take(count))
        if not self._qos:
            self.packets.acknowledged, self.last_ns = self.packets.taken, now_ns
            if not self._interval_ns and self.packets.left:
                asyncio.get_running_loop().call_soon(self.pump)
        self._finish_if_done()

    def data_received(self, data: bytes) -> None:
        """Take acknowledgements; anything else goes to the codec."""
        if self._rest:
            data, self._rest = self._rest + data, b""
        whole = len(data) // _ACK_BYTES * _ACK_BYTES
        if whole and whole <= (self.packets.taken - self.packets.acknowledged) * _ACK_BYTES:
            acks = data if whole == len(data) else data[:whole]
            if self.packets.are_next(acks):
                self._rest = data[whole:]
                self._acknowledged(whole // _ACK_BYTES)
                self.pump()
                return
        self._read(data)

    def pause_writing(self) -> None:
        """The server does not read."""
        self._is_paused = True

    def resume_writing(self) -> None:
        """It reads again."""
        self._is_paused = False
        self.pump()

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail, unless all is done."""
        self._fail(f"{self._name}: the connection was lost ({exc or 'closed by the server'})")

    def _due(self, now_ns: int) -> int:
        if not self._interval_ns:
            return self._window
        return int((now_ns - self._start_ns) / self._interval_ns) + 1 - self.packets.taken

    def _room(self) -> int:
        return self._window - (self.packets.taken - self.packets.acknowledged) if self._qos else _QOS0_PIECE

    def _note(self, now_ns: int, count: int) -> None:
        """Remember since when publishes are waited for: one entry for a write, or one each in an open loop."""
        if not self._interval_ns:
            if self._qos:
                self._waiting.append([now_ns, count])
            return
        for n in range(self.packets.taken, self.packets.taken + count):
            due_ns = self._start_ns + int(n * self._interval_ns)
            self.lags.record(now_ns - due_ns)
            if self._qos:
                self._waiting.append([due_ns, 1])

    def _acknowledged(self, count: int) -> None:
        now_ns = self.last_ns = perf_counter_ns()
        self.packets.acknowledged += count
        while count:
            oldest = self._waiting[0]
            taken = min(count, oldest[1])
            self.latencies.record(now_ns - oldest[0], taken)
            count -= taken
            oldest[1] -= taken
            if not oldest[1]:
                self._waiting.popleft()

    def _read(self, data: bytes) -> None:
        try:
            for packet in self._decoder.feed(data):
                if isinstance(packet, Puback):
                    self._take_ack(packet)
                elif isinstance(packet, Disconnect):
                    said = packet.properties.reason_string or packet.reason_code.name
                    self._fail(f"{self._name}: DISCONNECT 0x{packet.reason_code:02X} {said}")
        except CodecError as exc:
            self._fail(f"{self._name}: what the server sent is not MQTT ({exc})")
        self._rest = b""
        if not self.done.done():
            self.pump()

    def _take_ack(self, packet: Puback) -> None:
        if packet.packet_id != self.packets.next_id or not self._waiting:
            self._fail(f"{self._name}: PUBACK {packet.packet_id}, expected {self.packets.next_id} [MQTT-4.6.0-2]")
            return
        if packet.reason_code >= 0x80:
            said = packet.properties.reason_string or packet.reason_code.name
            self.refused[f"0x{packet.reason_code:02X} {said.partition(':')[0]}"] += 1
        self._acknowledged(1)

    def _fail(self, why: str) -> None:
        self._is_stopped = True
        if not self.done.done():
            self.done.set_exception(BenchFailed(why))

    def _finish_if_done(self) -> None:
        packets = self.packets
        if (self._is_stopped or not packets.left) and packets.acknowledged == packets.taken and not self.done.done():
            self.done.set_result(None)
