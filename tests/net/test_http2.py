import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from merrow.settings import ConnectionLimits
from merrow.wire.http2 import frames
from merrow.wire.http2.frames import ErrorCode
from tests.net.http2_client import Http2Client, data_frame, message, ok
from tests.net.serving import MemoryConnection

SECOND = 10**9
HEAD = [(":status", "200"), ("content-type", "application/octet-stream")]
RESET_NO_ERROR = ("reset", 0)


def answer(body=b""):
    fields = [*HEAD, ("content-length", str(len(body)))]
    return [fields, body, "end"] if body else [fields, "end"]


def fault(status, text):
    body = b'{"error":"%b"}' % text
    return [
        [(":status", str(status)), ("content-type", "application/json"), ("content-length", str(len(body)))],
        body,
        "end",
    ]


# Exchanges


def test_a_request_that_is_no_call_is_an_exchange():
    client = Http2Client()

    client.receive(client.request(1, "/", b"hello"))
    assert client.answer() == answer(b"hello")
    client.receive(client.request_head(3, "/", method="GET", end=True))
    assert client.answer() == answer()


def test_exchanges_and_calls_share_a_connection():
    client = Http2Client()

    client.receive(client.request(1, "/", b"a") + client.call(3, "Unary", message(b"b")) + client.request(5, "/", b"c"))

    assert client.answers() == {1: answer(b"a"), 3: ok(b"b"), 5: answer(b"c")}


def test_the_request_is_described_as_sent():
    client = Http2Client()

    client.receive(client.request(1, "/describe?a=%20", b"hi", ("x-a", "1"), ("content-length", "2")))

    described = (b"POST", b"/describe?a=%20", [(b"content-length", b"2"), (b"host", b"h"), (b"x-a", b"1")], b"hi")
    assert client.answer() == answer(repr(described).encode())


def test_a_host_that_was_sent_is_not_given_twice():
    client = Http2Client()

    client.receive(client.request(1, "/describe", b"", ("host", "other")))

    assert b"(b'host', b'h')" not in client.answer()[1]


@pytest.mark.parametrize("length", [(), (("content-length", "300000"),)])
@pytest.mark.parametrize("piece", [10_000, 500_000])
def test_a_body_in_pieces(length, piece):
    client = Http2Client(ConnectionLimits(max_frame_byte_size=2**20))
    body = bytes(range(250)) * 1200

    client.receive(client.request_head(1, "/describe", *length))
    for start in range(0, len(body), piece):
        client.receive(data_frame(1, body[start : start + piece]))
    assert client.answers() == {}
    client.receive(data_frame(1, b"", end=True))

    assert client.application.request_count == 1
    assert client.answer()[0][0] == (":status", "200")


def test_a_large_body_is_received_into_its_place():
    client = Http2Client(ConnectionLimits(max_frame_byte_size=2**20))
    body = bytes(range(250)) * 1200
    request = client.request(1, "/describe", body, ("content-length", "300000"))
    is_direct = False

    for start in range(0, len(request), 50_000):
        client.receive(request[start : start + 50_000])
        is_direct |= isinstance(client.protocol, asyncio.BufferedProtocol)

    assert client.answer()[0][0] == (":status", "200")
    assert is_direct
    assert not isinstance(client.protocol, asyncio.BufferedProtocol)


def test_a_body_without_memory(monkeypatch):
    def fail(byte_size):
        raise MemoryError

    monkeypatch.setattr("merrow.net.body.allocate", fail)
    client = Http2Client()

    client.receive(client.request_head(1, "/", ("content-length", "300000")) + data_frame(1, bytes(100_000)))

    assert client.answer() == [*fault(503, b"not enough memory for the request's body"), RESET_NO_ERROR]


def test_an_empty_body_in_pieces():
    client = Http2Client()

    client.receive(client.request_head(1, "/", ("content-length", "0")))
    client.receive(data_frame(1, b"", end=True))

    assert client.answer() == answer()


