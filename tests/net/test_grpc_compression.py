"""Compressed messages: which coding, and large ones that come in, over real connections and off the loop."""

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
from tests.net.http2_client import message
from tests.net.serving import serving
from tests.net.test_peer_grpcio import TIMEOUT_SECONDS, channel_to, streaming, unary

LOW, MEDIUM, HIGH = CompressionLevel.LOW, CompressionLevel.MEDIUM, CompressionLevel.HIGH
LARGE = b"0123456789" * 200_000


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
