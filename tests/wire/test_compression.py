"""Content codings of inference over HTTP."""

import gzip
import zlib

import pytest

from merrow.core.errors import InvalidArgumentError, UnsupportedError
from merrow.wire.compression import (
    ContentCoding,
    choose_content_coding,
    compress,
    decode_content_coding,
    decompress,
    oversize_error,
)

TEXT = b'{"inputs":[]}' * 20


@pytest.mark.parametrize("value", [None, b"", b"identity"])
def test_identity_is_no_coding(value):
    assert decode_content_coding(value) is None


def test_gzip_and_deflate_are_known():
    assert decode_content_coding(b"gzip") is ContentCoding.GZIP
    assert decode_content_coding(b"deflate") is ContentCoding.DEFLATE


@pytest.mark.parametrize("value", [b"GZIP", b"gzip, deflate", b"br", b"gzip "])
def test_any_other_coding_is_unsupported(value):
    with pytest.raises(UnsupportedError) as raised:
        decode_content_coding(value)
    assert raised.value.message == "Unsupported compression type"


@pytest.mark.parametrize(
    ("accept_encoding", "expected"),
    [
        (None, None),
        (b"", None),
        (b"gzip", ContentCoding.GZIP),
        (b"deflate", ContentCoding.DEFLATE),
        (b"gzip, deflate", ContentCoding.GZIP),
        (b"deflate, gzip", ContentCoding.DEFLATE),
        (b"br, gzip;q=0.5", ContentCoding.GZIP),
        (b"deflate;q=0.5,gzip;q=0.7", ContentCoding.GZIP),
        (b"gzip;q=.5,deflate;q=5", ContentCoding.DEFLATE),
        (b"gzip;q=0.5abc", ContentCoding.GZIP),
        (b"deflate;q=0.3;x=1", ContentCoding.DEFLATE),
        (b"gzip;q=0.2,identity;q=0.1", ContentCoding.GZIP),
        (b"identity, gzip", None),
        (b"gzip;q=0, deflate;q=0", None),
        (b"gzip;q=", None),
        (b"gzip;q=abc", None),
        (b"gzip; q=0.5", None),
        (b"gzip ;q=1", None),
        (b"gzip;x=1", None),
        (b"GZIP", None),
        (b"*", None),
    ],
)
def test_the_highest_weight_decides_the_coding_of_the_answer(accept_encoding, expected):
    assert choose_content_coding(accept_encoding) is expected


def test_both_framings_are_inflated():
    assert decompress(gzip.compress(TEXT), 1000) == TEXT
    assert decompress(zlib.compress(TEXT), 1000) == TEXT
    assert decompress(memoryview(zlib.compress(TEXT)), 1000) == TEXT


def test_only_the_first_member_counts():
    assert decompress(gzip.compress(TEXT) * 2, 1000) == TEXT
    assert decompress(gzip.compress(TEXT) + b"xx", 1000) == TEXT


def test_an_empty_body_is_refused():
    with pytest.raises(InvalidArgumentError) as raised:
        decompress(b"", 1000)
    assert raised.value.message == "nothing to be decompressed"


def test_a_cut_body_yields_what_was_there():
    cut = zlib.compress(bytes(range(256)) * 40)[:100]

    inflated = decompress(cut, 100_000)

    assert inflated is not None
    assert (bytes(range(256)) * 40).startswith(inflated)


def test_a_corrupt_body_yields_nothing_and_no_error():
    assert decompress(b"junk", 1000) == b""


def test_the_output_is_bounded():
    body = zlib.compress(b"a" * 100_000)

    assert decompress(body, 99_999) is None
    assert decompress(body, 100_000) == b"a" * 100_000
    assert oversize_error(99_999).message == (
        "Decompressed data size exceeds the maximum allowed value of 99999 bytes. "
        "Use --http-max-input-size to increase the limit."
    )


def test_answers_are_one_stream_of_their_parts():
    parts = [b"{}", memoryview(b"abc"), bytearray(b"d")]

    assert gzip.decompress(compress(parts, ContentCoding.GZIP)) == b"{}abcd"
    assert zlib.decompress(compress(parts, ContentCoding.DEFLATE)) == b"{}abcd"
