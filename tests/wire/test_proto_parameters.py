"""Parameters of gRPC requests, inputs, outputs and responses."""

from typing import Any

import pytest

from merrow.core.errors import InvalidArgumentError, ServerError, UnsupportedError
from merrow.core.request import SEQUENCE_END, SEQUENCE_START
from merrow.wire._generated.grpc_service_pb2 import InferParameter, ModelInferResponse
from merrow.wire.proto_parameters import (
    Region,
    decode_class_count,
    decode_region,
    decode_request_parameters,
    encode_response_parameter,
)


def _parameters(**values: InferParameter) -> dict[str, InferParameter]:
    return values


def _int(value: int) -> InferParameter:
    return InferParameter(int64_param=value)


def _uint(value: int) -> InferParameter:
    return InferParameter(uint64_param=value)


def _bool(value: bool) -> InferParameter:
    return InferParameter(bool_param=value)


def _text(value: str) -> InferParameter:
    return InferParameter(string_param=value)


def _double(value: float) -> InferParameter:
    return InferParameter(double_param=value)


def test_what_a_request_may_say():
    fields = decode_request_parameters(
        _parameters(
            sequence_id=_int(7),
            sequence_start=_bool(True),
            sequence_end=_bool(True),
            priority=_uint(2**64 - 1),
            timeout=_int(5),
            triton_enable_empty_final_response=_bool(True),
            b=_bool(False),
            i=_int(-3),
            s=_text("x"),
            d=_double(0.5),
            headers=_text("h"),
        )
    )

    assert (fields.correlation_id, fields.flags) == (7, SEQUENCE_START | SEQUENCE_END)
    assert (fields.priority, fields.timeout_us) == (2**64 - 1, 5)
    assert fields.wants_empty_final_response
    assert fields.parameters == {"b": False, "i": -3, "s": "x", "d": 0.5, "headers": "h"}


def test_a_request_that_says_nothing():
    fields = decode_request_parameters({})

    assert (fields.correlation_id, fields.flags, fields.priority, fields.timeout_us) == (0, 0, 0, 0)
    assert fields.parameters is None
    assert not fields.wants_empty_final_response


@pytest.mark.parametrize(
    ("name", "parameter", "attribute", "value"),
    [
        ("sequence_id", _int(-1), "correlation_id", 2**64 - 1),
        ("sequence_id", _text("abc"), "correlation_id", "abc"),
        ("sequence_id", _text("x" * 128), "correlation_id", "x" * 128),
        ("sequence_start", _bool(False), "flags", 0),
        ("sequence_start", _bool(True), "flags", SEQUENCE_START),
        ("sequence_end", _bool(True), "flags", SEQUENCE_END),
        ("priority", _int(3), "priority", 3),
        ("timeout", _int(-1), "timeout_us", 2**64 - 1),
    ],
)
def test_single_values(name: str, parameter: InferParameter, attribute: str, value: Any):
    assert getattr(decode_request_parameters({name: parameter}), attribute) == value


@pytest.mark.parametrize(
    ("name", "parameter", "message"),
    [
        (
            "sequence_id",
            _uint(1),
            "invalid value type for 'sequence_id' parameter, expected int64_param or string_param.",
        ),
        ("sequence_start", _int(1), "invalid value type for 'sequence_start' parameter, expected bool_param."),
        ("sequence_end", _text("true"), "invalid value type for 'sequence_end' parameter, expected bool_param."),
        ("priority", _int(-1), "invalid value for 'priority', expected value >= 0."),
        (
            "priority",
            _double(1),
            "invalid value type for 'priority' parameter, expected int64_param or uint64_param.",
        ),
        ("timeout", _uint(1), "invalid value type for 'timeout' parameter, expected int64_param."),
        (
            "triton_enable_empty_final_response",
            _int(1),
            "invalid value type for 'triton_enable_empty_final_response' parameter, expected bool_param.",
        ),
        (
            "triton_x",
            _int(1),
            "parameter keys starting with 'triton_' are reserved for Triton usage. Only the following keys starting "
            "with 'triton_' are allowed: triton_enable_empty_final_response",
        ),
        (
            "u",
            _uint(1),
            "invalid value type for 'u' parameter, expected int64_param, bool_param, or string_param.",
        ),
        (
            "u",
            InferParameter(),
            "invalid value type for 'u' parameter, expected int64_param, bool_param, or string_param.",
        ),
    ],
)
def test_values_of_the_wrong_kind(name: str, parameter: InferParameter, message: str):
    with pytest.raises(InvalidArgumentError) as error:
        decode_request_parameters({name: parameter})
    assert error.value.message == message


