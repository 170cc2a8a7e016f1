"""What the heads of gRPC calls mean, and how calls are served by them."""

import pytest

from merrow.net.grpc import is_grpc, parse_timeout
from merrow.settings import ConnectionLimits
from merrow.wire.http2.request_head import build_head
from tests.net.http2_client import Http2Client, failed, message, ok

SECOND = 10**9
RESET_NO_ERROR = ("reset", 0)


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        (b"application/grpc", True),
        (b"application/grpc+proto", True),
        (b"application/grpc;charset=utf-8", True),
        (b"application/grpc-web", False),
        (b"application/grpcx", False),
        (b"application/json", False),
        (b"", False),
    ],
)
def test_calls_are_told_by_their_content_type(content_type, expected):
    fields = [(b":method", b"POST"), (b":path", b"/"), (b":scheme", b"http"), (b"content-type", content_type)]

    assert is_grpc(build_head(fields)) is expected


@pytest.mark.parametrize(
    ("value", "timeout_ns"),
    [
        (b"1H", 3600 * SECOND),
        (b"2M", 120 * SECOND),
        (b"3S", 3 * SECOND),
        (b"4m", 4_000_000),
        (b"5u", 5_000),
        (b"6n", 6),
        (b"0n", 0),
        (b"99999999S", 99_999_999 * SECOND),
        (b"123456789S", 123_456_789 * SECOND),
        (b"", None),
        (b"S", None),
        (b"1", None),
        (b"1s", None),
        (b"-1S", None),
        (b"1.5S", None),
        (b" 1S", None),
        (b"9" * 19 + b"n", None),
    ],
)
def test_a_timeout_is_a_number_and_a_unit(value, timeout_ns):
    assert parse_timeout(value) == timeout_ns


@pytest.mark.parametrize("path", ["Missing", "../Other"])
def test_an_unknown_method_is_unimplemented_with_no_details(path):
    client = Http2Client()

    client.receive(client.call(1, path, message(b"a")))
    assert client.answer() == failed(12)
    client.receive(client.call_head(3, path))

    assert client.answer() == [*failed(12), RESET_NO_ERROR]


def test_only_post_is_a_call():
    client = Http2Client()
    pseudo = [(":method", "GET"), (":scheme", "http"), (":path", "/test.Echo/Unary")]

    client.receive(client.headers(1, [*pseudo, ("content-type", "application/grpc")], end=True))

    assert client.answer() == failed(2, "Bad method header")


def test_an_unknown_compression_is_unimplemented():
    client = Http2Client()

    client.receive(client.call(1, "Unary", message(b"a"), ("grpc-encoding", "br")))

    expected = failed(12, "Compression algorithm 'br' is not supported")
    expected[0].insert(2, ("grpc-accept-encoding", "identity, deflate, gzip"))
    assert client.answer() == expected


def test_a_malformed_timeout_is_refused():
    client = Http2Client()

    client.receive(client.call(1, "Unary", message(b"a"), ("grpc-timeout", "soon")))

    assert client.answer() == failed(13, "malformed grpc-timeout")


def test_a_deadline_of_a_year_is_none():
    client = Http2Client()

    # A loop in memory has no timers: this would fail if one were asked for.
    client.receive(client.call(1, "UnaryHold", message(b"a"), ("grpc-timeout", "99999999H")))

    assert len(client.application.held) == 1


def test_too_much_metadata_is_refused():
    client = Http2Client(ConnectionLimits(max_header_byte_size=1000))

    client.receive(client.call(1, "Unary", message(b"a"), *[(f"x{number}", "y" * 60) for number in range(10)]))

    assert client.answer() == failed(8, "received metadata size exceeds limit")


def test_metadata_is_given_as_sent():
    seen = []

    class Application:
        def is_streaming(self, path):
            return False

        def compression_of(self, path):
            return None

        def on_unary(self, call, message):
            seen.append((call.path, list(call.metadata), call.header(b"b-bin"), call.header(b"c"), call.is_writable))
            call.pause_reading()
            call.resume_reading()
            call.send((message,))

    client = Http2Client(application=Application())
    client.receive(client.call(1, "Any", message(b"a"), ("b-bin", "AAA"), ("b-bin", "BBB")))

    metadata = [
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
        (b"b-bin", b"AAA"),
        (b"b-bin", b"BBB"),
    ]
    assert seen == [(b"/test.Echo/Any", metadata, b"AAA", None, True)]
    assert client.answer() == ok(b"a")
