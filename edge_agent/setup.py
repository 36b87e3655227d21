"""Making an agent's folder, once, whole, overwriting nothing."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from edge_agent.errors import ConfigError, cause_of
from edge_agent.home import CA_FILE, Home
from edge_agent.outbox import Outbox
from edge_agent.trust import TrustFile, save_trust, sync_folder, write_file
from edge_protocol.keys import SigningKey, new_signing_key

_FOLDER_MODE: Final = 0o700


def make_home(
    home: Home,
    device: str,
    *,
    gateway: str,
    audience: str,
    ca: bytes | None,
    signing_key: dict[str, Any] | None,
    alg: str,
) -> SigningKey:
    """Make the folder, its key and an empty outbox. agent.toml comes last: with it the home is complete.

    Raises:
        ConfigError: An agent is there already (nothing is overwritten), or the folder cannot be written.
    """
    for file in (home.settings_file, home.key_file, home.outbox_file):
        if file.exists():
            raise ConfigError(f"{file} exists already; expected a new home (nothing is ever overwritten)")
    key = new_signing_key(alg)
    try:
        home.path.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
        home.path.chmod(_FOLDER_MODE)
        write_file(home.key_file, key.pem())
        if ca is not None:
            write_file(home.path / CA_FILE, ca)
        trusted = TrustFile(audience=audience, signing_key=signing_key, ca=CA_FILE if ca is not None else "")
        save_trust(home.trust_file, trusted)
        Outbox.create(home.outbox_file)
        write_file(home.settings_file, _settings_text(device, gateway).encode())
        sync_folder(home.path.parent)
    except OSError as exc:
        raise ConfigError(f"{home.path}: {cause_of(exc)}; expected a folder that can be written") from exc
    return key


def _settings_text(device: str, gateway: str) -> str:
    """A JSON string is a TOML string too (TOML 1.0, basic strings)."""
    name, address = (msgspec.json.encode(text).decode() for text in (device, gateway))
    line = (
        f"gateway = {address}"
        if gateway
        else '# gateway = "mqtts://HOST:8883"   # not set: the one that enrolment names'
    )
    return (
        f"# Settings of this edge agent; all keys and defaults: docs/reference/configuration.md\nid = {name}\n{line}\n"
    )
