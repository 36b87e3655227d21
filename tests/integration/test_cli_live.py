"""The command line against a gateway that answers on its socket (a few small operations), and against a stale one."""

import asyncio
import json
import os
import signal
import socket
import sys
from pathlib import Path

import pytest

from edge_protocol.keys import load_verify_key, new_signing_key
from gateway.errors import NotFound
from gateway.web.control import ControlServer

GATEWAY = Path(sys.executable).with_name("gateway")
DEVICE = {
    "id": "cart-7",
    "role": "device",
    "enabled": True,
    "labels": {},
    "keys": [],
    "created_at": "2026-11-23T09:30:00Z",
}
NEEDS = {
    "audience": "lockgate-test",
    "signing_key": {"kty": "OKP"},
    "mqtt": ["mqtts://gw.example.com:8883"],
    "enrol": "https://gw.example.com:8443/enroll",
}


class Operations:
    """Remembers what it was asked, and answers from lists."""

    def __init__(self):
        self.asked = []
        self.events = []
        self.is_tailed = asyncio.Event()

    def table(self):
        return {name: getattr(self, name) for name in dir(self) if "_" in name.strip("_")} | {"stats": self.stats}

    async def device_add(self, **arguments):
        self.asked.append(arguments)
        code = None if arguments["key"] else "SECRET.PIN"
        return {"device": DEVICE, "code": code, "code_expires_at": "2026-11-24T09:30:00Z", **NEEDS}

    async def device_list(self, *, after, limit):
        rows = [{**DEVICE, "id": f"d{n}", "connected": None} for n in range(3)]
        return {"devices": rows[:2], "next": "d1"} if not after else {"devices": rows[2:], "next": None}

    async def device_show(self, **arguments):
        raise NotFound("device 'nobody': there is none; `gateway device list` shows them")

    async def device_disable(self, **arguments):
        return {**DEVICE, "enabled": False}

    async def token_create(self, **arguments):
        self.asked.append(arguments)
        return {"token": "a.b.c", "sub": "orders", "expires_at": "2026-11-23T17:30:00Z"}

    async def events_show(self, *, id):  # noqa: A002  # the interface's word
        if id != "e1":
            return {"id": id, "state": "unknown", "events": []}
        handlers = [{"handler": "orders", "state": "waiting", "attempts": 3, "cause": "HTTP 500", "next_at": None}]
        return {
            "id": id,
            "state": "stored",
            "events": [{"position": 1024, "source": "/devices/x", "handlers": handlers}],
        }

    async def events_read(self, *, start, after, types, device, limit, wait_s):
        self.asked.append({"start": start, "after": after, "types": types, "device": device, "wait_s": wait_s})
        self.is_tailed.set()
        begin = 0 if after is None else int(after)
        if begin == len(self.events):
            await asyncio.sleep(min(wait_s, 0.05))
        page = self.events[begin : begin + limit]
        return {"events": page, "next": str(begin + len(page))}

    async def events_publish(self, **arguments):
        self.asked.append(arguments)
        return {"id": "new-id", "position": 1024}

    async def handlers_list(self):
        return [{"name": "orders", "url": "http://x", "state": "down", "lag": 5, "cause": "refused"}]

    async def handlers_remove(self, **arguments):
        self.asked.append(arguments)
        return {"name": arguments["name"], "lag": 5, "waiting": 0, "blocked": 0, "dead": 1, "sessions": ["till-1"]}

    async def token_revoke(self, **arguments):
        self.asked.append(arguments)
        return {"id": "0199"}

    async def token_revoke_all(self):
        return {"connections": 3}

    async def dead_letters_list(self, *, handler, after, limit):
        rows = [{"id": f"orders:{n}", "type": "t", "attempts": 10, "cause": "HTTP 500"} for n in (1, 2)]
        return (
            {"dead_letters": rows[:1], "next": "orders:1"}
            if after is None
            else {"dead_letters": rows[1:], "next": None}
        )

    async def dead_letters_replay(self, **arguments):
        self.asked.append(arguments)
        return {"count": 1, "ids": ["orders:1"]}

    async def stats(self):
        return {"bus": {"events": 7}}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "state").mkdir()
    (tmp_path / "configs/gateway.toml").write_text('audience = "lockgate-test"\n')
    return tmp_path


@pytest.fixture
async def gateway(folder):
    operations = Operations()
    server = await ControlServer.start(operations.table(), folder / "state/gateway.sock")
    yield operations
    await server.aclose()


async def start(folder, *arguments):
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(
        GATEWAY, *arguments, cwd=folder, stdin=pipe, stdout=pipe, stderr=pipe, env=os.environ, preexec_fn=_hear_ctrl_c
    )


