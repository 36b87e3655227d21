"""Tokens for operators and services (`gateway token create`), by the gateway's own issuer."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

from edge_protocol import tokens
from edge_protocol.ids import uuid7
from edge_protocol.keys import SigningKey
from gateway.devices.authenticator import ISSUER_PREFIX
from gateway.errors import ConfigError
from gateway.rules.policy import Policy

DEFAULT_TTL_S: Final = 8 * 3600
MAX_TTL_S: Final = 24 * 3600


def create_token(
    key: SigningKey,
    policy: Policy,
    *,
    audience: str,
    role: str,
    now_s: float,
    name: str | None = None,
    ttl_s: int = DEFAULT_TTL_S,
    max_ttl_s: int = MAX_TTL_S,
    random_bytes: Callable[[int], bytes] = os.urandom,
) -> str:
    """Make a token for an operator or a service.

    Args:
        key: The gateway's operator key.
        policy: The roles there are.
        audience: The gateway's.
        role: Any role of the policy but a device's.
        now_s: Unix time in seconds.
        name: Becomes `sub`; without one it is made up from the role.
        ttl_s: How long it is valid, in seconds.
        max_ttl_s: `auth.max_token_lifetime`, in seconds.
        random_bytes: For the token's id.

    Raises:
        ConfigError: No such role, a device's role, a lifetime out of range, or a name that cannot be shown.
    """
    _check(policy, role, ttl_s, max_ttl_s)
    jti = uuid7(int(now_s * 1000), random_bytes(10))
    subject = name if name is not None else f"{role}-{jti[-12:]}"
    if not 1 <= len(subject) <= 255 or not subject.isprintable():
        raise ConfigError("name", subject, "1 to 255 printable characters")
    return tokens.mint(
        key,
        audience=audience,
        subject=subject,
        issued_at=int(now_s),
        expires_at=int(now_s) + ttl_s,
        issuer=ISSUER_PREFIX + audience,
        jti=jti,
        roles=(role,),
    )


def _check(policy: Policy, role: str, ttl_s: int, max_ttl_s: int) -> None:
    usable = sorted(name for name, is_for_devices in policy.roles.items() if not is_for_devices)
    if role not in usable:
        raise ConfigError("role", role, f"a role that is not a device's: {', '.join(usable) or 'the policy has none'}")
    if not 1 <= ttl_s <= max_ttl_s:
        raise ConfigError("ttl", ttl_s, f"1 to {max_ttl_s} seconds (auth.max_token_lifetime)")
