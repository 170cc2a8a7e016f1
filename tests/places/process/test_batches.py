import pytest

from merrow.backends.base import PrivateTensor
from merrow.core.request import Request
from merrow.core.tensor import Tensor
from merrow.places.process.batches import BatchCodec, RemoteSlice, RemoteTrace
from merrow.places.process.channel import BATCH, HEADER_SIZE, MALFORMED, ProtocolError, split_frames
from merrow.places.process.sections import INLINE_LIMIT, MAX_REMEMBERED, SENDER_ARENA
from tests.places.process.codec_values import (
    EMPTY,
    LARGE,
    ODD,
    SCALAR,
    SMALL,
    content_of,
    open_nothing,
    place_at,
    place_nowhere,
    request_of,
)
from tests.places.process.place_harness import Sink


def decode_batch(message, codec=None, open_block=open_nothing):
    ((kind, count, number, start, end),), rest = split_frames(message)
    assert (kind, rest) == (BATCH, len(message))
    data = memoryview(bytearray(message))
    return number, (codec or BatchCodec("m", 1)).decode(message, data, start, end, count, Sink(), open_block, Request)


def decode_body(message, end):
    codec = BatchCodec("m", 1)
    return codec.decode(message, memoryview(message), HEADER_SIZE, end, 1, Sink(), open_nothing, Request)


def fields_of(request):
    return {
        "id": request.id,
        "correlation_id": request.correlation_id,
        "flags": request.flags,
        "priority": request.priority,
        "timeout_us": request.timeout_us,
        "parameters": request.parameters,
        "requested_outputs": request.requested_outputs,
    }


def test_the_bytes_of_the_smallest_batch():
    message = BatchCodec("m", 1).encode(7, (request_of(Tensor("X", "UINT8", (1,), b"\x2a")),), place_nowhere)

    assert message == (
        # length 72, BATCH, no flags, one request, number 7
        b"\x48\0\0\0" b"\x01" b"\0" b"\x01\0" b"\x07\0\0\0\0\0\0\0"
        # a layout of 32 bytes, nothing else
        b"\x20\0\0\0" b"\0\0\0\0" b"\0\0\0\0" b"\0\0\0\0"
        # one tensor: datatype 1, rank 1, name of 1 letter, in the message, 1 byte; shape; name, padding
        b"\x01\0\0\0" b"\x01" b"\x01" b"\x01\0" b"\0\0\0\0" b"\x01\0\0\0\0\0\0\0"
        b"\x01\0\0\0\0\0\0\0" b"X\0\0\0"
        # data, padding
        b"\x2a" b"\0\0\0\0\0\0\0"
    )  # fmt: skip


def test_a_batch_is_the_same_on_the_other_side():
    codec, other = BatchCodec("m", 1), BatchCodec("m", 1)
    for number in (1, 2):
        # The second time layouts are remembered.
        message = codec.encode(number, (request_of(SMALL, ODD), request_of(EMPTY, SCALAR)), place_nowhere)
        decoded_number, (first, second) = decode_batch(message, other)

        assert decoded_number == number
        assert [content_of(tensor) for tensor in first.inputs.values()] == [content_of(SMALL), content_of(ODD)]
        assert [content_of(tensor) for tensor in second.inputs.values()] == [content_of(EMPTY), content_of(SCALAR)]
        assert list(first.inputs) == ["IN", "ODD"]


@pytest.mark.parametrize(
    "fields",
    [
        {"id": "request 7 é"},
        {"correlation_id": 2**64 - 1},
        {"correlation_id": "sequence é"},
        {"correlation_id": ""},
        {"flags": 3, "priority": 2**40, "timeout_us": 2**50},
        {"parameters": {"b": True, "c": False, "i": -(2**70), "f": 0.1, "n": -1.5e300, "s": "é", "": ""}},
        {"requested_outputs": ("OUT", "é", "OUT2")},
        {
            "id": "x",
            "correlation_id": 1,
            "flags": 1,
            "parameters": {"k": "v"},
            "requested_outputs": ("A",),
            "timeout_us": 1,
        },
    ],
)
def test_everything_else_of_a_request_survives(fields):
    codec, other = BatchCodec("m", 1), BatchCodec("m", 1)
    request = request_of(SMALL, **fields)
    for _ in range(2):
        _, (decoded,) = decode_batch(codec.encode(1, (request,), place_nowhere), other)

        assert fields_of(decoded) == fields_of(request)
        assert content_of(decoded.inputs["IN"]) == content_of(SMALL)


