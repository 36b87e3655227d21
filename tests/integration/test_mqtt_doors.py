"""Doors: what happens when nobody more can be let in, and when the server stops while somebody is at the door."""

import asyncio
import os
import resource
import socket

from certified import Authority, served
from mqtt_kit import Client, connect, eventually, running
from structlog.testing import capture_logs

from gateway.mqtt.codec import Connack, Version


async def test_out_of_descriptors():
    """Without descriptors it waits and says so; who has come meanwhile is served as soon as there are some again."""
    async with running() as run:
        waiting = [socket.create_connection(("127.0.0.1", run.port)) for _ in range(5)]
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        lowest = os.dup(waiting[0].fileno())  # the lowest number that is free: none below it can be given out
        os.close(lowest)
        with capture_logs() as logs:
            try:
                resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
                await eventually(lambda: [each for each in logs if each["event"] == "accept_failed"])
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert logs[0]["reason"] == "Too many open files"
        for n, each in enumerate(waiting, 1):
            reader, writer = await asyncio.open_connection(sock=each)
            client = Client(reader, writer, Version.V5)
            run.clients.append(client)
            client.send(connect(f"dev{n}"))
            assert isinstance(await client.read(), Connack)


async def test_sockets_are_capped_before_they_speak(tmp_path):
    """Peers in the TLS handshake count: beyond the cap and its margin a socket is closed at once, others are served."""
    authority = Authority(tmp_path)
    async with running(**served(authority), limits={"connections": 4, "connect_s": 30.0}) as run:
        silent = [await asyncio.open_connection("localhost", run.port) for _ in range(4 + 16 + 1)]
        extra_reader, extra = await asyncio.open_connection("localhost", run.port)
        assert await extra_reader.read() == b""
        for _, writer in (*silent, (None, extra)):
            writer.close()


async def test_closed_with_somebody_at_the_door(tmp_path):
    """A peer in its handshake does not hold up the end, and is closed."""
    authority = Authority(tmp_path)
    async with running(**served(authority)) as run:
        reader, writer = await asyncio.open_connection("localhost", run.port)
        await eventually(lambda: any(task.get_name() == "accept" for task in asyncio.all_tasks()))
        async with asyncio.timeout(4):
            await run.server.aclose()
            assert await reader.read() == b""
        writer.close()


async def test_ipv6_and_ipv4():
    """`[::1]` is listened on as IPv6; the log and the address have brackets."""
    async with running(listen=("mqtt://[::1]:0", "mqtt://127.0.0.1:0")) as run:
        assert run.server.addresses[0].startswith("mqtt://[::1]:")
        with capture_logs() as logs:
            reader, writer = await asyncio.open_connection("::1", run.port)
            client = Client(reader, writer, Version.V5)
            run.clients.append(client)
            await client.connect("dev1")
        assert next(each["peer"] for each in logs if each["event"] == "connected").startswith("[::1]:")
