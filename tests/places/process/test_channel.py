import struct

import pytest

from merrow.core.errors import UnavailableError
from merrow.places.process.channel import (
    FREE,
    HEADER_SIZE,
    MALFORMED,
    ProtocolError,
    decode_blocks,
    decode_failure,
    decode_log,
    decode_parameters,
    encode_blocks,
    encode_failure,
    encode_log,
    encode_parameters,
    frame,
    split_frames,
    whole_size,
)


def test_messages_are_found_in_whatever_was_read():
    stream = frame(FREE, 1, b"abc", 2) + frame(FREE, 2) + frame(FREE, 3, b"12345678")

    frames, rest = split_frames(stream)
    assert [(kind, count, number) for kind, count, number, _, _ in frames] == [(FREE, 2, 1), (FREE, 0, 2), (FREE, 0, 3)]
    assert [stream[start:end] for _, _, _, start, end in frames] == [b"abc\0\0\0\0\0", b"", b"12345678"]
    assert rest == len(stream)
    for size in range(len(stream)):
        frames, rest = split_frames(stream[:size])
        assert rest <= size
        assert split_frames(stream[rest:])[0] or len(frames) == 3


@pytest.mark.parametrize("length", [0, 8, 15, 17, 2**32 - 1, 2**31])
def test_an_impossible_length_is_refused(length):
    with pytest.raises(ProtocolError):
        split_frames(struct.pack("<IBBHQ", length, FREE, 0, 0, 0) + bytes(64))


def test_blocks_survive_in_any_number():
    blocks = [(index % 7, index * 64) for index in range(70_000)]
    stream = encode_blocks(FREE, 9, blocks)
    frames, rest = split_frames(stream)

    assert rest == len(stream)
    assert [number for _, _, number, _, _ in frames] == [9, 9]
    assert [key for _, count, _, start, end in frames for key in decode_blocks(stream, start, end, count)] == blocks


def test_a_list_of_blocks_of_another_length_is_refused():
    with pytest.raises(ProtocolError):
        decode_blocks(bytes(100), 0, 40, 2)


def test_load_failures_and_log_lines_survive():
    error = decode_failure(body := frame(0, 0, encode_failure(UnavailableError("später"))), HEADER_SIZE, len(body))

    assert isinstance(error, UnavailableError)
    assert error.message == "später"
    record = (30, 12, 4711, "merrow.python", "/m/1/model.py", "text é\n")
    assert decode_log(encode_log(*record)) == record


def test_the_size_of_a_message_is_known_once_its_header_is():
    message = frame(FREE, 1, bytes(100))

    assert [whole_size(message[:size]) for size in (0, HEADER_SIZE - 1, HEADER_SIZE, 50)] == [0, 0, 120, 120]


def test_the_bytes_of_parameters():
    assert encode_parameters({"a": 7, "b": True}) == (
        b"\x02\0\0\0" b"i" b"\x01\0\0\0a" b"\x01\0\0\0" b"7" b"b" b"\x01\0\0\0b" b"\x01\0\0\0" b"1"
    )  # fmt: skip


def test_parameters_keep_their_types_and_values():
    parameters = {"b": True, "c": False, "i": -(2**70), "f": 0.1, "g": float("inf"), "s": "é", "": ""}
    encoded = encode_parameters(parameters)
    decoded, position = decode_parameters(encoded + b"more", 0, len(encoded))

    assert decoded == parameters
    assert [type(value) for value in decoded.values()] == [bool, bool, int, float, float, str, str]
    assert position == len(encoded)


def test_parameters_cut_anywhere_or_of_no_known_type_are_refused():
    encoded = encode_parameters({"name": 1.5})
    for size in range(len(encoded)):
        with pytest.raises(MALFORMED):
            decode_parameters(encoded[:size], 0, size)
    with pytest.raises(ProtocolError, match="a parameter of type b'x'"):
        decode_parameters(encoded.replace(b"f", b"x", 1), 0, len(encoded))
