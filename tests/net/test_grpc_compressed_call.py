"""Calls whose answers are compressed: small ones in memory, large ones over real connections."""

import gzip
import zlib

import grpc
import pytest

from merrow.net.grpc_compressed_call import compress_message
from merrow.net.grpc_compression import CompressionLevel, MessageCoding
from tests.net.http2_client import GRPC_HEAD, Http2Client, failed, message, ok
from tests.net.serving import EchoApplication, serving
from tests.net.test_peer_grpcio import TIMEOUT_SECONDS, channel_to, streaming, unary

LOW, MEDIUM, HIGH = CompressionLevel.LOW, CompressionLevel.MEDIUM, CompressionLevel.HIGH
LARGE = b"0123456789" * 200_000
RANDOM = bytes(number * number * 7919 >> 7 & 255 for number in range(100_000))


def test_a_message_is_compressed_if_that_makes_it_shorter():
    coding = MessageCoding(b"gzip", 6)

    is_compressed, parts, byte_size = compress_message(coding, (b"a" * 500, b"b" * 500), 1000)
    assert is_compressed == 1
    assert byte_size == len(parts[0]) < 100
    assert gzip.decompress(parts[0]) == b"a" * 500 + b"b" * 500
    assert compress_message(coding, (b"a", b"b"), 2) == (0, (b"a", b"b"), 2)


def test_without_memory_a_message_is_sent_as_it_is():
    class Coding(MessageCoding):
        def compress(self, parts):
            raise MemoryError

    assert compress_message(Coding(b"gzip", 1), (b"a" * 1000,), 1000) == (0, (b"a" * 1000,), 1000)


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