def _hear_ctrl_c():
    """As at a terminal: a shell that runs the tests in the background lets them inherit a deaf ear."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


async def run(folder, *arguments, stdin=b""):
    process = await start(folder, *arguments)
    out, err = await process.communicate(stdin)
    return process.returncode, out.decode(), err.decode()


async def test_device_add_prints_what_the_device_needs(folder, gateway):
    """Audience, key, addresses, the code, and the command to run on the device."""
    code, out, err = await run(folder, "device", "add", "cart-7", "--label", "shop=berlin")
    assert (code, err) == (0, "")
    assert gateway.asked == [{"id": "cart-7", "key": None, "role": "device", "labels": {"shop": "berlin"}}]
    for text in ("lockgate-test", '{"kty": "OKP"}', "mqtts://gw.example.com:8883", "SECRET.PIN"):
        assert text in out
    assert "  edge-agent init cart-7 --gateway mqtts://gw.example.com:8883\n" in out
    assert out.endswith("  edge-agent enroll SECRET.PIN --url https://gw.example.com:8443\n")


async def test_only_the_public_half_of_a_key_leaves_the_command(folder, gateway):
    """A private key given by mistake is reduced before anything is sent."""
    key = new_signing_key()
    (folder / "dev1.pem").write_bytes(key.pem())
    code, out, _ = await run(folder, "device", "add", "dev1", "--key", "dev1.pem", "--role", "simple-device", "--json")
    assert code == 0
    assert json.loads(out)["code"] is None
    sent = json.loads(gateway.asked[0]["key"])
    assert "d" not in sent
    assert load_verify_key(json.dumps(sent)).kid == key.public.kid


async def test_lists_are_read_to_their_end(folder, gateway):
    """Page by page, to one table or one JSON array."""
    _, out, _ = await run(folder, "device", "list", "--json")
    assert [row["id"] for row in json.loads(out)] == ["d0", "d1", "d2"]
    _, out, _ = await run(folder, "device", "list")
    assert [line.split()[0] for line in out.splitlines()] == ["ID", "d0", "d1", "d2"]
    _, out, _ = await run(folder, "dead-letters", "list", "--json")
    assert [row["id"] for row in json.loads(out)] == ["orders:1", "orders:2"]
    _, out, _ = await run(folder, "handlers", "list")
    assert out.splitlines()[1].split()[:3] == ["orders", "down", "5"]


async def test_an_error_of_the_gateway_is_one_line(folder, gateway):
    """In its own words, on stderr, exit code 1."""
    code, out, err = await run(folder, "device", "show", "nobody")
    assert (code, out) == (1, "")
    assert err == "error: device 'nobody': there is none; `gateway device list` shows them\n"


async def test_short_answers(folder, gateway):
    """What changed, what it costs, what is there."""
    assert await run(folder, "device", "disable", "cart-7") == (0, "cart-7 disabled\n", "")
    assert (await run(folder, "stats"))[1] == "bus.events  7\n"
    assert (await run(folder, "stats", "--json"))[1] == '{"bus":{"events":7}}\n'


async def test_a_token_stands_alone_on_stdout(folder, gateway):
    """So that a shell can take it; until when goes to stderr."""
    code, out, err = await run(folder, "token", "create", "--role", "service", "--name", "orders", "--ttl", "30m")
    assert (code, out, err) == (0, "a.b.c\n", "for orders, until 2026-11-23T17:30:00Z\n")
    assert gateway.asked == [{"role": "service", "name": "orders", "ttl_s": 1800.0}]


async def test_a_removed_handler_is_shown_as_it_was(folder, gateway):
    """What is lost with it is printed; with --dry-run nothing is."""
    name = "mqtt:service/billing:devices/+/events/#"
    code, out, err = await run(folder, "handlers", "remove", name)
    assert (code, err) == (0, "removed\n")
    assert out.splitlines()[1].split() == [name, "5", "0", "0", "1", '["till-1"]']
    code, out, err = await run(folder, "handlers", "remove", name, "--dry-run", "--json")
    assert (code, err, json.loads(out)["lag"]) == (0, "", 5)
    assert gateway.asked == [{"name": name, "dry_run": False}, {"name": name, "dry_run": True}]


async def test_tokens_are_revoked_by_id_or_all(folder, gateway):
    """One or all, never both or neither."""
    assert await run(folder, "token", "revoke", "0199") == (0, "0199 revoked\n", "")
    assert await run(folder, "token", "revoke", "--all") == (0, "all tokens revoked\n", "")
    assert json.loads((await run(folder, "token", "revoke", "--all", "--json"))[1]) == {"connections": 3}
    assert gateway.asked == [{"id": "0199"}]
    for wrong in ((), ("0199", "--all")):
        code, out, err = await run(folder, "token", "revoke", *wrong)
        assert (code, out) == (2, "")
        assert "expected an ID, or --all" in err


async def test_publish_reads_data_from_the_line_stdin_or_a_file(folder, gateway):
    """Any JSON; the id is the answer."""
    (folder / "data.json").write_text("[3]")
    assert await run(folder, "events", "publish", "t", '{"n": 1}') == (0, "new-id\n", "")
    await run(folder, "events", "publish", "t", "-", stdin=b"2")
    await run(folder, "events", "publish", "t", "@data.json", "--id", "mine", "--subject", "s")
    await run(folder, "events", "publish", "t")
    assert [asked["data"] for asked in gateway.asked] == [{"n": 1}, 2, [3], None]
    assert gateway.asked[2] == {"type": "t", "data": [3], "id": "mine", "subject": "s"}


async def test_events_show_tells_where_an_event_is(folder, gateway):
    """Stored and waiting, with the cause; unknown is told too, and fails."""
    code, out, _ = await run(folder, "events", "show", "e1")
    assert code == 0
    assert "position  1024" in out
    assert out.splitlines()[-1].split() == ["orders", "waiting", "3", "-", "HTTP", "500"]
    code, out, _ = await run(folder, "events", "show", "e2")
    assert (code, out) == (1, "e2: unknown: never stored here, or removed by retention\n")


async def test_tail_follows_until_ctrl_c(folder, gateway):
    """Events come as they are stored, as JSON lines; Ctrl-C is a clean end."""
    gateway.events.append({"id": "e0", "source": "/devices/a", "type": "t"})
    tail = await start(folder, "events", "tail", "--from", "beginning", "--type", "t*", "--json")
    assert json.loads(await tail.stdout.readline())["id"] == "e0"
    gateway.events.append({"id": "e1", "source": "/devices/a", "type": "t"})
    assert json.loads(await tail.stdout.readline())["id"] == "e1"
    tail.send_signal(signal.SIGINT)
    _, err = await tail.communicate()
    assert (tail.returncode, err) == (0, b"")
    first, second = gateway.asked[:2]
    assert (first["start"], first["after"], first["types"], first["wait_s"]) == ("beginning", None, ["t*"], 5.0)
    assert (second["start"], second["after"]) == (None, "1")


async def test_tail_stops_at_its_limit_and_shows_no_control_characters(folder, gateway):
    """For people, a line an event."""
    gateway.events += [{"id": f"e{n}", "source": "/devices/a", "type": "t", "data": "a\x1b[2J"} for n in range(5)]
    code, out, _ = await run(folder, "events", "tail", "--from", "beginning", "--limit", "3")
    assert code == 0
    assert out.splitlines()[0] == "-  /devices/a  t  e0  a\N{REPLACEMENT CHARACTER}[2J"
    assert out.count("\n") == 3


async def test_a_gateway_that_goes_away_is_told(folder):
    """A tail does not hang, nor does it open the files behind the gateway's back."""
    operations = Operations()
    server = await ControlServer.start(operations.table(), folder / "state/gateway.sock")
    tail = await start(folder, "events", "tail", "--json")
    await operations.is_tailed.wait()
    await server.aclose()
    _, err = await asyncio.wait_for(tail.communicate(), 30)
    assert tail.returncode == 1
    assert err.decode().startswith("error: the running gateway went away during events_read")


async def test_replay_tells_what_it_would_do(folder, gateway):
    """Ids on stdout, the sum on stderr."""
    code, out, err = await run(folder, "dead-letters", "replay", "--handler", "orders", "--dry-run")
    assert (code, out, err) == (0, "orders:1\n", "would replay 1 dead letter\n")
    assert gateway.asked == [{"handler": "orders", "ids": [], "dry_run": True}]


async def test_a_closed_pipe_is_no_error(folder, gateway):
    """`| head -1` ends a tail quietly."""
    gateway.events += [{"id": f"e{n}", "source": "/devices/a", "type": "t", "data": "x" * 100} for n in range(400)]
    command = f"{GATEWAY} events tail --from beginning --limit 400 | head -1"
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_shell(command, cwd=folder, stdout=pipe, stderr=pipe)
    out, err = await process.communicate()
    assert out.count(b"\n") == 1
    assert err == b""


async def test_a_stale_socket_confuses_nobody(tmp_path):
    """What a killed gateway left is passed by: the command works on the files."""
    assert (await run(tmp_path, "init"))[0] == 0
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "state/gateway.sock"))
    assert await run(tmp_path, "device", "list", "--json") == (0, "[]\n", "")
