"""QoS 2 messages from a client: each taken once, however often it is sent (MQTT 5.0, section 4.3.3).

The identifiers belong to the session. One is durable before PUBREC says that the message is, and gone before PUBCOMP lets
the client use it again; while it cannot be written PUBREC waits, since an error would have the client send anew what was
taken. A crash between the two writes, that of an event to the bus and that of its identifier, makes the
client repeat the message: an envelope or an event with an id of its own is then known to the bus; a bare payload, which
has none, is stored again (wire protocol, section 3: at least once). Messages between clients cannot be seen twice: their
deliveries and the identifier are one write.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from gateway.mqtt.shelf import Shelf
from gateway.ports.ingest import STORED, UNSPECIFIED_ERROR, Receipt
from gateway.rules.flows import Received, Step

Settle = Callable[[Receipt], None]


class Receiver:
    """Flows of QoS 2 messages of one session."""

    __slots__ = ("_noted", "_received", "_shelf", "_waiting")

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._received = Received()
        self._waiting: dict[int, list[Settle]] = {}
        self._noted: set[int] = set()

    @property
    def received(self) -> Iterable[int]:
        """Identifiers of messages that are not released: of those that are stored, and those that are being written."""
        return [*self._received, *self._noted]

    def restore(self, received: Iterable[int]) -> None:
        """Take the identifiers that were kept."""
        self._received = Received(received)

    def take(self, packet_id: int, settle: Settle) -> Settle | None:
        """Begin a flow: give back what to call when the message is stored or refused; None if it is a repetition.

        `settle` is called once in any case, when PUBREC may be sent; an error code in it has ended the flow.
        """
        step = self._received.step(packet_id)
        if step is Step.RECEIVED:
            settle(STORED)  # [MQTT-4.3.3-10]
        elif step is Step.STORING:
            self._waiting[packet_id].append(settle)
        else:
            self._received.begin(packet_id)
            self._waiting[packet_id] = [settle]
            return partial(self._stored, packet_id)
        return None

    def note(self, packet_id: int) -> None:
        """Have the identifier of a message that was routed written with its deliveries: a crash leaves both or neither."""
        self._noted.add(packet_id)
        self._shelf.put_received(packet_id, is_received=True)

    def release(self, packet_id: int, complete: Callable[[bool], object]) -> None:
        """End a flow (PUBREL): `complete` is told, when PUBCOMP may be sent, whether the identifier was known."""
        is_known = self._received.release(packet_id)
        if is_known:
            self._shelf.put_received(packet_id, is_received=False)
        self._shelf.after(partial(complete, is_known))  # a second PUBREL is answered no sooner than the first

    def _stored(self, packet_id: int, receipt: Receipt) -> None:
        is_stored = receipt.code < UNSPECIFIED_ERROR
        if not is_stored or packet_id in self._noted:
            self._answer(packet_id, receipt)
        else:
            self.note(packet_id)
            self._shelf.after(partial(self._answer, packet_id, receipt))

    def _answer(self, packet_id: int, receipt: Receipt) -> None:
        """PUBREC is due; only now may PUBREL come: one that comes sooner frees no identifier that others wait for."""
        self._received.settle(packet_id, is_stored=receipt.code < UNSPECIFIED_ERROR)
        self._noted.discard(packet_id)
        for settle in self._waiting.pop(packet_id):
            settle(receipt)
