"""The life of an MQTT connection as a table, and the counts that both ends keep (MQTT 5.0, chapters 3 and 4).

Owns which packet may come in which state and what breaks a rule; Receive Maximum; keep-alive. It knows no socket, codec or
clock: packets are named by their MQTT numbers, times are handed in. What outlives a connection is in `rules.flows`.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, IntEnum, auto
from typing import Final

PROTOCOL_ERROR: Final = 0x82
RECEIVE_MAXIMUM_EXCEEDED: Final = 0x93
MAX_PACKET_ID: Final = 65535
DEFAULT_RECEIVE_MAXIMUM: Final = 65535  # what a client that names none accepts (3.1.2.11.3)
KEEP_ALIVE_FACTOR: Final = 1.5  # [MQTT-3.1.2-22]


class Violation(Exception):
    """The peer broke a rule of the protocol: end the connection.

    Attributes:
        code: MQTT reason code of the DISCONNECT.
        reason: The rule in words, with its clause.
    """

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason


class State(Enum):
    """Where a connection stands."""

    AWAITING_CONNECT = auto()
    AUTHENTICATING = auto()
    CONNECTED = auto()
    RENEWING = auto()
    CLOSING = auto()
    CLOSED = auto()

    @property
    def holds_packets(self) -> bool:
        """Whether packets wait until a decision about the peer is made; they are neither read nor refused."""
        return self in _HOLDING

    @property
    def is_open(self) -> bool:
        """Whether the peer was let in and has not been sent off."""
        return self in _OPEN


_HOLDING: Final = frozenset((State.AUTHENTICATING, State.RENEWING))
_OPEN: Final = frozenset((State.CONNECTED, State.RENEWING))


class Input(IntEnum):
    """What happens to a connection: a control packet, by its number (table 2-1), or a decision of ours."""

    CONNECT = 1
    CONNACK = 2
    PUBLISH = 3
    PUBACK = 4
    PUBREC = 5
    PUBREL = 6
    PUBCOMP = 7
    SUBSCRIBE = 8
    SUBACK = 9
    UNSUBSCRIBE = 10
    UNSUBACK = 11
    PINGREQ = 12
    PINGRESP = 13
    DISCONNECT = 14
    AUTH = 15
    ACCEPTED = 16  # the token proves the principal
    TOKEN = 17  # a PUBLISH on the principal's token topic
    RENEWED = 18
    END = 19  # we refuse the peer, or send it off
    LOST = 20  # the network connection is gone


_S, _I = State, Input
MOVES: Final[Mapping[tuple[State, Input], State]] = {
    (_S.AWAITING_CONNECT, _I.CONNECT): _S.AUTHENTICATING,
    (_S.AUTHENTICATING, _I.ACCEPTED): _S.CONNECTED,
    (_S.CONNECTED, _I.PUBLISH): _S.CONNECTED,
    **{(_S.CONNECTED, each): _S.CONNECTED for each in (_I.PUBACK, _I.PUBREC, _I.PUBREL, _I.PUBCOMP)},
    (_S.CONNECTED, _I.SUBSCRIBE): _S.CONNECTED,
    (_S.CONNECTED, _I.UNSUBSCRIBE): _S.CONNECTED,
    (_S.CONNECTED, _I.PINGREQ): _S.CONNECTED,
    (_S.CONNECTED, _I.DISCONNECT): _S.CLOSING,
    (_S.CONNECTED, _I.AUTH): _S.RENEWING,
    (_S.CONNECTED, _I.TOKEN): _S.RENEWING,
    (_S.RENEWING, _I.RENEWED): _S.CONNECTED,
    **{(state, _I.END): _S.CLOSING for state in (_S.AWAITING_CONNECT, _S.AUTHENTICATING, _S.CONNECTED, _S.RENEWING)},
    **{(state, _I.LOST): _S.CLOSED for state in _S},
}
"""The allowed moves; whatever a peer does beside them is a protocol error."""

_FROM_SERVERS: Final = frozenset((_I.CONNACK, _I.SUBACK, _I.UNSUBACK, _I.PINGRESP))


class Lifecycle:
    """One connection's state; `take` is the only way to move it.

    Attributes:
        state: Where it stands.
        may_auth: Whether CONNECT named the authentication method, so that AUTH may come [MQTT-4.12.0-7].
    """

    __slots__ = ("may_auth", "state")

    def __init__(self) -> None:
        self.state = State.AWAITING_CONNECT
        self.may_auth = False

    def take(self, what: Input) -> None:
        """Apply what happened.

        Raises:
            Violation: The peer may not do this now; the state stays as it was.
        """
        moved = MOVES.get((self.state, what))
        if moved is None or (what is Input.AUTH and not self.may_auth):
            raise Violation(PROTOCOL_ERROR, _why(self.state, what))
        self.state = moved

    def end(self) -> bool:
        """Begin to close, unless that has begun; tell whether it began now."""
        if (self.state, Input.END) not in MOVES:
            return False
        self.take(Input.END)
        return True


def _why(state: State, what: Input) -> str:
    if what in _FROM_SERVERS:
        return f"{what.name} is sent by servers only (section 2.1.2)"
    if state is State.AWAITING_CONNECT:
        return f"{what.name} before CONNECT [MQTT-3.1.0-1]"
    if what is Input.CONNECT:
        return "second CONNECT on a connection [MQTT-3.1.0-2]"
    if what is Input.AUTH:
        return "AUTH without an authentication method in CONNECT [MQTT-4.12.0-7]"
    return f"{what.name} does not belong here (state {state.name.lower()})"


class ReceiveWindow:
    """Counts what the client sent at QoS > 0 and was not acknowledged, against the Receive Maximum we announced.

    An identifier used again before its acknowledgement counts again: what it carries is another message to us.
    """

    __slots__ = ("maximum", "waiting")

    def __init__(self, maximum: int) -> None:
        self.maximum = maximum
        self.waiting = 0

    @property
    def room(self) -> int:
        """How many more may come."""
        return self.maximum - self.waiting

    def open(self, count: int = 1) -> None:
        """Count one PUBLISH, or as many as there is room for.

        Raises:
            Violation: One more than announced [MQTT-3.3.4-7].
        """
        if self.waiting + count > self.maximum:
            raise Violation(
                RECEIVE_MAXIMUM_EXCEEDED, f"more than {self.maximum} unacknowledged PUBLISH packets [MQTT-3.3.4-7]"
            )
        self.waiting += count

    def close(self, count: int = 1) -> None:
        """Count its acknowledgement."""
        self.waiting -= count


def keep_alive_to_use(asked_s: int, cap_s: int) -> int:
    """The keep-alive that rules: what the client asked for, or the cap if it asked for more or for none (0)."""
    return cap_s if asked_s == 0 or asked_s > cap_s else asked_s


def keep_alive_deadline_s(heard_s: float, keep_alive_s: float) -> float:
    """When a client that was last heard then is given up: one and a half times its keep-alive [MQTT-3.1.2-22]."""
    return heard_s + KEEP_ALIVE_FACTOR * keep_alive_s
