import struct

import pytest

from merrow.backends.base import Deferral, Execution, PrivateTensor
from merrow.core.errors import ERROR_CLASSES, CancelledError, ErrorCode, NotFoundError, UnavailableError
from merrow.core.request import Request
from merrow.core.response import Response
from merrow.core.tensor import Tensor
from merrow.places.process.batches import (
    INLINE_LIMIT,
    RECEIVER_ARENA,
    SENDER_ARENA,
    AnswerCodec,
    BatchCodec,
    RemoteTrace,
    ResponseCodec,
    relocate,
)
from merrow.places.process.channel import (
    ANSWER,
    BATCH,
    HEADER_SIZE,
    MALFORMED,
    RESPONSE,
    ProtocolError,
    split_frames,
)
from tests.places.process.place_harness import Sink

SMALL = Tensor("IN", "FP32", (1, 2), struct.pack("<2f", 1.5, -2.0))
ODD = Tensor("ODD", "BYTES", [1], b"\x05\0\0\0hello")
EMPTY = Tensor("EMPTY", "INT64", (0, 3), b"")
SCALAR = Tensor("SCALAR", "BF16", (), b"\x80\x3f")
LARGE = Tensor("LARGE", "UINT8", (INLINE_LIMIT + 1,), bytes(INLINE_LIMIT + 1))


def place_nowhere(data):
    raise AssertionError("nothing large here")


def place_at(location, segment, offset):
    return lambda data: (location, segment, offset)


def open_nothing(location, segment, offset, size):
    raise AssertionError("nothing large here")


def request_of(*tensors, **fields):
    return Request("m", 1, Sink(), {tensor.name: tensor for tensor in tensors}, **fields)


def decode_batch(message, codec=None, open_block=open_nothing):
    ((kind, count, number, start, end),), rest = split_frames(message)
    assert (kind, rest) == (BATCH, len(message))
    data = memoryview(bytearray(message))
    return number, (codec or BatchCodec("m", 1)).decode(message, data, start, end, count, Sink(), open_block, Request)


def decode_body(message, end):
    codec = BatchCodec("m", 1)
    return codec.decode(message, memoryview(message), HEADER_SIZE, end, 1, Sink(), open_nothing, Request)


def content_of(tensor):
    return tensor.name, tensor.datatype, tuple(tensor.shape), bytes(tensor.data)


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


def execution_of(*outcomes):
    return Execution(outcomes, 10, 20, 30, 2**63)


def encode_answer(execution, place=place_nowhere, number=7):
    return AnswerCodec("m", 1).encode(number, execution, place)


def decode_answer(message, requests, open_block=open_nothing):
    ((kind, count, number, start, end),), rest = split_frames(message)
    assert (kind, count, rest) == (ANSWER, len(requests), len(message))
    return number, AnswerCodec("m", 1).decode(message, start, end, requests, open_block)


def test_an_answer_is_the_same_on_the_other_side():
    responses = (
        Response("", 0, outputs=[SMALL, ODD]),
        Response("", 0, outputs=[EMPTY, SCALAR], parameters={"p": 1, "q": "é"}),
        Response("", 0),
    )
    message, references = encode_answer(execution_of(*responses))
    number, execution = decode_answer(message, [request_of(id=name) for name in "abc"])

    assert number == 7
    assert references == []
    assert (execution.start_ns, execution.input_end_ns, execution.output_start_ns, execution.end_ns) == (
        10, 20, 30, 2**63,
    )  # fmt: skip
    for outcome, response, name in zip(execution.outcomes, responses, "abc", strict=True):
        assert [content_of(tensor) for tensor in outcome.outputs] == [content_of(t) for t in response.outputs]
        assert outcome.parameters == response.parameters
        assert (outcome.id, outcome.model_name, outcome.model_version, outcome.error) == (name, "m", 1, None)


@pytest.mark.parametrize("code", ErrorCode)
def test_failures_and_error_responses_are_told_apart(code):
    error = ERROR_CLASSES[code]("why é\n")
    message, _ = encode_answer(execution_of(error, Response("", 0, error=error), Response("", 0, outputs=[SMALL])))
    _, execution = decode_answer(message, [request_of(), request_of(id="i"), request_of()])
    failed, answered, succeeded = execution.outcomes

    assert type(failed) is type(error)
    assert failed.message == "why é\n"
    assert type(answered.error) is type(error)
    assert (answered.error.message, answered.id) == ("why é\n", "i")
    assert content_of(succeeded.outputs[0]) == content_of(SMALL)


def test_an_error_without_a_text_has_none_on_the_other_side():
    message, _ = encode_answer(execution_of(CancelledError("")))
    _, execution = decode_answer(message, [request_of()])

    assert execution.outcomes[0].message == ""


def test_a_text_that_is_no_unicode_is_mended():
    message, _ = encode_answer(execution_of(UnavailableError("\ud800")))
    _, execution = decode_answer(message, [request_of()])

    assert execution.outcomes[0].message == "?"


