"""Who is at the other end of a connection, and what it may do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from edge_protocol.ids import DeviceId, device_source, service_source
from edge_protocol.keys import VerifyKey
from gateway.rules.policy import Permissions


class PrincipalKind(StrEnum):
    """What a token can prove."""

    DEVICE = "device"
    CLIENT = "client"  # an operator or a service, by an issuer
    ANONYMOUS = "anonymous"


@dataclass(frozen=True, slots=True)
class Principal:
    """Whom a token proves. It is also the namespace of client ids and sessions: no other principal can touch them.

    Attributes:
        kind: Device, client of an issuer, or anonymous.
        issuer: "" for devices and anonymous clients.
        sub: The device id, or the subject.
    """

    kind: PrincipalKind
    issuer: str
    sub: str

    @property
    def device(self) -> DeviceId | None:
        """The device's id, if it is one."""
        return DeviceId(self.sub) if self.kind is PrincipalKind.DEVICE else None

    @property
    def source(self) -> str:
        """CloudEvents `source` of the events it raises itself."""
        return device_source(self.sub) if self.kind is PrincipalKind.DEVICE else service_source(self.sub)

    def __str__(self) -> str:
        """For logs and messages."""
        return self.sub if self.kind is PrincipalKind.DEVICE else f"{self.sub} ({self.issuer or self.kind})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What a CONNECT brought.

    Attributes:
        client_id: As sent; "" if empty.
        token: The password or the authentication data; None without either.
        is_loopback: Whether it came by plain TCP to a loopback listener, from loopback (`anonymous_role`).
    """

    client_id: str
    token: bytes | None = field(repr=False)
    is_loopback: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What an accepted token gives.

    Attributes:
        principal: Whom it proves.
        permissions: What its roles allow.
        expires_at_s: Unix seconds: the earlier of the token's and its key's expiry; infinity for anonymous clients.
        epoch: The registration it belongs to: grows when a removed device id is added again; 0 for others.
        jti: The token's id, if it has one: what revocation names.
        roles: What the permissions were made from.
    """

    principal: Principal
    permissions: Permissions
    expires_at_s: float
    epoch: int = 0
    jti: str | None = None
    roles: tuple[str, ...] = ()


class Authenticator(Protocol):
    """Tokens to grants, against the device registry and the issuers."""

    async def authenticate(self, credentials: Credentials) -> Grant:
        """Prove a CONNECT: the token, and that a device's is for this client id.

        Raises:
            TokenRejected: The detail may be told to the peer (Reason String): it helps an engineer, not an attacker.
            BusUnavailable: The registry cannot be read now.
        """
        ...

    async def renew(self, grant: Grant, token: bytes) -> Grant:
        """Prove a fresh token for a live connection: of the same principal (wire protocol, section 2).

        Returns:
            The new grant; the old one if the token expires no later.

        Raises:
            TokenRejected: The connection ends with 0x87.
        """
        ...

    async def is_known(self, principal: Principal, epoch: int) -> bool:
        """Whether a principal may still connect: False for a device that is unknown, disabled or registered anew.

        Args:
            principal: Who.
            epoch: Of the grant that it had.

        Raises:
            BusUnavailable: The registry cannot be read now.
        """
        ...

    def is_revoked(self, principal: Principal, jti: str) -> bool:
        """Whether a principal's token, by its id, was revoked before its time."""
        ...

    async def permissions_of(self, principal: Principal, roles: Sequence[str], epoch: int) -> Permissions:
        """What a principal that is not connected may do now, for its delayed will.

        Args:
            principal: Who.
            roles: Of its last grant; a device's are what the registry says instead.
            epoch: Of its last grant.

        Returns:
            `NOTHING` for a device that is unknown, disabled or registered anew.

        Raises:
            BusUnavailable: The registry cannot be read now.
        """
        ...


class DeviceKeys(Protocol):
    """The signing keys of devices, for verifying envelopes; current within a second of a change."""

    def signing_keys(self, device: str, *, now_s: float) -> Mapping[bytes, VerifyKey]:
        """Keys of an enabled device that are valid now, by thumbprint; empty for an unknown or disabled one.

        Served from memory: complete for every device that is connected.
        """
        ...
