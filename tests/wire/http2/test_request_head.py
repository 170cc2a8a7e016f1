import hpack
import pytest

from merrow.wire.http2.frames import ConnectionFault
from merrow.wire.http2.request_head import HeadDecoder, build_head

PSEUDO = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/v2"), (b":authority", b"host")]


def fault_of(*fields, pseudo=PSEUDO):
    return build_head([*pseudo, *fields]).fault


def test_a_head_says_what_is_requested():
    head = build_head([*PSEUDO, (b"content-type", b"a"), (b"x", b"1"), (b"x", b"2"), (b"content-length", b"12")])

    assert (head.method, head.path, head.authority) == (b"POST", b"/v2", b"host")
    assert head.fields == ((b"content-type", b"a"), (b"x", b"1"), (b"x", b"2"), (b"content-length", b"12"))
    assert head.content_length == 12
    assert head.field(b"x") == b"1"
    assert head.field(b"y") is None
    assert head.fault is None


def test_an_authority_and_a_length_need_not_be_there():
    head = build_head([(b":path", b"/"), (b":method", b"GET"), (b":scheme", b"http")])

    assert (head.fault, head.authority, head.content_length) == (None, b"", -1)


def test_connect_names_its_authority_only():
    head = build_head([(b":method", b"CONNECT"), (b":authority", b"host:80")])

    assert (head.fault, head.path) == (None, b"host:80")


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ([(b":scheme", b"http"), (b":path", b"/")], "missing or invalid :method"),
        ([(b":method", b"G T"), (b":scheme", b"http"), (b":path", b"/")], "missing or invalid :method"),
        ([(b":method", b"GET"), (b":path", b"/")], "missing :path or :scheme"),
        ([(b":method", b"GET"), (b":scheme", b"http")], "missing :path or :scheme"),
        ([(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"")], "missing :path or :scheme"),
        ([(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/a b")], "space in :path"),
        ([*PSEUDO, (b":path", b"/")], "pseudo-header b':path' twice"),
        ([*PSEUDO, (b":status", b"200")], "unknown pseudo-header b':status'"),
        ([(b":method", b"CONNECT"), (b":path", b"/")], "CONNECT needs an :authority, and neither :path nor :scheme"),
        ([*PSEUDO, (b"a", b"b"), (b":late", b"")], "invalid field name b':late'"),
        ([*PSEUDO, (b"Upper", b"b")], "invalid field name b'Upper'"),
        ([*PSEUDO, (b"", b"b")], "invalid field name b''"),
        ([*PSEUDO, (b"a b", b"b")], "invalid field name b'a b'"),
        ([*PSEUDO, (b"connection", b"close")], "connection-specific field b'connection'"),
        ([*PSEUDO, (b"transfer-encoding", b"chunked")], "connection-specific field b'transfer-encoding'"),
        ([*PSEUDO, (b"te", b"gzip")], "te other than trailers"),
        ([*PSEUDO, (b"a", b"1\r\n2")], "forbidden byte in a value"),
        ([*PSEUDO, (b"a", b"1\x002")], "forbidden byte in a value"),
        ([*PSEUDO[:2], (b":path", b"/\n")], "forbidden byte in a value"),
        ([*PSEUDO, (b"content-length", b"-1")], "invalid content-length"),
        ([*PSEUDO, (b"content-length", b"1"), (b"content-length", b"2")], "invalid content-length"),
    ],
)
def test_malformed_heads(fields, fault):
    assert build_head(fields).fault == fault


def test_fields_that_are_fine():
    assert fault_of((b"te", b"trailers"), (b"grpc-timeout", b"1S"), (b"x-bin", b"\xff")) is None
    assert fault_of((b"content-length", b"5"), (b"content-length", b"5")) is None


def blocks(*lists):
    encoder = hpack.Encoder()
    return [encoder.encode(fields) for fields in lists]


def make_decoder():
    return HeadDecoder(max_list_byte_size=1000, max_field_count=10)


def test_a_block_that_changes_nothing_is_decoded_once():
    first, second, third = blocks(PSEUDO, PSEUDO, PSEUDO)
    decoder = make_decoder()

    assert first != second == third
    decoder.decode_head(first)
    assert decoder.heads == {}
    head = decoder.decode_head(second)
    assert decoder.heads == {second: head}
    assert decoder.decode_head(third) is head


def test_a_block_that_changes_the_table_empties_the_cache():
    first, second, inserting, again = blocks(PSEUDO, PSEUDO, [*PSEUDO, (b"a", b"b")], PSEUDO)
    decoder = make_decoder()
    decoder.decode_head(first)
    decoder.decode_head(second)

    # The same bytes mean something else from here on.
    decoder.decode_head(inserting)

    assert decoder.heads == {}
    assert decoder.decode_head(again).path == b"/v2"


def test_trailers_that_change_the_table_empty_the_cache_too():
    first, second, trailers = blocks(PSEUDO, PSEUDO, [(b"a", b"b")])
    decoder = make_decoder()
    decoder.decode_head(first)
    decoder.decode_head(second)

    assert decoder.decode_trailers(trailers) is None
    assert decoder.heads == {}


def test_malformed_heads_are_not_kept():
    decoder = make_decoder()

    assert decoder.decode_head(b"\x82").fault == "missing :path or :scheme"
    assert decoder.heads == {}


def test_the_cache_is_bounded():
    decoder = make_decoder()
    for number in range(1000):
        decoder.decode_head(b"\x82\x84\x86\x00\x01a\x03%03d" % number)

    assert len(decoder.heads) <= 64


def test_trailers_are_checked():
    decoder = make_decoder()

    assert decoder.decode_trailers(b"\x00\x01A\x01b") == "invalid field name b'A'"
    assert decoder.decode_trailers(b"\x82") == "invalid field name b':method'"
    assert decoder.decode_trailers(b"\x00\x01a\x01\x00") == "forbidden byte in a value"


def test_a_list_over_its_limits_is_said_to_be_too_large():
    decoder = make_decoder()

    assert not decoder.decode_head(b"\x82\x84\x86").is_too_large
    assert decoder.decode_head(b"\x82\x84\x86" + b"\x00\x01a\x01b" * 8).is_too_large
    assert decoder.decode_head(b"\x82\x84\x86" + b"\x00\x01a\x7f\xe8\x06" + b"v" * 999).is_too_large


def test_a_list_far_over_its_limits_ends_the_connection():
    with pytest.raises(ConnectionFault):
        make_decoder().decode_head(b"\x82\x84\x86" + b"\x00\x01a\x01b" * 38)
