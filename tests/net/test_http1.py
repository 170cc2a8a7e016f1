import asyncio
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from merrow.settings import ConnectionLimits
from tests.net.serving import MemoryConnection, read_all, read_exactly, read_until, serving

SECOND = 10**9
LATER = 100 * SECOND


def post(target=b"/", body=b"", *headers, version=b"1.1"):
    lines = [b"POST %b HTTP/%b" % (target, version), b"Host: h", b"Content-Length: %d" % len(body), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def answer(body=b"", *, status=b"200 OK", close=False):
    return b"HTTP/1.1 %b\r\nContent-Type: application/octet-stream\r\nContent-Length: %d\r\n%b\r\n%b" % (
        status,
        len(body),
        b"Connection: close\r\n" if close else b"",
        body,
    )


def fault(status, text):
    body = b'{"error":"%b"}' % text
    return b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (
        status,
        len(body),
        body,
    )


# Answers


def test_an_answer_is_one_write():
    connection = MemoryConnection()

    connection.receive(post(b"/", b"hello"))

    assert connection.written() == answer(b"hello")
    assert connection.transport.write_count == 1


def test_a_connection_serves_one_request_after_the_other():
    connection = MemoryConnection()
    for number in range(5):
        connection.receive(post(b"/", b"%d" % number))
        assert connection.written() == answer(b"%d" % number)


def test_an_answer_may_come_later():
    connection = MemoryConnection()
    for _ in range(3):
        connection.receive(post(b"/later", b"hello"))
        assert connection.written() == b""
        connection.loop.run()
        assert connection.written() == answer(b"hello")


def test_a_large_answer_is_gathered_not_joined():
    connection = MemoryConnection()

    connection.receive(post(b"/many", b"x" * 100))

    assert connection.written() == answer(b"x" * 100_000)


def test_the_request_is_described_as_sent():
    connection = MemoryConnection()

    connection.receive(b"PUT /describe?a=%20 HTTP/1.1\r\nX-B: 1\r\nx-a: 2\r\nContent-Length: 2\r\n\r\nhi")

    described = (b"PUT", b"/describe?a=%20", [(b"Content-Length", b"2"), (b"X-B", b"1"), (b"x-a", b"2")], b"hi")
    assert connection.written() == answer(repr(described).encode())


def test_headers_are_found_by_their_lower_case_name():
    found = []

    class Application:
        def on_exchange(self, exchange):
            found.append((exchange.header(b"x-name"), exchange.header(b"other")))
            exchange.respond(200, (), ())

    connection = MemoryConnection(application=Application())
    connection.receive(b"GET / HTTP/1.1\r\nX-Name: 1\r\nX-NAME: 2\r\n\r\n")

    assert found == [(b"1", None)]


def test_an_answer_without_headers_has_its_length_only():
    class Application:
        def on_exchange(self, exchange):
            exchange.respond(405, (), (b"x",))

    connection = MemoryConnection(application=Application())
    connection.receive(b"GET / HTTP/1.1\r\n\r\n")

    assert connection.written() == b"HTTP/1.1 405 Not Allowed\r\nContent-Length: 1\r\n\r\nx"


def test_204_has_neither_body_nor_length():
    connection = MemoryConnection()

    connection.receive(post(b"/empty") * 2)

    assert connection.written() == b"HTTP/1.1 204 No Content\r\n\r\n" * 2


def test_head_has_the_length_of_the_body_it_has_not():
    connection = MemoryConnection()

    connection.receive(b"HEAD / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello")

    assert connection.written() == answer(b"hello")[:-5]


def test_only_the_first_answer_counts():
    class Application:
        def on_exchange(self, exchange):
            exchange.respond(200, (), (b"1",))
            exchange.respond(200, (), (b"2",))
            exchange.start_stream(200, ())
            exchange.write(b"3")
            exchange.finish()

    connection = MemoryConnection(application=Application())
    connection.receive(b"GET / HTTP/1.1\r\n\r\n")

    assert connection.written() == b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1"


def test_a_changed_header_list_is_not_answered_from_memory():
    class Application:
        headers = [(b"A", b"1")]  # noqa: RUF012

        def on_exchange(self, exchange):
            exchange.respond(200, self.headers, ())

    application = Application()
    connection = MemoryConnection(application=application)
    connection.receive(b"GET / HTTP/1.1\r\n\r\n")
    application.headers[0] = (b"A", b"2")
    connection.receive(b"GET / HTTP/1.1\r\n\r\n")

    assert re.findall(rb"A: (.)", connection.written()) == [b"1", b"2"]


def test_the_memory_of_response_heads_is_bounded():
    class Application:
        def on_exchange(self, exchange):
            exchange.respond(200, ((b"A", exchange.target),), ())

    connection = MemoryConnection(application=Application())
    for number in range(600):
        connection.receive(b"GET /%d HTTP/1.1\r\n\r\n" % number)

    assert re.findall(rb"A: /(\d+)", connection.written()) == [b"%d" % number for number in range(600)]
    assert len(connection.service.response_heads) <= 256


# Streamed answers


def test_a_streamed_answer_is_chunked():
    connection = MemoryConnection()

    connection.receive(post(b"/stream", b"abcdefgh") + post(b"/", b"next"))

    assert connection.written() == (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"3\r\nabc\r\n3\r\ndef\r\n2\r\ngh\r\n0\r\n\r\n" + answer(b"next")
    )


def test_over_http_1_0_a_streamed_answer_ends_with_the_connection():
    connection = MemoryConnection()

    connection.receive(post(b"/stream", b"abcd", b"Connection: keep-alive", version=b"1.0"))

    assert connection.written() == (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nConnection: close\r\n\r\nabcd"
    )
    assert connection.transport.is_closing


def test_a_streamed_answer_to_head_has_no_body():
    connection = MemoryConnection()

    connection.receive(b"HEAD /stream HTTP/1.1\r\nContent-Length: 4\r\n\r\nabcd")

    assert connection.written().endswith(b"Transfer-Encoding: chunked\r\n\r\n")


def test_a_streamed_answer_waits_for_a_slow_client():
    with serving(ConnectionLimits(max_write_buffer_byte_size=200_000)) as server, server.connect() as client:
        events = server.application.events
        client.sendall(post(b"/drain", b"300"))
        # The client reads nothing: there comes a time when nothing more is written.
        seen = [-1]
        server.pass_until(lambda: seen.append(len(events)) or (len(seen) > 50 and len(set(seen[-50:])) == 1))
        assert 0 < len(events) < 300
        assert b"chunked" in read_until(client, b"\r\n\r\n")
        received = b""
        while not received.endswith(b"0\r\n\r\n"):
            received = received[-5:] + client.recv(1 << 20)
        assert len(events) == 300


def test_a_drain_ends_when_the_client_leaves():
    with serving(ConnectionLimits(max_write_buffer_byte_size=100_000)) as server:
        with server.connect() as client:
            client.sendall(post(b"/drain", b"1000"))
            server.wait_for(lambda: server.application.events)
        server.wait_for(lambda: ("disconnect", b"drain") in server.application.events)
        server.wait_for(lambda: not server.application.tasks)


# Requests in pieces


REQUESTS = (
    post(b"/a", b"first")
    + b"\r\n"
    + b"GET /b HTTP/1.1\r\n\r\n"
    + b"POST /c HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nTrailer: t\r\n\r\n"
    + post(b"/later", b"later")
    + post(b"/d", b"x" * 300)
)
ANSWERS = answer(b"first") + answer() + answer(b"abcde") + answer(b"later") + answer(b"x" * 300)


def run_requests(pieces):
    connection = MemoryConnection()
    for piece in pieces:
        connection.receive(piece)
        connection.loop.run()
    return connection.written()


def test_pipelined_requests_are_answered_in_order():
    connection = MemoryConnection()

    connection.receive(REQUESTS)
    connection.loop.run()

    assert connection.written() == ANSWERS
    # What was answered at once, and what waited for the later one.
    assert connection.transport.write_count <= 3


def test_bytes_may_come_one_by_one():
    assert run_requests(REQUESTS[i : i + 1] for i in range(len(REQUESTS))) == ANSWERS


@pytest.mark.parametrize("step", [1, 2])
def test_bytes_may_be_cut_anywhere(step):
    for cut in range(step, len(REQUESTS), 2):
        assert run_requests([REQUESTS[:cut], REQUESTS[cut:]]) == ANSWERS


@pytest.mark.parametrize("byte_size", [70_000, 500_000, 3_000_000])
@pytest.mark.parametrize("piece_byte_size", [10_000, 262_144])
def test_a_large_body_is_received_into_its_place(byte_size, piece_byte_size):
    connection = MemoryConnection()
    body = bytes(range(251)) * (byte_size // 251)
    request = post(b"/", body) + post(b"/", b"next")
    is_direct = False

    for start in range(0, len(request), piece_byte_size):
        connection.receive(request[start : start + piece_byte_size])
        is_direct |= isinstance(connection.protocol, asyncio.BufferedProtocol)

    assert connection.written() == answer(body) + answer(b"next")
    assert is_direct == (byte_size - piece_byte_size >= 65536)
    assert not isinstance(connection.protocol, asyncio.BufferedProtocol)


def test_a_body_without_memory(monkeypatch):
    def fail(byte_size):
        raise MemoryError

    monkeypatch.setattr("merrow.net.body.allocate", fail)
    connection = MemoryConnection()

    connection.receive(post(b"/", bytes(500_000))[:100_000])

    assert connection.written() == fault(b"503 Service Unavailable", b"not enough memory for the request's body")


def test_events_during_a_large_body_reach_the_connection():
    connection = MemoryConnection()
    connection.receive(post(b"/", bytes(1_000_000))[:100_000])
    receiver = connection.protocol
    assert isinstance(receiver, asyncio.BufferedProtocol)

    receiver.pause_writing()
    receiver.resume_writing()
    assert receiver.eof_received() is None
    receiver.connection_lost(None)

    assert connection.service.connections == set()


# Waiting


def hold(body=b""):
    return post(b"/hold", body)


def test_requests_wait_behind_one_that_is_being_answered():
    connection = MemoryConnection()
    application = connection.application

    connection.receive(hold(b"1") + post(b"/", b"2") + hold(b"3") + post(b"/", b"4"))

    assert (connection.written(), len(application.held)) == (b"", 1)
    application.held[0].respond(200, (), (b"one",))
    assert connection.written() == b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\none" + answer(b"2")
    assert len(application.held) == 2
    application.held[1].respond(200, (), (b"three",))
    assert connection.written() == b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nthree" + answer(b"4")


def test_only_so_many_requests_wait():
    connection = MemoryConnection(ConnectionLimits(max_pipelined_requests=3))
    application = connection.application

    connection.receive(hold() * 10)

    assert not connection.transport.is_reading
    for number in range(10):
        assert len(application.held) == number + 1
        application.held[number].respond(204, (), ())
    assert connection.transport.is_reading
    assert connection.written() == b"HTTP/1.1 204 No Content\r\n\r\n" * 10


def test_only_so_many_bytes_of_bodies_wait():
    connection = MemoryConnection()
    application = connection.application

    connection.receive(hold() + hold(bytes(800_000)) * 2)
    assert not connection.transport.is_reading
    application.held[0].respond(204, (), ())
    assert connection.transport.is_reading
    application.held[1].respond(204, (), ())
    assert len(application.held) == 3


def test_a_deep_pipeline_does_not_recurse():
    connection = MemoryConnection(ConnectionLimits(max_pipelined_requests=5000))

    connection.receive(hold() + post() * 4000)
    connection.application.held[0].respond(204, (), ())

    assert connection.written().count(b"HTTP/1.1 200 OK") == 4000


def test_nothing_is_read_while_the_client_takes_no_answers():
    connection = MemoryConnection()
    connection.receive(post(b"/", b"1") + post(b"/hold") + post(b"/", b"2"))
    connection.protocol.pause_writing()
    assert not connection.transport.is_reading

    connection.application.held[0].respond(204, (), ())
    assert connection.written() == answer(b"1") + b"HTTP/1.1 204 No Content\r\n\r\n"
    connection.protocol.resume_writing()

    assert connection.transport.is_reading
    assert connection.written() == answer(b"2")


# Expect: 100-continue


CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


@pytest.mark.parametrize(
    ("framing", "body"), [(b"Content-Length: 3", b"abc"), (b"Transfer-Encoding: chunked", b"3\r\nabc\r\n0\r\n\r\n")]
)
def test_a_client_that_asks_is_told_to_continue(framing, body):
    connection = MemoryConnection()

    connection.receive(b"POST / HTTP/1.1\r\nExpect: 100-continue\r\n" + framing + b"\r\n\r\n")
    assert connection.written() == CONTINUE
    connection.receive(body)

    assert connection.written() == answer(b"abc")


def test_a_client_that_did_not_wait_is_not_told():
    connection = MemoryConnection()

    connection.receive(post(b"/", b"abc", b"Expect: 100-continue"))

    assert connection.written() == answer(b"abc")


def test_continue_waits_for_the_answers_before_it():
    connection = MemoryConnection()

    connection.receive(hold() + b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
    assert connection.written() == b""
    connection.application.held[0].respond(204, (), ())

    assert connection.written() == b"HTTP/1.1 204 No Content\r\n\r\n" + CONTINUE
    connection.receive(b"abc")
    assert connection.written() == answer(b"abc")


# Closing


def test_connection_close_is_echoed_and_done():
    connection = MemoryConnection()

    connection.receive(post(b"/", b"a", b"Connection: close") + post(b"/", b"never"))

    assert connection.written() == answer(b"a", close=True)
    assert connection.transport.is_closing


def test_a_later_answer_closes_too():
    connection = MemoryConnection()

    connection.receive(post(b"/later", b"a", b"Connection: close"))
    connection.receive(b"ignored")
    assert not connection.transport.is_closing
    connection.loop.run()

    assert connection.written() == answer(b"a", close=True)
    assert connection.transport.is_closing


def test_http_1_0_closes_unless_asked_not_to():
    connection = MemoryConnection()
    connection.receive(post(b"/", b"a", b"Connection: keep-alive", version=b"1.0"))
    assert connection.written() == answer(b"a").replace(b"\r\n\r\n", b"\r\nConnection: keep-alive\r\n\r\n")
    assert not connection.transport.is_closing

    connection.receive(post(b"/", b"a", version=b"1.0"))

    assert connection.written() == answer(b"a", close=True)
    assert connection.transport.is_closing


def test_a_client_that_leaves_ends_its_request_once():
    connection = MemoryConnection()
    application = connection.application
    connection.receive(hold(b"1") + hold(b"2"))

    connection.lose()

    assert application.events == [("disconnect", b"1")]
    application.held[0].respond(200, (), (b"late",))
    application.held[0].write(b"late")
    application.held[0].finish()
    assert connection.written() == b""
    assert len(application.held) == 1


def test_a_client_that_leaves_after_its_answer_ends_nothing():
    connection = MemoryConnection()
    connection.receive(hold(b"1"))
    connection.application.held[0].respond(204, (), ())

    connection.lose()

    assert connection.application.events == []


# Faults


FAULTS = [
    (b"GARBAGE\r\n\r\n", b"400 Bad Request", b"unable to parse the request: Invalid method"),
    (b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03\r\n\r\n", b"400 Bad Request", b"unable to parse the request: "),
    (b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n", b"400 Bad Request", b"unable to parse the request: "),
    (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n", b"400 Bad Request", b"chunked request body: "),
    (b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", b"501 Not Implemented", b"unsupported Tran"),
    (
        b"POST / HTTP/1.1\r\nContent-Length: 1001\r\n\r\n",
        b"413 Content Too Large",
        b"request body exceeds the limit of ",
    ),
    (
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3e9\r\n",
        b"413 Content Too Large",
        b"request body exceeds",
    ),
    (b"GET / HTTP/1.1\r\nA: " + bytes(2000), b"431 Request Header Fields Too Large", b"request head exceeds the limit"),
    (b"GET / HTTP/1.1\r\nA: " + b"b" * 2000 + b"\r\n\r\n", b"431 Request Header Fields Too Large", b"request head "),
    (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 21 + b"\r\n", b"431 Request Header Fields Too Large", b"request has more"),
    (b"GET / HTTP/2.0\r\n\r\n", b"505 HTTP Version Not Supported", b"HTTP version 2.0 is not supported"),
]


@pytest.mark.parametrize(("data", "status", "text"), FAULTS)
def test_a_fault_is_answered_as_json_and_closes(data, status, text):
    limits = ConnectionLimits(max_header_byte_size=1000, max_header_count=20, max_body_byte_size=1000)
    connection = MemoryConnection(limits)

    connection.receive(data)

    written = connection.written()
    assert written.startswith(b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: " % status)
    assert b"\r\nConnection: close\r\n\r\n" + b'{"error":"' + text in written
    assert connection.transport.has_sent_eof
    connection.receive(b"more, which is ignored")
    assert connection.written() == b""


def test_a_body_over_the_limit_is_refused_every_time():
    connection = MemoryConnection(ConnectionLimits(max_body_byte_size=10))
    for _ in range(3):
        connection.receive(post(b"/", bytes(11)))
        assert connection.written() == fault(b"413 Content Too Large", b"request body exceeds the limit of 10 bytes")
        connection.reopen()


def test_a_fault_is_answered_in_its_turn():
    connection = MemoryConnection()

    connection.receive(hold(b"1") + post(b"/", b"2") + b"BAD\r\n\r\n" + post(b"/", b"3"))
    assert connection.written() == b""
    connection.application.held[0].respond(204, (), ())

    written = connection.written()
    assert written.startswith(b"HTTP/1.1 204 No Content\r\n\r\n" + answer(b"2") + b"HTTP/1.1 400 Bad Request\r\n")
    assert connection.transport.has_sent_eof
    assert connection.application.request_count == 2


def test_a_client_that_still_sends_reads_the_fault():
    with serving(ConnectionLimits(max_body_byte_size=1000)) as server, server.connect() as client:
        client.sendall(b"POST / HTTP/1.1\r\nContent-Length: 100000000\r\n\r\n" + bytes(500_000))

        assert read_all(client) == fault(b"413 Content Too Large", b"request body exceeds the limit of 1000 bytes")


# Time


LIMITS = ConnectionLimits(receive_timeout_ns=10 * SECOND, idle_timeout_ns=100 * SECOND)


@pytest.mark.parametrize(
    "data",
    [
        b"POST / HTTP/1.1\r\nContent-Le",
        b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nab",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
        b"POST / HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n" + bytes(100_000),
    ],
)
def test_a_request_whose_bytes_stop_coming_times_out(data):
    connection = MemoryConnection(LIMITS)
    connection.receive(data)

    connection.sweep(9 * SECOND)
    assert connection.written() == b""
    connection.sweep(11 * SECOND)

    text = b"request timed out: its bytes stopped coming"
    assert connection.written() == fault(b"408 Request Timeout", text)
    connection.receive(b"late")
    connection.sweep(12 * SECOND)
    assert not connection.transport.is_closing
    connection.sweep(14 * SECOND)
    assert connection.transport.is_closing


def test_a_body_that_comes_slowly_does_not_time_out():
    connection = MemoryConnection(LIMITS)
    connection.receive(post(b"/", b"x" * 20)[:-20])

    for number in range(20):
        connection.sweep(number * 9 * SECOND)
        connection.receive(b"x")

    assert connection.written() == answer(b"x" * 20)


def test_a_head_that_comes_slowly_does():
    connection = MemoryConnection(LIMITS)
    connection.receive(b"GET / HTT")

    for number in range(1, 4):
        connection.sweep(number * 5 * SECOND)
        connection.receive(b"P")

    assert connection.written().startswith(b"HTTP/1.1 408 Request Timeout")


def test_a_client_that_is_held_back_is_not_timed_out():
    connection = MemoryConnection(LIMITS)
    connection.receive(hold() + post(b"/", b"abc")[:-1])
    connection.protocol.pause_writing()

    connection.sweep(50 * SECOND)
    connection.application.held[0].respond(204, (), ())
    connection.protocol.resume_writing()
    connection.sweep(59 * SECOND)
    connection.written()
    connection.receive(b"c")

    assert connection.written() == answer(b"abc")


def test_an_idle_connection_is_closed():
    connection = MemoryConnection(LIMITS)
    connection.receive(post(b"/", b"a"))

    connection.sweep(99 * SECOND)
    assert not connection.transport.is_closing
    connection.sweep(101 * SECOND)

    assert connection.transport.is_closing


def test_a_connection_that_waits_for_its_answer_is_not_idle():
    connection = MemoryConnection(LIMITS)
    connection.receive(hold())

    connection.sweep(1000 * SECOND)

    assert not connection.transport.is_closing


def test_a_client_that_takes_no_bytes_is_cut_off():
    connection = MemoryConnection(LIMITS)
    connection.receive(post(b"/", b"a"))
    connection.transport.buffered_byte_size = 1000
    connection.sweep(1 * SECOND)
    connection.transport.buffered_byte_size = 900
    connection.sweep(10 * SECOND)
    connection.sweep(19 * SECOND)
    assert not connection.transport.is_closing

    connection.sweep(21 * SECOND)

    assert connection.transport.is_closing


# Draining


def test_draining_closes_what_is_idle():
    connection = MemoryConnection()
    connection.receive(post(b"/", b"a"))
    connection.service.is_draining = True

    connection.protocol.begin_drain()

    assert connection.transport.is_closing


@pytest.mark.parametrize("begin", [hold(b"1"), b"POST /hold HTTP/1.1\r\nContent-Length: 1\r\n\r\n", b"POST /ho"])
def test_draining_lets_what_is_in_flight_finish(begin):
    connection = MemoryConnection()
    whole = b"POST /hold HTTP/1.1\r\nContent-Length: 1\r\n\r\n1"
    connection.receive(begin)
    connection.service.is_draining = True
    connection.protocol.begin_drain()
    assert not connection.transport.is_closing

    if not connection.application.held:
        connection.receive(whole[len(begin) :])
    connection.application.held[0].respond(200, (), (b"x",))

    assert connection.written() == b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx"
    assert connection.transport.is_closing


def test_draining_answers_at_once_where_the_application_does():
    connection = MemoryConnection()
    connection.receive(post(b"/", b"a"))
    connection.receive(post(b"/", b"a")[:-1])
    connection.written()
    connection.service.is_draining = True
    connection.protocol.begin_drain()

    connection.receive(b"a")

    assert connection.written() == answer(b"a", close=True)
    assert connection.transport.is_closing


def test_draining_serves_what_waits_first():
    connection = MemoryConnection()
    connection.receive(hold() + hold())
    connection.service.is_draining = True
    connection.protocol.begin_drain()

    connection.application.held[0].respond(204, (), ())
    assert not connection.transport.is_closing
    connection.application.held[1].respond(204, (), ())

    assert (
        connection.written() == b"HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"
    )
    assert connection.transport.is_closing


# Real sockets


@pytest.mark.parametrize("has_uvloop", [True, False])
@pytest.mark.parametrize("byte_size", [0, 10, 100_000, 5_000_000])
def test_bodies_of_any_size_come_back(byte_size, has_uvloop):
    body = bytes(range(256)) * (byte_size // 256) + bytes(byte_size % 256)
    with serving(has_uvloop=has_uvloop) as server, server.connect() as client:
        for _ in range(2):
            client.sendall(post(b"/", body))
            expected = answer(body)
            assert read_exactly(client, len(expected)) == expected


@pytest.mark.parametrize("has_uvloop", [True, False])
def test_a_socket_that_closes_tells_the_application(has_uvloop):
    with serving(has_uvloop=has_uvloop) as server:
        with server.connect() as client:
            client.sendall(hold(b"1"))
            server.wait_for(lambda: server.application.held)
        server.wait_for(lambda: server.application.events == [("disconnect", b"1")])


# Anything at all


LINES = st.lists(
    st.sampled_from(
        [
            b"GET / HTTP/1.1\r\n",
            b"POST /hold HTTP/1.1\r\n",
            b"POST /later HTTP/1.0\r\n",
            b"Content-Length: 5\r\n",
            b"Transfer-Encoding: chunked\r\n",
            b"Expect: 100-continue\r\n",
            b"Connection: close\r\n",
            b"\r\n",
            b"\n",
            b"5\r\nhello\r\n",
            b"0\r\n\r\n",
            b"hello",
            b"\0\xff",
            b"A: ",
        ]
    ),
    max_size=12,
)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.one_of(LINES.map(b"".join), st.binary(max_size=100)), st.integers(1, 40))
def test_no_bytes_raise(data, piece):
    connection = MemoryConnection(ConnectionLimits(max_pipelined_requests=2))
    for start in range(0, len(data), piece):
        if connection.transport.is_reading:
            connection.receive(data[start : start + piece])
        connection.loop.run()
    connection.sweep(LATER)
    for exchange in connection.application.held:
        exchange.respond(200, (), ())
    connection.lose()


def test_a_client_that_has_gone_unnoticed_is_no_trouble():
    connection = MemoryConnection()

    def fail():
        raise OSError("not connected")

    connection.transport.write_eof = fail
    connection.receive(b"BAD\r\n\r\n")

    assert connection.transport.is_closing