def test_a_reference_can_be_moved():
    response = Response("", 0, outputs=[ODD, LARGE, SMALL])
    message, (reference,) = encode_answer(execution_of(response), place_at(RECEIVER_ARENA, 2, 128))
    moved = bytearray(message)
    relocate(moved, reference, SENDER_ARENA, 5, 256)
    opened = []

    def open_block(*where):
        opened.append(where)
        return memoryview(b"")

    for each in (message, bytes(moved)):
        _, execution = decode_answer(each, [request_of()], open_block)
        assert [tensor.name for tensor in execution.outcomes[0].outputs] == ["ODD", "LARGE", "IN"]
    assert opened == [(RECEIVER_ARENA, 2, 128, INLINE_LIMIT + 1), (SENDER_ARENA, 5, 256, INLINE_LIMIT + 1)]


def test_an_answer_cut_anywhere_is_refused():
    responses = (
        Response("", 0, outputs=[SMALL, ODD], parameters={"p": 1}),
        NotFoundError("text"),
    )
    message, _ = encode_answer(execution_of(*responses))
    for size in range(HEADER_SIZE, len(message)):
        with pytest.raises(MALFORMED):
            AnswerCodec("m", 1).decode(message[:size], HEADER_SIZE, size, [request_of(), request_of()], open_nothing)


@pytest.mark.parametrize("position", range(HEADER_SIZE + 32, HEADER_SIZE + 32 + 16 + 40))
def test_a_spoiled_answer_is_refused_or_says_something_else(position):
    message, _ = encode_answer(execution_of(Response("", 0, outputs=[SMALL])))
    spoiled = bytearray(message)
    spoiled[position] ^= 0xFF
    try:
        AnswerCodec("m", 1).decode(
            bytes(spoiled), HEADER_SIZE, len(spoiled), [request_of()], lambda *_: memoryview(b"")
        )
    except MALFORMED:
        pass


def decode_outcomes(message, requests, open_block=open_nothing):
    codec = AnswerCodec("m", 1)
    ((_, _, _, start, end),), _ = split_frames(message)
    return codec, codec.decode(message, start, end, requests, open_block).outcomes


def test_outcomes_that_are_no_responses_are_kept_and_noticed():
    codec = AnswerCodec("m", 1)
    outcomes = [Deferral.DEFERRED, Response("m", 1), Deferral.RESCHEDULED]
    message, _ = codec.encode(1, Execution(outcomes, 1, 2, 3, 4), place_nowhere)
    decoder, (first, second, third) = decode_outcomes(message, [request_of() for _ in outcomes])

    assert codec.has_exceptions
    assert decoder.has_exceptions
    assert first is Deferral.DEFERRED
    assert isinstance(second, Response)
    assert third is Deferral.RESCHEDULED


def test_a_failure_is_noticed_and_an_error_response_is_not():
    for outcome, is_noticed in ((NotFoundError("x"), True), (Response("m", 1, error=NotFoundError("x")), False)):
        codec = AnswerCodec("m", 1)
        message, _ = codec.encode(1, Execution([outcome], 1, 2, 3, 4), place_nowhere)
        decoder, _ = decode_outcomes(message, [request_of()])
        assert (codec.has_exceptions, decoder.has_exceptions) == (is_noticed, is_noticed)


@pytest.mark.parametrize(
    "fields",
    [
        {"outputs": [SMALL, ODD], "is_final": False, "parameters": {"a": 1}},
        {"outputs": [SCALAR]},
        {"is_empty": True},
        {"error": NotFoundError("gone"), "is_final": False},
    ],
)
def test_single_responses_say_whether_they_are_the_last(fields):
    response = Response("m", 1, **fields)
    message = ResponseCodec("m", 1).encode(RESPONSE, 9, response, place_nowhere)
    ((kind, flags, number, start, end),), _ = split_frames(message)
    decoded = ResponseCodec("m", 1).decode(message, start, end, flags, request_of(id="x"), open_nothing)

    assert (kind, number) == (RESPONSE, 9)
    assert (decoded.is_final, decoded.is_empty) == (response.is_final, response.is_empty)
    assert [content_of(tensor) for tensor in decoded.outputs] == [content_of(tensor) for tensor in response.outputs]
    assert decoded.parameters == response.parameters
    assert getattr(decoded.error, "message", None) == getattr(response.error, "message", None)
    assert decoded.id == "x"


def test_a_single_response_is_a_response():
    message, _ = AnswerCodec("m", 1).encode(1, Execution([Deferral.DEFERRED], 1, 2, 3, 4), place_nowhere)
    with pytest.raises(ProtocolError, match="a response is none"):
        ResponseCodec("m", 1).decode(message, HEADER_SIZE, len(message), 0, request_of(), open_nothing)


def test_the_context_of_a_trace_goes_with_its_request():
    request = request_of(SMALL, id="x", parameters={"a": 1})
    request.trace = RemoteTrace('{"traceparent":"00"}')
    _, (decoded,) = decode_batch(BatchCodec("m", 1).encode(1, (request,), place_nowhere))

    assert decoded.trace.context_text() == '{"traceparent":"00"}'
    assert decoded.parameters == {"a": 1}
    assert decoded.trace.child("n", 1) is None
    _, (untraced,) = decode_batch(BatchCodec("m", 1).encode(1, (request_of(SMALL),), place_nowhere))
    assert untraced.trace is None
