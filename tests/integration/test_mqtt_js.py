"""MQTT.js, from npm, over TCP, TLS, WebSocket and secure WebSocket (`make test` installs it into tests/support/mqttjs)."""

import pytest
from certified import Authority, served
from mqtt_kit import running
from mqttjs_client import options, play


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("scheme", ["mqtt", "mqtts", "ws", "wss"])
async def test_there_and_back(scheme, version, tmp_path):
    """100 messages at QoS 1 come back, in order, over every transport and in both versions."""
    authority = Authority(tmp_path)
    async with running(**served(authority, scheme)) as run:
        url = run.server.addresses[0].replace("127.0.0.1", "localhost")
        got = await play(url=url, options=options(version), topic="chat/a", count=100, qos=1, ca=str(authority.file))
        assert [int(each["payload"]) for each in got] == list(range(100))


async def test_origin_of_a_page():
    """A client that says it comes from a foreign page is not let in by WebSocket, one of a configured page is."""
    async with running(listen=("ws://localhost:0/mqtt",), origins=("https://app.example",)) as run:
        url = run.server.addresses[0]
        scenario = {"url": url, "topic": "chat/a", "count": 1, "qos": 0}
        page = {"wsOptions": {"origin": "https://app.example"}}
        assert len(await play(**scenario, options=options(5, **page))) == 1
        with pytest.raises(RuntimeError, match="exit"):
            await play(**scenario, options=options(5, wsOptions={"origin": "https://evil.example"}))
