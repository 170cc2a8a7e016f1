"""`InferParameter`: what the parameters of gRPC requests, inputs and outputs say, and those of responses.

A parameter is typed by its sender, and each name takes only some of the types.

Source: Triton, grpc/infer_handler.cc, SetInferenceRequestMetadata; grpc/grpc_utils.cc, ParseSharedMemoryParams and
ParseClassificationParams.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from merrow.core.errors import InvalidArgumentError, UnsupportedError
from merrow.core.request import SEQUENCE_END, SEQUENCE_START, ParameterValue
from merrow.wire._generated.grpc_service_pb2 import InferParameter
from merrow.wire.proto_message import delimited, encode_varint, text_field
from merrow.wire.triton_json import cut_at_nul

ENABLE_EMPTY_FINAL_RESPONSE: Final = "triton_enable_empty_final_response"

_MAX_REMEMBERED_PARAMETERS = 256
_MAX_REMEMBERED_TEXT_LENGTH = 128
_MAX_CORRELATION_ID_BYTE_SIZE = 128

Parameters = Mapping[str, InferParameter]


class RequestFields:
    """What a request's parameters say."""

    __slots__ = ("correlation_id", "flags", "parameters", "priority", "timeout_us", "wants_empty_final_response")

    def __init__(self) -> None:
        self.parameters: dict[str, ParameterValue] | None = None
        self.priority = 0
        self.timeout_us = 0
        self.correlation_id: int | str = 0
        self.flags = 0
        self.wants_empty_final_response = False


@dataclass(frozen=True, slots=True)
class Region:
    """Part of a shared memory region, as a tensor's parameters name it."""

    name: str
    offset: int
    byte_size: int


def decode_region(parameters: Parameters, tensor_name: str) -> Region | None:
    """The shared memory that a tensor's parameters name; None if they name none.

    Raises:
        InvalidArgumentError: a part of it is missing, or of the wrong type.
    """
    if not parameters:
        return None
    region = None
    if "shared_memory_region" in parameters:
        parameter = parameters["shared_memory_region"]
        if parameter.WhichOneof("parameter_choice") != "string_param":
            raise _wrong_region_type("shared_memory_region", tensor_name, "string_param")
        region = parameter.string_param
    numbers = {"shared_memory_offset": 0, "shared_memory_byte_size": 0}
    for name in numbers:
        if name in parameters:
            if region is None:
                raise InvalidArgumentError(
                    f"'{name}' can not be specified without 'shared_memory_region' parameter for tensor '{tensor_name}'"
                )
            if parameters[name].WhichOneof("parameter_choice") != "int64_param":
                raise _wrong_region_type(name, tensor_name, "int64_param")
            # Triton reads them as unsigned.
            numbers[name] = parameters[name].int64_param % 2**64
    if region is None:
        return None
    if "shared_memory_byte_size" not in parameters:
        raise InvalidArgumentError(
            "'shared_memory_byte_size' must be specified along with 'shared_memory_region' parameter for tensor "
            f"'{tensor_name}'"
        )
    return Region(cut_at_nul(region), numbers["shared_memory_offset"], numbers["shared_memory_byte_size"])


def decode_request_parameters(parameters: Parameters) -> RequestFields:
    """What the parameters of a request say. Of several errors, the one of the first name in order is raised.

    Raises:
        ServerError: a parameter is reserved, or of the wrong type.
    """
    fields = RequestFields()
    for name in sorted(parameters):
        parameter = parameters[name]
        kind = parameter.WhichOneof("parameter_choice")
        if name == "sequence_id":
            fields.correlation_id = _decode_correlation_id(parameter)
        elif name == "sequence_start":
            fields.flags |= _bool_parameter(name, parameter) and SEQUENCE_START
        elif name == "sequence_end":
            fields.flags |= _bool_parameter(name, parameter) and SEQUENCE_END
        elif name == "priority":
            fields.priority = _decode_priority(parameter)
        elif name == "timeout":
            if kind != "int64_param":
                raise InvalidArgumentError("invalid value type for 'timeout' parameter, expected int64_param.")
            fields.timeout_us = parameter.int64_param % 2**64
        elif name == ENABLE_EMPTY_FINAL_RESPONSE:
            fields.wants_empty_final_response = _bool_parameter(name, parameter)
        elif name.startswith("triton_"):
            raise InvalidArgumentError(
                "parameter keys starting with 'triton_' are reserved for Triton usage. Only the following keys "
                f"starting with 'triton_' are allowed: {ENABLE_EMPTY_FINAL_RESPONSE}"
            )
        elif kind is None or kind == "uint64_param":
            raise InvalidArgumentError(
                f"invalid value type for '{name}' parameter, expected int64_param, bool_param, or string_param."
            )
        else:
            if fields.parameters is None:
                fields.parameters = {}
            fields.parameters[name] = getattr(parameter, kind)
    return fields