def test_small_inputs_are_writable_private_and_aligned():
    _, (request,) = decode_batch(BatchCodec("m", 1).encode(1, (request_of(ODD, SMALL),), place_nowhere))
    tensor = request.inputs["IN"]

    assert isinstance(tensor, PrivateTensor)
    array = tensor.as_numpy()
    assert array.flags.aligned
    array += 1
    assert array.tolist() == [[2.5, -1.0]]


def test_large_inputs_are_placed_elsewhere():
    opened = []

    def open_block(location, segment, offset, size):
        opened.append((location, segment, offset, size))
        return memoryview(b"elsewhere")

    message = BatchCodec("m", 1).encode(1, (request_of(LARGE, SMALL),), place_at(SENDER_ARENA, 3, 640))
    _, (request,) = decode_batch(message, open_block=open_block)

    assert len(message) < 200
    assert opened == [(SENDER_ARENA, 3, 640, INLINE_LIMIT + 1)]
    assert bytes(request.inputs["LARGE"].data) == b"elsewhere"
    assert content_of(request.inputs["IN"]) == content_of(SMALL)


def test_a_batch_cut_anywhere_is_refused():
    request = request_of(SMALL, ODD, id="x", parameters={"k": "v"}, requested_outputs=("A",), correlation_id="c")
    message = BatchCodec("m", 1).encode(1, (request,), place_nowhere)
    for size in range(HEADER_SIZE, len(message)):
        cut = message[:size]
        with pytest.raises(MALFORMED):
            decode_body(cut, size)


def test_a_batch_with_something_after_it_is_refused():
    message = BatchCodec("m", 1).encode(1, (request_of(SMALL),), place_nowhere) + bytes(8)

    with pytest.raises(ProtocolError):
        BatchCodec("m", 1).decode(
            message, memoryview(message), HEADER_SIZE, len(message), 1, Sink(), open_nothing, Request
        )


def test_the_context_of_a_trace_goes_with_its_request():
    request = request_of(SMALL, id="x", parameters={"a": 1})
    request.trace = RemoteTrace('{"traceparent":"00"}')
    _, (decoded,) = decode_batch(BatchCodec("m", 1).encode(1, (request,), place_nowhere))

    assert decoded.trace.context_text() == '{"traceparent":"00"}'
    assert decoded.parameters == {"a": 1}
    assert decoded.trace.child("n", 1) is None
    _, (untraced,) = decode_batch(BatchCodec("m", 1).encode(1, (request_of(SMALL),), place_nowhere))
    assert untraced.trace is None


def test_the_regions_of_outputs_are_told_where_the_files_are_shared():
    shared = []
    request = request_of(SMALL, id="x")
    request.output_regions = {"OUT": RemoteSlice(7, 4096, 20_000), "é": RemoteSlice(8, 0, 1)}
    message = BatchCodec("m", 1, lambda file: shared.append(file.number)).encode(1, (request,), place_nowhere)
    _, (decoded,) = decode_batch(message)

    assert shared == [7, 8]
    assert {
        name: (region.file.number, region.file_offset, region.byte_size)
        for name, region in decoded.output_regions.items()
    } == {"OUT": (7, 4096, 20_000), "é": (8, 0, 1)}
    _, (unshared,) = decode_batch(BatchCodec("m", 1).encode(1, (request,), place_nowhere))
    assert unshared.output_regions == {}


def test_more_lists_of_outputs_than_are_remembered_are_still_right():
    codec, other = BatchCodec("m", 1), BatchCodec("m", 1)
    for number in [*range(MAX_REMEMBERED + 2), 0, 1]:
        request = request_of(requested_outputs=(f"OUT{number}",))
        _, (decoded,) = decode_batch(codec.encode(1, (request,), place_nowhere), other)
        assert decoded.requested_outputs == (f"OUT{number}",)


def test_a_request_that_says_more_than_its_section_holds_is_refused():
    message = bytearray(BatchCodec("m", 1).encode(1, (request_of(SMALL), request_of(SMALL)), place_nowhere))
    # The contents of the first: flags, priority and time-out, for which there are no extras.
    message[HEADER_SIZE + 8] = 8

    with pytest.raises(ProtocolError, match="a request is cut"):
        decode_batch(bytes(message))