def test_a_correlation_id_that_is_too_long():
    for text in ("x" * 129, "é" * 65):
        with pytest.raises(UnsupportedError) as error:
            decode_request_parameters({"sequence_id": _text(text)})
        assert error.value.message == "string correlation ID cannot be longer than 128 characters"


def test_of_several_errors_the_first_name_counts():
    with pytest.raises(ServerError, match="'a' parameter"):
        decode_request_parameters(_parameters(b=_uint(1), a=_uint(1)))


def test_class_counts():
    assert decode_class_count({}) is None
    assert decode_class_count({"classification": _int(3)}) == 3
    assert decode_class_count({"classification": _int(2**32 + 2)}) == 2


@pytest.mark.parametrize(
    ("parameter", "message"),
    [
        (_int(0), "invalid value for 'classification' parameter, expected >= 0"),
        (_int(-1), "invalid value for 'classification' parameter, expected >= 0"),
        (_text("2"), "invalid value type for 'classification' parameter, expected int64_param"),
    ],
)
def test_class_counts_that_are_none(parameter: InferParameter, message: str):
    with pytest.raises(InvalidArgumentError) as error:
        decode_class_count({"classification": parameter})
    assert error.value.message == message


def test_shared_memory():
    region, size, offset = _text("r"), _int(64), _int(8)

    assert decode_region({}, "X") is None
    assert decode_region({"binary_data": _bool(True)}, "X") is None
    assert decode_region({"shared_memory_region": region, "shared_memory_byte_size": size}, "X") == Region("r", 0, 64)
    assert decode_region(
        {"shared_memory_region": region, "shared_memory_byte_size": _int(-1), "shared_memory_offset": offset}, "X"
    ) == Region("r", 8, 2**64 - 1)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (
            {"shared_memory_region": _text("r")},
            "'shared_memory_byte_size' must be specified along with 'shared_memory_region' parameter for tensor 'X'",
        ),
        (
            {"shared_memory_offset": _int(1)},
            "'shared_memory_offset' can not be specified without 'shared_memory_region' parameter for tensor 'X'",
        ),
        (
            {"shared_memory_byte_size": _int(1)},
            "'shared_memory_byte_size' can not be specified without 'shared_memory_region' parameter for tensor 'X'",
        ),
        (
            {"shared_memory_region": _int(1), "shared_memory_byte_size": _int(1)},
            "invalid value type for 'shared_memory_region' parameter for tensor 'X', expected string_param.",
        ),
        (
            {"shared_memory_region": _text("r"), "shared_memory_byte_size": _uint(1)},
            "invalid value type for 'shared_memory_byte_size' parameter for tensor 'X', expected int64_param.",
        ),
        (
            {"shared_memory_region": _text("r"), "shared_memory_offset": _text("1")},
            "invalid value type for 'shared_memory_offset' parameter for tensor 'X', expected int64_param.",
        ),
    ],
)
def test_shared_memory_that_is_half_named(parameters: dict[str, InferParameter], message: str):
    with pytest.raises(InvalidArgumentError) as error:
        decode_region(parameters, "X")
    assert error.value.message == message


@pytest.mark.parametrize(
    ("value", "parameter"),
    [
        (True, _bool(True)),
        (False, _bool(False)),
        (0, _int(0)),
        (-1, _int(-1)),
        (2**63 - 1, _int(2**63 - 1)),
        (2**63, _uint(2**63)),
        (0.1, _double(0.1)),
        ("", _text("")),
        ("é" * 100, _text("é" * 100)),
    ],
)
def test_parameters_of_responses(value: Any, parameter: InferParameter):
    response = ModelInferResponse.FromString(encode_response_parameter("name", value))

    assert dict(response.parameters) == {"name": parameter}
    assert response.parameters["name"].WhichOneof("parameter_choice") == parameter.WhichOneof("parameter_choice")


def test_a_parameter_byte_by_byte():
    assert (
        encode_response_parameter("triton_final_response", True) == b'"\x1b\n\x15triton_final_response\x12\x02\x08\x01'
    )
