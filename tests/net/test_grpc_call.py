"""gRPC calls over a connection in memory: messages in any pieces, streams, and every way that a call ends."""

import asyncio
import gzip

import pytest

from merrow.settings import ConnectionLimits
from merrow.wire.http2 import frames
from merrow.wire.http2.frames import ErrorCode, Setting
from tests.net.http2_client import GRPC_HEAD, Http2Client, data_frame, failed, message, ok

SECOND = 10**9
RESET_NO_ERROR = ("reset", 0)


# Unary calls


def test_a_unary_call_is_answered_in_one_write():
    client = Http2Client()
    writes = client.transport.write_count

    client.receive(client.call(1, "Unary", message(b"hello")))

    assert client.answers() == {1: ok(b"hello")}
    assert client.transport.write_count == writes + 1


def test_calls_in_one_chunk_are_answered_in_one_write():
    client = Http2Client()
    writes = client.transport.write_count

    client.receive(b"".join(client.call(number, "Unary", message(b"%d" % number)) for number in (1, 3, 5, 7)))

    assert client.answers() == {number: ok(b"%d" % number) for number in (1, 3, 5, 7)}
    assert client.transport.write_count == writes + 1


def test_answers_that_come_later_share_a_write():
    client = Http2Client()
    client.receive(b"".join(client.call(number, "UnaryLater", message(b"%d" % number)) for number in (1, 3, 5, 7)))
    assert client.answers() == {}
    writes = client.transport.write_count

    client.loop.run()

    assert client.answers() == {number: ok(b"%d" % number) for number in (1, 3, 5, 7)}
    assert client.transport.write_count == writes + 1


@pytest.mark.parametrize("body", [b"", b"x", b"x" * 50_000, b"x" * 200_000])
@pytest.mark.parametrize("piece", [1000, 16_384, 1_000_000])
def test_messages_of_any_size_in_any_pieces(body, piece):
    client = Http2Client(settings={Setting.INITIAL_WINDOW_SIZE: 2**31 - 1})
    client.receive(frames.encode_window_update(0, 2**30))
    data = message(body)
    request = client.call_head(1, "Unary")
    for start in range(0, len(data), 200_000):
        request += data_frame(1, data[start : start + 200_000], end=start + 200_000 >= len(data))

    for start in range(0, len(request), piece):
        client.receive(request[start : start + piece])

    assert client.answer() == ok(body)


@pytest.mark.parametrize("method", ["Unary", "Stream"])
@pytest.mark.parametrize("frame_byte_size", [150_000, 300_000, 1_000_000])
def test_a_large_message_is_received_into_its_place(method, frame_byte_size):
    limits = ConnectionLimits(max_frame_byte_size=2**20)
    client = Http2Client(limits, settings={Setting.INITIAL_WINDOW_SIZE: 2**31 - 1, Setting.MAX_FRAME_SIZE: 2**24 - 1})
    client.receive(frames.encode_window_update(0, 2**30))
    body = bytes(range(251)) * 4000
    data = message(body)
    request = client.call_head(1, method)
    for start in range(0, len(data), frame_byte_size):
        piece = data[start : start + frame_byte_size]
        request += data_frame(1, piece, end=start + len(piece) == len(data))
        # Others come in between.
        request += frames.encode_ping(bytes(8), is_ack=False) + client.call(start + 3, "Unary", message(b"other"))
    is_direct = 0

    for start in range(0, len(request), 50_000):
        client.receive(request[start : start + 50_000])
        is_direct += isinstance(client.protocol, asyncio.BufferedProtocol)

    answers = client.answers()
    assert answers.pop(1) == ok(body)
    assert all(answer == ok(b"other") for answer in answers.values())
    assert is_direct > 0
    assert not isinstance(client.protocol, asyncio.BufferedProtocol)


def test_a_large_message_may_be_followed_in_its_frame():
    client = Http2Client(ConnectionLimits(max_frame_byte_size=2**20), settings={Setting.INITIAL_WINDOW_SIZE: 2**31 - 1})
    client.receive(frames.encode_window_update(0, 2**30))
    data = message(bytes(300_000)) + message(b"x" * 300_000) + message(b"small")
    request = client.call(1, "Stream", data)

    for start in range(0, len(request), 50_000):
        client.receive(request[start : start + 50_000])

    assert client.answer() == ok(bytes(300_000), b"x" * 300_000, b"small")


