"""Compressed messages: which coding, small ones in memory, large ones over real connections and off the loop."""

import gzip
import threading
import time
import zlib

import grpc
import h2.config
import h2.connection
import pytest

from merrow.net.grpc_compression import CompressionLevel, MessageCoding, choose_coding
from merrow.net.grpc_message import CompressedMessage
from merrow.settings import ConnectionLimits
from tests.net.http2_client import GRPC_HEAD, Http2Client, failed, message, ok
from tests.net.serving import EchoApplication, serving
from tests.net.test_peer_grpcio import TIMEOUT_SECONDS, channel_to, streaming, unary

LOW, MEDIUM, HIGH = CompressionLevel.LOW, CompressionLevel.MEDIUM, CompressionLevel.HIGH
LARGE = b"0123456789" * 200_000
RANDOM = bytes(number * number * 7919 >> 7 & 255 for number in range(100_000))


@pytest.mark.parametrize(
    ("level", "accept", "coding"),
    [
        (None, b"identity, deflate, gzip", None),
        (LOW, b"identity, deflate, gzip", (b"gzip", 1)),
        (MEDIUM, b"identity,deflate,gzip", (b"deflate", 6)),
        (HIGH, b"gzip, deflate", (b"deflate", 9)),
        (HIGH, b"gzip", (b"gzip", 9)),
        (MEDIUM, b"gzip", (b"gzip", 6)),
        (LOW, b"deflate", (b"deflate", 1)),
        (LOW, b"identity", None),
        (LOW, b"br, zstd", None),
        (LOW, b"", None),
        (LOW, None, None),
    ],
)
def test_the_coding_is_grpcs_choice(level, accept, coding):
    assert choose_coding(level, accept) == (None if coding is None else MessageCoding(*coding))


def compressing_client(level=LOW):
    application = EchoApplication()
    application.compression = level
    return Http2Client(application=application)


@pytest.mark.parametrize(
    ("level", "name", "decompress"), [(LOW, "gzip", gzip.decompress), (HIGH, "deflate", zlib.decompress)]
)
@pytest.mark.parametrize("method", ["Unary", "UnaryLater", "Stream", "StreamLater"])
def test_answers_are_compressed(level, name, decompress, method):
    client = compressing_client(level)
    body = b"a" * 1000
    client.receive(client.call(1, method, message(body), ("grpc-accept-encoding", "identity, deflate, gzip")))
    client.loop.run()
    head, data, trailers, end = client.answer()

    assert head == [*GRPC_HEAD, ("grpc-encoding", name)]
    assert data[:1] == b"\x01"
    assert int.from_bytes(data[1:5], "big") == len(data) - 5 < 100
    assert decompress(data[5:]) == body
    assert (trailers, end) == ([("grpc-status", "0")], "end")


def test_what_does_not_become_shorter_is_sent_as_it_is():
    client = compressing_client()
    client.receive(client.call(1, "Unary", message(b"abc"), ("grpc-accept-encoding", "gzip")))

    assert client.answer() == [
        [*GRPC_HEAD, ("grpc-encoding", "gzip")], message(b"abc"), [("grpc-status", "0")], "end",
    ]  # fmt: skip


def test_clients_that_read_no_coding_get_none():
    client = compressing_client()
    client.receive(client.call(1, "Unary", message(b"a" * 1000)))
    assert client.answer() == ok(b"a" * 1000)


def test_errors_are_as_ever():
    client = compressing_client()
    client.receive(client.call(1, "UnaryError", message(b"no"), ("grpc-accept-encoding", "gzip")))
    assert client.answer() == failed(5, "no")


