"""What the device trusts: audience, the gateway's signing key, its CA, and the key set proven by them (gateway.json).

The key set is kept on disk, so that a device that starts offline, or behind a slow link, can seal at once; it is proven
again whenever it is read. Its version only grows, also across restarts and expiry.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from edge_agent.errors import ConfigError, UsageError, cause_of
from edge_protocol.envelope_keys import SealKey, Suite
from edge_protocol.errors import KeyInvalid, KeySetRejected
from edge_protocol.key_set import KeySet, verify_key_set
from edge_protocol.keys import VerifyKey, load_verify_key, verify_key_from_jwk

PRIVATE_MODE: Final = 0o600


class TrustFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """gateway.json. All but `key_set` comes from `init` or `enroll`.

    Attributes:
        audience: The gateway's audience, or "".
        signing_key: Its public JWK, or None until it is known.
        key_set: The last proven key set (JWS), or "".
        key_set_version: Its version: older ones are refused.
        ca: PEM file of the CA, relative to the home, or "" for the system's.
        mqtt: Addresses that enrolment named.
        url: `https://HOST:PORT` of the device-facing HTTP listener, or "".
    """

    audience: str = ""
    signing_key: dict[str, Any] | None = None
    key_set: str = ""
    key_set_version: int = 0
    ca: str = ""
    mqtt: list[str] = []
    url: str = ""


class Trust:
    """gateway.json in memory, with its key set proven."""

    def __init__(self, path: Path, file: TrustFile, *, audience: str) -> None:
        self.path = path
        self.file = file
        self.audience = audience
        self._pinned: tuple[VerifyKey, ...] = ()
        self._set: KeySet | None = None
        if file.signing_key is not None:
            try:
                self._pinned = (verify_key_from_jwk(file.signing_key),)
            except KeyInvalid as exc:
                raise ConfigError(f"{path}: signing_key: {exc}") from exc

    @property
    def is_pinned(self) -> bool:
        """Whether the gateway's signing key is known."""
        return bool(self._pinned)

    @property
    def key_set(self) -> KeySet | None:
        """The key set in use, if any."""
        return self._set

    def seal_key(self, suites: Sequence[int], now_s: float) -> SealKey | None:
        """The gateway's key of the first of these suites; None while there is no valid key set that has one."""
        if self._set is None or self._set.expires_at <= now_s:
            return None
        return self._set.best([Suite(suite) for suite in suites])

    def recall(self, now_s: float) -> None:
        """Prove the key set on disk, if there is one.

        Raises:
            KeySetRejected: It has expired, or the file was changed.
        """
        if self.file.key_set:
            self._set = self.prove(self.file.key_set, now_s)

    def offer(self, text: bytes | str, now_s: float) -> bool:
        """Take a key set from the network and keep it on disk.

        Returns:
            Whether it is another than before.

        Raises:
            KeySetRejected: It is forged, expired, older, or of another audience; the one in use stays.
        """
        found = self.prove(text, now_s)
        jws = text.decode("ascii") if isinstance(text, bytes) else text
        self._set = found
        if jws == self.file.key_set:
            return False
        self.file = msgspec.structs.replace(self.file, key_set=jws, key_set_version=found.version)
        save_trust(self.path, self.file)
        return True

    def prove(self, text: bytes | str, now_s: float) -> KeySet:
        """Check a key set without taking it.

        Raises:
            KeySetRejected: As for `offer`; also while no signing key is pinned.
        """
        if not self._pinned:
            raise KeySetRejected("no-signing-key", "the gateway's signing key is not known: `edge-agent enroll CODE`")
        return verify_key_set(
            text, self._pinned, audience=self.audience, min_version=self.file.key_set_version, now_s=now_s
        )


def load_trust(path: Path, *, audience: str) -> Trust:
    """Read gateway.json; a missing file is empty.

    Args:
        path: The file.
        audience: From the settings; "" for the one in the file.

    Raises:
        ConfigError: It is not what it should be.
    """
    try:
        file = msgspec.json.decode(path.read_bytes(), type=TrustFile)
    except FileNotFoundError:
        file = TrustFile()
    except (OSError, msgspec.DecodeError) as exc:
        raise ConfigError(
            f"{path}: {cause_of(exc)}; expected the file that `edge-agent init` or `enroll` makes"
        ) from exc
    return Trust(path, file, audience=audience or file.audience)


def save_trust(path: Path, file: TrustFile) -> None:
    """Write gateway.json: the old or the new one is there after a power cut, never half of one."""
    write_file(path, msgspec.json.format(msgspec.json.encode(file), indent=2) + b"\n")


def read_signing_key(text: str) -> dict[str, Any]:
    """Read the gateway's signing key for `--signing-key`: a JWK, or the name of a JWK or PEM file.

    Raises:
        UsageError: It is neither.
    """
    try:
        raw: str | bytes = text if text.lstrip().startswith("{") else Path(text).expanduser().read_bytes()
        return dict(load_verify_key(raw).jwk)
    except (OSError, KeyInvalid) as exc:
        raise UsageError(f"--signing-key {text[:80]}: {cause_of(exc)}; expected a JWK, or a JWK or PEM file") from exc


def write_file(path: Path, data: bytes) -> None:
    """Write a private file so that it is whole after a power cut: temporary file, fsync, rename, fsync of the folder."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, PRIVATE_MODE)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make names in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
