"""The whole MQTT server, less its sockets, against a model: two clients, losses, crashes and a bad disk at random.

Both clients keep a session and subscribe at QoS 2, to one topic for themselves and to another together (`$share`); they
publish to both, and keep their side of every flow (section 4.3), whatever happens to the connection, to the gateway or to
its disk. What must hold: nothing that was acknowledged at QoS 1 or 2 is lost, nothing at QoS 2 is taken twice, order
holds, and no packet breaks a rule that its receiver can check (`mqtt_model.Peer`).
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st
from model_world import Disk, ModelLoop, SqliteDisk
from mqtt_model import MOST_SENT, PLAIN, SHARED, Gateway, Message, Peer
from soak import SOAK

from gateway.mqtt.codec import Version

WEIGHTS = {
    "publish": 14,
    "read": 14,
    "calm": 4,
    "mute": 6,
    "speak": 3,
    "turn": 4,
    "lose": 5,
    "dial": 6,
    "clean": 3,
    "crash": 4,
    "hold": 4,
    "step": 4,
    "go": 4,
    "fail": 3,
    "wait": 1,
    "stall": 1,
    "flow": 2,
    "repeat": 4,
    "misbehave": 3,
}
MOVES = st.tuples(
    st.sampled_from([name for name, weight in WEIGHTS.items() for _ in range(weight)]),
    st.integers(0, 1),
    st.integers(0, 11),
)
GIVEN = st.lists(MOVES, min_size=30, max_size=120)
VERSIONS = st.tuples(
    st.sampled_from([Version.V5, Version.V5, Version.V311]), st.sampled_from([Version.V5, Version.V311])
)


class World:
    """Two peers and a gateway; each move is a method, with a number to choose by.

    Attributes:
        restarted: Messages below this number were published before the gateway was started.
        unclaimed: Of those that a group shared, these were a session's that ended: it hands on what it was given since.
    """

    def __init__(self, versions, folder=None) -> None:
        self.loop = ModelLoop()
        disk = SqliteDisk(self.loop, folder) if folder else Disk()
        self.messages: list[Message] = []
        self.restarted = self.unclaimed = 0
        self.gateway = Gateway(self.loop, disk)
        self.peers = [Peer(name, version, self.messages) for name, version in zip("ab", versions, strict=True)]
        for peer in self.peers:
            peer.dial(self.gateway)

    @property
    def disk(self):
        return self.gateway.disk

    def move(self, name: str, which: int, number: int) -> None:
        getattr(self, name)(self.peers[which], number)

    def publish(self, peer, number) -> None:
        self._enter(peer)
        for _ in range(1 + number % 3 if peer.is_ready else 0):
            peer.publish(PLAIN if number % 3 else SHARED, 1 + number % 2)

    def _enter(self, peer) -> None:
        """Most moves need a connection."""
        if not peer.is_linked:
            peer.dial(self.gateway)
        if not peer.is_in:
            self.loop.settle()
            peer.read()

    def read(self, peer, number) -> None:
        self.loop.settle()
        for _ in range(1 + number % 5):
            peer.read()

    def calm(self, peer, _number) -> None:
        """Let all that can be done be done."""
        self.go(peer, 0)
        for each in self.peers:
            self._enter(each)
        for each in 5 * self.peers:
            each.speak()
            self.read(each, 4)

    def mute(self, peer, number) -> None:
        """Read, and keep all answers back."""
        peer.is_mute = True
        self.read(peer, number)

    def speak(self, peer, _number) -> None:
        if peer.link:
            peer.speak()

    def turn(self, _peer, number) -> None:
        self.loop.turn(number)

    def lose(self, peer, _number) -> None:
        peer.lose()

    def dial(self, peer, number) -> None:
        """Connect; now and then though there is a connection, which is taken over."""
        if not peer.is_linked or number < 4:
            peer.dial(self.gateway)

    def clean(self, _peer, number) -> None:
        """One peer begins a new session; never the other, so that what they share has somebody to go to."""
        peer, other = self.peers
        if peer.version is Version.V5:
            self.publish(other, number // 2 * 3)
            self.read(other, 4)
            if number % 2:
                self.mute(peer, 4)
            peer.dial(self.gateway, clean=True)
            self.unclaimed = self.restarted

    def crash(self, _peer, number) -> None:
        """Kill the gateway, and start it again on what it had written."""
        self.gateway.kill()
        self.gateway = Gateway(self.loop, self.disk.crash(lands=bool(number % 2)))
        self.restarted = len(self.messages)
        if self.peers[0].is_clean:
            self.unclaimed = self.restarted

    def hold(self, _peer, _number) -> None:
        self.disk.gate.clear()

    def step(self, _peer, _number) -> None:
        """Let one write pass, the one under way or the next."""
        self.disk.is_single = True
        self.disk.gate.set()

    def go(self, _peer, _number) -> None:
        self.disk.is_single = False
        self.disk.gate.set()

    def fail(self, peer, number) -> None:
        """The next writes fail, perhaps with newer changes of the same keys waiting behind the first."""
        if number % 4 < 2:
            self.hold(peer, 0)
            self.loop.settle()
            peer.lose()
            self.loop.settle()
            peer.dial(self.gateway)
            self.loop.settle()
        self.disk.failures = [bool(number % 2)] * (1 + number % 3)
        self.go(peer, 0)

    def wait(self, _peer, number) -> None:
        self.loop.settle(0.2 * number)

    def stall(self, peer, _number) -> None:
        if peer.is_linked:
            peer.link.connection.pause_writing()

    def flow(self, peer, _number) -> None:
        if peer.is_linked:
            peer.link.connection.resume_writing()

    def repeat(self, peer, _number) -> None:
        if peer.is_ready:
            peer.repeat()

    def misbehave(self, peer, number) -> None:
        self.mute(peer, number)
        if peer.is_ready:
            peer.misbehave(number)
            self.loop.settle()
            peer.link.check()

    # The end.

    def rest(self) -> None:
        """Let everything come to its end."""
        self.disk.gate.set()
        self.disk.is_single = False
        self.disk.failures = []
        for _ in range(100):
            for peer in self.peers:
                if not peer.is_linked:
                    peer.dial(self.gateway)
                peer.speak()
                peer.link.connection.resume_writing()
            self.loop.settle(1.0)
            is_quiet = not any(peer.link.packets for peer in self.peers)
            for peer in self.peers:
                while peer.link and peer.link.packets:
                    peer.read()
            if is_quiet and all(peer.is_done for peer in self.peers):
                return
        raise AssertionError("it never comes to rest")

    def finish(self) -> None:
        """Come to rest, and use every identifier once more at QoS 2: one that was not freed shows then."""
        self.rest()
        for peer in self.peers:
            for number in range(MOST_SENT):
                peer.publish(SHARED if number == MOST_SENT // 2 else PLAIN, 2)
        self.rest()

    def check(self) -> None:
        """What must hold when everything has come to its end."""
        for peer in self.peers:
            self._check_taken(peer)
        taken = Counter(payload for peer in self.peers for payload in peer.got)
        ended, lasting = self.peers
        for message in self.messages:
            if message.topic == SHARED:
                assert message.qos == 1 or taken[message.payload] <= 1, "two of a group took a QoS 2 message"
                since = max(lasting.since, self.unclaimed if message.qos == 1 else ended.since)  # [MQTT-4.8.2-5]
                assert taken[message.payload] or not message.fate or message.number < since, "nobody of a group took it"
        assert not [key for key in self.disk.session_keys() if "/out/" in key or "/in/" in key]

    def _check_taken(self, peer) -> None:
        counts = Counter(peer.got)
        for message in self.messages:
            assert message.qos == 1 or counts[message.payload] <= 1, "a QoS 2 message was taken twice"
            if message.topic == PLAIN and message.fate and message.number >= peer.since:
                assert message.payload in counts, "an acknowledged message is lost"
        first = [self.messages[int(payload.split()[0])] for payload in dict.fromkeys(peer.got)]
        for order in {message.order for message in first if message.topic == PLAIN}:
            numbers = [each.number for each in first if each.order == order and each.number >= peer.since]
            assert numbers == sorted(numbers), "out of order"

    def close(self) -> None:
        self.disk.gate.set()
        self.gateway.kill()
        self.disk.close()
        self.loop.close()


def play(versions, moves, folder=None) -> None:
    with structlog.testing.capture_logs() as logs:
        world = World(versions, folder)
        try:
            for move in moves:
                world.move(*move)
            world.finish()
            world.check()
        finally:
            world.close()
    assert not [each for each in logs if each["log_level"] == "error"]


@pytest.mark.soak
@pytest.mark.timeout(600 * SOAK)  # where it fails, finding the shortest way to fail takes its time
@settings(max_examples=1200 * SOAK, deadline=None)
@given(versions=VERSIONS, moves=GIVEN)
def test_model(versions, moves):
    """Whatever happens, nothing acknowledged is lost, nothing at QoS 2 is taken twice, and order holds."""
    play(versions, moves)


@pytest.mark.soak
@pytest.mark.timeout(600 * SOAK)
@settings(max_examples=25 * SOAK, deadline=None)
@given(versions=VERSIONS, moves=GIVEN)
def test_model_on_a_real_file(versions, moves):
    """The same on SQLite: what a crash leaves in the file is what the gateway goes on with."""
    with TemporaryDirectory() as folder:
        Path(folder, "s").mkdir()
        play(versions, moves, Path(folder, "s"))
