import pytest

from merrow.backends.base import Deferral, Execution
from merrow.core.errors import ERROR_CLASSES, CancelledError, ErrorCode, NotFoundError, UnavailableError
from merrow.core.region import RegionTensor
from merrow.core.response import Response
from merrow.places.process.answers import AnswerCodec, ResponseCodec
from merrow.places.process.batches import RemoteSlice
from merrow.places.process.channel import ANSWER, HEADER_SIZE, MALFORMED, RESPONSE, ProtocolError, split_frames
from merrow.places.process.sections import INLINE_LIMIT, RECEIVER_ARENA, SENDER_ARENA, relocate
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


def answer_with_region(region):
    output = RegionTensor("A", "FP32", (region.byte_size // 4,), region)
    message, _ = encode_answer(execution_of(Response("m", 1, outputs=[output])))
    return message


def wanting(**regions):
    request = request_of()
    request.output_regions = regions or None
    return request


def test_an_output_in_a_clients_memory_is_where_its_request_wants_it():
    wanted = RemoteSlice(7, 4096, 20_000)
    _, execution = decode_answer(answer_with_region(RemoteSlice(7, 4096, 10_000)), [wanting(A=wanted)])

    (output,) = execution.outcomes[0].outputs
    assert output.source is wanted
    assert (output.byte_size, output.shape) == (10_000, (2500,))


@pytest.mark.parametrize(
    ("said", "text"),
    [
        (RemoteSlice(8, 4096, 10_000), "output 'A' is not wanted in file 8"),
        (RemoteSlice(7, 0, 10_000), "output 'A' is not wanted in file 7"),
        (RemoteSlice(7, 4096, 20_004), "output 'A' does not fit where it is said to be"),
    ],
)
def test_an_output_that_is_said_to_be_elsewhere_is_refused(said, text):
    with pytest.raises(ProtocolError, match=f"^{text}$"):
        decode_answer(answer_with_region(said), [wanting(A=RemoteSlice(7, 4096, 20_000))])


@pytest.mark.parametrize("regions", [{}, {"B": RemoteSlice(7, 4096, 20_000)}])
def test_an_output_that_is_wanted_nowhere_is_refused(regions):
    with pytest.raises(ProtocolError, match=r"^output 'A' is not wanted in file 7$"):
        decode_answer(answer_with_region(RemoteSlice(7, 4096, 10_000)), [wanting(**regions)])
