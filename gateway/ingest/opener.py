"""What the processes of the pool run: from payloads and key bytes to what is stored. Pure; knows only `edge_protocol`.

Strategy: what crosses the process boundary is tuples and bytes, never an `Event`, since pickling a batch of events
costs more than opening it. Keys cross as bytes too; each process parses one once and keeps it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Final, NamedTuple

from edge_protocol.envelope import AgeLimits, open_envelope
from edge_protocol.envelope_keys import OpenKey, Suite
from edge_protocol.errors import Rejected, ResealNeeded
from edge_protocol.ids import device_source, uuid7
from edge_protocol.keys import VerifyKey, verify_key_from_jwk
from edge_protocol.payload import Limits
from gateway.ingest.openings import Opening, Refusal, Summary, summary
from gateway.ingest.plain import (
    ENVELOPE_TYPES,
    Arrived,
    arrival_time,
    check_content_type,
    read_typed,
    read_untyped,
)
from gateway.ingest.runs import read_bare_run, read_structured_run
from gateway.ports.ingest import Arrival

_ENVELOPE: Final = b"\xd0"  # tag 16

VerifyBytes = tuple[str, str, str]
"""A device's public key: `alg`, and the JWK members `x` and `y` ("" for Ed25519)."""
OpenBytes = tuple[int, bytes]
"""A gateway's private envelope key: its suite and its raw bytes."""


class Terms(NamedTuple):
    """What all publishes are opened by."""

    audience: str
    open_keys: tuple[OpenBytes, ...]
    limits: Limits
    ages: AgeLimits


class Job(NamedTuple):
    """One publish.

    Attributes:
        device: Whose topic it came on.
        received_ms: Arrival, Unix milliseconds.
        fresh_id: UUIDv7 for an event that has none.
        event_type: The type a typed topic names.
        verify_keys: The valid signing keys of the device, for an envelope.
    """

    payload: bytes
    device: str
    received_ms: int
    fresh_id: str
    event_type: str | None = None
    content_type: str | None = None
    attributes: tuple[tuple[str, str], ...] = ()
    verify_keys: tuple[VerifyBytes, ...] = ()


def is_envelope(payload: bytes, event_type: str | None) -> bool:
    """Tell whether a payload says that it is an envelope (wire protocol, section 3)."""
    return event_type is None and payload[:1] == _ENVELOPE


def open_chunk(terms: Terms, jobs: Sequence[Job]) -> list[Opening]:
    """Open publishes, each for itself, in order."""
    return [open_publish(terms, job) for job in jobs]


def open_publish(terms: Terms, job: Job) -> Opening:
    """Open one publish; whatever is wrong with it becomes a refusal of it alone."""
    try:
        return _sealed(terms, job) if is_envelope(job.payload, job.event_type) else _plain(terms, job)
    except ResealNeeded as exc:
        return Refusal(exc.rule, exc.detail, reseal=True)
    except Rejected as exc:
        return Refusal(exc.rule, exc.detail)
    except Exception as exc:  # noqa: BLE001  # strangers feed the decoders: one payload must never end the chunk
        return Refusal("cannot-open", f"opening the payload failed ({type(exc).__name__})")


def open_run(terms: Terms, arrival: Arrival, payloads: Sequence[bytes], random: bytes) -> Summary | None:
    """Open plain payloads of one topic as one batch; None if each must be opened for itself.

    Args:
        terms: What publishes are opened by.
        arrival: Of the first.
        payloads: Of all.
        random: 10 random bytes.
    """
    source, content_type = device_source(arrival.device), arrival.content_type
    try:
        if arrival.event_type is None:
            return read_structured_run(payloads, content_type=content_type, source=source, limits=terms.limits)
        return read_bare_run(
            payloads,
            event_type=arrival.event_type,
            content_type=content_type,
            source=source,
            limits=terms.limits,
            arrived=Arrived(uuid7(arrival.received_ms, random), arrival_time(arrival.received_ms)),
        )
    except Exception:  # noqa: BLE001  # as in `open_publish`, which will say it of each
        return None


def _sealed(terms: Terms, job: Job) -> Summary:
    check_content_type(job.content_type, ENVELOPE_TYPES)
    verify_keys = {key.kid: key for key in map(_verify_key, job.verify_keys)}
    opened = open_envelope(
        job.payload,
        audience=terms.audience,
        device=job.device,
        open_key=_open_keys(terms.open_keys).get,
        signing_key=verify_keys.get,
        limits=terms.limits,
        ages=terms.ages,
        now_s=job.received_ms / 1000,
    )
    at = opened.place
    place = None if at is None else (at.stream, at.first, at.settled)
    return summary(opened.events, opened.body, opened.encoding, place)


def _plain(terms: Terms, job: Job) -> Summary:
    source = device_source(job.device)
    if job.event_type is None:
        return read_untyped(job.payload, content_type=job.content_type, source=source, limits=terms.limits)
    return read_typed(
        job.payload,
        event_type=job.event_type,
        content_type=job.content_type,
        attributes=job.attributes,
        source=source,
        limits=terms.limits,
        arrived=Arrived(job.fresh_id, arrival_time(job.received_ms)),
    )


@lru_cache(maxsize=16)
def _open_keys(keys: tuple[OpenBytes, ...]) -> dict[bytes, OpenKey]:
    parsed = [OpenKey(Suite(suite), raw) for suite, raw in keys]
    return {key.kid: key for key in parsed}


@lru_cache(maxsize=8192)
def _verify_key(key: VerifyBytes) -> VerifyKey:
    alg, x, y = key
    if alg == "EdDSA":
        return verify_key_from_jwk({"kty": "OKP", "crv": "Ed25519", "x": x})
    return verify_key_from_jwk({"kty": "EC", "crv": "P-256", "x": x, "y": y})
