"""Tokens to grants (wire protocol, section 2): implements the `Authenticator` port.

Three kinds of client: a device proves itself by a key of the registry, an operator or service by a token of an issuer
that is configured, and an anonymous one, if that is allowed at all, by coming from this very machine.

Strategy of the cache: what a token costs is its signature, so for a token seen before only the signature is not
verified again: the text of the token (by SHA-256) and the key that proved it are remembered, and the rest (is the
device enabled, is that key still valid, what does its role allow) is asked anew each time. So nothing in the cache can
outlive a revocation. A reconnect storm then costs a hash for each device.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Final, TypeVar

import structlog

from edge_protocol import tokens
from edge_protocol.errors import TokenRejected
from edge_protocol.keys import VerifyKey
from edge_protocol.tokens import NOT_PROVEN, Claims, TokenPolicy, UnprovenToken
from gateway.devices.records import DeviceDocument, DeviceRecord
from gateway.devices.registry import Registry
from gateway.devices.replay import ReplayGuard
from gateway.devices.revocation import ends_sooner, revoked_by
from gateway.devices.revoked_tokens import RevokedTokens
from gateway.ports.identity import Credentials, Grant, Principal, PrincipalKind
from gateway.ports.state import StateStore
from gateway.rules.policy import NOTHING, Permissions, Policy

log = structlog.get_logger()

ISSUER_PREFIX: Final = "lockgate:"
_CACHED_TOKENS: Final = 50_000  # 200 bytes each
_CACHED_TOKEN_CHARS: Final = 2048  # longer tokens are proven anew: a device could otherwise fill memory with claims
_MAX_SUBJECT: Final = 255

_K = TypeVar("_K")
_V = TypeVar("_V")
OnRevoked = Callable[[Principal, str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthSettings:
    """What a token must satisfy.

    Attributes:
        audience: The gateway's.
        max_lifetime_s: `exp - iat` may be this long, in seconds.
        skew_s: How far clocks may differ, in seconds.
        replay_protection: A token is accepted once, so it must have a `jti`.
        anonymous_role: Role of clients without a token that come from loopback; "" for none.
    """

    audience: str
    max_lifetime_s: int = 24 * 3600
    skew_s: int = 60
    replay_protection: bool = False
    anonymous_role: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Issuer:
    """Who may vouch for operators and services.

    Attributes:
        name: `iss` of its tokens.
        keys: Its keys, valid now, each with its one algorithm; asked for at every token.
        require_jti: A token without `jti` is refused.
    """

    name: str
    keys: Callable[[], Sequence[VerifyKey]]
    require_jti: bool = False


def own_issuer(audience: str, key: Callable[[], VerifyKey]) -> Issuer:
    """The gateway as an issuer (`gateway token create`): its operator key of now, not the one that devices have pinned."""
    return Issuer(name=ISSUER_PREFIX + audience, keys=lambda: (key(),), require_jti=True)


@dataclass(frozen=True, slots=True)
class _Proven:
    """A token that proves a principal, before policy."""

    principal: Principal
    claims: Claims
    roles: tuple[str, ...]
    key_ends_s: float = inf
    epoch: int = 0
    kid: str = ""


class GatewayAuthenticator:
    """Proves clients; tells whose connection must end when the registry changes.

    Attributes:
        on_revoked: Called with a principal and the reason, within a second of the change; set by the service.
        revoked: Tokens that are accepted no more; loaded, run and listened to by the service.
    """

    def __init__(
        self,
        registry: Registry,
        policy: Policy,
        state: StateStore,
        settings: AuthSettings,
        *,
        issuers: Sequence[Issuer] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._registry, self._policy, self._settings, self._clock = registry, policy, settings, clock
        self._issuers: Mapping[str, Issuer] = {issuer.name: issuer for issuer in issuers}
        self._replays = ReplayGuard(state, clock)
        self.revoked = RevokedTokens(state, clock)
        self._verified: OrderedDict[bytes, tuple[Claims, str]] = OrderedDict()
        self._proved_by: OrderedDict[str, str] = OrderedDict()
        self.on_revoked: OnRevoked = _nobody
        registry.listen(self._device_changed)

    async def authenticate(self, credentials: Credentials) -> Grant:
        """Prove a CONNECT (see `Authenticator.authenticate`)."""
        try:
            return await self._authenticate(credentials)
        except TokenRejected as exc:
            client_id = credentials.client_id[:128]
            log.warning("token_refused", client_id=client_id, rule=_cause(exc), detail=exc.detail)
            raise TokenRejected(exc.rule, exc.detail) from None

    async def renew(self, grant: Grant, token: bytes) -> Grant:
        """Prove a fresh token for a live connection (see `Authenticator.renew`)."""
        principal = grant.principal
        client_id = principal.sub if principal.kind is PrincipalKind.DEVICE else ""
        try:
            fresh = _same(grant, self._grant(await self._prove(client_id, token)))
            if fresh.expires_at_s <= grant.expires_at_s:
                return grant  # a redelivery, or older: acknowledged and ignored
            return _same(grant, self._grant(await self._accept(client_id, token)))
        except TokenRejected as exc:
            log.warning("renewal_refused", principal=str(principal), rule=_cause(exc), detail=exc.detail)
            raise TokenRejected(exc.rule, exc.detail) from None

    async def is_known(self, principal: Principal, epoch: int) -> bool:
        """Whether a principal may still connect (see `Authenticator.is_known`)."""
        if principal.device is None:
            return True
        record = await self._registry.find(principal.device)
        return record is not None and record.document.enabled and record.document.epoch == epoch

    def is_revoked(self, principal: Principal, jti: str) -> bool:
        """Whether a token was revoked (see `Authenticator.is_revoked`)."""
        return principal.kind is PrincipalKind.CLIENT and self.revoked.holds(principal.issuer, jti)

    async def permissions_of(self, principal: Principal, roles: Sequence[str], epoch: int) -> Permissions:
        """What a principal that is not connected may do now (see `Authenticator.permissions_of`)."""
        if principal.device is None:
            return self._policy.permissions(roles, device=None)
        record = await self._registry.find(principal.device)
        if record is None or not await self.is_known(principal, epoch):
            return NOTHING
        return self._policy.permissions([record.document.role], device=principal.device)

    async def prune(self) -> int:
        """Forget used and revoked tokens that could not be used any more; tells how many. Once an hour is enough."""
        return await self._replays.prune() + await self.revoked.prune()

    async def _authenticate(self, credentials: Credentials) -> Grant:
        if credentials.token is None:
            return self._anonymous(credentials)
        return self._grant(await self._accept(credentials.client_id, credentials.token))

    def _anonymous(self, credentials: Credentials) -> Grant:
        role = self._settings.anonymous_role
        if not role or not credentials.is_loopback:
            raise TokenRejected("no-token", "expected a JWT as the password")
        principal = Principal(PrincipalKind.ANONYMOUS, "", "anonymous")
        permissions = self._policy.permissions([role], device=None)
        return Grant(principal=principal, permissions=permissions, expires_at_s=inf, roles=(role,))

    async def _prove(self, client_id: str, token: bytes) -> _Proven:
        unproven = tokens.read(token)
        if unproven.claims.iss is None:
            return await self._prove_device(client_id, unproven)
        return self._prove_client(unproven, unproven.claims.iss)

    async def _prove_device(self, client_id: str, token: UnprovenToken) -> _Proven:
        record = await self._registry.find(token.claims.sub)
        keys = record.valid_keys(self._clock()) if record is not None else []
        if record is None or not keys:
            raise _Refused(_why_no_key(record))
        claims, kid = self._verify(token, keys, require_jti=self._settings.replay_protection)
        if claims.sub != client_id:
            raise TokenRejected("wrong-subject", f"sub: expected the client id, found {claims.sub!r}")
        document = record.document
        key = document.key(kid)
        return _Proven(
            Principal(PrincipalKind.DEVICE, "", claims.sub),
            claims,
            (document.role,),  # roles in a device's token are ignored: the registry says what it is
            key_ends_s=inf if key is None else key.ends_s,
            epoch=document.epoch,
            kid=kid,
        )

    def _prove_client(self, token: UnprovenToken, name: str) -> _Proven:
        issuer = self._issuers.get(name)
        if issuer is None:
            raise _Refused("unknown-issuer")
        require_jti = issuer.require_jti or self._settings.replay_protection
        claims, _ = self._verify(token, issuer.keys(), require_jti=require_jti)
        if claims.jti is not None and self.revoked.holds(name, claims.jti):
            raise _Refused("token-revoked")
        if not 1 <= len(claims.sub) <= _MAX_SUBJECT or not claims.sub.isprintable():
            raise TokenRejected("bad-subject", f"sub: expected 1 to {_MAX_SUBJECT} printable characters")
        known = {role for role, is_for_devices in self._policy.roles.items() if not is_for_devices}
        roles = tuple(role for role in claims.roles if role in known)
        if not roles:
            raise TokenRejected("no-role", "roles: expected a role of the policy that is not for devices")
        return _Proven(Principal(PrincipalKind.CLIENT, name, claims.sub), claims, roles)

    def _verify(self, token: UnprovenToken, keys: Sequence[VerifyKey], *, require_jti: bool) -> tuple[Claims, str]:
        """Verify a token, or remember that one of these keys proved it before."""
        digest = hashlib.sha256(token.jws.text.encode()).digest()
        known = self._verified.get(digest)
        if known is not None and any(key.jwk["kid"] == known[1] for key in keys):
            claims = known[0]
            if max(claims.iat, claims.nbf or 0) <= self._clock() < claims.exp and (claims.jti or not require_jti):
                self._verified.move_to_end(digest)
                return known
        settings = self._settings
        policy = TokenPolicy(
            audience=settings.audience,
            max_lifetime_s=settings.max_lifetime_s,
            skew_s=settings.skew_s,
            require_jti=require_jti,
        )
        try:
            claims, key = tokens.verify(token, keys, policy=policy, now_s=self._clock())
        except TokenRejected as exc:
            if exc.rule != NOT_PROVEN:
                raise
            raise _Refused("bad-signature-or-key", exc.detail) from None
        if len(token.jws.text) <= _CACHED_TOKEN_CHARS:
            _remember(self._verified, digest, (claims, key.jwk["kid"]))
        return claims, key.jwk["kid"]

    async def _accept(self, client_id: str, token: bytes) -> _Proven:
        """Prove a token and take note of it: its id is used up, and its key is what the connection hangs on."""
        proven = await self._prove(client_id, token)
        if self._settings.replay_protection and proven.claims.jti is not None:
            until = proven.claims.exp + self._settings.skew_s
            await self._replays.use(proven.principal, proven.claims.jti, until_s=until)
            proven = await self._prove(client_id, token)  # what was revoked during that write must not slip through
        if proven.principal.device is not None:
            _remember(self._proved_by, proven.principal.device, proven.kid)
        return proven

    def _grant(self, proven: _Proven) -> Grant:
        exp, now_s = proven.claims.exp, self._clock()
        if exp <= now_s:  # accepted only thanks to the skew: it ends when that is used up
            exp += self._settings.skew_s
        return Grant(
            principal=proven.principal,
            permissions=self._policy.permissions(proven.roles, device=proven.principal.device),
            expires_at_s=min(exp, proven.key_ends_s),
            epoch=proven.epoch,
            jti=proven.claims.jti,
            roles=proven.roles,
        )

    def _device_changed(self, device: str, old: DeviceDocument | None, new: DeviceDocument | None) -> None:
        now_s = self._clock()
        kid = self._proved_by.get(device)
        if reason := revoked_by(old, new, kid, now_s):
            self._revoke(device, reason)
        elif kid is not None and (at_s := ends_sooner(old, new, kid)) is not None:
            asyncio.get_running_loop().call_later(max(0.0, at_s - now_s), self._key_ended, device, kid)

    def _key_ended(self, device: str, kid: str) -> None:
        if self._proved_by.get(device) == kid:
            self._revoke(device, "key expired")

    def _revoke(self, device: str, reason: str) -> None:
        self._proved_by.pop(device, None)
        log.warning("device_revoked", device=device, reason=reason)
        self.on_revoked(Principal(PrincipalKind.DEVICE, "", device), reason)


class _Refused(TokenRejected):
    """Not proven. The peer never learns which of several causes it was; the operator does.

    Attributes:
        cause: For the log.
    """

    def __init__(self, cause: str, detail: str = "no valid key of this client proves the token") -> None:
        super().__init__(NOT_PROVEN, detail)
        self.cause = cause


def _same(live: Grant, fresh: Grant) -> Grant:
    """Refuse a token of another client, or of another registration of the same id."""
    if (fresh.principal, fresh.epoch) != (live.principal, live.epoch):
        raise TokenRejected("wrong-principal", "expected a token of the client that this connection belongs to")
    return fresh


def _cause(refusal: TokenRejected) -> str:
    return refusal.cause if isinstance(refusal, _Refused) else refusal.rule


def _why_no_key(record: DeviceRecord | None) -> str:
    if record is None:
        return "unknown-device"
    return "no-valid-key" if record.document.enabled else "device-disabled"


def _remember(cache: OrderedDict[_K, _V], key: _K, value: _V) -> None:
    cache[key] = value
    cache.move_to_end(key)
    if len(cache) > _CACHED_TOKENS:
        cache.popitem(last=False)


def _nobody(principal: Principal, reason: str) -> None:
    """Nobody listens."""
