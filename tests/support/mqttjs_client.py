"""Runs tests/support/mqttjs/client.mjs: one scenario with MQTT.js, from npm."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from mqtt_kit import token

FOLDER = Path(__file__).parent / "mqttjs"


async def play(**scenario):
    """Run client.mjs; what it got. A machine without node or MQTT.js fails here, and is told what to do."""
    assert (FOLDER / "node_modules" / "mqtt").is_dir(), f"run: npm ci --prefix {FOLDER}"
    process = await asyncio.create_subprocess_exec(
        "node", FOLDER / "client.mjs", json.dumps(scenario), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )  # fmt: skip
    async with asyncio.timeout(30):
        out, err = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"exit {process.returncode}: {err.decode()}")
    return json.loads(out)


def options(version, **more):
    password = token("ann", "operator", iss="id").decode()
    return {"protocolVersion": version, "clientId": "ann", "username": "ann", "password": password} | more
