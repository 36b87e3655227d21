"""A gateway's folder and devices whose keys the test holds: tokens and envelopes as a device makes them, or as none would."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edge_protocol import tokens
from edge_protocol.envelope import Place, seal
from edge_protocol.envelope_keys import SealKey, Suite
from edge_protocol.event import Event, encode_batch, encode_event
from edge_protocol.keys import SigningKey, new_signing_key
from gateway.cli.certificates import write_certificates
from gateway.cli.client import call
from gateway.config import Settings, load
from gateway.devices.identity import create_identity, load_identity

CONFIG = Path(__file__).parents[2] / "configs" / "gateway.example.toml"


@dataclass(frozen=True)
class Device:
    """A registered device."""

    id: str
    key: SigningKey
    audience: str
    seal_keys: Mapping[Suite, SealKey]

    @property
    def events_topic(self) -> str:
        return f"devices/{self.id}/events"

    def token(self, **changes: Any) -> bytes:
        now = int(time.time())
        claims = {"audience": self.audience, "subject": self.id, "issued_at": now, "expires_at": now + 3600}
        return tokens.mint(changes.pop("key", self.key), **(claims | changes)).encode()

    def seal(
        self, *batch: bytes, suite: Suite = Suite.X25519_AES128, place: Place | None = None, **changes: Any
    ) -> bytes:
        """An envelope around events in JSON."""
        given = {
            "key": self.key,
            "to": self.seal_keys[suite],
            "audience": self.audience,
            "device": self.id,
            "issued_at": int(time.time()),
            "place": place,
        }
        return seal(encode_batch(batch), **(given | changes))


def event(id_: str, data: Any = None, *, type_: str = "measured", **changes: Any) -> bytes:
    """One event in JSON, without a source; `changes` are members as they shall stand."""
    text = encode_event(Event(id=id_, source="", type=type_, payload=json.dumps(data).encode()))
    members = json.loads(text)
    del members["source"]
    return json.dumps(members | changes).encode()


def make_folder(folder: Path, **environ: str) -> Settings:
    """What `gateway init` makes, with the settings that a test wants (`MQTT__LISTEN`), in this process."""
    certs, state = folder / "certs", folder / "state"
    certs.mkdir(parents=True)
    state.mkdir()
    write_certificates(certs, ["localhost"], now=datetime.now(UTC))
    create_identity(state)
    (folder / "configs").mkdir()
    (folder / "configs" / "gateway.toml").write_text(CONFIG.read_text())
    return load(folder / "configs" / "gateway.toml", {f"LOCKGATE_{name}": value for name, value in environ.items()})


async def register(settings: Settings, roles: Mapping[str, str]) -> dict[str, Device]:
    """Register devices by id and role, at a gateway that runs or not."""
    open_keys = load_identity(settings.state).current_keys()
    seal_keys = {key.suite: key.public for key in open_keys}
    devices = {id_: Device(id_, new_signing_key(), settings.audience, seal_keys) for id_ in roles}
    for device in devices.values():
        jwk = json.dumps(device.key.public.jwk)
        await call(settings, "device_add", id=device.id, key=jwk, role=roles[device.id])
    return devices


async def stored_events(settings: Settings, *types: str) -> list[dict[str, Any]]:
    """Events on the bus, in their order, as `events tail` shows them: of some types, or of all that devices sent."""
    found: list[dict[str, Any]] = []
    after: str | None = None
    while True:
        start = {"start": "beginning"} if after is None else {"after": after}
        page = await call(settings, "events_read", types=types, limit=10_000, **start)
        found += page["events"]
        if page["next"] == after:
            return found
        after = page["next"]