def decode_class_count(parameters: Parameters) -> int | None:
    """How many classes an output is asked for; None if it is not.

    Raises:
        InvalidArgumentError: the parameter is of the wrong type, or not positive.
    """
    if "classification" not in parameters:
        return None
    parameter = parameters["classification"]
    if parameter.WhichOneof("parameter_choice") != "int64_param":
        raise InvalidArgumentError("invalid value type for 'classification' parameter, expected int64_param")
    if parameter.int64_param <= 0:
        raise InvalidArgumentError("invalid value for 'classification' parameter, expected >= 0")
    # Triton counts classes in 32 bits.
    return parameter.int64_param & 0xFFFFFFFF


def encode_response_parameter(name: str, value: bool | int | float | str) -> bytes:
    """An entry of the map `parameters` of a ModelInferResponse."""
    # Models repeat themselves. Not so floats: 0.0 and -0.0 would be one key.
    if type(value) is not float and (type(value) is not str or len(value) <= _MAX_REMEMBERED_TEXT_LENGTH):
        return _remembered_parameter(name, value)
    return _encode_parameter(name, value)


def _encode_parameter(name: str, value: bool | int | float | str) -> bytes:
    if isinstance(value, bool):
        choice = b"\x08\x01" if value else b"\x08\x00"
    elif isinstance(value, int):
        choice = (b"\x10" if value < 2**63 else b"\x28") + encode_varint(value % 2**64)
    elif isinstance(value, float):
        choice = b"\x21" + struct.pack("<d", value)
    else:
        choice = delimited(3, value.encode())
    return delimited(4, text_field(1, name) + delimited(2, choice))


# Typed, for True and 1 are one key otherwise.
_remembered_parameter = lru_cache(_MAX_REMEMBERED_PARAMETERS, typed=True)(_encode_parameter)


def _decode_correlation_id(parameter: InferParameter) -> int | str:
    kind = parameter.WhichOneof("parameter_choice")
    if kind == "int64_param":
        return parameter.int64_param % 2**64
    if kind != "string_param":
        raise InvalidArgumentError(
            "invalid value type for 'sequence_id' parameter, expected int64_param or string_param."
        )
    if len(parameter.string_param.encode()) > _MAX_CORRELATION_ID_BYTE_SIZE:
        raise UnsupportedError(
            f"string correlation ID cannot be longer than {_MAX_CORRELATION_ID_BYTE_SIZE} characters"
        )
    return parameter.string_param


def _decode_priority(parameter: InferParameter) -> int:
    kind = parameter.WhichOneof("parameter_choice")
    if kind == "uint64_param":
        return parameter.uint64_param
    if kind != "int64_param":
        raise InvalidArgumentError("invalid value type for 'priority' parameter, expected int64_param or uint64_param.")
    if parameter.int64_param < 0:
        raise InvalidArgumentError("invalid value for 'priority', expected value >= 0.")
    return parameter.int64_param


def _bool_parameter(name: str, parameter: InferParameter) -> bool:
    if parameter.WhichOneof("parameter_choice") != "bool_param":
        raise InvalidArgumentError(f"invalid value type for '{name}' parameter, expected bool_param.")
    return parameter.bool_param


def _wrong_region_type(parameter: str, tensor_name: str, expected: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"invalid value type for '{parameter}' parameter for tensor '{tensor_name}', expected {expected}."
    )
