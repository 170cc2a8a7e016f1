import struct

import pytest

from merrow.backends.base import (
    ChangeMetric,
    DropMetric,
    DropMetricFamily,
    IsModelReady,
    LoadModel,
    NewMetric,
    NewMetricFamily,
    ReadMetric,
    UnloadModel,
)
from merrow.core.errors import NotFoundError
from merrow.core.request import Request
from merrow.core.tensor import Tensor
from merrow.places.process.channel import CALL, MALFORMED, QUESTION, REPLY, ProtocolError, split_frames
from merrow.places.process.service_messages import NO_SINK, CallHead, ServiceCodec, decode_reply, encode_reply


def place_nowhere(data):
    raise AssertionError("nothing large here")


def open_nothing(location, segment, offset, size):
    raise AssertionError("nothing large here")


def body_of(message, kind):
    ((found, _, _, start, end),), rest = split_frames(message)
    assert (found, rest) == (kind, len(message))
    return message[start:end]


@pytest.mark.parametrize("name", ["m", "model", "a longer name, ünïcode"])
def test_a_call_is_read_as_it_was_written(name):
    tensor = Tensor("IN", "INT32", (2,), struct.pack("<2i", 1, -2))
    request = Request(name, 3, NO_SINK, {"IN": tensor}, ("OUT",), "id", {"a": True}, timeout_us=5, correlation_id="c")
    message = ServiceCodec().encode_call(9, request, True, 4, (7, 8), place_nowhere)
    head, decoded = ServiceCodec().decode_call(body_of(message, CALL), open_nothing)

    assert head == CallHead(name, 3, True, 4, (7, 8))
    assert (decoded.model_name, decoded.model_version, decoded.id) == (name, 3, "id")
    assert (decoded.requested_outputs, decoded.parameters, decoded.timeout_us) == (("OUT",), {"a": True}, 5)
    assert decoded.correlation_id == "c"
    assert decoded.inputs["IN"].as_numpy().tolist() == [1, -2]
    decoded.inputs["IN"].as_numpy()[0] = 5


@pytest.mark.parametrize(
    "question",
    [
        LoadModel("m"),
        LoadModel("m", "{}", {"file:1/model.py": b"x", "file:empty": b""}),
        UnloadModel("m", True),
        IsModelReady("m", "2"),
        NewMetricFamily("f", "words", 2),
        NewMetric(1, {"a": "b"}, (1.0, 2.5)),
        NewMetric(1),
        NewMetric(1, {}, ()),
        ChangeMetric(1, "set", -0.5),
        ReadMetric(1),
        DropMetric(1),
        DropMetricFamily(1),
    ],
)
def test_a_question_is_read_as_it_was_written(question):
    message = ServiceCodec().encode_question(3, question, place_nowhere)
    decoded = ServiceCodec().decode_question(body_of(message, QUESTION), open_nothing)

    if isinstance(question, LoadModel):
        assert {path: bytes(data) for path, data in decoded.files.items()} == question.files
        assert (decoded.name, decoded.config) == (question.name, question.config)
    else:
        assert decoded == question


@pytest.mark.parametrize("answer", [None, True, False, 7, 1.5, float("inf")])
def test_an_answer_is_read_as_it_was_written(answer):
    ((kind, count, number, start, end),), _ = split_frames(message := encode_reply(4, answer))

    assert (kind, number) == (REPLY, 4)
    assert decode_reply(count, message[start:end]) == answer


def test_a_refusal_is_read_as_it_was_written():
    ((_, count, _, start, end),), _ = split_frames(message := encode_reply(4, NotFoundError("no")))
    error = decode_reply(count, message[start:end])

    assert isinstance(error, NotFoundError)
    assert error.message == "no"
    with pytest.raises(ProtocolError, match="an answer of"):
        decode_reply(0, b'"text"')


def test_what_is_cut_makes_no_sense():
    request = Request("m", 3, NO_SINK, {"IN": Tensor("IN", "INT32", (1,), bytes(4))})
    call = body_of(ServiceCodec().encode_call(9, request, True, 0, (1,), place_nowhere), CALL)
    files = {"file:1/model.py": b"x"}
    question = body_of(ServiceCodec().encode_question(3, LoadModel("m", "", files), place_nowhere), QUESTION)
    for size in range(len(call)):
        with pytest.raises(MALFORMED):
            ServiceCodec().decode_call(call[:size], open_nothing)
    for size in range(len(question)):
        try:
            decoded = ServiceCodec().decode_question(question[:size], open_nothing)
        except MALFORMED:
            continue
        # Cut exactly where the files begin: a load without files.
        assert decoded == LoadModel("m")
    with pytest.raises(ProtocolError, match="no known kind"):
        ServiceCodec().decode_question(struct.pack("<II", 99, 0), open_nothing)