def test_an_answer_may_come_later():
    client = Http2Client()

    client.receive(client.request(1, "/later", b"a") + client.request(3, "/later", b"b"))
    assert client.answers() == {}
    writes = client.transport.write_count
    client.loop.run()

    assert client.answers() == {1: answer(b"a"), 3: answer(b"b")}
    assert client.transport.write_count == writes + 1


def test_head_and_204_have_no_body():
    client = Http2Client()
    head = client.request_head(1, "/", method="HEAD") + data_frame(1, b"hello", end=True)

    client.receive(head + client.request(3, "/empty", b"a"))

    assert client.answers() == {1: [[*HEAD, ("content-length", "5")], "end"], 3: [[(":status", "204")], "end"]}


def test_a_streamed_answer():
    client = Http2Client()

    client.receive(client.request(1, "/stream", b"abcdefgh"))
    assert client.answer() == [HEAD, b"abcdefgh", "end"]
    client.receive(client.request_head(3, "/stream", method="HEAD") + data_frame(3, b"abc", end=True))
    assert client.answer() == [HEAD, b"", "end"]


def test_headers_of_http_1_are_not_sent():
    class Application:
        def on_exchange(self, exchange):
            exchange.respond(503, [(b"Connection", b"close"), (b"Retry-After", b"1"), (b"Keep-Alive", b"5")], ())

    client = Http2Client(application=Application())
    client.receive(client.request(1, "/", b""))

    assert client.answer() == [[(":status", "503"), ("retry-after", "1"), ("content-length", "0")], "end"]


def test_the_memory_of_response_blocks_is_bounded():
    class Application:
        def on_exchange(self, exchange):
            exchange.respond(200, ((b"A", exchange.target),), ())

    client = Http2Client(application=Application())
    for number in range(600):
        client.receive(client.request(2 * number + 1, f"/{number}", b""))
        assert client.answer()[0][1] == ("a", f"/{number}")

    assert len(client.service.response_blocks) <= 256


def test_only_the_first_answer_counts():
    class Application:
        def on_exchange(self, exchange):
            exchange.respond(200, (), (b"1",))
            exchange.respond(200, (), (b"2",))
            exchange.start_stream(200, ())
            exchange.write(b"3")
            exchange.finish()

    client = Http2Client(application=Application())
    client.receive(client.request(1, "/", b""))

    assert client.answer() == [[(":status", "200"), ("content-length", "1")], b"1", "end"]


def test_a_client_that_asks_is_told_to_continue():
    client = Http2Client()

    client.receive(client.request_head(1, "/", ("expect", "100-continue")))
    assert client.answer() == [[(":status", "100")]]
    client.receive(data_frame(1, b"abc", end=True))

    assert client.answer() == answer(b"abc")


def test_a_client_that_leaves_ends_its_request_once():
    client = Http2Client()
    client.receive(
        client.request(1, "/hold", b"1") + client.request(3, "/hold", b"3") + client.request_head(5, "/hold")
    )

    client.receive(frames.encode_rst_stream(1, ErrorCode.CANCEL))
    assert client.application.events == [("disconnect", b"1")]
    client.lose()

    assert client.application.events == [("disconnect", b"1"), ("disconnect", b"3")]
    for exchange in client.application.held:
        exchange.respond(200, (), ())
        exchange.finish()
    client.loop.run()
    assert client.answers() == {}


