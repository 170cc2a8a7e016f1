import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from hypothesis import given, settings
from hypothesis import strategies as st

from merrow.settings import ConnectionLimits
from merrow.wire.http2 import frames
from merrow.wire.http2.connection import ServerConnection
from merrow.wire.http2.frames import ErrorCode, Setting
from merrow.wire.http2.header_block import encode_fields, encode_status
from merrow.wire.http2.sender import ReplyTemplate
from tests.wire.http2.recording import GET, POST, RecordingHandler, Wire, data_frame, frame, split_frames

TEMPLATE = ReplyTemplate(encode_status(200), encode_fields([(b"grpc-status", b"0")]))
SECOND = 10**9


# The beginning


def test_the_server_begins_with_its_settings_and_a_larger_window():
    wire = Wire(ConnectionLimits(stream_window_byte_size=100_000, max_frame_byte_size=20_000), has_greeted=False)

    first, second = wire.sent()

    assert first[:3] == (frames.SETTINGS, 0, 0)
    assert dict(frames.decode_settings(first[3])) == {
        Setting.MAX_CONCURRENT_STREAMS: 1024,
        Setting.INITIAL_WINDOW_SIZE: 100_000,
        Setting.MAX_FRAME_SIZE: 20_000,
        Setting.MAX_HEADER_LIST_SIZE: 65536,
    }
    assert second == (frames.WINDOW_UPDATE, 0, 0, (400_000 - 65535).to_bytes(4, "big"))


def test_limits_below_the_protocols_own_are_raised_to_it():
    wire = Wire(ConnectionLimits(stream_window_byte_size=1, max_frame_byte_size=1), has_greeted=False)

    settings = dict(frames.decode_settings(wire.sent()[0][3]))

    assert (settings[Setting.INITIAL_WINDOW_SIZE], settings[Setting.MAX_FRAME_SIZE]) == (65535, 16384)


def test_settings_are_acknowledged():
    wire = Wire(has_greeted=False)
    wire.sent()

    wire.receive(frames.PREFACE + frames.encode_settings({Setting.ENABLE_PUSH: 0}))

    assert wire.sent() == [(frames.SETTINGS, frames.FLAG_ACK, 0, b"")]
    assert not wire.connection.is_in_frame


@pytest.mark.parametrize(
    "preface", [b"GET / HTTP/1.1\r\n\r\n", frames.PREFACE[:-1] + b"x", b"PRI * HTTP/2.0\r\n\r\nXX"]
)
def test_another_preface_is_a_fault(preface):
    wire = Wire(has_greeted=False)

    wire.receive(preface)

    assert wire.goaway() == (ErrorCode.PROTOCOL_ERROR, "invalid connection preface")


@pytest.mark.parametrize(
    "first", [frames.encode_ping(bytes(8), is_ack=False), frames.SETTINGS_ACK, data_frame(1, b"a")]
)
def test_the_first_frame_must_be_settings(first):
    wire = Wire(has_greeted=False)

    wire.receive(frames.PREFACE + first)

    assert wire.goaway() == (ErrorCode.PROTOCOL_ERROR, "the first frame is not SETTINGS")


# Requests


def test_a_request_in_pieces():
    wire = Wire()

    wire.receive(wire.headers(1))
    wire.receive(data_frame(1, b"ab"))
    wire.receive(data_frame(1, b"c", end=True))

    assert wire.events == [("request", 1, b"/x"), ("end", 1, b"abc")]
    assert wire.handler.streams[1].is_remote_closed


def test_a_request_without_a_body_is_whole():
    wire = Wire()

    wire.receive(wire.headers(1, GET, end=True))

    assert wire.events == [("request", 1, b"/x"), ("end", 1, b"")]


def repeated_requests(wire, count):
    """One chunk of `count` requests with bodies; from the third on, their header blocks are known."""
    return b"".join(
        wire.headers(2 * number + 1) + data_frame(2 * number + 1, b"%d" % number, end=True) for number in range(count)
    )


def test_known_heads_take_the_straight_way_and_mean_the_same():
    wire = Wire()

    wire.receive(repeated_requests(wire, 5))

    expected = []
    for number in range(5):
        expected += [("request", 2 * number + 1, b"/x"), ("end", 2 * number + 1, b"%d" % number)]
    assert wire.events == expected
    # Planned when the table was filled, and when the head was first indexed; known after that.
    assert len(wire.handler.planned) == 2


def test_a_known_head_whose_data_is_elsewhere():
    wire = Wire()
    wire.receive(repeated_requests(wire, 3))
    wire.events.clear()

    wire.receive(wire.headers(7))
    assert wire.events == [("request", 7, b"/x")]
    wire.receive(wire.headers(9) + data_frame(7, b"7", end=True) + data_frame(9, b"9", end=False))
    wire.receive(data_frame(9, b"9", end=True))

    assert wire.events[1:] == [("request", 9, b"/x"), ("end", 7, b"7"), ("end", 9, b"99")]


