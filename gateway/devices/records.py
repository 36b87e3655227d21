"""Device records: what the registry stores of a device, and what it keeps of it in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from math import inf
from typing import Final

import msgspec

from edge_protocol.jwk import unb64url
from edge_protocol.keys import VerifyKey, verify_key_from_jwk
from gateway.ports.state import Revision

PREFIX: Final = "device/"
"""Where documents are in the store."""
MAX_KEYS: Final = 3


class KeyDocument(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One signing key of a device.

    Attributes:
        kid: Thumbprint, base64url.
        alg: Its one algorithm, fixed at registration.
        jwk: The public key.
        added: When it was registered, Unix seconds.
        nbf: Not valid before, Unix seconds; None for at once.
        exp: Not valid from then on, Unix seconds; None for no end.
    """

    kid: str
    alg: str
    jwk: dict[str, str]
    added: int
    nbf: int | None = None
    exp: int | None = None

    def is_valid(self, now_s: float) -> bool:
        """Whether it proves something now."""
        return (self.nbf or 0) <= now_s < self.ends_s

    @property
    def ends_s(self) -> float:
        """`exp`, or infinity."""
        return inf if self.exp is None else self.exp


class DeviceDocument(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is stored under `device/{id}`.

    Attributes:
        epoch: Which registration of this id it is: grows when a removed id is added again.
        role: Its role in the policy.
        created: Unix seconds.
        keys: One to three signing keys, in the order they were added.
        enabled: A disabled device cannot connect.
        labels: An operator's own.
    """

    id: str
    epoch: int
    role: str
    created: int
    keys: tuple[KeyDocument, ...]
    enabled: bool = True
    labels: dict[str, str] = {}

    def key(self, kid: str) -> KeyDocument | None:
        """The key of this thumbprint."""
        return next((key for key in self.keys if key.kid == kid), None)


class DeviceRecord:
    """A document as it is kept in memory: its keys parsed, once, when first asked for.

    Attributes:
        document: What is stored.
        revision: Which write it is from.
    """

    __slots__ = ("__dict__", "document", "revision")

    def __init__(self, document: DeviceDocument, revision: Revision) -> None:
        self.document = document
        self.revision = revision

    @cached_property
    def verify_keys(self) -> Mapping[str, VerifyKey]:
        """All its keys, valid or not, by `kid`."""
        return {key.kid: verify_key_from_jwk(key.jwk) for key in self.document.keys}

    @cached_property
    def _thumbprints(self) -> Mapping[str, bytes]:
        return {key.kid: unb64url(key.kid) for key in self.document.keys}

    def valid_keys(self, now_s: float) -> list[VerifyKey]:
        """Keys that prove something now; none for a disabled device."""
        return [self.verify_keys[key.kid] for key in self._valid(now_s)]

    def by_thumbprint(self, now_s: float) -> dict[bytes, VerifyKey]:
        """Likewise, by the raw thumbprint that an envelope names."""
        return {self._thumbprints[key.kid]: self.verify_keys[key.kid] for key in self._valid(now_s)}

    def _valid(self, now_s: float) -> Iterator[KeyDocument]:
        return (key for key in self.document.keys if self.document.enabled and key.is_valid(now_s))


encode = msgspec.json.Encoder(order="sorted").encode
decode = msgspec.json.Decoder(DeviceDocument).decode