def test_a_client_that_leaves_during_a_large_message():
    client = Http2Client(ConnectionLimits(max_frame_byte_size=2**20))
    client.receive(client.call(1, "StreamHold", message(bytes(500_000)))[:200_000])
    assert isinstance(client.protocol, asyncio.BufferedProtocol)

    client.lose()

    assert client.application.events == [("cancel", b"StreamHold")]
    assert client.service.connections == set()


def test_a_large_message_without_memory_ends_its_call(monkeypatch):
    def fail(byte_size):
        raise MemoryError

    monkeypatch.setattr("merrow.net.body.allocate", fail)
    client = Http2Client()

    client.receive(client.call_head(1, "Unary") + data_frame(1, message(bytes(500_000))[:100_000]))

    assert client.answer() == [*failed(8, "not enough memory for the message"), RESET_NO_ERROR]


def test_a_message_may_end_before_the_stream_does():
    client = Http2Client()

    client.receive(client.call_head(1, "Unary") + data_frame(1, message(b"a")))
    assert client.answers() == {}
    client.receive(data_frame(1, b"", end=True))

    assert client.answer() == ok(b"a")


def test_a_call_may_end_with_trailers():
    client = Http2Client()

    trailers = client.call_head(1, "Unary") + data_frame(1, message(b"a")), client.headers(1, [("x", "y")], end=True)
    client.receive(b"".join(trailers))

    assert client.answer() == ok(b"a")


def test_what_follows_the_message_of_a_unary_call_is_ignored():
    client = Http2Client()

    client.receive(client.call(1, "Unary", message(b"a") + message(b"b") + b"\0"))

    assert client.answer() == ok(b"a")


@pytest.mark.parametrize("body", [b"", b"\0", message(b"hello")[:-1]])
@pytest.mark.parametrize("is_split", [False, True])
def test_a_unary_call_without_a_whole_message(body, is_split):
    client = Http2Client()

    if is_split:
        client.receive(client.call_head(1, "Unary") + (data_frame(1, body) if body else b""))
        client.receive(data_frame(1, b"", end=True))
    else:
        client.receive(client.call(1, "Unary", body))

    assert client.answer() == failed(13, "Unable to parse request")
    assert client.application.request_count == 0


def test_a_call_that_ends_with_its_head():
    client = Http2Client()

    client.receive(client.call_head(1, "Unary", end=True))

    assert client.answer() == failed(13, "Unable to parse request")


def test_an_error_is_a_status_with_its_message():
    client = Http2Client()

    client.receive(client.call(1, "UnaryError", message("Request for unknown model: 'é' 100%".encode())))

    assert client.answer() == failed(5, "Request for unknown model: '%C3%A9' 100%25")


def test_compressed_messages_are_decompressed():
    client = Http2Client()

    client.receive(client.call(1, "Unary", message(gzip.compress(b"hello"), flags=1), ("grpc-encoding", "gzip")))
    assert client.answer() == ok(b"hello")
    client.receive(client.call(3, "Unary", message(b"hello"), ("grpc-encoding", "gzip")))
    assert client.answer() == ok(b"hello")


def test_a_message_that_cannot_be_decompressed():
    client = Http2Client()

    client.receive(client.call(1, "Unary", message(b"hello", flags=1), ("grpc-encoding", "gzip")))

    assert client.answer() == failed(13, "Unexpected error decompressing data for algorithm gzip")


@pytest.mark.parametrize("is_whole", [True, False])
def test_a_message_over_the_limit_is_refused_at_once(is_whole):
    client = Http2Client(ConnectionLimits(max_body_byte_size=1000))

    if is_whole:
        client.receive(client.call(1, "Unary", message(bytes(1001))))
        expected = failed(8, "Received message larger than max (1001 vs. 1000)")
    else:
        client.receive(client.call_head(1, "Unary") + data_frame(1, message(bytes(1001))[:100]))
        expected = [*failed(8, "Received message larger than max (1001 vs. 1000)"), RESET_NO_ERROR]

    assert client.answer() == expected
    # The rest is on its way.
    client.receive(data_frame(1, bytes(906), end=True) if not is_whole else b"")
    client.receive(client.call(3, "Unary", message(b"a")))
    assert client.answer() == ok(b"a")