def test_a_large_body_is_handed_on_as_a_view():
    wire = Wire()
    wire.receive(repeated_requests(wire, 3))
    bodies = []
    plan = wire.handler
    plan.serve_whole = lambda stream, body: bodies.append(body) or plan.serve(stream)

    wire.receive(wire.headers(7) + data_frame(7, b"x" * 20_000, end=True))

    assert isinstance(bodies[0], memoryview)
    assert bodies[0] == b"x" * 20_000


def exchange_bytes():
    """Bytes of a connection with all kinds of frames, and the events that they make."""
    wire = Wire(has_greeted=False)
    data = frames.PREFACE + frames.encode_settings({Setting.INITIAL_WINDOW_SIZE: 70_000, 99: 1})
    data += repeated_requests(wire, 4)
    data += wire.headers(9, POST, ("content-length", "6"))
    data += frame(frames.DATA, frames.FLAG_PADDED, 9, b"\x05abc" + bytes(5))
    data += frames.encode_ping(b"12345678", is_ack=False)
    data += frame(frames.DATA, frames.FLAG_PADDED | frames.FLAG_END_STREAM, 9, b"\0def")
    data += frame(0x55, 0xFF, 9, b"unknown") + frame(frames.PRIORITY, 0, 11, bytes(5))
    block = wire.encoder.encode([*POST, ("a", "b" * 50)])
    data += frame(
        frames.HEADERS, frames.FLAG_PRIORITY | frames.FLAG_PADDED, 11, b"\x03" + bytes(5) + block[:9] + bytes(3)
    )
    data += frame(frames.CONTINUATION, 0, 11, block[9:20])
    data += frame(frames.CONTINUATION, frames.FLAG_END_HEADERS, 11, block[20:])
    data += data_frame(11, b"xyz") + frame(frames.DATA, 0, 11, b"")
    data += wire.headers(11, [("trailer", "t")], end=True)
    data += frames.encode_window_update(0, 1000) + frames.encode_window_update(9, 1000)
    data += wire.headers(13) + frames.encode_rst_stream(13, ErrorCode.CANCEL)
    data += frames.encode_goaway(0, ErrorCode.NO_ERROR, "bye")
    events = []
    for number in range(4):
        events += [("request", 2 * number + 1, b"/x"), ("end", 2 * number + 1, b"%d" % number)]
    events += [("request", 9, b"/x"), ("end", 9, b"abcdef"), ("request", 11, b"/x"), ("end", 11, b"xyz")]
    events += [("request", 13, b"/x"), ("reset", 13)]
    return data, events


def test_all_kinds_of_frames_at_once():
    data, events = exchange_bytes()
    wire = Wire(has_greeted=False)

    wire.receive(data)

    assert wire.events == events
    assert not wire.connection.is_closed
    assert not wire.connection.is_in_frame


def test_bytes_may_come_one_by_one():
    data, events = exchange_bytes()
    wire = Wire(has_greeted=False)

    for position in range(len(data)):
        wire.receive(data[position : position + 1])

    assert wire.events == events
    assert not wire.connection.is_closed


def test_bytes_may_be_cut_anywhere():
    data, events = exchange_bytes()
    for cut in range(0, len(data), 7):
        wire = Wire(has_greeted=False)
        wire.receive(data[:cut])
        wire.receive(data[cut:])

        assert wire.events == events


def test_a_connection_that_stops_inside_a_frame_says_so():
    wire = Wire()
    assert not wire.connection.is_in_frame

    wire.receive(wire.headers(1)[:-1])

    assert wire.connection.is_in_frame


# Bodies that are received into their place


def wire_with_place(byte_size):
    wire = Wire()
    wire.receive(wire.headers(1))
    receiver = wire.handler.streams[1].receiver
    receiver.place = bytearray(byte_size)
    return wire, receiver


def test_the_rest_of_a_frame_may_be_written_into_its_place():
    wire, receiver = wire_with_place(100)
    assert wire.connection.payload.direct_view(1) is None
    assert wire.connection.is_between_frames

    wire.receive(data_frame(1, b"a" * 50, end=True)[:19])
    view = wire.connection.payload.direct_view(10)
    assert len(view) == 40
    view[:30] = b"b" * 30
    wire.connection.advance_direct(30, 5)
    assert wire.connection.payload.direct_view(11) is None
    view = wire.connection.payload.direct_view(10)
    view[:] = b"c" * 10
    wire.connection.advance_direct(10, 6)

    assert receiver.body == b"a" * 10
    assert receiver.place[:40] == b"b" * 30 + b"c" * 10
    assert wire.events[-1] == ("end", 1, b"a" * 10)
    assert wire.connection.is_between_frames
    assert wire.connection.last_received_ns == 6


def test_a_place_may_be_smaller_than_the_frame():
    wire, receiver = wire_with_place(20)

    wire.receive(data_frame(1, b"a" * 50)[:9])
    assert len(wire.connection.payload.direct_view(1)) == 20
    wire.connection.advance_direct(20, 0)
    receiver.place = None
    assert wire.connection.payload.direct_view(1) is None
    wire.receive(b"b" * 30 + wire.headers(1, [("a", "b")], end=True))

    assert wire.events[-1] == ("end", 1, b"b" * 30)


