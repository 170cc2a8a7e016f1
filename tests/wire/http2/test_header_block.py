import hpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from merrow.wire.http2.frames import ConnectionFault, ErrorCode
from merrow.wire.http2.header_block import HpackDecoder, encode_fields, encode_status


def make_decoder(max_list_byte_size=65536, max_field_count=256):
    return HpackDecoder(max_list_byte_size, max_field_count)


# RFC 7541, appendix C: (block in hexadecimal, its fields), in the order in which one decoder gets them.
WITHOUT_HUFFMAN = [
    (
        "828684410f7777772e6578616d706c652e636f6d",
        [
            (b":method", b"GET"),
            (b":scheme", b"http"),
            (b":path", b"/"),
            (b":authority", b"www.example.com"),
        ],
    ),
    (
        "828684be58086e6f2d6361636865",
        [
            (b":method", b"GET"),
            (b":scheme", b"http"),
            (b":path", b"/"),
            (b":authority", b"www.example.com"),
            (b"cache-control", b"no-cache"),
        ],
    ),
    (
        "828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565",
        [
            (b":method", b"GET"),
            (b":scheme", b"https"),
            (b":path", b"/index.html"),
            (b":authority", b"www.example.com"),
            (b"custom-key", b"custom-value"),
        ],
    ),
]
WITH_HUFFMAN = [
    ("828684418cf1e3c2e5f23a6ba0ab90f4ff", WITHOUT_HUFFMAN[0][1]),
    ("828684be5886a8eb10649cbf", WITHOUT_HUFFMAN[1][1]),
    ("828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf", WITHOUT_HUFFMAN[2][1]),
]


@pytest.mark.parametrize("blocks", [WITHOUT_HUFFMAN, WITH_HUFFMAN], ids=["plain", "huffman"])
def test_the_examples_of_the_rfc(blocks):
    decoder = make_decoder()

    for block, fields in blocks:
        assert decoder.decode(bytes.fromhex(block))[0] == fields


@pytest.mark.parametrize(
    ("block", "fields"),
    [
        ("400a637573746f6d2d6b65790d637573746f6d2d686561646572", [(b"custom-key", b"custom-header")]),
        ("040c2f73616d706c652f70617468", [(b":path", b"/sample/path")]),
        ("100870617373776f726406736563726574", [(b"password", b"secret")]),
        ("82", [(b":method", b"GET")]),
        ("", []),
    ],
)
def test_each_kind_of_field(block, fields):
    assert make_decoder().decode(bytes.fromhex(block))[0] == fields


def test_the_size_of_a_list_counts_32_bytes_a_field():
    assert make_decoder().decode(bytes.fromhex("8286"))[1] == len(":methodGET") + 32 + len(":schemehttp") + 32


def test_only_insertions_and_resizings_are_changes():
    decoder = make_decoder()

    decoder.decode(bytes.fromhex("8286 1008 70617373776f7264 06 736563726574 04 02 2f61"))
    assert decoder.change_count == 0
    decoder.decode(bytes.fromhex("400161 0162"))
    assert decoder.change_count == 1
    decoder.decode(bytes.fromhex("be"))
    assert decoder.change_count == 1
    decoder.decode(bytes.fromhex("20"))
    assert decoder.change_count == 2


def test_an_entry_leaves_the_table_when_a_newer_one_needs_its_room():
    decoder = make_decoder()
    # Each counts 32 + 1 + 2000 bytes: three do not fit.
    for name in (b"a", b"b", b"c"):
        decoder.decode(b"\x40\x01" + name + b"\x7f\xd1\x0e" + b"v" * 2000)

    assert decoder.decode(b"\xbe\xbf")[0] == [(b"c", b"v" * 2000), (b"b", b"v" * 2000)]
    with pytest.raises(ConnectionFault):
        decoder.decode(b"\xc0")


def test_an_entry_larger_than_the_table_empties_it():
    decoder = make_decoder()
    decoder.decode(bytes.fromhex("400161 0162"))

    assert decoder.decode(b"\x40\x01c\x7f\x89\x26" + b"v" * 5000)[0] == [(b"c", b"v" * 5000)]
    with pytest.raises(ConnectionFault, match="no header field has index 62"):
        decoder.decode(b"\xbe")


