"""The whole MQTT server, less its sockets, against a model: two clients, losses, crashes and slow writes at random.

Both clients keep a session, subscribe to one topic at QoS 2 and publish to it; they keep their side of every flow as a
good client does (section 4.3), whatever happens to the connection or to the gateway. What must hold: nothing that was
acknowledged at QoS 1 or 2 is lost, nothing at QoS 2 is seen twice, and order holds.
"""

import asyncio
from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule
from mqtt_kit import FakeAuthenticator, FakeIngest, FakeState, connect, properties, publish, token
from soak import SOAK

from gateway.mqtt.codec import (
    Connack,
    Decoder,
    Disconnect,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    Subscription,
    Version,
    encode,
)
from gateway.mqtt.connection import Connection
from gateway.mqtt.listeners import MqttServer
from gateway.mqtt.settings import ServerSettings

TOPIC = "chat/a"


class SlowState(FakeState):
    """A store whose writes can be held back; a crash then loses them."""

    def __init__(self, values=None):
        super().__init__(values)
        self.gate = asyncio.Event()
        self.gate.set()
        self.is_dead = False
        self.holds_after_next = False

    async def write(self, changes):
        await self.gate.wait()
        if not self.is_dead:
            await super().write(changes)
        if self.holds_after_next:
            self.holds_after_next = False
            self.gate.clear()


class Link(asyncio.Transport):
    """A connection without a socket: what the server writes can be read until the link is cut."""

    def __init__(self, hub, version):
        super().__init__()
        self.decoder = Decoder(role="client", version=version)
        self.packets = []
        self.is_cut = False
        self._loop = hub.loop
        self.connection = Connection(hub)
        self.connection.connection_made(self)

    def feed(self, data):
        self._loop.call_soon(self._feed, data)

    def _feed(self, data):
        if not self.is_cut:
            self.connection.data_received(data)

    def write(self, data):
        if not self.is_cut:
            self.packets += self.decoder.feed(data)

    def abort(self):
        if not self.is_cut:
            self.is_cut = True
            self._loop.call_soon(self.connection.connection_lost, None)

    close = write_eof = abort

    def get_extra_info(self, name, default=None):
        return ("127.0.0.1", 1) if name == "peername" else default

    def is_closing(self):
        return self.is_cut

    def can_write_eof(self):
        return True

    def set_write_buffer_limits(self, high=None, low=None):
        pass

    def pause_reading(self):
        pass

    resume_reading = pause_reading


class Gateway:
    """The server on what a store holds."""

    def __init__(self, loop, values=None):
        self.loop = loop
        self.state = SlowState(values)

        async def nothing_stored(_source, _streams):
            return {}

        parts = {"authenticator": FakeAuthenticator(), "ingest": FakeIngest(), "state": self.state}
        self.server = MqttServer(ServerSettings(listen=()), **parts, stored_through=nothing_stored)
        self.run(self.server.start())

    def run(self, work):
        return self.loop.run_until_complete(work)

    def settle(self):
        async def turns():
            for _ in range(25):
                await asyncio.sleep(0)

        self.run(turns())

    def crash(self):
        """End at once: what was not written is lost. What still runs is let finish, for the test's sake."""
        hub = self.server._hub
        for connection in tuple(hub.sockets):
            connection._transport.is_cut = True
        self.state.is_dead = True
        self.state.holds_after_next = False
        self.state.gate.set()
        self.settle()
        hub.wheel.stop()
        self.run(hub.tasks.aclose(timeout_s=0))
        return dict(self.state.values)


