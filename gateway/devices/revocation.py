"""When a change in the registry ends a device's connection (wire protocol, section 2, "Revocation"). Pure."""

from __future__ import annotations

from gateway.devices.records import DeviceDocument


def revoked_by(old: DeviceDocument | None, new: DeviceDocument | None, kid: str | None, now_s: float) -> str | None:
    """Tell why the connection of a device must end now; None if it may go on.

    Args:
        old: What was known of the device; None for nothing.
        new: What it is now; None: removed.
        kid: The key that proved its last token, if known: a key that it no longer uses may end without harm.
        now_s: Unix time in seconds.
    """
    if new is None:
        return "device removed"
    if not new.enabled:
        return "device disabled" if old is None or old.enabled else None
    if old is not None and old.epoch != new.epoch:
        return "device registered anew"
    if kid is None and old is None:
        return None if any(key.is_valid(now_s) for key in new.keys) else "no valid key"
    watched = [kid] if kid is not None else [key.kid for key in old.keys] if old is not None else []
    for each in watched:
        before = None if old is None else old.key(each)
        after = new.key(each)
        was_valid = old is None or (before is not None and before.is_valid(now_s))
        if was_valid and (after is None or after.ends_s <= now_s):
            return "key expired"
    return None


def ends_sooner(old: DeviceDocument | None, new: DeviceDocument | None, kid: str) -> float | None:
    """Tell when a connection must be looked at again, Unix seconds: its key was given an earlier end; else None."""
    key = None if new is None else new.key(kid)
    before = None if old is None else old.key(kid)
    if key is None or key.exp is None or (before is not None and before.ends_s <= key.exp):
        return None
    return key.exp
