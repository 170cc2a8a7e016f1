import pytest
from hypothesis import given
from hypothesis import strategies as st

from merrow.net.body import ReceiveBudget
from merrow.net.chunked import ChunkedBody
from merrow.net.status import RequestFault

GOOD = b"5\r\nhello\r\n006;name=value\r\n world\r\nA\t\r\n0123456789\r\n0\r\nTrailer: 1\r\n\r\n"
BODY = b"hello world0123456789"


def make_body(max_byte_size=1000, max_trailer_byte_size=100):
    return ChunkedBody(max_byte_size, max_trailer_byte_size, ReceiveBudget(2**40))


def test_chunks_make_a_body():
    body = make_body()

    assert body.feed(b"before" + GOOD + b"after", 6) == 6 + len(GOOD)
    assert body.is_complete
    assert body.body == BODY


def test_a_body_may_be_empty():
    body = make_body()

    assert body.feed(b"0\r\n\r\n", 0) == 5
    assert body.is_complete
    assert body.body == b""


def test_bytes_may_come_one_by_one():
    body = make_body()
    for position in range(len(GOOD)):
        assert not body.is_complete
        assert body.feed(GOOD[position : position + 1], 0) == 1

    assert body.is_complete
    assert body.body == BODY


@pytest.mark.parametrize("cut", range(1, len(GOOD)))
def test_bytes_may_be_cut_anywhere(cut):
    body = make_body()

    assert body.feed(GOOD[:cut], 0) == cut
    body.feed(GOOD[cut:] + b"next", 0)

    assert (body.is_complete, body.body) == (True, BODY)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"\r\n", "chunked request body: invalid chunk size"),
        (b"x\r\n", "chunked request body: invalid chunk size"),
        (b"-1\r\n", "chunked request body: invalid chunk size"),
        (b"+1\r\n", "chunked request body: invalid chunk size"),
        (b"0x1\r\n", "chunked request body: invalid chunk size"),
        (b" 1\r\n", "chunked request body: invalid chunk size"),
        (b"1 1\r\n", "chunked request body: invalid chunk size"),
        (b"f" * 16 + b"\r\n", "chunked request body: invalid chunk size"),
        (b"1\n", "chunked request body: invalid line end"),
        (b"1\ra\r\n", "chunked request body: invalid line end"),
        (b"1\r\nab\r\n", "chunked request body: line too long"),
        (b"1\r\na\n", "chunked request body: invalid line end"),
        (b"1;" + b"x" * 5000, "chunked request body: line too long"),
        (b"0\r\n" + b"a: b\r\n" * 20, "chunked request body: line too long"),
    ],
)
def test_broken_chunks(data, text):
    with pytest.raises(RequestFault) as caught:
        make_body(max_trailer_byte_size=50).feed(data, 0)

    assert (caught.value.status, caught.value.text) == (400, text)


def test_a_body_over_the_limit_is_refused_by_its_chunks_size():
    body = make_body(max_byte_size=10)
    body.feed(b"6\r\nabcdef\r\n", 0)

    with pytest.raises(RequestFault) as caught:
        body.feed(b"5\r\n", 0)

    assert (caught.value.status, caught.value.text) == (413, "request body exceeds the limit of 10 bytes")


def test_too_many_chunks_are_refused_in_tritons_words():
    body = make_body(max_byte_size=100_000)
    body.feed(b"1\r\na\r\n" * 65536, 0)

    with pytest.raises(RequestFault) as caught:
        body.feed(b"1\r\n", 0)

    assert caught.value.text == (
        "Chunked request body exceeds maximum of 65536 non-empty chunks. Send fewer or larger HTTP chunks."
    )


@given(st.binary(max_size=60))
def test_any_bytes_are_a_body_or_a_fault(data):
    body = make_body()
    try:
        position = body.feed(data, 0)
    except RequestFault:
        return
    assert position == len(data) or body.is_complete
