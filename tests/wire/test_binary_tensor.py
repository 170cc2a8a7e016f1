"""Where the JSON of a body ends."""

import pytest

from merrow.core.errors import InvalidArgumentError
from merrow.wire.binary_tensor import decode_header_length, split_body


def refusal(value, body_byte_size=64):
    with pytest.raises(InvalidArgumentError) as raised:
        decode_header_length(value, body_byte_size)
    return raised.value.message


def test_no_header_is_no_length():
    assert decode_header_length(None, 64) is None


@pytest.mark.parametrize(
    ("value", "length"), [(b"0", 0), (b"64", 64), (b"+5", 5), (b"  7", 7), (b"12abc", 12), (b"1.5", 1), (b"007", 7)]
)
def test_a_length_is_read_as_c_reads_it(value, length):
    assert decode_header_length(value, 64) == length


@pytest.mark.parametrize("value", [b"", b"abc", b"-", b"x1", b"\xff"])
def test_what_is_no_number_is_refused(value):
    shown = value.decode("utf-8", "surrogateescape")
    assert refusal(value) == f"Unable to parse Inference-Header-Content-Length, got: {shown}"


@pytest.mark.parametrize("value", [b"-1", b"65", b"2147483647", b"-2147483648", b"65abc"])
def test_a_length_beyond_the_body_is_refused(value):
    assert refusal(value) == f"inference header size should be in range (0, 64), got: {value.decode()}"


@pytest.mark.parametrize("value", [b"2147483648", b"-2147483649", b"99999999999", b"9" * 5000])
def test_a_length_beyond_32_bits_is_refused(value):
    assert refusal(value) == (
        "Unable to parse Inference-Header-Content-Length, value is out of range [ -2147483648, 2147483647 ], "
        f"got: {value.decode()}"
    )


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_the_binary_part_is_a_view(kind):
    body = kind(b'{"a":1}data')

    header, binary = split_body(body, 7)

    assert header == b'{"a":1}'
    assert type(header) is bytes
    assert binary == b"data"
    assert binary.obj is (body.obj if kind is memoryview else body)