def test_padding_has_no_place():
    wire, _ = wire_with_place(20)

    wire.receive(
        frame(frames.DATA, frames.FLAG_PADDED | frames.FLAG_END_STREAM, 1, b"\x03" + b"a" * 20 + bytes(3))[:10]
    )
    assert len(wire.connection.payload.direct_view(1)) == 20
    wire.connection.advance_direct(20, 0)
    assert wire.events == [("request", 1, b"/x")]
    assert wire.connection.payload.direct_view(1) is None
    wire.receive(bytes(3))

    assert wire.events[-1] == ("end", 1, b"")


def test_a_stream_that_is_reset_has_no_place():
    wire, _ = wire_with_place(100)
    wire.receive(data_frame(1, b"a" * 50)[:9])

    wire.connection.sender.reset_stream(wire.handler.streams[1], ErrorCode.CANCEL)

    assert wire.connection.payload.direct_view(1) is None


# Requests that are wrong


def malformed_requests():
    yield "upper-case name", [*POST, ("A", "b")]
    yield "connection header", [*POST, ("connection", "close")]
    yield "no path", [(":method", "GET"), (":scheme", "http")]
    yield "bad length", [*POST, ("content-length", "x")]


@pytest.mark.parametrize(("name", "fields"), list(malformed_requests()))
def test_a_malformed_request_is_reset(name, fields):
    wire = Wire()

    wire.receive(wire.headers(1, fields) + data_frame(1, b"ignored", end=True))

    assert wire.reset_code() == ErrorCode.PROTOCOL_ERROR
    assert wire.events == []
    assert not wire.connection.is_closed


def test_a_body_longer_than_announced_is_reset():
    wire = Wire()

    wire.receive(wire.headers(1, POST, ("content-length", "3")) + data_frame(1, b"abcd"))

    assert wire.reset_code() == ErrorCode.PROTOCOL_ERROR
    assert wire.events == [("request", 1, b"/x"), ("reset", 1)]


def test_a_body_shorter_than_announced_is_reset():
    wire = Wire()

    wire.receive(wire.headers(1, POST, ("content-length", "3")) + data_frame(1, b"ab", end=True))

    assert wire.reset_code() == ErrorCode.PROTOCOL_ERROR
    assert wire.events == [("request", 1, b"/x"), ("reset", 1)]


def test_a_known_head_with_a_body_of_another_length_is_reset():
    wire = Wire()
    fields = [*POST, ("content-length", "3")]
    wire.receive(b"".join(wire.headers(i, fields) + data_frame(i, b"abc", end=True) for i in (1, 3, 5)))
    wire.events.clear()

    wire.receive(wire.headers(7, fields) + data_frame(7, b"ab", end=True))

    assert wire.reset_code() == ErrorCode.PROTOCOL_ERROR
    assert wire.events == [("request", 7, b"/x"), ("reset", 7)]


def test_trailers_before_the_announced_end_of_the_body_are_reset():
    wire = Wire()

    wire.receive(wire.headers(1, POST, ("content-length", "3")) + wire.headers(1, [("a", "b")], end=True))

    assert wire.reset_code() == ErrorCode.PROTOCOL_ERROR


def test_an_announced_body_that_is_no_body_is_reset():
    wire = Wire()

    wire.receive(wire.headers(1, POST, ("content-length", "3"), end=True))

    assert wire.reset_code() == ErrorCode.PROTOCOL_ERROR
    assert wire.events == []


@pytest.mark.parametrize(("fields", "end"), [([("a", "b")], False), ([("A", "b")], True), ([(":path", "/")], True)])
def test_malformed_trailers_are_reset(fields, end):
    wire = Wire()

    wire.receive(wire.headers(1) + wire.headers(1, fields, end=end))

    assert wire.reset_code() == ErrorCode.PROTOCOL_ERROR
    assert wire.events == [("request", 1, b"/x"), ("reset", 1)]


def test_a_head_over_its_limit_is_the_handlers_to_answer():
    wire = Wire(ConnectionLimits(max_header_count=5))

    wire.receive(wire.headers(1, POST, ("a", "b"), ("c", "d"), end=True))

    assert wire.handler.planned[0].is_too_large
    assert not wire.connection.is_closed


# Faults of the connection


def header_start(length, kind, flags, stream_id):
    return frames.encode_frame_header(length, kind, flags, stream_id)


# The window of stream 1 as wide as it may be.
WIDE = frames.encode_window_update(1, 2**31 - 65536)

