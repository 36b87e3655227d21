"""What an acknowledgement asks of the agent: wire protocol, section 6, as one pure function."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

STORED: Final = 0x00
UNAVAILABLE: Final = 0x83
NOT_AUTHORIZED: Final = 0x87
TOPIC_INVALID: Final = 0x90
QUOTA: Final = 0x97
PAYLOAD_INVALID: Final = 0x99

_NEW_STREAM_RULES: Final = frozenset(("stream-forked", "too-many-ranges"))
_OPERATOR_RULES: Final = frozenset(("too-many-streams",))


@dataclass(frozen=True, slots=True)
class Answer:
    """A reason code with what came beside it.

    Attributes:
        code: MQTT reason code.
        reason: Reason String: the rule, a colon, the detail; or "".
        reseal: User property `action: reseal` was there.
        retry_after_s: User property `retry-after`, in seconds, or None.
    """

    code: int
    reason: str = ""
    reseal: bool = False
    retry_after_s: float | None = None

    @property
    def rule(self) -> str:
        """Name of the rule that the Reason String begins with."""
        return self.reason.partition(":")[0].strip()


class Verdict(Enum):
    """What becomes of a batch."""

    FORGET = auto()
    SET_ASIDE = auto()
    HALVE = auto()
    RESEAL = auto()
    FORK = auto()
    RECONNECT = auto()


def verdict(answer: Answer, *, events: int, types: int) -> Verdict:
    """Decide what becomes of a batch that was answered.

    Args:
        answer: The acknowledgement.
        events: How many events the batch has.
        types: How many different types they have.

    Returns:
        For 0x87, which judges topic, type and role: a batch of one type is set aside whole and never retried, a mixed
        one is halved, so that a forbidden type takes no other with it. Anything the table does not know: reconnect
        with backoff, since forgetting and setting aside need a reason. `too-many-streams` is the operator's to mend
        (retire old streams): a new stream would only be refused again, and no event is at fault.
    """
    match answer.code:
        case 0x00:
            return Verdict.FORGET
        case 0x90:
            return Verdict.SET_ASIDE
        case 0x87:
            return Verdict.SET_ASIDE if types == 1 else Verdict.HALVE
        case 0x99 if answer.rule in _NEW_STREAM_RULES:
            return Verdict.FORK
        case 0x99 if answer.rule not in _OPERATOR_RULES:
            return Verdict.SET_ASIDE if events == 1 else Verdict.HALVE
        case 0x83 if answer.reseal:
            return Verdict.RESEAL
    return Verdict.RECONNECT