def test_a_drain_waits_for_the_window_and_ends_with_the_stream():
    async def run():
        client = Http2Client(ConnectionLimits(max_write_buffer_byte_size=20_000))
        client.service.loop = client.application.loop = asyncio.get_running_loop()
        client.receive(client.request(1, "/drain", b"3") + client.request(3, "/drain", b"3"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert client.application.events == []
        sent = sum(len(payload) for kind, _, _, payload in client.frames() if kind == frames.DATA)
        assert sent == 65535
        client.receive(frames.encode_window_update(0, 1_000_000) + frames.encode_window_update(1, 1_000_000))
        for _ in range(10):
            await asyncio.sleep(0)
        assert client.application.events == [("drained",)] * 3
        client.receive(frames.encode_rst_stream(3, ErrorCode.CANCEL))
        for _ in range(10):
            await asyncio.sleep(0)
        assert not client.application.tasks
        assert ("disconnect", b"drain") in client.application.events

    asyncio.run(run())


# Limits


def test_a_body_over_the_limit():
    client = Http2Client(ConnectionLimits(max_body_byte_size=10))
    text = b"request body exceeds the limit of 10 bytes"

    client.receive(client.request(1, "/", bytes(11)))
    assert client.answer() == fault(413, text)
    client.receive(client.request_head(3, "/", ("content-length", "11")))
    assert client.answer() == [*fault(413, text), RESET_NO_ERROR]
    client.receive(client.request_head(5, "/") + data_frame(5, bytes(10)) + data_frame(5, b"a"))
    assert client.answer() == [*fault(413, text), RESET_NO_ERROR]
    client.receive(data_frame(5, bytes(10), end=True))

    assert client.answers() == {}
    assert client.application.request_count == 0


@pytest.mark.parametrize("is_whole", [True, False])
def test_a_head_over_the_limit(is_whole):
    client = Http2Client(ConnectionLimits(max_header_count=5))

    client.receive(client.request_head(1, "/", ("a", "b"), ("c", "d"), end=is_whole))

    expected = fault(431, b"request header list is too large")
    assert client.answer() == (expected if is_whole else [*expected, RESET_NO_ERROR])


def test_a_body_whose_bytes_stop_coming_times_out():
    client = Http2Client(ConnectionLimits(receive_timeout_ns=10 * SECOND))
    client.receive(client.request_head(1, "/") + data_frame(1, b"a"))

    client.sweep(11 * SECOND)

    assert client.answer() == [*fault(408, b"request timed out: its bytes stopped coming"), RESET_NO_ERROR]


def goaway(sent):
    [(kind, _, _, payload)] = sent
    assert kind == frames.GOAWAY
    return int.from_bytes(payload[4:8], "big"), payload[8:].decode()


def test_a_broken_connection_says_why_and_is_closed():
    client = Http2Client()
    client.receive(client.request(1, "/hold", b"1"))

    client.receive(data_frame(0, b"a"))

    assert goaway(client.frames()) == (ErrorCode.PROTOCOL_ERROR, "DATA on idle stream 0")
    assert client.transport.has_sent_eof
    assert client.application.events == [("disconnect", b"1")]
    client.receive(client.request(3, "/", b""))
    assert client.written() == b""


def test_a_frame_whose_bytes_stop_coming_ends_the_connection():
    client = Http2Client(ConnectionLimits(receive_timeout_ns=10 * SECOND))
    client.receive(client.request_head(1, "/")[:-1])

    client.sweep(9 * SECOND)
    assert client.written() == b""
    client.sweep(11 * SECOND)

    assert goaway(client.frames()) == (ErrorCode.PROTOCOL_ERROR, "timed out inside a frame")
    client.sweep(14 * SECOND)
    assert client.transport.is_closing


def test_an_idle_connection_is_closed():
    client = Http2Client(ConnectionLimits(idle_timeout_ns=100 * SECOND))
    client.sweep(50 * SECOND)
    client.receive(client.request(1, "/", b""))
    client.written()

    client.sweep(149 * SECOND)
    assert client.written() == b""
    client.sweep(151 * SECOND)

    assert goaway(client.frames()) == (ErrorCode.NO_ERROR, "idle")


def test_a_connection_with_a_request_is_not_idle():
    client = Http2Client(ConnectionLimits(idle_timeout_ns=100 * SECOND))
    client.receive(client.request(1, "/hold", b""))
    client.sweep(1000 * SECOND)
    client.application.held[0].respond(204, (), ())
    client.loop.run()
    assert client.answer() == [[(":status", "204")], "end"]

    client.sweep(1099 * SECOND)
    assert client.written() == b""
    client.sweep(1101 * SECOND)

    assert goaway(client.frames()) == (ErrorCode.NO_ERROR, "idle")


def test_a_client_that_asks_and_does_not_read_is_cut_off():
    client = Http2Client(ConnectionLimits(max_write_buffer_byte_size=10_000))
    client.protocol.pause_writing()
    client.transport.buffered_byte_size = 40_000
    client.receive(frames.encode_ping(bytes(8), is_ack=False))
    assert not client.transport.is_closing

    client.transport.buffered_byte_size = 40_001
    client.receive(frames.encode_ping(bytes(8), is_ack=False))

    assert client.transport.is_closing


# Draining


def test_draining_closes_what_is_idle():
    client = Http2Client()
    client.receive(client.request(1, "/", b""))
    client.written()

    client.protocol.begin_drain()

    assert goaway(client.frames()) == (ErrorCode.NO_ERROR, "")
    assert client.transport.has_sent_eof


def test_draining_finishes_what_is_in_flight():
    client = Http2Client()
    client.receive(client.request(1, "/hold", b"1"))

    client.protocol.begin_drain()
    first, ping = client.frames()
    assert first[3][:4] == (2**31 - 1).to_bytes(4, "big")
    client.receive(client.request(3, "/", b"in time") + frames.encode_ping(ping[3], is_ack=True))
    second = client.written()
    client.receive(client.request(5, "/", b"too late"))
    assert client.answer() == [("reset", ErrorCode.REFUSED_STREAM)]
    assert not client.transport.has_sent_eof
    client.application.held[0].respond(204, (), ())
    client.loop.run()

    assert b"in time" in second
    assert client.answer() == [[(":status", "204")], "end"]
    assert client.transport.has_sent_eof


def test_a_client_that_does_not_hear_of_the_end_is_not_waited_for():
    client = Http2Client()
    client.receive(client.request(1, "/hold", b"1"))
    client.protocol.begin_drain()
    client.written()
    client.application.held[0].respond(204, (), ())
    client.loop.run()
    assert not client.transport.has_sent_eof

    client.sweep(2 * SECOND)

    assert client.transport.has_sent_eof


# Anything at all

PIECES = st.lists(
    st.one_of(
        st.binary(max_size=50),
        st.sampled_from(
            [
                data_frame(1, message(b"a")),
                data_frame(1, message(b"a"), end=True),
                data_frame(3, b"\1\0\0\0\2ab"),
                data_frame(5, b"", end=True),
                frames.encode_rst_stream(1, ErrorCode.CANCEL),
                frames.encode_window_update(3, 10),
                frames.encode_ping(b"shutdown", is_ack=True),
                bytes.fromhex("000003 01 05 00000007 828684"),
                bytes.fromhex("000003 01 04 00000009 838684"),
            ]
        ),
    ),
    max_size=12,
)
METHODS = st.sampled_from(["Unary", "UnaryHold", "Stream", "StreamHold", "StreamSlow", "StreamMany", "Missing"])


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(st.lists(METHODS, min_size=3, max_size=3), PIECES, st.integers(1, 60), st.booleans())
def test_no_bytes_raise(methods, pieces, piece, is_drained):
    client = Http2Client(ConnectionLimits(max_write_buffer_byte_size=2000))
    for number, method in enumerate(methods):
        fields = [("grpc-encoding", "gzip")] if number == 1 else []
        client.receive(client.call_head(2 * number + 1, method, *fields))
    if is_drained:
        client.protocol.begin_drain()
    data = b"".join(pieces)
    for start in range(0, len(data), piece):
        client.receive(data[start : start + piece])
        client.protocol.http2.check_invariants()
    client.loop.run()
    client.sweep(100 * SECOND)
    client.lose()
    client.loop.run()
    cancelled = [event for event in client.application.events if event[0] == "cancel"]
    assert len(cancelled) <= 4


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_after_the_preface_raise(data):
    connection = MemoryConnection()
    connection.receive(frames.PREFACE + data)
    connection.sweep(100 * SECOND)
    connection.lose()