FAULTS = [
    ("a frame over the limit", header_start(300_000, 0, 0, 1), ErrorCode.FRAME_SIZE_ERROR),
    ("DATA on the connection", data_frame(0, b"a"), ErrorCode.PROTOCOL_ERROR),
    ("DATA on an idle stream", data_frame(5, b"a"), ErrorCode.PROTOCOL_ERROR),
    ("DATA on a stream of the server's", data_frame(2, b"a"), ErrorCode.PROTOCOL_ERROR),
    ("padding longer than DATA", frame(0, frames.FLAG_PADDED, 1, b"\x04abc"), ErrorCode.PROTOCOL_ERROR),
    ("padded DATA without a length", frame(0, frames.FLAG_PADDED, 1, b""), ErrorCode.PROTOCOL_ERROR),
    ("padding longer than HEADERS", frame(1, frames.FLAG_PADDED | 4, 3, b"\x04abc"), ErrorCode.PROTOCOL_ERROR),
    ("padded HEADERS without a length", frame(1, frames.FLAG_PADDED | 4, 3, b""), ErrorCode.FRAME_SIZE_ERROR),
    ("HEADERS shorter than a priority", frame(1, frames.FLAG_PRIORITY | 4, 3, b"abc"), ErrorCode.PROTOCOL_ERROR),
    ("HEADERS on the connection", frame(1, 4, 0, b"\x82"), ErrorCode.PROTOCOL_ERROR),
    ("HEADERS on a stream of the server's", frame(1, 4, 2, b"\x82"), ErrorCode.PROTOCOL_ERROR),
    ("a broken header block", frame(1, 4, 3, b"\xff\xff\xff\xff\xff\xff\xff"), ErrorCode.COMPRESSION_ERROR),
    ("broken trailers", frame(1, 5, 1, b"\xff\xff\xff\xff\xff\xff\xff"), ErrorCode.COMPRESSION_ERROR),
    ("PRIORITY on the connection", frame(2, 0, 0, bytes(5)), ErrorCode.PROTOCOL_ERROR),
    ("PRIORITY of another size", frame(2, 0, 1, bytes(4)), ErrorCode.FRAME_SIZE_ERROR),
    ("RST_STREAM on an idle stream", frame(3, 0, 3, bytes(4)), ErrorCode.PROTOCOL_ERROR),
    ("RST_STREAM on the connection", frame(3, 0, 0, bytes(4)), ErrorCode.PROTOCOL_ERROR),
    ("RST_STREAM of another size", frame(3, 0, 1, bytes(5)), ErrorCode.FRAME_SIZE_ERROR),
    ("SETTINGS on a stream", frame(4, 0, 1, b""), ErrorCode.PROTOCOL_ERROR),
    ("SETTINGS of another size", frame(4, 0, 0, bytes(5)), ErrorCode.FRAME_SIZE_ERROR),
    ("endless SETTINGS", frame(4, 0, 0, bytes(6 * 129)), ErrorCode.FRAME_SIZE_ERROR),
    ("an acknowledgement with a payload", frame(4, 1, 0, bytes(6)), ErrorCode.FRAME_SIZE_ERROR),
    ("ENABLE_PUSH of 2", frames.encode_settings({2: 2}), ErrorCode.PROTOCOL_ERROR),
    ("a window of 2^31", frames.encode_settings({4: 2**31}), ErrorCode.FLOW_CONTROL_ERROR),
    ("frames of 16383", frames.encode_settings({5: 16383}), ErrorCode.PROTOCOL_ERROR),
    ("frames of 2^24", frames.encode_settings({5: 2**24}), ErrorCode.PROTOCOL_ERROR),
    ("PUSH_PROMISE", frame(5, 4, 1, bytes(4)), ErrorCode.PROTOCOL_ERROR),
    ("PING on a stream", frame(6, 0, 1, bytes(8)), ErrorCode.PROTOCOL_ERROR),
    ("PING of another size", frame(6, 0, 0, bytes(7)), ErrorCode.FRAME_SIZE_ERROR),
    ("GOAWAY on a stream", frame(7, 0, 1, bytes(8)), ErrorCode.PROTOCOL_ERROR),
    ("GOAWAY of another size", frame(7, 0, 0, bytes(7)), ErrorCode.FRAME_SIZE_ERROR),
    ("WINDOW_UPDATE by 0", frame(8, 0, 0, bytes(4)), ErrorCode.PROTOCOL_ERROR),
    ("a window over 2^31-1", frames.encode_window_update(0, 2**31 - 1), ErrorCode.FLOW_CONTROL_ERROR),
    ("WINDOW_UPDATE on an idle stream", frames.encode_window_update(3, 5), ErrorCode.PROTOCOL_ERROR),
    ("WINDOW_UPDATE of another size", frame(8, 0, 1, bytes(5)), ErrorCode.FRAME_SIZE_ERROR),
    ("CONTINUATION on its own", frame(9, 4, 1, b""), ErrorCode.PROTOCOL_ERROR),
    ("a frame inside a header block", frame(1, 0, 3, b"\x82") + data_frame(1, b"a"), ErrorCode.PROTOCOL_ERROR),
    ("an unknown frame inside one", frame(1, 0, 3, b"\x82") + frame(77, 0, 3), ErrorCode.PROTOCOL_ERROR),
    ("CONTINUATION of another stream", frame(1, 0, 3, b"\x82") + frame(9, 4, 1), ErrorCode.PROTOCOL_ERROR),
    ("SETTINGS that overflow a window", WIDE + frames.encode_settings({4: 70_000}), ErrorCode.FLOW_CONTROL_ERROR),
]  # fmt: skip


