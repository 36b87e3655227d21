"""The gateway's own keys, in files under `state/keys/` (wire protocol, section 1).

`signing.pem`: what devices pin at enrolment; it signs key sets and nothing else. `operator.pem`: signs the tokens of
`gateway token create`; a key of its own, so that replacing it (which ends every operator's token at once) costs no
device its pin, and so that a key set and a token can never be taken for one another. `envelope.json`: the envelope keys,
current and retired. `key-set.json`: the key set as last published, so that its version only grows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from edge_protocol.envelope_keys import OpenKey, Suite, new_open_key, open_key_from_jwk
from edge_protocol.errors import KeyInvalid
from edge_protocol.jwk import Jwk, b64url
from edge_protocol.key_set import sign_key_set
from edge_protocol.keys import SigningKey, load_signing_key, new_signing_key
from gateway.devices.files import sync_folder, write_private
from gateway.errors import ConfigError, Conflict

DAY_S: Final = 24 * 3600
KEY_SET_LIFETIME_S: Final = 30 * DAY_S
KEY_SET_RENEWAL_S: Final = DAY_S
RETIRED_S: Final = 30 * DAY_S
"""A retired envelope key still opens so long after its `exp` (section 1)."""

_T = TypeVar("_T")
_SIGNING, _OPERATOR, _ENVELOPE, _KEY_SET = "signing.pem", "operator.pem", "envelope.json", "key-set.json"


class _EnvelopeKey(msgspec.Struct, frozen=True):
    """One of `envelope.json`: `exp` (Unix seconds) is set once it is retired."""

    jwk: dict[str, Any]
    exp: int | None = None


class _KeySetFile(msgspec.Struct, frozen=True):
    version: int
    issued_at: int
    audience: str
    kids: list[str]
    jws: str


@dataclass(frozen=True)
class _Held:
    key: OpenKey
    exp: int | None = None

    @property
    def opens_until_s(self) -> float:
        return inf if self.exp is None else self.exp + RETIRED_S


@dataclass
class GatewayIdentity:
    """The gateway's keys.

    Attributes:
        directory: Where its files are, `state/keys`.
        signing: Pinned by devices.
        operator: Signs operators' tokens.
    """

    directory: Path
    signing: SigningKey
    operator: SigningKey
    _envelope: Sequence[_Held] = field(repr=False)

    @property
    def signing_jwk(self) -> Jwk:
        """What a device pins."""
        return self.signing.public.jwk

    def open_keys(self, now_s: float) -> dict[bytes, OpenKey]:
        """Envelope keys that open now, current and retired, by thumbprint."""
        return {held.key.kid: held.key for held in self._envelope if now_s < held.opens_until_s}

    def current_keys(self) -> list[OpenKey]:
        """The envelope keys that devices seal to, one for each suite."""
        return [held.key for held in self._envelope if held.exp is None]

    def key_set(self, *, audience: str, now_s: float) -> str:
        """The key set to publish: the last one, or, once it is a day old or says something else, a new one.

        Blocks for a write to disk when it makes a new one. Call it daily at least: a set is valid for 30 days.
        """
        kids = [b64url(key.kid) for key in self.current_keys()]
        last = _read_key_set(self.directory)
        is_same = last is not None and (last.audience, last.kids) == (audience, kids)
        if last is not None and is_same and 0 <= now_s - last.issued_at < KEY_SET_RENEWAL_S:
            return last.jws
        version = 1 if last is None else last.version + 1
        issued_at = int(now_s)
        jws = sign_key_set(
            [key.public for key in self.current_keys()],
            self.signing,
            version=version,
            audience=audience,
            issued_at=issued_at,
            expires_at=issued_at + KEY_SET_LIFETIME_S,
        )
        new = _KeySetFile(version, issued_at, audience, kids, jws)
        write_private(self.directory / _KEY_SET, msgspec.json.encode(new))
        return jws

    def replace_operator_key(self) -> None:
        """Make a new operator key; durable on return. What the old one has signed proves nothing any more."""
        key = new_signing_key()
        write_private(self.directory / _OPERATOR, key.pem())
        self.operator = key

    def rotate_envelope_keys(self, *, now_s: float) -> None:
        """Make a new envelope key for each suite in use, retire the old ones; durable on return.

        Retired keys still open what devices seal by the key sets they have, which are valid for 30 days at most.
        """
        retired = [
            _Held(held.key, int(now_s)) if held.exp is None else held
            for held in self._envelope
            if now_s < held.opens_until_s
        ]
        fresh = [_Held(new_open_key(key.suite)) for key in self.current_keys()]
        _write_envelope(self.directory, [*fresh, *retired])
        self._envelope = [*fresh, *retired]


def create_identity(state_dir: Path, *, suites: Sequence[Suite] = tuple(Suite)) -> GatewayIdentity:
    """Make the gateway's keys (`gateway init`) in `state_dir/keys`; durable on return, never over existing ones.

    Raises:
        Conflict: There are keys already.
    """
    directory = state_dir / "keys"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if (directory / _SIGNING).exists():  # written last: without it, what there is was never used
        raise Conflict(f"{directory / _SIGNING} exists already: the gateway's keys are never overwritten")
    identity = GatewayIdentity(
        directory, new_signing_key(), new_signing_key(), [_Held(new_open_key(suite)) for suite in suites]
    )
    _write_envelope(directory, identity._envelope)  # noqa: SLF001  # of the class right above
    write_private(directory / _OPERATOR, identity.operator.pem())
    write_private(directory / _SIGNING, identity.signing.pem())
    sync_folder(state_dir)
    return identity


def load_identity(state_dir: Path) -> GatewayIdentity:
    """Read the gateway's keys from `state_dir/keys` at start-up.

    Raises:
        ConfigError: A file is missing or damaged; nothing is ever made up in its place.
    """
    directory = state_dir / "keys"
    envelope = [
        _Held(_envelope_key(directory, stored.jwk), stored.exp)
        for stored in _decoded(directory / _ENVELOPE, list[_EnvelopeKey])
    ]
    if not any(held.exp is None for held in envelope):
        raise ConfigError("state_dir", str(directory / _ENVELOPE), "an envelope key that is not retired")
    return GatewayIdentity(directory, _signing_key(directory / _SIGNING), _signing_key(directory / _OPERATOR), envelope)


def _write_envelope(directory: Path, held: Sequence[_Held]) -> None:
    stored = [_EnvelopeKey(each.key.private_jwk(), each.exp) for each in held]
    write_private(directory / _ENVELOPE, msgspec.json.encode(stored))


def _envelope_key(directory: Path, jwk: Mapping[str, Any]) -> OpenKey:
    try:
        return open_key_from_jwk(jwk)
    except KeyInvalid as exc:
        raise ConfigError("state_dir", str(directory / _ENVELOPE), f"private envelope keys ({exc})") from exc


def _signing_key(path: Path) -> SigningKey:
    try:
        return load_signing_key(_read(path))
    except KeyInvalid as exc:
        raise ConfigError("state_dir", str(path), f"a private key ({exc})") from exc


def _read_key_set(directory: Path) -> _KeySetFile | None:
    path = directory / _KEY_SET
    return _decoded(path, _KeySetFile) if path.exists() else None


def _decoded(path: Path, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(_read(path), type=kind)
    except msgspec.DecodeError as exc:
        raise ConfigError("state_dir", str(path), f"what `gateway init` wrote ({exc})") from exc


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise ConfigError("state_dir", str(path), f"a file that can be read ({exc.strerror})") from exc
