"""The generate extension, against what Triton 2.51 answered; where newer ones differ, as they do."""

import json

import numpy as np
import pytest

from merrow.core.errors import ErrorCode, ServerError
from merrow.core.model_config import ModelConfig, ModelInput
from merrow.core.response import Response
from merrow.core.tensor import Tensor
from merrow.wire.generate_json import GenerateCodec, encode_event


def make_codec(*inputs, max_batch_size=0, limit=1 << 20):
    config = ModelConfig(
        name="gen",
        max_batch_size=max_batch_size,
        input=tuple(ModelInput(name=name, data_type=data_type, dims=dims) for name, data_type, dims in inputs),
    )
    return GenerateCodec(1, config, limit)


CODEC = make_codec(
    ("text", "TYPE_STRING", (-1,)),
    ("num", "TYPE_INT32", (2, -1)),
    ("fp", "TYPE_FP32", (-1,)),
    ("flag", "TYPE_BOOL", (1,)),
    ("half", "TYPE_FP16", (1,)),
)


def decode(body, codec=CODEC):
    return codec.decode(body if isinstance(body, bytes) else json.dumps(body).encode(), sink=None)


def error_of(body, codec=CODEC):
    with pytest.raises(ServerError) as caught:
        decode(body, codec)
    return caught.value.code, caught.value.message


def test_members_become_tensors_and_parameters():
    request = decode({"text": "hi", "num": [1, 2, 3, 4], "fp": 1.5, "temperature": 0.5, "stream": True})

    assert (request.model_name, request.model_version, request.id) == ("gen", 1, "")
    assert request.inputs["text"].as_numpy().tolist() == [b"hi"]
    assert request.inputs["num"].as_numpy().tolist() == [[1, 2], [3, 4]]
    assert request.inputs["fp"].as_numpy().tolist() == [1.5]
    assert request.parameters == {"temperature": 0.5, "stream": True}


def test_parameters_are_nested_one_level():
    request = decode({"text": "x", "parameters": {"fp": [1, 2], "a": "b", "parameters": 1, "flag": False}})

    assert set(request.inputs) == {"text", "fp", "flag"}
    assert request.parameters == {"a": "b", "parameters": 1}


def test_names_with_a_meaning_elsewhere_have_none_here():
    request = decode(
        {"id": "abc", "sequence_id": 5, "sequence_start": True, "priority": 3, "timeout": 9, "triton_x": 1}
    )

    assert request.id == "abc"
    assert (request.correlation_id, request.flags, request.priority, request.timeout_us) == (0, 0, 0, 0)
    assert request.parameters == {
        "id": "abc",
        "sequence_id": 5,
        "sequence_start": True,
        "priority": 3,
        "timeout": 9,
        "triton_x": 1,
    }


def test_an_id_among_the_parameters_is_a_parameter_only():
    request = decode({"parameters": {"id": "zz"}})

    assert (request.id, request.parameters) == ("", {"id": "zz"})


def test_a_later_member_of_one_name_counts():
    assert decode({"parameters": {"a": 1}, "a": 2}).parameters == {"a": 2}
    assert decode({"a": 2, "parameters": {"a": 1}}).parameters == {"a": 1}


def test_the_first_of_repeated_members_counts():
    assert decode(b'{"a":1,"a":2}').parameters == {"a": 1}


@pytest.mark.parametrize(
    ("dims", "count", "shape"),
    [
        ((-1,), 3, (3,)),
        ((2, -1), 6, (2, 3)),
        ((2, -1), 3, None),
        ((-1, 1), 1, (1, 1)),
        ((-1, -1), 4, (1, 4)),
        ((-1, 2, -1), 4, (1, 2, 2)),
        ((1,), 2, None),
        ((2,), 1, None),
        ((), 1, ()),
    ],
)
def test_the_shape_holds_the_elements(dims, count, shape):
    codec = make_codec(("x", "TYPE_INT32", dims))
    body = {"x": list(range(count))}
    if shape is None:
        text = "The schema can not convert input 'x' to tensor with proper shape"
        assert error_of(body, codec) == (ErrorCode.INVALID_ARG, text)
    else:
        assert tuple(decode(body, codec).inputs["x"].shape) == shape


def test_the_batch_dimension_is_one_more():
    codec = make_codec(("x", "TYPE_INT32", (2,)), max_batch_size=4)

    assert tuple(decode({"x": [1, 2]}, codec).inputs["x"].shape) == (1, 2)
    assert tuple(decode({"x": [1, 2, 3, 4]}, codec).inputs["x"].shape) == (2, 2)


def test_an_empty_array_has_no_shape():
    tensor = decode({"fp": []}).inputs["fp"]

    assert (tuple(tensor.shape), bytes(tensor.data)) == ((), b"")


def test_nested_arrays_count_by_the_outer_one():
    assert decode({"text": [["hi"]]}).inputs["text"].as_numpy().tolist() == [b"hi"]
    assert decode({"fp": [[1], [2]]}).inputs["fp"].as_numpy().tolist() == [1.0, 2.0]
    text = "Unable to parse 'data': Shape does not match true shape of 'data' field"
    assert error_of({"fp": [[1, 2], [3]]}) == (ErrorCode.INTERNAL, text)


BAD_TYPE = "parameter 'n' has invalid type. It should be either 'int', 'bool', or 'string'."
NO_FP16 = "receiving FP16 data via JSON is not supported. Please use the binary data format for input half"