@pytest.mark.parametrize(("name", "data", "code"), FAULTS, ids=[fault[0] for fault in FAULTS])
def test_a_fault_ends_the_connection_and_every_stream(name, data, code):
    wire = Wire()
    wire.receive(wire.headers(1))

    wire.receive(data)

    assert wire.goaway()[0] == code
    assert wire.events == [("request", 1, b"/x"), ("reset", 1)]
    assert wire.connection.streams == {}
    wire.receive(wire.headers(3))
    assert wire.sent() == []


def test_goaway_names_the_last_stream_and_the_reason():
    wire = Wire()
    wire.receive(wire.headers(7))

    wire.receive(frames.encode_window_update(0, 0))

    assert wire.sent()[-1] == (
        frames.GOAWAY,
        0,
        0,
        (7).to_bytes(4, "big") + (1).to_bytes(4, "big") + b"WINDOW_UPDATE by 0",
    )


def test_headers_and_data_on_a_stream_that_the_client_has_ended():
    for late in (lambda wire: data_frame(1, b"a"), lambda wire: wire.headers(1, [("a", "b")], end=True)):
        wire = Wire()
        wire.receive(wire.headers(1, GET, end=True))
        wire.connection.sender.send_headers(wire.handler.streams[1], encode_status(200), ends_stream=True)
        wire.receive(late(wire))

        assert wire.goaway()[0] == ErrorCode.STREAM_CLOSED


def test_data_after_the_end_of_a_request_that_is_being_answered_resets_it():
    wire = Wire()
    wire.receive(wire.headers(1, GET, end=True))

    wire.receive(data_frame(1, b"a"))

    assert wire.reset_code() == ErrorCode.STREAM_CLOSED
    assert wire.events[-1] == ("reset", 1)


def test_a_stream_id_may_not_go_back():
    wire = Wire()
    wire.receive(wire.headers(5, GET, end=True))

    wire.receive(wire.headers(3, GET, end=True))

    assert wire.goaway()[0] == ErrorCode.STREAM_CLOSED


@pytest.mark.parametrize(
    ("increment", "code"), [(0, ErrorCode.PROTOCOL_ERROR), (2**31 - 1, ErrorCode.FLOW_CONTROL_ERROR)]
)
def test_a_wrong_window_update_of_a_stream_resets_it_only(increment, code):
    wire = Wire()
    wire.receive(wire.headers(1))

    wire.receive(frames.encode_window_update(1, increment))

    assert wire.reset_code() == code
    assert wire.events[-1] == ("reset", 1)


def test_late_frames_for_a_closed_stream_are_ignored():
    wire = Wire()
    wire.receive(wire.headers(1, GET, end=True))
    wire.connection.sender.send_headers(wire.handler.streams[1], encode_status(200), ends_stream=True)
    wire.sent()

    wire.receive(frames.encode_window_update(1, 10) + frames.encode_rst_stream(1, ErrorCode.CANCEL))

    assert wire.sent() == []
    assert not wire.connection.is_closed


# Windows


def test_windows_are_restored_when_half_is_used():
    wire = Wire(ConnectionLimits(stream_window_byte_size=100_000))
    wire.receive(wire.headers(1))

    wire.receive(data_frame(1, bytes(50_000)))
    assert wire.sent() == []
    wire.receive(data_frame(1, bytes(1)))
    assert wire.sent() == [(frames.WINDOW_UPDATE, 0, 1, (50_001).to_bytes(4, "big"))]
    for _ in range(3):
        wire.receive(data_frame(1, bytes(50_001)))
    assert [sent[2] for sent in wire.sent()] == [1, 1, 0, 1]


def test_a_stream_that_ends_needs_no_window():
    wire = Wire(ConnectionLimits(stream_window_byte_size=100_000))
    wire.receive(wire.headers(1))

    wire.receive(data_frame(1, bytes(60_000), end=True))

    assert wire.sent() == []


def test_more_data_than_a_streams_window_resets_it():
    wire = Wire(ConnectionLimits(stream_window_byte_size=100_000))
    wire.receive(wire.headers(1))
    wire.connection.pause_receiving(wire.handler.streams[1])
    wire.receive(data_frame(1, bytes(100_000)))
    assert wire.sent() == []

    wire.receive(data_frame(1, b"a"))

    assert wire.reset_code() == ErrorCode.FLOW_CONTROL_ERROR


def test_a_paused_stream_gets_its_window_when_it_goes_on():
    wire = Wire(ConnectionLimits(stream_window_byte_size=100_000))
    wire.receive(wire.headers(1))
    stream = wire.handler.streams[1]
    wire.connection.pause_receiving(stream)
    wire.receive(data_frame(1, bytes(70_000)))
    assert wire.sent() == []

    wire.connection.resume_receiving(stream)

    assert wire.sent() == [(frames.WINDOW_UPDATE, 0, 1, (70_000).to_bytes(4, "big"))]


