"""What a running gateway and a command on a stopped one have in common: the files, the keys, the registry, the operations."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from gateway import parts
from gateway.addresses import public_addresses
from gateway.config import Settings
from gateway.devices.enrolment import Enrolment
from gateway.devices.identity import GatewayIdentity, load_identity
from gateway.devices.registry import Registry
from gateway.devices.revoked_tokens import RevokedTokens
from gateway.errors import ConfigError
from gateway.operations.devices import DeviceOperations
from gateway.operations.events import EventOperations
from gateway.operations.live import Live, Stopped
from gateway.ports.operations import Operations
from gateway.rules.policy import Policy
from gateway.storage import Storage

_CA_FILE: Final = "ca.pem"  # beside the server's certificate


@asynccontextmanager
async def open_offline(settings: Settings) -> AsyncIterator[Operations]:
    """Open the files of a stopped gateway for one command."""
    storage = await parts.open_storage(settings)
    try:
        core = Core(settings, storage)
        yield core.operations(Stopped(*public_addresses(settings)))
    finally:
        await storage.aclose()


@dataclass(frozen=True)
class Core:
    """What a running gateway and a command on a stopped one have in common."""

    settings: Settings
    storage: Storage

    @cached_property
    def identity(self) -> GatewayIdentity:
        """The gateway's keys."""
        return load_identity(self.settings.state)

    @cached_property
    def policy(self) -> Policy:
        """What roles may do."""
        return Policy(parts.policy_rule(self.settings, n) for n in range(len(self.settings.policy)))

    @cached_property
    def registry(self) -> Registry:
        """Who there is."""
        return Registry(self.storage.state, self.policy)

    @cached_property
    def ca_pem(self) -> bytes:
        """The certificate authority that devices pin."""
        file = self.settings.path(self.settings.mqtt.certificate).with_name(_CA_FILE)
        try:
            return file.read_bytes()
        except OSError as exc:
            raise ConfigError(
                "mqtt.certificate", str(file), f"the CA's certificate beside it ({exc.strerror})"
            ) from exc

    def enrolment(self, mqtt: Sequence[str]) -> Enrolment:
        """One-time codes."""
        return Enrolment(
            self.storage.state,
            self.registry,
            self.identity,
            audience=self.settings.audience,
            ca_pem=self.ca_pem,
            mqtt=mqtt,
        )

    def operations(self, live: Live) -> Operations:
        """Everything an operator can do."""
        devices = DeviceOperations(
            settings=self.settings,
            registry=self.registry,
            enrolment=self.enrolment(live.addresses()[0]),
            identity=self.identity,
            policy=self.policy,
            revoked=RevokedTokens(self.storage.state, time.time),
            live=live,
            clock=time.time,
        )
        events = EventOperations(
            settings=self.settings,
            bus=self.storage.bus,
            subscriptions=self.storage.subscriptions,
            live=live,
            clock=time.time,
            random=os.urandom,
        )
        return {**devices.table(), **events.table()}
