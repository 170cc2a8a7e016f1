import gzip
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from merrow.net.body import ReceiveBudget
from merrow.net.grpc_message import CompressedMessage, MessageFault, MessageReader
from tests.net.http2_client import message


def read(data, *, encoding=None, max_byte_size=1000, piece=1000):
    reader = MessageReader(encoding, max_byte_size, ReceiveBudget(2**40))
    messages = []
    for start in range(0, len(data), piece):
        for each in reader.feed(data[start : start + piece]):
            messages.append(each.decompress() if isinstance(each, CompressedMessage) else bytes(each))
    return messages, reader.is_in_message


def fault_of(data, **options):
    with pytest.raises(MessageFault) as caught:
        read(data, **options)
    return caught.value.status, caught.value.text


MESSAGES = [b"first", b"", b"x" * 900, b"last"]


@pytest.mark.parametrize("piece", [1, 2, 5, 6, 7, 100, 1000, 5000])
def test_messages_are_cut_out_of_pieces_of_any_size(piece):
    assert read(b"".join(map(message, MESSAGES)), piece=piece) == (MESSAGES, False)


@pytest.mark.parametrize("length", range(1, 10))
def test_a_message_that_is_cut_is_not_there(length):
    assert read(message(b"hello")[:length]) == ([], True)


def test_a_message_has_not_begun_before_its_first_byte():
    assert read(b"") == ([], False)
    assert read(message(b"hello")) == ([b"hello"], False)


def test_only_the_lowest_flag_means_anything():
    assert read(message(b"a", flags=2)) == ([b"a"], False)


def test_a_message_over_the_limit_is_refused_by_its_prefix():
    assert read(message(bytes(1000)))[0] == [bytes(1000)]
    assert fault_of(struct.pack(">BI", 0, 1001)) == (8, "Received message larger than max (1001 vs. 1000)")


@pytest.mark.parametrize(("encoding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
@pytest.mark.parametrize("body", [b"", b"hello", b"a" * 1000])
def test_compressed_messages(encoding, compress, body):
    data = message(compress(body), flags=1) + message(b"plain") + message(compress(body), flags=1)

    for piece in (3, 1000):
        assert read(data, encoding=encoding, piece=piece) == ([body, b"plain", body], False)


def test_a_compressed_message_of_several_steps():
    body = bytes(range(256)) * 20_000

    assert read(message(gzip.compress(body), flags=1), encoding="gzip", max_byte_size=6_000_000) == ([body], False)


def test_a_message_that_grows_over_the_limit_is_refused():
    assert fault_of(message(gzip.compress(bytes(1001)), flags=1), encoding="gzip") == (
        8,
        "Received message larger than max (1001 vs. 1000)",
    )


def test_no_more_is_decompressed_than_the_limit_allows():
    bomb = zlib.compress(bytes(20_000_000))

    status, text = fault_of(message(bomb, flags=1), encoding="deflate", max_byte_size=200_000)

    assert status == 8
    assert text == "Received message larger than max (200001 vs. 200000)"


BROKEN = {
    "no compressed data": b"hello",
    "nothing": b"",
    "cut": gzip.compress(b"hello" * 10)[:-5],
    "followed by something": gzip.compress(b"hello") + b"x",
    "of the other format": zlib.compress(b"hello"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_compression(name):
    assert fault_of(message(BROKEN[name], flags=1), encoding="gzip") == (
        13,
        "Unexpected error decompressing data for algorithm gzip",
    )


def test_compression_must_have_been_announced():
    assert fault_of(message(b"x", flags=1)) == (13, "Received a compressed message without a grpc-encoding")


@given(st.lists(st.binary(max_size=30), max_size=6), st.integers(1, 20))
def test_any_messages_in_any_pieces(messages, piece):
    assert read(b"".join(map(message, messages)), piece=piece) == (messages, False)


@pytest.mark.slow
@given(st.binary(max_size=60), st.sampled_from([None, "gzip", "deflate"]))
def test_any_bytes_are_messages_or_a_fault(data, encoding):
    try:
        messages, _ = read(data, encoding=encoding, max_byte_size=50)
    except MessageFault:
        return
    assert sum(map(len, messages)) <= 50 * len(messages)