def test_a_reply_larger_than_the_window():
    client = Http2Client()
    client.receive(client.call(1, "Unary", message(b"x" * 150_000)))
    sent = client.answer()
    assert sent[0] == GRPC_HEAD
    assert len(sent[1]) == 65535

    client.receive(frames.encode_window_update(1, 150_000) + frames.encode_window_update(0, 150_000))
    rest = client.answer()

    assert sent[1] + rest[0] == message(b"x" * 150_000)
    assert rest[1:] == [[("grpc-status", "0")], "end"]


# Ends that the client makes


def test_a_reset_cancels_once():
    client = Http2Client()
    client.receive(client.call(1, "UnaryHold", message(b"a")))

    client.receive(frames.encode_rst_stream(1, ErrorCode.CANCEL))
    client.lose()

    assert client.application.events == [("cancel", b"a")]
    client.application.held[0].reply((b"late",))
    client.application.held[0].finish(3, "late")
    client.loop.run()
    assert client.written() == b""


def test_a_lost_connection_cancels_every_call():
    client = Http2Client()
    client.receive(client.call(1, "UnaryHold", message(b"a")) + client.call(3, "StreamHold", message(b"b")))

    client.lose()

    assert client.application.events == [("half-close",), ("cancel", b"a"), ("cancel", b"StreamHold")]


def test_a_call_that_is_over_is_not_cancelled():
    client = Http2Client()
    client.receive(client.call(1, "UnaryHold", message(b"a")) + client.call(3, "UnaryHold", message(b"b")))
    client.application.held[0].reply((b"a",))
    client.application.held[1].finish(3, "b")
    client.loop.run()

    client.lose()

    assert client.application.events == []
    assert client.answers() == {1: ok(b"a"), 3: failed(3, "b")}


def test_a_reset_while_the_answer_waits_is_no_cancellation():
    client = Http2Client()
    client.receive(client.call(1, "Unary", message(b"x" * 150_000)))
    client.answers()

    client.receive(frames.encode_rst_stream(1, ErrorCode.CANCEL))
    client.receive(frames.encode_window_update(0, 150_000))

    assert client.application.events == []
    assert client.answers() == {}


# Deadlines, on a real loop


def run_with_deadlines(steps):
    async def run():
        client = Http2Client()
        client.service.loop = client.application.loop = asyncio.get_running_loop()
        await steps(client)

    asyncio.run(run())


def test_a_deadline_that_passes_ends_the_call():
    async def steps(client):
        client.receive(client.call(1, "UnaryHold", message(b"a"), ("grpc-timeout", "10m")))
        client.receive(client.call(3, "StreamHold", message(b"a"), ("grpc-timeout", "10m")))
        client.receive(client.call_head(5, "Unary", ("grpc-timeout", "10m")))
        await client.application.wait_for(lambda: len(client.application.events) == 3)
        await asyncio.sleep(0)
        expected = failed(4, "Deadline Exceeded")
        assert client.answers() == {1: expected, 3: expected, 5: [*expected, RESET_NO_ERROR]}
        assert client.application.events == [("half-close",), ("cancel", b"a"), ("cancel", b"StreamHold")]
        client.application.held[0].reply((b"late",))
        await asyncio.sleep(0)
        assert client.answers() == {}

    run_with_deadlines(steps)


@pytest.mark.parametrize("method", ["Unary", "UnaryLater", "Stream", "StreamLater"])
def test_a_call_that_ends_in_time_has_no_timer_left(method):
    async def steps(client):
        client.receive(client.call(1, method, message(b"a"), ("grpc-timeout", "20m")))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert client.answer() == ok(b"a")
        await asyncio.sleep(0.04)
        assert client.answers() == {}
        assert ("cancel", b"a") not in client.application.events

    run_with_deadlines(steps)


# Streams