def test_data_for_reset_streams_counts_for_the_connections_window():
    wire = Wire(ConnectionLimits(stream_window_byte_size=65535))
    wire.receive(wire.headers(1))
    wire.connection.sender.reset_stream(wire.handler.streams[1], ErrorCode.CANCEL)
    wire.sent()

    for _ in range(9):
        wire.receive(data_frame(1, bytes(16_384)))

    assert [sent[:3] for sent in wire.sent()] == [(frames.WINDOW_UPDATE, 0, 0)]


def test_known_requests_restore_the_connections_window():
    wire = Wire(ConnectionLimits(stream_window_byte_size=65535))
    body = bytes(10_000)
    for stream_id in range(1, 41, 2):
        wire.receive(wire.headers(stream_id) + data_frame(stream_id, body, end=True))

    assert [sent[:3] for sent in wire.sent()] == [(frames.WINDOW_UPDATE, 0, 0)]


# Bounds


def test_streams_over_the_limit_are_refused():
    wire = Wire(ConnectionLimits(max_concurrent_streams=2))

    wire.receive(b"".join(wire.headers(stream_id, GET, end=True) for stream_id in (1, 3, 5)))

    assert wire.sent() == [(frames.RST_STREAM, 0, 5, ErrorCode.REFUSED_STREAM.to_bytes(4, "big"))]
    wire.connection.sender.send_headers(wire.handler.streams[1], encode_status(200), ends_stream=True)
    wire.receive(wire.headers(7, GET, end=True))
    assert 7 in wire.handler.streams
    # What was refused may still be talked about.
    wire.receive(data_frame(5, b"a", end=True))
    assert not wire.connection.is_closed


def test_rapid_resets_end_the_connection():
    wire = Wire(ConnectionLimits(max_resets_per_second=100))

    for stream_id in range(1, 201, 2):
        wire.receive(wire.headers(stream_id) + frames.encode_rst_stream(stream_id, ErrorCode.CANCEL))
    assert not wire.connection.is_closed
    wire.receive(wire.headers(201) + frames.encode_rst_stream(201, ErrorCode.CANCEL))

    assert wire.goaway() == (ErrorCode.ENHANCE_YOUR_CALM, "too many stream resets")


def test_resets_within_the_rate_do_not():
    wire = Wire(ConnectionLimits(max_resets_per_second=100))

    for stream_id in range(1, 2001, 2):
        wire.now_ns += SECOND // 100
        wire.receive(wire.headers(stream_id) + frames.encode_rst_stream(stream_id, ErrorCode.CANCEL))

    assert not wire.connection.is_closed


def test_resets_that_the_client_provokes_count_too():
    wire = Wire(ConnectionLimits(max_resets_per_second=100))

    for stream_id in range(1, 203, 2):
        wire.receive(wire.headers(stream_id) + frames.encode_window_update(stream_id, 0))

    assert wire.goaway() == (ErrorCode.ENHANCE_YOUR_CALM, "too many stream resets")


FLOODS = {
    "PING": frames.encode_ping(bytes(8), is_ack=False),
    "PING acknowledgements": frames.encode_ping(bytes(8), is_ack=True),
    "SETTINGS": frames.encode_settings({}),
    "empty DATA": data_frame(1, b""),
    "padding": frame(frames.DATA, frames.FLAG_PADDED, 1, b"\x01\0"),
    "PRIORITY": frame(frames.PRIORITY, 0, 1, bytes(5)),
    "small WINDOW_UPDATE": frames.encode_window_update(0, 1),
    "unknown frames": frame(0x77, 0, 0),
    "GOAWAY": frames.encode_goaway(0, ErrorCode.NO_ERROR),
    "RST_STREAM of a closed stream": frames.encode_rst_stream(1, ErrorCode.CANCEL),
}


@pytest.mark.parametrize("name", FLOODS)
def test_floods_of_control_frames_end_the_connection(name):
    wire = Wire(ConnectionLimits(max_control_frames_per_second=100))
    wire.receive(wire.headers(1))

    wire.receive(FLOODS[name] * 90)
    assert not wire.connection.is_closed
    wire.receive(FLOODS[name] * 30)

    assert wire.goaway() == (ErrorCode.ENHANCE_YOUR_CALM, "too many control frames")


def test_control_frames_in_proportion_to_requests_are_no_flood():
    wire = Wire(ConnectionLimits(max_control_frames_per_second=100))

    for stream_id in range(1, 1001, 2):
        wire.receive(wire.headers(stream_id, GET, end=True))
        wire.connection.sender.send_headers(wire.handler.streams[stream_id], encode_status(200), ends_stream=True)
        wire.receive(FLOODS["PING"] * 2 + FLOODS["small WINDOW_UPDATE"] * 2)

    assert not wire.connection.is_closed


