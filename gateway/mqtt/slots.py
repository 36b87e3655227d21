"""What a connection owes its client: one slot a publish, acknowledged in the order of arrival [MQTT-4.6.0-2, -3]."""

from __future__ import annotations

from collections import deque
from typing import Protocol

from gateway.mqtt.codec import PublishRun
from gateway.ports.ingest import Receipt


class Slot:
    """A publish that was taken; `packet_id` is 0 at QoS 0, which is never acknowledged but may end the connection.

    Attributes:
        run: The publishes it stands for, if that is more than one; they end alike.
    """

    __slots__ = ("charge_bytes", "packet_id", "qos", "receipt", "run")

    def __init__(self, packet_id: int, qos: int, charge_bytes: int, run: PublishRun | None = None) -> None:
        self.packet_id = packet_id
        self.qos = qos
        self.charge_bytes = charge_bytes
        self.run = run
        self.receipt: Receipt | None = None


class Slots:
    """FIFO of slots; finished ones leave it only at the head."""

    __slots__ = ("_fifo",)

    def __init__(self) -> None:
        self._fifo: deque[Slot] | tuple[()] = ()  # most are empty, and a deque takes 760 bytes

    def __len__(self) -> int:
        return len(self._fifo)

    def add(self, slot: Slot) -> Slot:
        """Put a slot behind all others."""
        self._fifo = self._fifo or deque()
        self._fifo.append(slot)
        return slot

    def settle(self, slot: Slot, receipt: Receipt) -> bool:
        """Finish a slot; tell whether acknowledgements may be written now.

        Raises:
            RuntimeError: It was finished before: a receipt is given once.
        """
        if slot.receipt is not None:
            raise RuntimeError(f"publish {slot.packet_id} was settled twice")
        slot.receipt = receipt
        return next(iter(self._fifo), None) is slot

    def pop(self) -> tuple[Slot, Receipt] | None:
        """Take the head off, if it is finished, with its receipt."""
        if not self._fifo or (receipt := self._fifo[0].receipt) is None:
            return None
        slot = self._fifo.popleft()
        self._fifo = self._fifo or ()
        return slot, receipt


class Account(Protocol):
    """A connection, as the budget sees it."""

    inflight_bytes: int

    def hold_for_budget(self) -> None:
        """Stop reading."""
        ...

    def release_from_budget(self) -> None:
        """Read on."""
        ...


class InflightBudget:
    """Bounds what was taken from clients and is not settled, in all and for each connection (wire protocol, section 7).

    What has been read is taken in any case: a connection over the bound is held until half of its share is settled;
    over the bound of all, until a quarter of everything is.
    """

    def __init__(self, total_bytes: int, connection_bytes: int) -> None:
        self.used_bytes = 0
        self._total_bytes = total_bytes
        self._connection_bytes = connection_bytes
        self._waiting: dict[Account, None] = {}

    def take(self, account: Account, size_bytes: int) -> None:
        """Charge a publish to its connection, and hold the connection if that was too much."""
        self.used_bytes += size_bytes
        account.inflight_bytes += size_bytes
        if self.used_bytes > self._total_bytes or account.inflight_bytes > self._connection_bytes:
            self._waiting[account] = None
            account.hold_for_budget()

    def give(self, account: Account, size_bytes: int) -> None:
        """Give back what a settled publish was charged."""
        self.used_bytes -= size_bytes
        account.inflight_bytes -= size_bytes
        if self._waiting and self.used_bytes <= self._total_bytes * 3 // 4:
            for waiting in [each for each in self._waiting if each.inflight_bytes <= self._connection_bytes // 2]:
                del self._waiting[waiting]
                waiting.release_from_budget()

    def forget(self, account: Account) -> None:
        """A connection is gone: it waits for nothing; what it was charged is given back as it settles."""
        self._waiting.pop(account, None)