def test_a_stream_answers_message_by_message():
    client = Http2Client()

    client.receive(client.call_head(1, "Stream"))
    assert client.answers() == {}
    client.receive(data_frame(1, message(b"a") + message(b"b")[:3]))
    assert client.answer() == [GRPC_HEAD, message(b"a")]
    client.receive(data_frame(1, message(b"b")[3:] + message(b"c"), end=True))

    assert client.answer() == [message(b"b") + message(b"c"), [("grpc-status", "0")], "end"]


def test_a_stream_in_one_chunk():
    client = Http2Client()

    client.receive(client.call(1, "Stream", message(b"a") + message(b"b")))
    assert client.answer() == ok(b"a", b"b")
    client.receive(client.call_head(3, "Stream", end=True))
    assert client.answer() == failed(0)


def test_a_stream_may_answer_later():
    client = Http2Client()
    client.receive(client.call(1, "StreamLater", message(b"a") + message(b"b")))

    client.loop.run()

    assert client.answer() == ok(b"a", b"b")


def test_a_stream_may_end_before_the_client_does():
    client = Http2Client()
    client.receive(client.call_head(1, "StreamHold") + data_frame(1, message(b"a")))
    stream = client.application.streams[0]

    stream.call.send((b"b", b"c"))
    stream.call.finish(9, "enough")
    stream.call.send((b"late",))
    client.loop.run()

    fields = [("grpc-status", "9"), ("grpc-message", "enough")]
    assert client.answer() == [GRPC_HEAD, message(b"bc"), fields, "end", RESET_NO_ERROR]
    client.receive(data_frame(1, message(b"late")))
    assert stream.messages == [b"a"]


def test_a_stream_that_fails_at_its_first_message_hears_no_more():
    class Stream:
        def __init__(self, call):
            self.call = call
            self.count = 0

        def on_message(self, message):
            self.count += 1
            self.call.finish(3, "no")

        def on_half_close(self):
            raise AssertionError

    class Application:
        def is_streaming(self, path):
            return True

        def compression_of(self, path):
            return None

        def on_stream(self, call):
            self.stream = Stream(call)
            return self.stream

    client = Http2Client(application=Application())
    client.receive(client.call(1, "Any", message(b"a") + message(b"b")))

    assert client.answer() == failed(3, "no")
    assert client.application.stream.count == 1


def test_a_stream_that_is_finished_when_it_begins():
    class Application:
        def is_streaming(self, path):
            return True

        def compression_of(self, path):
            return None

        def on_stream(self, call):
            call.finish(14, "no")
            return

    client = Http2Client(application=Application())
    client.receive(client.call(1, "Any", message(b"a")))

    assert client.answer() == failed(14, "no")
    client.receive(client.call_head(3, "Any"))
    assert client.answer() == [*failed(14, "no"), RESET_NO_ERROR]


def test_a_stream_that_ends_inside_a_message():
    client = Http2Client()

    client.receive(client.call(1, "StreamHold", message(b"a") + b"\0\0"))

    assert client.answer() == failed(13, "Unable to parse request")
    assert client.application.events == [("cancel", b"StreamHold")]


def test_a_broken_message_ends_a_stream():
    client = Http2Client(ConnectionLimits(max_body_byte_size=10))

    client.receive(client.call_head(1, "Stream") + data_frame(1, message(b"a") + message(bytes(11))))

    fields = [("grpc-status", "8"), ("grpc-message", "Received message larger than max (11 vs. 10)")]
    answer = client.answer()
    # The messages of the chunk that has the fault are not handed on.
    assert answer == [[*GRPC_HEAD, *fields], "end", RESET_NO_ERROR]


def test_a_stream_is_told_when_it_may_write_again():
    client = Http2Client(
        ConnectionLimits(max_write_buffer_byte_size=10_000), settings={Setting.INITIAL_WINDOW_SIZE: 500}
    )
    application = client.application

    client.receive(client.call_head(1, "StreamMany") + data_frame(1, message(bytes(1000))))
    assert application.events == [("full",)]
    assert len(client.answer()[1]) == 500
    client.receive(frames.encode_window_update(0, 100_000) + frames.encode_window_update(1, 100_000))

    assert application.events == [("full",), ("writable",)]
    assert client.application.streams[0].call.is_writable