@pytest.mark.parametrize(
    ("body", "code", "text"),
    [
        (b"", ErrorCode.INTERNAL, "failed to parse the request JSON buffer: The document is empty. at 0"),
        (b"[]", ErrorCode.INTERNAL, "attempt to get members for non-object"),
        (b"3", ErrorCode.INTERNAL, "attempt to get members for non-object"),
        (b'{"text":', ErrorCode.INTERNAL, "failed to parse the request JSON buffer: Invalid value. at 8"),
        ({"id": 3}, ErrorCode.INTERNAL, "Unable to parse 'id': attempt to access JSON non-string as string"),
        ({"n": None}, ErrorCode.INVALID_ARG, BAD_TYPE),
        ({"n": {}}, ErrorCode.INVALID_ARG, BAD_TYPE),
        ({"parameters": {"n": []}}, ErrorCode.INVALID_ARG, f"Converting keyword: 'parameters': {BAD_TYPE}"),
        (
            {"parameters": 3},
            ErrorCode.INTERNAL,
            "Expected JSON object for keyword: 'parameters': attempt to access JSON non-object as object",
        ),
        (
            {"parameters": {"fp": "a"}},
            ErrorCode.INTERNAL,
            "Converting keyword: 'parameters': Unable to parse 'data': attempt to access JSON non-number as double",
        ),
        (
            {"text": "x", "parameters": {"text": "q"}},
            ErrorCode.INVALID_ARG,
            "Converting keyword: 'parameters': [request id: <id_unknown>] input 'text' already exists in request",
        ),
        (
            {"id": "r", "parameters": {"text": "q"}, "text": "x"},
            ErrorCode.INVALID_ARG,
            "[request id: r] input 'text' already exists in request",
        ),
        ({"half": 1}, ErrorCode.INVALID_ARG, NO_FP16),
        ({"half": [1]}, ErrorCode.INVALID_ARG, NO_FP16),
        (
            {"flag": 1},
            ErrorCode.INTERNAL,
            "Unable to parse 'data': attempt to access JSON non-boolean as boolean",
        ),
        (
            {"text": None},
            ErrorCode.INTERNAL,
            "Unable to parse JSON bytes array: attempt to access JSON non-string as string",
        ),
        (
            {"num": [1.5, 2]},
            ErrorCode.INTERNAL,
            "Unable to parse 'data': attempt to access JSON non-signed-integer as signed-integer",
        ),
        (b'{"k\\u0000z":1}', ErrorCode.INTERNAL, "parameter key 'k' was not found in the JSON"),
    ],
)
def test_what_is_wrong_is_told_as_triton_tells_it(body, code, text):
    assert error_of(body) == (code, text)


def test_strings_are_looked_at_before_their_shape():
    codec = make_codec(("s", "TYPE_STRING", (1,)))

    assert error_of({"s": [1, 2]}, codec)[0] is ErrorCode.INTERNAL
    assert error_of({"s": ["a", "b"]}, codec)[0] is ErrorCode.INVALID_ARG


def test_an_input_called_parameters_cannot_be_given():
    codec = make_codec(("parameters", "TYPE_STRING", (1,)))

    text = "Keyword 'parameters' for nested schema also given as input tensor name"
    assert error_of({"parameters": {}}, codec) == (ErrorCode.INVALID_ARG, text)
    assert decode({"x": 1}, codec).parameters == {"x": 1}


def test_the_size_of_all_tensors_is_limited():
    codec = make_codec(("a", "TYPE_FP64", (-1,)), ("b", "TYPE_FP64", (-1,)), ("s", "TYPE_STRING", (-1,)), limit=40)
    text = (
        "request size of 48 bytes with input 'b' of size 24 bytes exceeds the maximum allowed input size of 40. Use "
        "--http-max-input-size to increase the limit."
    )

    assert error_of(b'{"a":[1,2,3],"b":[4,5,6]}', codec) == (ErrorCode.INVALID_ARG, text)
    assert decode(b'{"a":[1,2,3],"b":[4,5]}', codec).inputs["b"].byte_size == 16
    # A string counts with its length in front.
    assert error_of(b'{"s":["a","b","c","d","e","f","g","h","i"]}', make_codec(("s", "TYPE_STRING", (-1,)), limit=44))[
        1
    ] == (
        "request size of 45 bytes with input 's' of size 45 bytes exceeds the maximum allowed input size of 44. Use "
        "--http-max-input-size to increase the limit."
    )


def test_a_body_is_limited():
    text = (
        "request JSON size of 12 bytes exceeds the maximum allowed input size of 11 bytes. Use --http-max-input-size "
        "to increase the limit."
    )
    assert error_of(b'{"aaaaaa":1}', make_codec(limit=11)) == (ErrorCode.INVALID_ARG, text)


def tensor(name, values, dtype):
    return Tensor.from_numpy(name, np.array(values, dtype))


def test_a_response_is_one_object_in_the_order_of_its_names():
    response = Response(
        "gen",
        1,
        "abc",
        [tensor("zz", [1, 2], np.int32), tensor("OUT", [0.1], np.float32), tensor("t", [b"a"], object)],
        {"p": "q", "n": 1},
    )

    assert CODEC.encode(response) == (
        b'{"OUT":0.10000000149011612,"id":"abc","model_name":"gen","model_version":"1","n":1,"p":"q","t":"a",'
        b'"zz":[1,2]}'
    )


def test_an_empty_tensor_is_an_empty_array():
    assert CODEC.encode(Response("gen", 1, "", [tensor("o", [], np.float32)])) == (
        b'{"model_name":"gen","model_version":"1","o":[]}'
    )


def test_a_half_cannot_be_written():
    with pytest.raises(ServerError, match="sending FP16 data via JSON is not supported"):
        CODEC.encode(Response("gen", 1, "", [tensor("o", [1], np.float16)]))


def test_an_event_is_a_line_and_an_empty_one():
    assert encode_event(b"{}") == b"data: {}\n\n"