def test_control_frames_in_proportion_to_the_messages_of_a_stream_are_no_flood():
    wire = Wire(ConnectionLimits(max_control_frames_per_second=100))
    wire.receive(wire.headers(1, POST))
    stream = wire.handler.streams[1]
    wire.connection.sender.send_headers(stream, encode_status(200))

    # As grpc's C core does it: small answers are read in a burst, and acknowledged one by one.
    for _ in range(250):
        wire.receive(frame(frames.DATA, 0, 1, b"message"))
        wire.connection.sender.send_data(stream, (b"answer",), 6)
    wire.receive((FLOODS["small WINDOW_UPDATE"] + FLOODS["PING"]) * 400)

    assert not wire.connection.is_closed


def test_control_frames_in_proportion_to_a_stream_are_no_flood():
    wire = Wire(ConnectionLimits(max_control_frames_per_second=100))
    wire.receive(wire.headers(1))

    for _ in range(500):
        wire.connection.sender.send_data(wire.handler.streams[1], [b"a"], 1)
        wire.receive(FLOODS["PING"] + frames.encode_window_update(0, 1) + frames.encode_window_update(1, 1))

    assert not wire.connection.is_closed


def test_window_updates_of_a_large_answer_are_no_flood():
    wire = Wire(ConnectionLimits(max_control_frames_per_second=100))

    wire.receive(frames.encode_window_update(0, 16_384) * 1000)

    assert not wire.connection.is_closed


def test_a_header_block_without_end_ends_the_connection():
    wire = Wire(ConnectionLimits(max_header_byte_size=10_000))

    wire.receive(frame(frames.HEADERS, 0, 1, bytes(6_000)) + frame(frames.CONTINUATION, 0, 1, bytes(6_000)))

    assert wire.goaway() == (ErrorCode.ENHANCE_YOUR_CALM, "header block too large")


def test_empty_continuations_are_counted():
    wire = Wire(ConnectionLimits(max_control_frames_per_second=100))

    wire.receive(frame(frames.HEADERS, 0, 1, b"\x82") + frame(frames.CONTINUATION, 0, 1) * 101)

    assert wire.goaway() == (ErrorCode.ENHANCE_YOUR_CALM, "too many control frames")


def test_a_large_headers_frame_is_refused_before_it_has_arrived():
    wire = Wire(ConnectionLimits(max_header_byte_size=10_000))

    wire.receive(header_start(20_000, frames.HEADERS, 4, 1))

    assert wire.goaway() == (ErrorCode.ENHANCE_YOUR_CALM, "header block too large")


def test_a_large_unknown_frame_is_not_kept():
    wire = Wire()

    wire.receive(header_start(200_000, 0x55, 0, 1) + bytes(100_000))
    wire.receive(bytes(100_000) + wire.headers(1, GET, end=True))

    assert wire.events == [("request", 1, b"/x"), ("end", 1, b"")]


# The end


def test_shutting_down_serves_what_the_client_had_sent():
    wire = Wire()
    wire.receive(wire.headers(1, GET, end=True))

    wire.connection.begin_shutdown()
    goaway, ping = wire.sent()
    assert goaway[3][:8] == (2**31 - 1).to_bytes(4, "big") + bytes(4)
    # Sent before the client heard of it.
    wire.receive(wire.headers(3, GET, end=True))
    assert 3 in wire.handler.streams
    wire.receive(frames.encode_ping(ping[3], is_ack=True))
    assert wire.connection.is_draining
    assert wire.sent()[0][3][:4] == (3).to_bytes(4, "big")
    wire.receive(wire.headers(5, GET, end=True))
    assert wire.sent() == [(frames.RST_STREAM, 0, 5, ErrorCode.REFUSED_STREAM.to_bytes(4, "big"))]
    for stream_id in (1, 3):
        wire.connection.sender.send_headers(wire.handler.streams[stream_id], encode_status(200), ends_stream=True)
    assert wire.connection.streams == {}
    assert not wire.connection.is_closed


def test_a_client_that_does_not_answer_is_told_once_more():
    wire = Wire()
    wire.connection.begin_shutdown()
    wire.sent()

    wire.connection.finish_shutdown()
    wire.connection.finish_shutdown()
    wire.connection.begin_shutdown()

    assert [kind for kind, *_ in wire.sent()] == [frames.GOAWAY]


def test_closing_tells_the_peer_and_the_receivers_once():
    wire = Wire()
    wire.receive(wire.headers(1))

    wire.connection.close(ErrorCode.NO_ERROR, "idle")
    wire.connection.close(ErrorCode.NO_ERROR, "idle")
    wire.connection.abandon()

    assert [kind for kind, *_ in wire.sent()] == [frames.GOAWAY]
    assert wire.events == [("request", 1, b"/x"), ("reset", 1)]


def test_a_lost_connection_tells_the_receivers():
    wire = Wire()
    wire.receive(wire.headers(1))

    wire.connection.abandon()

    assert wire.sent() == []
    assert wire.events == [("request", 1, b"/x"), ("reset", 1)]


