"""Parameters of an inference request over HTTP. Recorded from Triton 2.51."""

import pytest

from merrow.core.errors import InternalError, InvalidArgumentError, ServerError, UnsupportedError
from merrow.wire.infer_parameters_json import decode_request_parameters
from merrow.wire.triton_json import decode_json

NOT_UINT = "attempt to access JSON non-unsigned-integer as unsigned-integer"
NOT_BOOL = "attempt to access JSON non-boolean as boolean"
NOT_STRING = "attempt to access JSON non-string as string"


def decode(text):
    return decode_request_parameters(decode_json(text.encode()))


@pytest.mark.parametrize(
    ("parameters", "custom"),
    [
        ("{}", None),
        (
            '{"s":"x","i":5,"neg":-3,"big":9223372036854775807,"d":1.5,"b":true,"e":""}',
            {"s": "x", "i": 5, "neg": -3, "big": 9223372036854775807, "d": 1.5, "b": True, "e": ""},
        ),
        ('{"u":18446744073709551615}', {"u": 1.8446744073709552e19}),
        ('{"u":-9223372036854775809}', {"u": -9.223372036854775809e18}),
        ('{"z":-0,"f":1.0}', {"z": 0, "f": 1.0}),
        ('{"headers":"x","TRITON_x":1,"":2}', {"headers": "x", "TRITON_x": 1, "": 2}),
        ('{"a":1,"a":2}', {"a": 1}),
        ('{"a":1,"a\\u0000b":2}', {"a": 1}),
        ('{"binary_data_size":5,"classification":2}', {"binary_data_size": 5, "classification": 2}),
    ],
)
def test_what_has_no_meaning_is_for_the_model(parameters, custom):
    decoded = decode(parameters).custom

    assert decoded == custom
    if custom is not None:
        assert list(map(type, decoded.values())) == list(map(type, custom.values()))


@pytest.mark.parametrize(
    ("parameters", "attributes"),
    [
        ('"sequence_id":5', {"correlation_id": 5}),
        ('"sequence_id":18446744073709551615', {"correlation_id": 18446744073709551615}),
        ('"sequence_id":"abc"', {"correlation_id": "abc"}),
        ('"sequence_id":"a\\u0000b"', {"correlation_id": "a"}),
        ('"sequence_id":"' + "x" * 128 + '"', {"correlation_id": "x" * 128}),
        ('"sequence_start":true', {"flags": 1}),
        ('"sequence_start":false,"sequence_end":true', {"flags": 2}),
        ('"sequence_id":7,"sequence_start":true,"sequence_end":true', {"correlation_id": 7, "flags": 3}),
        ('"priority":3', {"priority": 3}),
        ('"timeout":1000000', {"timeout_us": 1000000}),
        ('"binary_data_output":true', {"is_binary_output": True}),
    ],
)
def test_what_has_a_meaning_is_not(parameters, attributes):
    decoded = decode("{" + parameters + "}")

    assert decoded.custom is None
    assert {name: getattr(decoded, name) for name in attributes} == attributes


@pytest.mark.parametrize(
    ("parameters", "error_class", "text"),
    [
        ("null", InternalError, "failed to get request params.: attempt to get members for non-object"),
        ("[]", InternalError, "failed to get request params.: attempt to get members for non-object"),
        ('{"sequence_id":-5}', InternalError, f"Unable to parse 'sequence_id': {NOT_STRING}"),
        ('{"sequence_id":1.5}', InternalError, f"Unable to parse 'sequence_id': {NOT_STRING}"),
        ('{"sequence_id":true}', InternalError, f"Unable to parse 'sequence_id': {NOT_STRING}"),
        ('{"sequence_id":18446744073709551616}', InternalError, f"Unable to parse 'sequence_id': {NOT_STRING}"),
        (
            '{"sequence_id":"' + "x" * 129 + '"}',
            UnsupportedError,
            "string correlation ID cannot be longer than 128 characters",
        ),
        (
            '{"sequence_id":"' + "\u00e9" * 65 + '"}',
            UnsupportedError,
            "string correlation ID cannot be longer than 128 characters",
        ),
        ('{"sequence_start":1}', InternalError, f"Unable to parse 'sequence_start': {NOT_BOOL}"),
        ('{"sequence_end":"true"}', InternalError, f"Unable to parse 'sequence_end': {NOT_BOOL}"),
        ('{"priority":-1}', InternalError, f"Unable to parse 'priority': {NOT_UINT}"),
        ('{"priority":1.0}', InternalError, f"Unable to parse 'priority': {NOT_UINT}"),
        ('{"timeout":null}', InternalError, f"Unable to parse 'timeout': {NOT_UINT}"),
        ('{"binary_data_output":1}', InternalError, f"Unable to parse 'binary_data_output': {NOT_BOOL}"),
        (
            '{"triton_x":null}',
            InvalidArgumentError,
            "parameter keys starting with 'triton_' are reserved for Triton usage and should not be specified.",
        ),
        (
            '{"n":null}',
            InvalidArgumentError,
            "parameter 'n' has invalid type. It should be either 'int', 'bool', or 'string'.",
        ),
        (
            '{"n":{}}',
            InvalidArgumentError,
            "parameter 'n' has invalid type. It should be either 'int', 'bool', or 'string'.",
        ),
        ('{"a\\u0000b":1}', InternalError, "parameter key 'a' was not found in the JSON"),
        (
            '{"priority\\u0000":1}',
            InternalError,
            "Unable to parse 'priority': attempt to access non-existing object member 'priority'",
        ),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_parameter_that_cannot_be_is_refused(parameters, error_class, text):
    with pytest.raises(ServerError) as raised:
        decode(parameters)

    assert (type(raised.value), raised.value.message) == (error_class, text)
