"""Protobuf's wire format by hand, against protobuf itself and literal bytes."""

import pytest

from merrow.wire._generated.grpc_service_pb2 import InferTensorContents, ModelInferRequest
from merrow.wire.proto_message import count_fields, delimited, encode_varint, read_varint, text_field

NUMBERS = [
    (0, b"\x00"),
    (1, b"\x01"),
    (127, b"\x7f"),
    (128, b"\x80\x01"),
    (300, b"\xac\x02"),
    (2**32, b"\x80\x80\x80\x80\x10"),
    (2**64 - 1, b"\xff" * 9 + b"\x01"),
]


@pytest.mark.parametrize(("number", "encoded"), NUMBERS)
def test_numbers_both_ways(number: int, encoded: bytes):
    assert encode_varint(number) == encoded
    assert read_varint(encoded, 0) == (number, len(encoded))
    assert read_varint(memoryview(b"xx" + encoded + b"xx"), 2) == (number, 2 + len(encoded))


@pytest.mark.parametrize("encoded", [b"", b"\x80", b"\xff" * 9, b"\xff" * 10, b"\x80" * 1_000_000])
def test_a_number_that_does_not_end(encoded: bytes):
    with pytest.raises(IndexError):
        read_varint(encoded, 0)


def test_an_empty_string_is_no_field_and_empty_bytes_are_one():
    assert text_field(1, "ab") == b"\x0a\x02ab"
    assert text_field(3, "é") == b"\x1a\x02\xc3\xa9"
    assert text_field(1, "") == b""
    assert delimited(5, b"") == b"\x2a\x00"
    assert delimited(1, bytes(200)) == b"\x0a\xc8\x01" + bytes(200)


def test_counting_fields_of_every_kind():
    message = ModelInferRequest(model_name="m", id="i", raw_input_contents=[b"", b"x" * 300])
    message.inputs.add(name="A")
    assert count_fields(message.SerializeToString(), 100) == 5

    contents = InferTensorContents(bool_contents=[True], fp64_contents=[1.0])
    assert count_fields(contents.SerializeToString(), 100) == 2
    # A number, eight bytes, four bytes, and a group with a field in it.
    assert count_fields(b"\x08\x80\x01" + b"\x09" + bytes(8) + b"\x0d" + bytes(4) + b"\x0b\x08\x01\x0c", 100) == 6
    assert count_fields(memoryview(b""), 100) == 0


def test_counting_stops_beyond_the_limit():
    assert count_fields(b"\x2a\x00" * 1000, 10) == 11


def test_counting_fields_of_a_message_that_is_cut_inside_a_number():
    for message in (b"\x80", b"\x0a", b"\x08\x80"):
        with pytest.raises(IndexError):
            count_fields(message, 10)