def test_a_plan_may_close_the_connection():
    wire = Wire()
    wire.handler.serve_whole = lambda stream, body: (
        wire.handler.serve(stream),
        wire.connection.close(ErrorCode.NO_ERROR),
    )

    wire.receive(wire.headers(1, GET, end=True) + wire.headers(3, GET, end=True))

    assert wire.events == [("request", 1, b"/x"), ("reset", 1)]


# Against another implementation


class EchoHandler:
    """Answers each request with its body."""

    def plan_request(self, head):
        return self

    def serve(self, stream):
        stream.receiver = self
        self.pieces = []
        self.stream = stream

    def serve_whole(self, stream, body):
        stream.receiver = self
        self.connection.sender.send_reply(stream, TEMPLATE, b"", [body], len(body))

    def on_data(self, data):
        self.pieces.append(data)

    def body_view(self):
        return None

    def on_end(self):
        body = b"".join(self.pieces)
        self.connection.sender.send_reply(self.stream, TEMPLATE, b"", [body], len(body))

    def on_reset(self):
        pass

    def on_drained(self):
        pass


def test_python_h2_understands_the_server():
    handler = EchoHandler()
    server = handler.connection = ServerConnection(handler, ConnectionLimits(), 0)
    client = H2Connection(H2Configuration(client_side=True))
    client.initiate_connection()
    body = bytes(range(256)) * 1000
    received, ended = {}, set()
    for stream_id in (1, 3, 5, 7):
        client.send_headers(stream_id, [*POST, ("n", str(stream_id // 4))])
        rest = body[: stream_id * 30_000]
        while rest:
            sent = min(len(rest), client.local_flow_control_window(stream_id), client.max_outbound_frame_size)
            client.send_data(stream_id, rest[:sent], end_stream=sent == len(rest))
            rest = rest[sent:]
            exchange(client, server, received, ended)
    exchange(client, server, received, ended)

    assert ended == {1, 3, 5, 7}
    assert received == {stream_id: body[: stream_id * 30_000] for stream_id in (1, 3, 5, 7)}
    assert not server.is_closed


def exchange(client, server, received, ended):
    """Pass bytes to and fro until there are none."""
    while True:
        to_server = client.data_to_send()
        server.receive(to_server, 0)
        to_client = b"".join(server.sender.take_output())
        server.sender.pump()
        server.check_invariants()
        if not to_server and not to_client:
            return
        for event in client.receive_data(to_client):
            if type(event).__name__ == "DataReceived":
                received[event.stream_id] = received.get(event.stream_id, b"") + event.data
                client.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif type(event).__name__ == "StreamEnded":
                ended.add(event.stream_id)


# Anything at all

FRAME_BYTES = st.builds(
    frame,
    st.one_of(st.integers(0, 9), st.integers(0, 255)),
    st.integers(0, 255),
    st.one_of(st.integers(0, 9), st.integers(0, 2**32 - 1)),
    st.one_of(
        st.binary(max_size=40),
        st.sampled_from([bytes(4), bytes(8), b"\x82\x84\x86", b"\x83\x84\x86", b"\0\0\0\x01", b"\x7f\xff\xff\xff"]),
    ),
)


class FuzzedPlan(RecordingHandler):
    """Answers some requests at once, and others never."""

    def serve_whole(self, stream, body):
        super().serve_whole(stream, body)
        if stream.id % 4 == 1:
            self.connection.sender.send_reply(stream, TEMPLATE, b"", [body], len(body))


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.lists(FRAME_BYTES, max_size=25), st.integers(1, 50))
def test_no_frames_raise_or_break_an_invariant(sequence, piece):
    check_survives(frames.PREFACE + frames.encode_settings({}) + b"".join(sequence), piece)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300), st.integers(1, 50))
def test_no_bytes_raise_or_break_an_invariant(data, piece):
    check_survives(frames.PREFACE + frames.encode_settings({}) + data, piece)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(st.data())
def test_no_change_of_good_bytes_raises_or_breaks_an_invariant(draw):
    data = bytearray(exchange_bytes()[0])
    for _ in range(draw.draw(st.integers(1, 4))):
        position = draw.draw(st.integers(len(frames.PREFACE), len(data) - 1))
        data[position] = draw.draw(st.integers(0, 255))
    check_survives(bytes(data), draw.draw(st.integers(1, 200)))


def check_survives(data, piece):
    handler = FuzzedPlan()
    connection = handler.connection = ServerConnection(handler, ConnectionLimits(), 0)
    for position in range(0, len(data), piece):
        connection.receive(data[position : position + piece], position)
        connection.check_invariants()
        split_frames(b"".join(connection.sender.take_output()))
    opened = {event[1] for event in handler.events if event[0] == "request"}
    reset = [event[1] for event in handler.events if event[0] == "reset"]
    assert len(reset) == len(set(reset))
    if connection.is_closed:
        assert connection.streams == {}
        assert all(handler.streams[stream_id].is_closed for stream_id in opened)
