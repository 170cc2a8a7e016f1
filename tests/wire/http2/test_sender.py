"""Answers against the peer's windows. Streams are opened through a connection, because only that opens them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from merrow.settings import ConnectionLimits
from merrow.wire.http2 import frames
from merrow.wire.http2.frames import ConnectionFault, ErrorCode, Setting
from merrow.wire.http2.header_block import encode_fields, encode_status
from merrow.wire.http2.sender import ReplyTemplate
from tests.wire.http2.recording import GET, Wire, data_frame, frame

HEAD = encode_status(200)
TRAILERS = encode_fields([(b"grpc-status", b"0")])
TEMPLATE = ReplyTemplate(HEAD, TRAILERS)
LIMITS = ConnectionLimits(max_write_buffer_byte_size=100_000)


def open_stream(wire, stream_id=1):
    wire.receive(wire.headers(stream_id, GET, end=True))
    return wire.handler.streams[stream_id]


def bodies(sent):
    """DATA by stream."""
    result = {}
    for kind, _, stream_id, payload in sent:
        if kind == frames.DATA:
            result[stream_id] = result.get(stream_id, b"") + payload
    return result


def window_update(stream_id, increment):
    return frames.encode_window_update(stream_id, increment)


def test_a_reply_that_fits_is_three_frames_at_once():
    wire = Wire()
    stream = open_stream(wire)

    wire.connection.sender.send_reply(stream, TEMPLATE, b"\0", [b"ab", memoryview(b"c")], 4)

    assert wire.sent_bytes() == (
        bytes.fromhex("000001 01 04 00000001 88")
        + bytes.fromhex("000004 00 00 00000001 00616263")
        + bytes.fromhex("00000f 01 05 00000001")
        + TRAILERS
    )
    assert stream.is_closed
    assert wire.connection.streams == {}


def test_a_reply_before_the_end_of_the_request_tells_the_client_to_stop():
    wire = Wire()
    wire.receive(wire.headers(1))

    wire.connection.sender.send_reply(wire.handler.streams[1], TEMPLATE, b"", [b"a"], 1)

    assert [sent[0] for sent in wire.sent()] == [frames.HEADERS, frames.DATA, frames.HEADERS, frames.RST_STREAM]
    # What the client had sent by then is dropped.
    wire.receive(data_frame(1, b"x") + wire.headers(1, [("trailer", "1")], end=True))
    assert not wire.connection.is_closed
    assert wire.sent() == []


def test_a_reply_larger_than_the_window_goes_on_when_the_window_grows():
    wire = Wire()
    stream = open_stream(wire)
    body = bytes(range(256)) * 400

    wire.connection.sender.send_reply(stream, TEMPLATE, b"", [body], len(body))

    first = wire.sent()
    assert bodies(first) == {1: body[:65535]}
    assert max(len(payload) for _, _, _, payload in first) == 16384
    wire.receive(window_update(1, 100_000))
    assert wire.sent() == []
    wire.receive(window_update(0, 10_000))
    second = wire.sent()
    assert bodies(second) == {1: body[65535:75535]}
    wire.receive(window_update(0, 100_000))
    third = wire.sent()
    assert bodies(third) == {1: body[75535:]}
    assert third[-1] == (frames.HEADERS, frames.FLAG_END_HEADERS | frames.FLAG_END_STREAM, 1, TRAILERS)
    assert wire.connection.streams == {}


def test_frames_are_as_large_as_the_peer_allows():
    wire = Wire(has_greeted=False)
    wire.greet({Setting.MAX_FRAME_SIZE: 20_000, Setting.INITIAL_WINDOW_SIZE: 1_000_000})
    stream = open_stream(wire)

    wire.connection.sender.send_data(stream, [bytes(45_000)], 45_000, ends_stream=True)

    assert [(len(payload), flags) for _, flags, _, payload in wire.sent()] == [(20_000, 0), (20_000, 0), (5_000, 1)]


def test_parts_are_not_copied():
    wire = Wire(has_greeted=False)
    wire.greet({Setting.INITIAL_WINDOW_SIZE: 1_000_000})
    stream = open_stream(wire)
    body = bytearray(30_000)

    wire.connection.sender.send_data(stream, [memoryview(body)], len(body))
    output = wire.connection.sender.take_output()
    body[:] = b"x" * len(body)

    assert bodies_of_parts(output) == b"x" * len(body)


def bodies_of_parts(output):
    return b"".join(bytes(part) for part in output if isinstance(part, memoryview))


def test_a_changed_initial_window_moves_what_waits():
    wire = Wire()
    stream = open_stream(wire)
    wire.receive(window_update(0, 1_000_000))
    wire.connection.sender.send_data(stream, [bytes(100_000)], 100_000, ends_stream=True)
    assert len(bodies(wire.sent())[1]) == 65535

    wire.receive(frames.encode_settings({Setting.INITIAL_WINDOW_SIZE: 70_000}))
    assert len(bodies(wire.sent())[1]) == 70_000 - 65535
    # The window may become negative: 70,000 are used of 10.
    wire.receive(frames.encode_settings({Setting.INITIAL_WINDOW_SIZE: 10}))
    assert bodies(wire.sent()) == {}
    wire.receive(window_update(1, 69_991))
    assert len(bodies(wire.sent())[1]) == 1


def test_streams_take_turns():
    wire = Wire(LIMITS)
    first, second = open_stream(wire, 1), open_stream(wire, 3)
    wire.receive(window_update(1, 1_000_000) + window_update(3, 1_000_000) + window_update(0, 200_000 - 65535))
    sender = wire.connection.sender
    sender.hold()
    sender.send_data(first, [bytes(300_000)], 300_000)
    sender.send_data(second, [bytes(300_000)], 300_000)
    sender.release()

    shares = {stream_id: len(body) for stream_id, body in bodies(wire.sent()).items()}

    assert sum(shares.values()) == 200_000
    assert abs(shares[1] - shares[3]) <= 65536


def test_output_stops_at_the_write_limit_until_it_is_taken():
    wire = Wire(LIMITS)
    stream = open_stream(wire)
    wire.receive(window_update(1, 1_000_000) + window_update(0, 1_000_000))
    sender = wire.connection.sender

    sender.send_data(stream, [bytes(500_000)], 500_000)

    assert 100_000 <= sender.output_byte_size <= 100_000 + 65536
    assert sender.blocked
    sender.take_output()
    assert sender.output_byte_size == 0
    sender.pump()
    assert sender.output_byte_size >= 100_000


def test_one_large_frame_does_not_pass_the_write_limit():
    """A peer with wide windows may allow frames larger than what this side wants to hold."""
    wire = Wire(LIMITS, has_greeted=False)
    wire.greet({Setting.INITIAL_WINDOW_SIZE: 1 << 24, Setting.MAX_FRAME_SIZE: (1 << 24) - 1})
    wire.receive(window_update(0, 1 << 24))
    sender = wire.connection.sender
    body = bytes(1_000_000)

    sender.send_reply(open_stream(wire, 1), TEMPLATE, b"", [body], len(body))

    assert sender.output_byte_size < 200_000
    sender.take_output()

    sender.send_data(open_stream(wire, 3), [body], len(body))

    assert sender.output_byte_size < 200_000


def test_nothing_but_headers_is_sent_while_the_socket_is_full():
    wire = Wire(LIMITS)
    stream = open_stream(wire)
    sender = wire.connection.sender
    sender.hold()

    sender.send_reply(stream, TEMPLATE, b"", [b"abc"], 3)
    wire.receive(frames.encode_ping(b"12345678", is_ack=False))

    assert [kind for kind, _, _, _ in wire.sent()] == [frames.HEADERS, frames.PING]
    assert not sender.is_writable(stream)
    sender.release()
    assert [kind for kind, _, _, _ in wire.sent()] == [frames.DATA, frames.HEADERS]


def test_a_receiver_hears_when_its_stream_is_writable_again():
    wire = Wire(LIMITS)
    stream = open_stream(wire)
    sender = wire.connection.sender

    sender.send_data(stream, [bytes(65535 + 100_000)], 65535 + 100_000)
    assert not sender.is_writable(stream)
    wire.sent()
    wire.events.clear()
    wire.receive(window_update(0, 100_000) + window_update(1, 1))
    assert wire.events == [("drained", 1)]
    assert sender.is_writable(stream)
    wire.receive(window_update(1, 1))
    assert wire.events == [("drained", 1)]


def test_a_receiver_that_sends_when_it_drains_is_no_trouble():
    wire = Wire(LIMITS)
    stream = open_stream(wire)
    sender = wire.connection.sender
    rest = [bytes(150_000)] * 5

    def send_more():
        if rest:
            sender.send_data(stream, [rest.pop()], 150_000)

    stream.receiver.on_drained = send_more
    sender.send_data(stream, [bytes(200_000)], 200_000)
    sent = len(bodies(wire.sent()).get(1, b""))
    while stream.queue:
        wire.receive(window_update(0, 50_000) + window_update(1, 50_000))
        sent += len(bodies(wire.sent()).get(1, b""))

    assert sent == 200_000 + 5 * 150_000
    assert rest == []


def test_an_empty_answer_is_one_frame():
    wire = Wire()
    stream = open_stream(wire)

    wire.connection.sender.send_headers(stream, HEAD, ends_stream=True)

    assert wire.sent() == [(frames.HEADERS, 5, 1, HEAD)]


@pytest.mark.parametrize("has_sent", [True, False])
def test_an_answer_may_end_without_trailers(has_sent):
    wire = Wire()
    stream = open_stream(wire)
    sender = wire.connection.sender

    sender.send_headers(stream, HEAD)
    if has_sent:
        sender.send_data(stream, [b"abc"], 3)
    sender.send_end(stream)

    assert wire.sent()[-1] == (frames.DATA, frames.FLAG_END_STREAM, 1, b"")
    assert stream.is_closed


def test_an_end_waits_for_the_data_before_it():
    wire = Wire()
    stream = open_stream(wire)
    sender = wire.connection.sender

    sender.send_data(stream, [bytes(70_000)], 70_000)
    sender.send_end(stream, TRAILERS)
    assert wire.sent()[-1][0] == frames.DATA
    wire.receive(window_update(0, 70_000) + window_update(1, 70_000))
    assert [sent[:2] for sent in wire.sent()] == [(frames.DATA, 0), (frames.HEADERS, 5)]


def test_end_stream_is_on_the_last_of_what_waited():
    wire = Wire()
    stream = open_stream(wire)
    sender = wire.connection.sender

    sender.send_data(stream, [bytes(70_000)], 70_000)
    sender.send_end(stream)
    wire.sent()
    wire.receive(window_update(0, 70_000) + window_update(1, 70_000))

    assert [sent[:2] for sent in wire.sent()] == [(frames.DATA, frames.FLAG_END_STREAM)]


def test_a_stream_that_is_reset_sends_no_more():
    wire = Wire()
    stream = open_stream(wire)
    sender = wire.connection.sender
    sender.send_data(stream, [bytes(70_000)], 70_000)
    wire.sent()

    wire.receive(frame(frames.RST_STREAM, 0, 1, bytes(4)))
    sender.send_headers(stream, HEAD)
    sender.send_data(stream, [b"a"], 1)
    sender.send_end(stream)
    sender.send_reply(stream, TEMPLATE, b"", [b"a"], 1)
    sender.reset_stream(stream, ErrorCode.CANCEL)
    wire.receive(window_update(0, 70_000))

    assert wire.sent() == []
    assert not sender.blocked


def test_resets_are_remembered_for_a_while():
    wire = Wire()
    for stream_id in range(1, 5001, 2):
        stream = open_stream(wire, stream_id)
        wire.connection.sender.reset_stream(stream, ErrorCode.CANCEL)
    wire.connection.check_invariants()

    assert list(wire.connection.sender.reset_streams)[-1] == 4999


SENDS = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.integers(0, 2), st.integers(0, 90_000)),
        st.tuples(st.just("grow"), st.integers(0, 2), st.integers(1, 90_000)),
        st.tuples(st.just("grow all"), st.just(0), st.integers(1, 200_000)),
        st.tuples(st.just("resize"), st.just(0), st.integers(0, 100_000)),
        st.tuples(st.just("hold"), st.just(0), st.booleans()),
        st.tuples(st.just("end"), st.integers(0, 2), st.booleans()),
    ),
    max_size=30,
)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(SENDS)
def test_whatever_happens_bytes_arrive_in_order_and_windows_hold(steps):
    wire = Wire(LIMITS)
    streams = [open_stream(wire, stream_id) for stream_id in (1, 3, 5)]
    sender = wire.connection.sender
    expected = {1: b"", 3: b"", 5: b""}
    received = {1: b"", 3: b"", 5: b""}
    ended = set()
    windows, total, initial = {1: 65535, 3: 65535, 5: 65535}, 65535, 65535
    for number, (action, index, amount) in enumerate(steps):
        stream = streams[index]
        if action == "send" and stream.id not in ended:
            body = bytes([number]) * amount
            expected[stream.id] += body
            sender.send_data(stream, [body[: amount // 3], body[amount // 3 :]], amount)
        elif action == "grow":
            windows[stream.id] += amount
            wire.receive(window_update(stream.id, amount))
        elif action == "grow all":
            total += amount
            wire.receive(window_update(0, amount))
        elif action == "resize":
            for stream_id in windows:
                windows[stream_id] += amount - initial
            initial = amount
            wire.receive(frames.encode_settings({Setting.INITIAL_WINDOW_SIZE: amount}))
        elif action == "hold":
            sender.hold() if amount else sender.release()
        elif action == "end" and stream.id not in ended:
            ended.add(stream.id)
            sender.send_end(stream, TRAILERS if amount else b"")
        for kind, _, stream_id, payload in wire.sent():
            if kind == frames.DATA:
                windows[stream_id] -= len(payload)
                total -= len(payload)
                assert not payload or windows[stream_id] >= 0
                assert total >= 0
                received[stream_id] += payload
    for stream_id, body in received.items():
        assert expected[stream_id].startswith(body)
    sender.release()
    wire.receive(window_update(0, 10**8) + b"".join(window_update(stream_id, 10**8) for stream_id in expected))
    for kind, _, stream_id, payload in wire.sent():
        if kind == frames.DATA:
            received[stream_id] += payload
    assert received == expected
    assert set(wire.connection.streams) == {1, 3, 5} - ended


# What the peer wants


def test_settings_of_the_peer_hold_for_streams_that_are_open_and_for_new_ones():
    wire = Wire()
    stream = open_stream(wire)
    sender = wire.connection.sender
    sender.send_data(stream, [b"abcde"], 5)

    sender.obey_settings([(Setting.INITIAL_WINDOW_SIZE, 100), (Setting.MAX_FRAME_SIZE, 20_000), (99, 1)])

    assert (sender.peer_stream_window, sender.max_frame_byte_size) == (100, 20_000)
    assert stream.send_window == 95
    assert open_stream(wire, 3).send_window == 100


@pytest.mark.parametrize(
    ("setting", "value", "code", "text"),
    [
        (
            Setting.INITIAL_WINDOW_SIZE,
            2**31,
            ErrorCode.FLOW_CONTROL_ERROR,
            "SETTINGS_INITIAL_WINDOW_SIZE of 2147483648",
        ),
        (Setting.MAX_FRAME_SIZE, 16383, ErrorCode.PROTOCOL_ERROR, "SETTINGS_MAX_FRAME_SIZE of 16383"),
        (Setting.MAX_FRAME_SIZE, 2**24, ErrorCode.PROTOCOL_ERROR, "SETTINGS_MAX_FRAME_SIZE of 16777216"),
        (Setting.ENABLE_PUSH, 2, ErrorCode.PROTOCOL_ERROR, "SETTINGS_ENABLE_PUSH of 2"),
    ],
)
def test_settings_that_are_not_allowed(setting, value, code, text):
    with pytest.raises(ConnectionFault) as raised:
        Wire().connection.sender.obey_settings([(setting, value)])

    assert (raised.value.code, raised.value.text) == (code, text)


def test_a_setting_may_not_overflow_the_window_of_a_stream():
    wire = Wire()
    open_stream(wire)
    wire.receive(window_update(1, 2**31 - 65536))

    with pytest.raises(ConnectionFault) as raised:
        wire.connection.sender.obey_settings([(Setting.INITIAL_WINDOW_SIZE, 70_000)])

    assert (raised.value.code, raised.value.text) == (
        ErrorCode.FLOW_CONTROL_ERROR,
        "window of a stream over 2^31-1",
    )
