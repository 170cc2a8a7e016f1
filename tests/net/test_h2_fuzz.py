"""The `h2` package as a client that does anything a client may do, and then as one whose bytes are spoiled."""

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from merrow.settings import ConnectionLimits
from tests.net.http2_client import message
from tests.net.serving import MemoryConnection

pytestmark = pytest.mark.slow

LIMITS = ConnectionLimits(
    max_body_byte_size=100_000, max_write_buffer_byte_size=10_000, stream_window_byte_size=70_000, max_header_count=20
)
PATHS = (
    *("/", "/later", "/stream", "/hold", "/describe", "/empty", "/many"),
    *("/test.Echo/Unary", "/test.Echo/UnaryLater", "/test.Echo/UnaryHold", "/test.Echo/UnaryError"),
    *("/test.Echo/Stream", "/test.Echo/StreamLater", "/test.Echo/StreamMany", "/test.Echo/StreamSlow", "/nothing/X"),
)
BODIES = st.sampled_from(
    [b"", b"a", message(b"abc"), message(b"abc") * 3, message(b"x" * 20_000), bytes(70_000), b"\1" * 9]
)
STEPS = st.one_of(
    st.tuples(st.just("open"), st.sampled_from(PATHS), st.booleans()),
    st.tuples(st.just("data"), st.integers(0, 5), BODIES, st.booleans()),
    st.tuples(st.just("reset"), st.integers(0, 5)),
    st.tuples(st.just("window"), st.integers(0, 5), st.integers(1, 2**20)),
    st.tuples(st.just("settings"), st.integers(0, 2**20), st.integers(2**14, 2**20)),
    st.tuples(st.just("ping")),
    st.tuples(st.just("trailers"), st.integers(0, 5)),
    st.tuples(st.just("acknowledge")),
    st.tuples(st.just("answer")),
    st.tuples(st.just("sweep")),
)


class Conversation:
    """An h2 client and our connection, byte for byte."""

    def __init__(self):
        self.server = MemoryConnection(LIMITS)
        self.client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        self.client.initiate_connection()
        self.streams = []
        self.unacknowledged = []
        self.is_over = False

    def take(self, step):
        """Do one step as far as the protocol allows it, and exchange what there is to say."""
        kind, *arguments = step
        try:
            getattr(self, kind)(*arguments)
        except (h2.exceptions.ProtocolError, LookupError):
            # What h2 itself would not send.
            pass
        self.exchange(self.client.data_to_send())

    def exchange(self, data):
        if not self.server.transport.is_closing and not self.is_over:
            self.server.receive(data)
            self.server.loop.run()
        for event in self.client.receive_data(self.server.written()):
            if isinstance(event, h2.events.DataReceived):
                self.unacknowledged.append((event.flow_controlled_length, event.stream_id))
            elif isinstance(event, h2.events.ConnectionTerminated):
                self.is_over = True
        protocol = self.server.protocol
        if hasattr(protocol, "http2"):
            protocol.http2.check_invariants()

    def open(self, path, ends):
        stream_id = self.client.get_next_available_stream_id()
        fields = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "h")]
        if "." in path or "nothing" in path:
            fields += [("te", "trailers"), ("content-type", "application/grpc")]
        self.client.send_headers(stream_id, fields, end_stream=ends)
        self.streams.append(stream_id)

    def data(self, index, body, ends):
        stream_id = self.streams[-1 - index]
        room = min(self.client.local_flow_control_window(stream_id), len(body))
        for start in range(0, max(room, 1), self.client.max_outbound_frame_size):
            piece = body[start : min(start + self.client.max_outbound_frame_size, room)]
            self.client.send_data(stream_id, piece, end_stream=ends and start + len(piece) >= room)

    def reset(self, index):
        self.client.reset_stream(self.streams[-1 - index], 8)

    def window(self, index, increment):
        self.client.increment_flow_control_window(increment, self.streams[-1 - index] if index else None)

    def settings(self, window, frame_byte_size):
        self.client.update_settings({4: window, 5: frame_byte_size})

    def ping(self):
        self.client.ping(b"12345678")

    def trailers(self, index):
        self.client.send_headers(self.streams[-1 - index], [("a", "b")], end_stream=True)

    def acknowledge(self):
        unacknowledged, self.unacknowledged = self.unacknowledged, []
        for byte_size, stream_id in unacknowledged:
            self.client.acknowledge_received_data(byte_size, stream_id)

    def answer(self):
        held = self.server.application.held.pop()
        if hasattr(held, "respond"):
            held.respond(200, (), (b"answer",))
        else:
            held.reply((b"answer",))

    def sweep(self):
        self.server.sweep(self.server.now_ns + 10**9)


@given(st.lists(STEPS, max_size=30))
@settings(max_examples=80, deadline=None)
def test_whatever_a_client_does_h2_understands_the_answers(steps):
    conversation = Conversation()
    for step in steps:
        conversation.take(step)
    for _ in range(5):
        conversation.take(("acknowledge",))
    conversation.server.lose()


@given(
    st.lists(STEPS, max_size=8),
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=5),
)
@settings(max_examples=80, deadline=None)
def test_spoiled_bytes_end_the_connection_or_nothing(steps, changes):
    """No exception, and no broken invariant."""
    conversation = Conversation()
    sent = bytearray()

    def collect(data):
        sent.extend(data)

    conversation.exchange = collect
    for step in steps:
        conversation.take(step)
    for position, value in changes:
        if sent:
            sent[position % len(sent)] = value
    server = conversation.server
    for start in range(0, len(sent), 777):
        if not server.transport.is_closing and server.transport.is_reading:
            server.receive(bytes(sent[start : start + 777]))
            server.loop.run()
            server.written()
    if hasattr(server.protocol, "http2"):
        server.protocol.http2.check_invariants()
    server.sweep(100 * 10**9)
    server.lose()