def test_the_table_shrinks_and_grows_as_the_peer_says():
    decoder = make_decoder()
    decoder.decode(bytes.fromhex("400161 0162"))

    decoder.decode(bytes.fromhex("20 3fe11f"))  # to 0, and to 4096 again

    with pytest.raises(ConnectionFault):
        decoder.decode(b"\xbe")
    decoder.decode(bytes.fromhex("400161 0162"))
    assert decoder.decode(b"\xbe")[0] == [(b"a", b"b")]


@pytest.mark.parametrize(
    ("block", "text"),
    [
        ("80", "no header field has index 0"),
        ("be", "no header field has index 62"),
        ("ff00", "no header field has index 127"),
        ("ffffffffffff7f", "integer in a header block too long"),
        ("82 20", "table size update after a header field"),
        ("3fe21f", "table size update to 4097 bytes"),
        ("4001", "header block ends inside a field"),
        ("40", "header block ends inside a field"),
        ("400161 7f", "header block ends inside a field"),
        ("400161 81ff 00", "invalid Huffman code in a header block"),
    ],
)
def test_a_broken_block_is_a_compression_error(block, text):
    with pytest.raises(ConnectionFault) as caught:
        make_decoder().decode(bytes.fromhex(block))

    assert (caught.value.code, caught.value.text) == (ErrorCode.COMPRESSION_ERROR, text)


def test_a_block_cut_anywhere_is_never_read_beyond():
    block = bytes.fromhex(WITH_HUFFMAN[2][0].replace("bf40", "8440"))
    for length in range(len(block)):
        try:
            fields, _ = make_decoder().decode(block[:length])
        except ConnectionFault:
            continue
        assert len(fields) <= 5


def test_too_many_fields_are_refused_before_they_are_decoded():
    decoder = make_decoder(max_field_count=3)

    assert len(decoder.decode(b"\x82" * 3)[0]) == 3
    with pytest.raises(ConnectionFault) as caught:
        decoder.decode(b"\x82" * 4)
    assert caught.value.code is ErrorCode.ENHANCE_YOUR_CALM


def test_a_list_over_its_limit_is_refused():
    decoder = make_decoder(max_list_byte_size=100)
    decoder.decode(b"\x00\x01a\x43" + b"v" * 67)

    with pytest.raises(ConnectionFault) as caught:
        decoder.decode(b"\x00\x01a\x44" + b"v" * 68)
    assert caught.value.code is ErrorCode.ENHANCE_YOUR_CALM


NAMES = st.one_of(
    st.sampled_from([b":path", b":method", b"content-type", b"te", b"x"]), st.binary(min_size=1, max_size=20)
)
FIELDS = st.lists(st.tuples(NAMES, st.binary(max_size=300)), max_size=20)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(FIELDS, st.booleans(), st.sampled_from([None, 0, 100, 4096])), max_size=5))
def test_whatever_the_package_encodes_is_decoded(blocks):
    encoder, decoder = hpack.Encoder(), make_decoder(max_field_count=1000)
    for fields, has_huffman, table_size in blocks:
        if table_size is not None:
            encoder.header_table_size = table_size
        block = encoder.encode(fields, huffman=has_huffman)

        assert decoder.decode(block)[0] == fields


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=4))
def test_on_any_bytes_it_agrees_with_the_package(blocks):
    ours, theirs = make_decoder(), hpack.Decoder()
    for block in blocks:
        try:
            expected = [tuple(field) for field in theirs.decode(block, raw=True)]
        except hpack.HPACKError:
            expected = None
        try:
            decoded = ours.decode(block)[0]
        except ConnectionFault:
            decoded = None
        assert decoded == expected
        if expected is None:
            break


@settings(max_examples=60, deadline=None)
@given(FIELDS)
def test_what_is_encoded_is_read_by_the_package(fields):
    assert [tuple(field) for field in hpack.Decoder().decode(encode_fields(fields), raw=True)] == fields


def test_encoding_uses_the_static_table_and_nothing_else():
    assert encode_status(200) == b"\x88"
    assert encode_status(404) == b"\x8d"
    assert encode_status(405) == b"\x08\x03405"
    assert encode_fields([(b"content-type", b"a")]) == b"\x0f\x10\x01a"
    assert encode_fields([(b"grpc-status", b"0")]) == b"\x00\x0bgrpc-status\x010"
    assert encode_fields([(b"a", b"v" * 127)]) == b"\x00\x01a\x7f\x00" + b"v" * 127
    assert encode_fields([(b"a", b"v" * 300)]) == b"\x00\x01a\x7f\xad\x01" + b"v" * 300
