"""Parts that tests of devices share: a clock that is set by hand, a policy, tokens by hand, a started registry."""

import asyncio
import json
from contextlib import asynccontextmanager, suppress

from edge_protocol import tokens
from edge_protocol.jwk import b64url
from edge_protocol.keys import SigningKey, new_signing_key
from gateway.devices import AuthSettings, GatewayAuthenticator, Registry, own_issuer
from gateway.ports.identity import Credentials
from gateway.rules.policy import Policy, PolicyRule
from gateway.storage import open_storage

AUDIENCE = "lockgate-test"
NOW_S = 1_800_000_000
POLICY = Policy(
    [
        PolicyRule(role="device", publish=("devices/{device}/events/#",)),
        PolicyRule(role="simple-device", publish=("devices/{device}/events/#",), require_envelope=False),
        PolicyRule(role="operator", subscribe=("devices/+/events/#",)),
        PolicyRule(role="service", publish=("devices/+/commands/+",)),
    ]
)


class Clock:
    """Unix seconds, moved by hand."""

    def __init__(self, now_s: float = NOW_S) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


class Site:
    """A registry with its authenticator on a store in memory."""

    def __init__(self, state, clock, **settings) -> None:
        self.state, self.clock = state, clock
        self.operator_key = new_signing_key()
        self.registry = Registry(state, POLICY, clock=clock)
        self.authenticator = GatewayAuthenticator(
            self.registry,
            POLICY,
            state,
            AuthSettings(audience=AUDIENCE, **settings),
            issuers=[own_issuer(AUDIENCE, lambda: self.operator_key.public)],
            clock=clock,
        )
        self.revoked: list[tuple[str, str]] = []
        self.authenticator.on_revoked = lambda principal, reason: self.revoked.append((str(principal), reason))

    async def add(self, device: str = "dev1", *, role: str = "device", **more) -> SigningKey:
        key = more.pop("key", None) or new_signing_key()
        await self.registry.add(device, key.public, role=role, **more)
        return key

    async def connect(self, token, client_id: str = "dev1", *, is_loopback: bool = False):
        raw = token.encode() if isinstance(token, str) else token
        return await self.authenticator.authenticate(
            Credentials(client_id=client_id, token=raw, is_loopback=is_loopback)
        )


@asynccontextmanager
async def site(**settings):
    """A running site: its registry watches the store."""
    clock = Clock()
    storage = await open_storage("memory://", clock=clock)
    made = Site(storage.state, clock, **settings)
    watching = asyncio.create_task(made.registry.run())
    await asyncio.sleep(0)
    try:
        yield made
    finally:
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching
        await storage.aclose()


def token(key: SigningKey, subject: str = "dev1", *, now_s: int = NOW_S, ttl_s: int = 3600, **more) -> str:
    return tokens.mint(
        key,
        audience=more.pop("audience", AUDIENCE),
        subject=subject,
        issued_at=now_s,
        expires_at=now_s + ttl_s,
        **more,
    )


def by_hand(key: SigningKey, claims, header=None) -> str:
    """A token of any shape: claims and header are an object, or JSON text as it shall stand."""
    head = {"alg": key.alg, "kid": key.public.jwk["kid"]} if header is None else header
    parts = [b64url((part if isinstance(part, str) else json.dumps(part)).encode()) for part in (head, claims)]
    signed = ".".join(parts)
    return f"{signed}.{b64url(key.sign(signed.encode()))}"


async def until(condition) -> None:
    """Wait for a condition of this process."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  # what is waited for is a plain attribute
            await asyncio.sleep(0)