@pytest.mark.parametrize("algorithm", [grpc.Compression.Gzip, grpc.Compression.Deflate, grpc.Compression.NoCompression])
@pytest.mark.parametrize("level", [None, LOW, HIGH])
def test_grpc_reads_and_writes_them(algorithm, level):
    with serving() as server, channel_to(server, compression=algorithm) as channel:
        server.application.compression = level
        for body in (b"", b"a", b"a" * 5000, LARGE, RANDOM):
            assert unary(channel)(body) == body
        bodies = [LARGE, b"a", RANDOM, b"", LARGE, b"b" * 100_000]
        assert list(streaming(channel)(iter(bodies))) == bodies
        assert list(streaming(channel, "StreamLater")(iter(bodies))) == bodies


def test_many_calls_at_once_get_their_own_answers():
    with serving() as server, channel_to(server, compression=grpc.Compression.Gzip) as channel:
        server.application.compression = MEDIUM
        bodies = [bytes([number]) * (number * 20_000) for number in range(20)]
        calls = [unary(channel, "UnaryLater").future(body) for body in bodies]
        assert [call.result(TIMEOUT_SECONDS) for call in calls] == bodies


@pytest.mark.parametrize("method", ["Unary", "Stream"])
def test_a_bomb_ends_its_call_without_much_memory(method):
    bomb = zlib.compress(bytes(50_000_000))
    limits = ConnectionLimits(max_body_byte_size=1_000_000)
    with serving(limits) as server, server.connect() as client:
        connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        connection.initiate_connection()
        connection.send_headers(
            1,
            [(":method", "POST"), (":scheme", "http"), (":path", f"/test.Echo/{method}"), (":authority", "h"),
             ("te", "trailers"), ("content-type", "application/grpc"), ("grpc-encoding", "deflate")],
        )  # fmt: skip
        connection.send_data(1, message(bomb, flags=1)[:16384])
        connection.send_data(1, message(bomb, flags=1)[16384:32768])
        connection.send_data(1, message(bomb, flags=1)[32768:], end_stream=True)
        client.sendall(connection.data_to_send())
        fields = {}
        while b"grpc-status" not in fields:
            for event in connection.receive_data(client.recv(65536)):
                fields.update(getattr(event, "headers", None) or {})
        assert fields[b"grpc-status"] == b"8"
        assert fields[b"grpc-message"] == b"Received message larger than max (1000001 vs. 1000000)"
        assert server.application.request_count == 0


@pytest.mark.slow
def test_the_loop_goes_on_while_a_large_message_is_decompressed():
    """Pings of another connection are answered meanwhile."""
    body = bytes(100_000_000)
    with serving() as server, channel_to(server, compression=grpc.Compression.Gzip) as channel:
        call = unary(channel, "UnaryHold").future(body)
        waits = []
        with server.connect() as client:
            while not server.call(lambda: server.application.held):
                start = time.perf_counter()
                client.sendall(b"POST / HTTP/1.1\r\nContent-Length: 1\r\n\r\na")
                client.recv(1000)
                waits.append(time.perf_counter() - start)
        assert max(waits) < 0.25
        server.call(lambda: server.application.held[0].reply((b"done",)))
        assert call.result(TIMEOUT_SECONDS) == b"done"


@pytest.mark.parametrize("method", ["UnaryHold", "StreamHold"])
def test_a_client_that_leaves_while_its_message_is_decompressed(method):
    with serving() as server, channel_to(server, compression=grpc.Compression.Gzip) as channel:
        begun, release = threading.Event(), threading.Event()
        original = CompressedMessage.decompress

        def slow(self):
            begun.set()
            release.wait(TIMEOUT_SECONDS)
            return original(self)

        CompressedMessage.decompress = slow
        try:
            is_stream = method == "StreamHold"
            call = streaming(channel, method)(iter([LARGE])) if is_stream else unary(channel, method).future(LARGE)
            assert begun.wait(TIMEOUT_SECONDS)
            call.cancel()
            server.pass_until(lambda: not any(c.http2.streams for c in server.listener._service.connections))
            release.set()
            assert unary(channel)(b"next") == b"next"
        finally:
            CompressedMessage.decompress = original
            release.set()
        assert server.application.held == []
