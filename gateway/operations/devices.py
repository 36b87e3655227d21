"""Devices and tokens: register, show, disable, remove; tokens for operators and services."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import structlog

from edge_protocol import tokens
from edge_protocol.ids import device_id, is_uuid
from edge_protocol.keys import load_verify_key
from edge_protocol.times import rfc3339
from gateway.config import Settings
from gateway.devices.authenticator import ISSUER_PREFIX
from gateway.devices.enrolment import DEFAULT_TTL_S, Enrolment
from gateway.devices.identity import GatewayIdentity
from gateway.devices.operator_tokens import create_token
from gateway.devices.records import DeviceDocument
from gateway.devices.registry import Registry
from gateway.devices.revoked_tokens import RevokedTokens
from gateway.errors import Conflict, NotFound
from gateway.operations.live import Live
from gateway.ports.operations import Operations
from gateway.rules.policy import Policy

log = structlog.get_logger()


@dataclass(frozen=True, kw_only=True)
class DeviceOperations:
    """Operations on the registry.

    Attributes:
        clock: Unix time in seconds.
    """

    settings: Settings
    registry: Registry
    enrolment: Enrolment
    identity: GatewayIdentity
    policy: Policy
    revoked: RevokedTokens
    live: Live
    clock: Callable[[], float]

    def table(self) -> Operations:
        """By the names of the interface."""
        names = ("add", "list", "show", "disable", "enable", "remove")
        return {f"device_{name}": getattr(self, f"device_{name}") for name in names} | {
            "token_create": self.token_create,
            "token_revoke": self.token_revoke,
            "token_revoke_all": self.token_revoke_all,
        }

    async def device_add(
        self, *, id: str, key: str | None = None, role: str = "device", labels: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """Register a device with its public key, or, without one, make a one-time code by which it registers itself."""
        if key is not None:
            document = await self.registry.add(id, load_verify_key(key), role=role, labels=labels)
            return {**self._needs(), "device": self._shown(document), "code": None, "code_expires_at": None}
        await self._check_is_new(device_id(id))
        code = await self.enrolment.create_code(id, role=role, labels=labels)
        coming = DeviceDocument(
            id=id, epoch=0, role=role, created=int(self.clock()), keys=(), labels=dict(labels or {})
        )
        return {
            **self._needs(),
            "device": self._shown(coming),
            "code": code,
            "code_expires_at": rfc3339(self.clock() + DEFAULT_TTL_S),
        }

    async def _check_is_new(self, device: str) -> None:
        try:
            await self.registry.show(device)
        except NotFound:
            return
        raise Conflict(f"device {device!r} exists already; `gateway device show {device}` shows it")

    async def device_list(self, *, after: str = "", limit: int = 100) -> dict[str, Any]:
        """Devices by id, a page at a time."""
        page = await self.registry.list(after=after, limit=limit)
        return {
            "devices": [self._shown(document) for document in page],
            "next": page[-1].id if len(page) == limit else None,
        }

    async def device_show(self, *, id: str) -> dict[str, Any]:
        """One device, and what it needs to connect."""
        return {**self._needs(), "device": self._shown(await self.registry.show(id))}

    async def device_disable(self, *, id: str) -> dict[str, Any]:
        """Cut a device off: its connections end within a second."""
        return self._shown(await self.registry.set_enabled(id, enabled=False))

    async def device_enable(self, *, id: str) -> dict[str, Any]:
        """Let a device connect again."""
        return self._shown(await self.registry.set_enabled(id, enabled=True))

    async def device_remove(self, *, id: str) -> dict[str, Any]:
        """Forget a device; the same id added again is a new registration."""
        await self.registry.remove(id)
        return {}

    async def token_create(self, *, role: str, name: str | None = None, ttl_s: float = 8 * 3600) -> dict[str, Any]:
        """Make a token for an operator or a service."""
        token = create_token(
            self.identity.operator,
            self.policy,
            audience=self.settings.audience,
            role=role,
            now_s=self.clock(),
            name=name,
            ttl_s=int(ttl_s),
            max_ttl_s=int(self.settings.auth.max_token_lifetime),
        )
        claims = tokens.read(token).claims
        return {"token": token, "id": claims.jti, "sub": claims.sub, "expires_at": rfc3339(claims.exp)}

    async def token_revoke(self, *, id: str) -> dict[str, Any]:
        """Accept a token of `token_create` no more, by its id or its text, and cut off whom it let in."""
        issuer, auth = ISSUER_PREFIX + self.settings.audience, self.settings.auth
        until_s = self.clock() + auth.max_token_lifetime + auth.clock_skew
        jti = _id_of(id, issuer)
        await self.revoked.revoke(issuer, jti, until_s=until_s)
        return {"id": jti}

    async def token_revoke_all(self) -> dict[str, Any]:
        """Accept no token any more that `token_create` has made, and cut off everybody they let in."""
        count = await self.live.revoke_all_tokens()
        log.warning("all_tokens_revoked", connections=count)
        return {"connections": count}

    def _needs(self) -> dict[str, Any]:
        mqtt, enrol = self.live.addresses()
        return {
            "audience": self.settings.audience,
            "signing_key": dict(self.identity.signing_jwk),
            "mqtt": list(mqtt),
            "enrol": enrol,
        }

    def _shown(self, document: DeviceDocument) -> dict[str, Any]:
        return {
            "id": document.id,
            "role": document.role,
            "enabled": document.enabled,
            "labels": document.labels,
            "keys": [{"kid": key.kid, "alg": key.alg, "nbf": key.nbf, "exp": key.exp} for key in document.keys],
            "created_at": rfc3339(document.created),
            "connected": self.live.is_connected(document.id),
        }


def _id_of(text: str, issuer: str) -> str:
    """The id of a token, out of the token itself if that is what was given (its signature does not matter)."""
    jti: str | None = text
    if text.count(".") == 2:
        claims = tokens.read(text).claims
        jti = claims.jti if claims.iss == issuer else None
    if not jti or not is_uuid(jti):
        raise NotFound("token: expected one of `gateway token create`, or the id that its --json shows")
    return jti