class Peer:
    """A client that keeps its side of the protocol."""

    def __init__(self, name, version):
        self.name, self.version = name, version
        self.link = None
        self.is_in = False
        self.sending = {}  # packet id -> [payload, qos, is_released], in order
        self.received = set()
        self.got = []
        self.last = 0

    @property
    def is_linked(self):
        return self.link is not None and not self.link.is_cut

    def send(self, *packets):
        for packet in packets:
            if self.is_linked:
                self.link.feed(encode(packet, self.version))

    def dial(self, gateway):
        self.link, self.is_in = Link(gateway.server._hub, self.version), False
        lasting = {}
        if self.version is Version.V5:
            lasting = {"properties": properties(session_expiry_interval=1000, receive_maximum=3)}
        proof = token("ann", "operator", iss="id")
        self.send(connect(self.name, token_=proof, version=self.version, clean_start=False, **lasting))

    def publish(self, qos):
        self.last += 1
        packet_id = self.last % 9 + 1
        if packet_id in self.sending:
            return None
        payload = f"{self.name}{qos}.{self.last}".encode()
        self.sending[packet_id] = [payload, qos, False]
        self.send(publish(TOPIC, payload, qos=qos, packet_id=packet_id))
        return payload

    def read_one(self):
        packet = self.link.packets.pop(0)
        getattr(self, f"on_{type(packet).__name__.lower()}")(packet)

    def on_connack(self, packet: Connack):
        assert packet.reason_code == 0
        self.is_in = True
        for packet_id, (payload, qos, is_released) in list(self.sending.items()):
            again = publish(TOPIC, payload, qos=qos, packet_id=packet_id, dup=True)
            self.send(Pubrel(packet_id=packet_id) if is_released else again)

    def on_publish(self, packet: Publish):
        if packet.qos == 1:
            self.got.append(packet.payload)
            self.send(Puback(packet_id=packet.packet_id))
            return
        if packet.packet_id not in self.received:
            self.received.add(packet.packet_id)
            self.got.append(packet.payload)
        self.send(Pubrec(packet_id=packet.packet_id))

    def on_pubrel(self, packet: Pubrel):
        self.received.discard(packet.packet_id)
        self.send(Pubcomp(packet_id=packet.packet_id))

    def on_puback(self, packet: Puback):
        assert packet.reason_code in {0, 0x10}
        self.sending.pop(packet.packet_id, None)

    def on_pubrec(self, packet: Pubrec):
        assert packet.reason_code in {0, 0x10}
        if packet.packet_id in self.sending:
            self.sending[packet.packet_id][2] = True
        self.send(Pubrel(packet_id=packet.packet_id))

    def on_pubcomp(self, packet: Pubcomp):
        self.sending.pop(packet.packet_id, None)

    def on_suback(self, packet: Suback):
        assert [int(code) for code in packet.reason_codes] == [2]

    def on_disconnect(self, _packet: Disconnect):
        self.link.abort()


ILLEGAL = (
    Pubrel(packet_id=777),
    Pubcomp(packet_id=777),
    Puback(packet_id=777),
    Pubrec(packet_id=777),
    Pubcomp(packet_id=1),
    Puback(packet_id=1),
)
PEERS = st.integers(0, 1)
MOVES = st.sampled_from(["publish", "publish", "read", "read", "read", "lose", "dial", "crash", "hold_after_next"])


