"""What can be wrong with what a peer sent: one tree, each leaf a rule of the wire protocol.

A refusal has a `rule`, a short stable name that a test or a metric can hold on to, and a `detail` for the engineer who
reads it. Both may be shown to the peer: neither ever carries a secret, nor tells which of several keys was nearly right.
"""

from __future__ import annotations


class ProtocolError(Exception):
    """Root of what `edge_protocol` raises."""


class Rejected(ProtocolError):
    """The sender's fault: sending the same bytes again gives the same answer.

    Attributes:
        rule: Stable name of the rule that was broken, such as `event-too-large`.
        detail: What was found and what was expected, in a sentence without secrets.
    """

    def __init__(self, rule: str, detail: str) -> None:
        super().__init__(f"{rule}: {detail}")
        self.rule = rule
        self.detail = detail

    def __reduce__(self) -> tuple[type[Rejected], tuple[str, str]]:
        """Cross a process boundary whole (envelopes are opened in a pool)."""
        return type(self), (self.rule, self.detail)


class TokenRejected(Rejected):
    """The token does not prove the principal (wire protocol, section 2)."""


class EnvelopeRejected(Rejected):
    """The envelope is malformed, forged, too old or over a limit (section 5): answered 0x99."""


class ResealNeeded(EnvelopeRejected):
    """The envelope or signing key is unknown or expired: refresh the keys and seal again (section 6, 0x83 reseal)."""


class EventRejected(Rejected):
    """An event is not a CloudEvent, or is over a limit (section 4): answered 0x99."""


class KeySetRejected(Rejected):
    """The gateway's key set is forged, stale or for another audience (section 1)."""


class KeyInvalid(ProtocolError, ValueError):
    """A key is of a kind, size or form that the protocol does not know; the message says which were expected."""


class TopicInvalid(ProtocolError, ValueError):
    """A topic name or filter breaks MQTT section 4.7, or an id is not one topic level."""