def test_a_full_socket_makes_a_stream_unwritable():
    client = Http2Client()
    client.receive(client.call_head(1, "StreamHold"))
    call = client.application.streams[0].call
    assert call.is_writable

    client.protocol.pause_writing()
    assert not call.is_writable
    call.send((b"a",))
    client.loop.run()
    assert client.answers() == {1: [GRPC_HEAD]}
    client.protocol.resume_writing()
    client.loop.run()

    assert client.answers() == {1: [message(b"a")]}
    assert client.application.events == [("writable",)]


def test_a_stream_that_does_not_read_holds_the_client_back():
    client = Http2Client(ConnectionLimits(stream_window_byte_size=65535))
    client.receive(client.call_head(1, "StreamSlow"))
    stream = client.application.streams[0]
    for _ in range(6):
        client.receive(data_frame(1, message(bytes(9_995))))
    client.receive(data_frame(1, b"", end=False))

    assert stream.messages == []
    assert [sent[2] for sent in client.frames()] == []
    stream.call.resume_reading()
    assert stream.messages == []
    client.loop.run()

    assert stream.messages == [bytes(9_995)] * 6
    assert (frames.WINDOW_UPDATE, 0, 1, (60_000).to_bytes(4, "big")) in client.frames()
    client.receive(data_frame(1, message(b"a"), end=True))
    assert stream.messages[-1] == b"a"


def test_a_half_close_waits_for_the_messages_before_it():
    client = Http2Client()
    client.receive(client.call(1, "StreamSlow", message(b"a") + message(b"b")))
    stream = client.application.streams[0]
    assert client.application.events == []

    stream.call.resume_reading()
    stream.call.resume_reading()
    client.loop.run()

    assert stream.messages == [b"a", b"b"]
    assert client.application.events == [("half-close",)]
    assert client.answer() == ok(b"a", b"b")


def test_a_stream_may_pause_at_any_message():
    client = Http2Client()
    client.receive(client.call(1, "StreamHold", message(b"a")) + client.call_head(3, "StreamHold"))
    stream = client.application.streams[1]
    received = stream.on_message

    def pause_after(message):
        received(message)
        stream.call.pause_reading()

    stream.on_message = pause_after
    client.receive(data_frame(3, message(b"b") + message(b"c") + message(b"d"), end=True))
    assert stream.messages == [b"b"]
    stream.call.resume_reading()
    client.loop.run()
    assert stream.messages == [b"b", b"c"]
    # Nothing happens to a call that is over.
    client.receive(frames.encode_rst_stream(3, ErrorCode.CANCEL))
    stream.call.resume_reading()
    stream.call.pause_reading()
    client.loop.run()
    assert stream.messages == [b"b", b"c"]


# Time


def test_a_message_whose_bytes_stop_coming_ends_its_call():
    client = Http2Client(ConnectionLimits(receive_timeout_ns=10 * SECOND))
    client.receive(client.call_head(1, "Unary") + data_frame(1, message(b"hello")[:-1]))
    client.receive(client.call_head(3, "StreamHold") + data_frame(3, message(b"hello")[:-1]))
    client.receive(client.call_head(5, "StreamHold") + data_frame(5, message(b"hello")))
    client.receive(client.call(7, "UnaryHold", message(b"hello")))

    client.sweep(9 * SECOND)
    assert client.answers() == {}
    client.sweep(11 * SECOND)

    expected = [*failed(14, "request timed out: its bytes stopped coming"), RESET_NO_ERROR]
    assert client.answers() == {1: expected, 3: expected}
    assert client.application.events == [("cancel", b"StreamHold")]


def test_a_client_that_is_held_back_is_not_timed_out():
    limits = ConnectionLimits(receive_timeout_ns=10 * SECOND, stream_window_byte_size=65535)
    client = Http2Client(limits)
    client.receive(client.call_head(1, "StreamSlow") + data_frame(1, message(bytes(60_000))[:50_000]))
    stream = client.application.streams[0]

    client.sweep(100 * SECOND)
    stream.call.resume_reading()
    client.loop.run()
    client.sweep(109 * SECOND)
    client.receive(data_frame(1, message(bytes(60_000))[50_000:], end=True))

    assert client.application.events == [("half-close",)]
    assert client.answer() == ok(bytes(60_000))