class Model(RuleBasedStateMachine):
    """Steps at random; the end lets everything come to rest and counts."""

    def __init__(self):
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.gateway = Gateway(self.loop)
        self.peers = [Peer("a", Version.V5), Peer("b", Version.V311)]
        self.published = []
        for peer in self.peers:
            peer.dial(self.gateway)
            self.gateway.settle()
            peer.send(Subscribe(packet_id=1, subscriptions=(Subscription(topic_filter=TOPIC, qos=2),)))
        self.rest()

    @rule(which=PEERS, qos=st.sampled_from([1, 2]), count=st.integers(1, 3))
    def publish(self, which, qos, count):
        """Publish, if there is a connection."""
        peer = self.peers[which]
        for _ in range(count):
            if peer.is_linked and peer.is_in and (payload := peer.publish(qos)):
                self.published.append(payload)

    @rule(which=PEERS, count=st.integers(1, 4))
    def read(self, which, count):
        """Let the server work, then read some of what it wrote."""
        self.gateway.settle()
        peer = self.peers[which]
        for _ in range(count):
            if peer.is_linked and peer.link.packets:
                peer.read_one()

    @rule(which=PEERS)
    def lose(self, which):
        """Cut a connection; what is unread is lost."""
        if self.peers[which].is_linked:
            self.peers[which].link.abort()

    @rule(which=PEERS)
    def dial(self, which):
        """Connect, perhaps taking over an old connection that nobody has noticed to be dead."""
        self.peers[which].dial(self.gateway)

    @rule(moves=st.lists(st.tuples(MOVES, PEERS, st.integers(1, 2)), min_size=5, max_size=15))
    def bustle(self, moves):
        """Much of it at once: single steps alone rarely meet in the middle of a flow."""
        for move, which, number in moves:
            if move == "publish":
                self.publish(which, number, 2)
            elif move in {"lose", "dial"}:
                getattr(self, move)(which)
            elif move in {"crash", "hold_after_next"}:
                getattr(self, move)()
            else:
                self.read(which, number)

    @rule(which=PEERS, packet=st.sampled_from(ILLEGAL))
    def misbehave(self, which, packet):
        """Send what no good client would: it may cost the connection, nothing else.

        A PUBCOMP for a message that was not received completely would be a lie; the client really has it not.
        """
        peer = self.peers[which]
        if peer.is_in and not self._owes(peer, packet):
            peer.send(packet)

    @staticmethod
    def _owes(peer, packet):
        """Whether the server could take the packet for a true answer."""
        session = peer.link.connection.session if peer.is_linked else None
        flow = session._out._flows.get(packet.packet_id) if session else None
        wanted = {1: Puback, 2: Pubcomp}
        return flow is not None and isinstance(packet, wanted[flow.qos])

    @rule()
    def hold(self):
        """Let the disk be slow from now on."""
        self.gateway.state.gate.clear()

    @rule()
    def hold_after_next(self):
        """Let one more write through: a crash then comes between that one and what follows from it."""
        self.gateway.state.holds_after_next = True

    @precondition(lambda self: not self.gateway.state.gate.is_set())
    @rule()
    def resume(self):
        """Let the disk go on."""
        self.gateway.state.gate.set()

    @rule()
    def crash(self):
        """Kill the gateway, and start it again on what it had written."""
        self.gateway = Gateway(self.loop, self.gateway.crash())

    def rest(self):
        """Let everything finish."""
        self.gateway.state.holds_after_next = False
        self.gateway.state.gate.set()
        for _ in range(400):
            self.gateway.settle()
            busy = False
            for peer in self.peers:
                if not peer.is_linked:
                    peer.dial(self.gateway)
                    busy = True
                while peer.is_linked and peer.link.packets:
                    peer.read_one()
                    busy = True
            if not busy:
                return
        raise AssertionError("it never comes to rest")

    def teardown(self):
        """What must hold in the end."""
        try:
            self.rest()
            for peer in self.peers:
                assert not peer.sending
                assert not peer.received
                self.check(peer.got)
            assert not [key for key in self.gateway.state.values if "/out/" in key or "/in/" in key]
        finally:
            self.gateway.crash()
            self.loop.close()

    def check(self, got):
        """Everything once, at QoS 1 at least; per sender and QoS in order of publishing."""
        counts = Counter(got)
        assert set(counts) == set(self.published)
        for sender in (b"a1", b"a2", b"b1", b"b2"):
            first = list(dict.fromkeys(each for each in got if each.startswith(sender)))
            assert first == [each for each in self.published if each.startswith(sender)]
        assert [each for each, count in counts.items() if each[1:2] == b"2" and count > 1] == []


Model.TestCase.settings = settings(max_examples=40 * SOAK, stateful_step_count=50, deadline=None)
TestModel = Model.TestCase
TestModel.__doc__ = "Whatever happens, nothing acknowledged is lost, and nothing at QoS 2 is seen twice."
