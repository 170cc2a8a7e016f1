"""The `parameters` of inference over HTTP: which of a request have a meaning, which are for the model; a response's.

Source: Triton, http_server.cc.
"""

from functools import lru_cache
from typing import Any

from merrow.core.errors import InternalError, InvalidArgumentError, UnsupportedError
from merrow.core.request import SEQUENCE_END, SEQUENCE_START, ParameterValue
from merrow.wire.triton_json import (
    NO_MEMBERS,
    NOT_BOOL,
    NOT_STRING,
    cut_at_nul,
    encode_double,
    encode_string,
    member_error,
    uint_member,
)

_MAX_INT64 = 2**63 - 1
_MAX_CORRELATION_ID_BYTE_SIZE = 128
_RESERVED_PREFIX = "triton_"
_MAX_REMEMBERED_PARAMETERS = 256
_MAX_REMEMBERED_TEXT_LENGTH = 128


class RequestParameters:
    """What the `parameters` of a request say; `custom` are those for the model."""

    __slots__ = ("correlation_id", "custom", "flags", "is_binary_output", "priority", "timeout_us")

    def __init__(self) -> None:
        self.custom: dict[str, ParameterValue] | None = None
        self.priority = 0
        self.timeout_us = 0
        self.correlation_id: int | str = 0
        self.flags = 0
        self.is_binary_output = False


def decode_request_parameters(members: Any) -> RequestParameters:
    """The `parameters` of a request."""
    if type(members) is not dict:
        raise InternalError(f"failed to get request params.: {NO_MEMBERS}")
    parameters = RequestParameters()
    for name in members:
        _decode_parameter(parameters, members, cut_at_nul(name))
    return parameters


def encode_parameter(name: str, value: ParameterValue) -> bytes:
    """A member of a response's `parameters`: its name, a colon and its value.

    Raises:
        UnsupportedError: the value is of no type that JSON has.
    """
    # Models repeat themselves. Not so floats: 0.0 and -0.0 would be one key.
    kind = type(value)
    if kind is bool or kind is int or (kind is str and len(value) <= _MAX_REMEMBERED_TEXT_LENGTH):  # type: ignore[arg-type]  # mypy does not narrow by type()
        return _remembered_parameter(name, value)
    return _encode_parameter(name, value)


def _encode_parameter(name: str, value: ParameterValue) -> bytes:
    if isinstance(value, str):
        text = encode_string(value)
    elif isinstance(value, bool):
        text = b"true" if value else b"false"
    elif isinstance(value, int):
        text = b"%d" % value
    elif isinstance(value, float):
        text = encode_double(value)
    else:
        raise UnsupportedError("Response parameter of type 'TRITONSERVER_PARAMETER_BYTES' is not currently supported")
    return encode_string(name) + b":" + text


# Typed, for True and 1 are one key otherwise.
_remembered_parameter = lru_cache(_MAX_REMEMBERED_PARAMETERS, typed=True)(_encode_parameter)


def _decode_parameter(parameters: RequestParameters, members: dict[str, Any], name: str) -> None:
    """One request parameter: those with a meaning set an attribute, the others are for the model."""
    if name == "sequence_id":
        parameters.correlation_id = _decode_correlation_id(members)
    elif name == "sequence_start":
        parameters.flags |= _bool(members, name) and SEQUENCE_START
    elif name == "sequence_end":
        parameters.flags |= _bool(members, name) and SEQUENCE_END
    elif name == "priority":
        parameters.priority = uint_member(members, name, "Unable to parse")
    elif name == "timeout":
        parameters.timeout_us = uint_member(members, name, "Unable to parse")
    elif name == "binary_data_output":
        parameters.is_binary_output = _bool(members, name)
    elif name.startswith(_RESERVED_PREFIX):
        raise InvalidArgumentError(
            "parameter keys starting with 'triton_' are reserved for Triton usage and should not be specified."
        )
    else:
        if parameters.custom is None:
            parameters.custom = {}
        parameters.custom[name] = decode_custom_parameter(members, name)


def decode_custom_parameter(members: dict[str, Any], name: str) -> ParameterValue:
    """The value of a parameter that is for the model; `name` has been cut at its NUL.

    Raises:
        InternalError: there is none of what was left of the name.
        InvalidArgumentError: the value has a type that no parameter has.
    """
    if name not in members:
        raise InternalError(f"parameter key '{name}' was not found in the JSON")
    value = members[name]
    if type(value) is str:
        return cut_at_nul(value)
    if type(value) is int:
        return float(value) if value > _MAX_INT64 else value
    if type(value) is bool or type(value) is float:
        return value
    raise InvalidArgumentError(f"parameter '{name}' has invalid type. It should be either 'int', 'bool', or 'string'.")


def _decode_correlation_id(members: dict[str, Any]) -> int | str:
    value = members.get("sequence_id")
    if type(value) is int and value >= 0:
        return value
    if type(value) is not str:
        raise member_error(members, "sequence_id", NOT_STRING, "Unable to parse 'sequence_id': ")
    value = cut_at_nul(value)
    if len(value.encode("utf-8", "surrogateescape")) > _MAX_CORRELATION_ID_BYTE_SIZE:
        raise UnsupportedError(
            f"string correlation ID cannot be longer than {_MAX_CORRELATION_ID_BYTE_SIZE} characters"
        )
    return value


def _bool(members: dict[str, Any], name: str) -> bool:
    value = members.get(name)
    if type(value) is not bool:
        raise member_error(members, name, NOT_BOOL, f"Unable to parse '{name}': ")
    return value
