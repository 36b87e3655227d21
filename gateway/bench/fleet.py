"""The devices of a run: real ids and keys, made for it, registered and removed again, or kept in a file.

The file (JSON lines, mode 0600) holds all that a device needs, so it can be made beside a gateway and carried to the
machine that makes the load.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from edge_protocol import tokens
from edge_protocol.errors import KeyInvalid
from edge_protocol.keys import SigningKey, load_signing_key, new_signing_key
from gateway.bench.load import BenchFailed

Call = Callable[..., Awaitable[Any]]
"""An operation of the gateway: `call("device_add", id=..., key=..., role=...)`."""

TOKEN_S: Final = 4 * 3600


class BenchDevice(msgspec.Struct, frozen=True, kw_only=True):
    """A device that the generator plays.

    Attributes:
        id: Its id.
        pem: Its private key.
        audience: The gateway's.
        signing_key: JWK of the gateway's key, which signs the key set.
    """

    id: str
    pem: str
    audience: str
    signing_key: dict[str, str]

    def key(self) -> SigningKey:
        """Its key, read."""
        return load_signing_key(self.pem.encode())

    def token(self) -> bytes:
        """A fresh token."""
        now_s = int(time.time())
        claims = {"audience": self.audience, "subject": self.id, "issued_at": now_s, "expires_at": now_s + TOKEN_S}
        return tokens.mint(self.key(), **claims).encode()  # type: ignore[arg-type]  # str and int, by name


async def register(call: Call, count: int, *, role: str) -> list[BenchDevice]:
    """Make devices and register them; if that fails half way, those that were are removed again."""
    made: list[BenchDevice] = []
    prefix = f"bench-{secrets.token_hex(4)}"
    try:
        for n in range(count):
            made.append(await _register(call, f"{prefix}-{n}", role))  # noqa: PERF401  # what was made is removed again
    except BaseException:
        await remove(call, made)
        raise
    return made


async def remove(call: Call, devices: Iterable[BenchDevice]) -> None:
    """Remove devices; what they sent stays on the bus."""
    for device in devices:
        await call("device_remove", id=device.id)


def write_fleet(file: Path, devices: Iterable[BenchDevice]) -> None:
    """Write devices with their private keys to a new file.

    Raises:
        BenchFailed: The file exists: the keys in it may be registered.
        OSError: It cannot be written.
    """
    try:
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as exc:
        raise BenchFailed(f"{file} exists; remove its devices with --remove-devices, or name another file") from exc
    with os.fdopen(handle, "wb") as lines:
        lines.write(msgspec.json.Encoder().encode_lines(devices))


def read_fleet(file: Path) -> Sequence[BenchDevice]:
    """Read a file that `write_fleet` wrote.

    Raises:
        BenchFailed: It is none.
        OSError: It cannot be read.
    """
    try:
        devices = msgspec.json.Decoder(BenchDevice).decode_lines(file.read_bytes())
        for device in devices:
            device.key()
    except (msgspec.DecodeError, KeyInvalid) as exc:
        raise BenchFailed(f"{file}: expected devices as --make-devices writes them ({exc})") from exc
    if not devices:
        raise BenchFailed(f"{file}: expected at least one device")
    return devices


async def _register(call: Call, id_: str, role: str) -> BenchDevice:
    key = new_signing_key()
    public = msgspec.json.encode(key.public.jwk).decode()
    needs = await call("device_add", id=id_, key=public, role=role)
    return BenchDevice(
        id=id_, pem=key.pem().decode(), audience=needs["audience"], signing_key=dict(needs["signing_key"])
    )
