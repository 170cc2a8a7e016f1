"""Log and trace settings as JSON, against what Triton 2.51 answered."""

import json

import pytest

from merrow.core.errors import ErrorCode, ServerError
from merrow.observe.trace_settings import TraceLevel, TraceValues
from merrow.settings import LogSettings
from merrow.wire.settings_json import (
    decode_log_request,
    decode_trace_request,
    encode_log_settings,
    encode_trace_settings,
)


def body_of(value):
    return value if isinstance(value, bytes) else json.dumps(value).encode()


def log_changes(value):
    """The changes up to the first mistake, and the mistake."""
    changes = []
    try:
        for change in decode_log_request(body_of(value), 1000):
            changes.append(change)
    except ServerError as error:
        return changes, (error.code, error.message)
    return changes, None


NOT_BOOL = (ErrorCode.INTERNAL, "attempt to access JSON non-boolean as boolean")
NOT_UINT = (ErrorCode.INTERNAL, "attempt to access JSON non-unsigned-integer as unsigned-integer")


@pytest.mark.parametrize(
    ("body", "changes", "error"),
    [
        ({}, [], None),
        (b"[]", [], None),
        (b"3", [], None),
        (b"", [], (ErrorCode.INTERNAL, "failed to parse the request JSON buffer: The document is empty. at 0")),
        ({"log_file": None, "other": 1}, [], None),
        (
            {"log_info": False, "log_file": "x"},
            [],
            (ErrorCode.UNSUPPORTED, "log file location can not be updated through network protocol"),
        ),
        ({"log_info": False, "log_error": True}, [("info", False), ("error", True)], None),
        ({"log_info": None}, [], None),
        ({"log_info": 1}, [], NOT_BOOL),
        ({"log_error": False, "log_warning": 3, "log_info": False}, [("info", False)], NOT_BOOL),
        ({"log_verbose_level": 2}, [("verbose", 2)], None),
        ({"log_verbose_level": 4294967297}, [("verbose", 1)], None),
        ({"log_verbose_level": -1}, [], NOT_UINT),
        ({"log_verbose_level": 1.0}, [], NOT_UINT),
        ({"log_format": "ISO8601"}, [("format", "ISO8601")], None),
        (
            {"log_warning": False, "log_format": "x"},
            [("warning", False)],
            (ErrorCode.UNAVAILABLE, "invalid argument for --log_format, got: x"),
        ),
        (
            {"log_format": "default\0x"},
            [],
            (ErrorCode.UNAVAILABLE, "invalid argument for --log_format, got: default"),
        ),
        ({"log_format": 3}, [], (ErrorCode.INTERNAL, "attempt to access JSON non-string as string")),
    ],
)
def test_changes_of_the_log_come_until_the_first_mistake(body, changes, error):
    assert log_changes(body) == (changes, error)


def test_log_settings():
    assert encode_log_settings(LogSettings(verbose=2, warning=False, file="/log")) == (
        b'{"log_file":"/log","log_info":true,"log_warning":false,"log_error":true,"log_verbose_level":2,'
        b'"log_format":"default"}'
    )


@pytest.mark.parametrize(
    ("body", "changes"),
    [
        ({}, {}),
        (b"[]", {}),
        ({"zzz": 1, "trace_mode": "opentelemetry"}, {}),
        ({"trace_level": None}, {"level": None}),
        ({"trace_level": []}, {}),
        ({"trace_level": ["OFF"]}, {"level": 0}),
        ({"trace_level": ["x"]}, {}),
        ({"trace_level": ["timestamps"]}, {}),
        ({"trace_level": ["x", "TIMESTAMPS"]}, {"level": 1}),
        ({"trace_level": ["MIN"]}, {"level": 1}),
        ({"trace_level": ["TENSORS", "TIMESTAMPS"]}, {"level": 3}),
        ({"trace_rate": "5"}, {"rate": 5}),
        ({"trace_rate": "5abc"}, {"rate": 5}),
        ({"trace_rate": " +7"}, {"rate": 7}),
        ({"trace_rate": "-1"}, {"rate": 4294967295}),
        ({"trace_rate": "0x10"}, {"rate": 0}),
        (
            {"trace_rate": None, "trace_count": None, "log_frequency": None},
            dict.fromkeys(("rate", "count", "log_frequency")),
        ),
        ({"trace_count": "-1"}, {"count": -1}),
        ({"log_frequency": "-2"}, {"log_frequency": 4294967294}),
        (b'{"trace_rate":"2","trace_rate":null}', {"rate": 2}),
    ],
)
def test_trace_changes(body, changes):
    assert decode_trace_request(body_of(body), 1000) == changes


NOT_STRING = (ErrorCode.INTERNAL, "attempt to access JSON non-string as string")
ONLY_OFF = (ErrorCode.INVALID_ARG, "Expect only one trace level 'OFF' is specified")
NO_FILE = (ErrorCode.UNSUPPORTED, "trace file location can not be updated through network protocol")


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"", (ErrorCode.INTERNAL, "failed to parse the request JSON buffer: The document is empty. at 0")),
        ({"trace_level": "OFF"}, (ErrorCode.INTERNAL, "attempt to access JSON non-array as array")),
        ({"trace_level": ["OFF", "TIMESTAMPS"]}, ONLY_OFF),
        ({"trace_level": ["OFF", "OFF"]}, ONLY_OFF),
        ({"trace_level": ["TIMESTAMPS", 3]}, NOT_STRING),
        ({"trace_rate": 5}, NOT_STRING),
        ({"trace_rate": "abc"}, (ErrorCode.INVALID_ARG, "Unable to parse 'trace_rate', got: abc")),
        ({"trace_rate": ""}, (ErrorCode.INVALID_ARG, "Unable to parse 'trace_rate', got: ")),
        (
            {"trace_rate": "2147483648"},
            (
                ErrorCode.INVALID_ARG,
                "Unable to parse 'trace_rate', value is out of range [ 0, 4294967295 ], got: 2147483648",
            ),
        ),
        (
            {"trace_count": "-2"},
            (ErrorCode.INVALID_ARG, "Unable to parse 'trace_count'. Expecting value >= -1, got:-2"),
        ),
        (
            {"trace_count": "99999999999"},
            (
                ErrorCode.INVALID_ARG,
                "Unable to parse 'trace_count', value is out of range [ -1, 2147483647 ], got: 99999999999",
            ),
        ),
        ({"log_frequency": "x"}, (ErrorCode.INVALID_ARG, "Unable to parse 'log_frequency', got: x")),
        ({"trace_rate": "abc", "trace_file": None}, NO_FILE),
    ],
)
def test_trace_mistakes(body, error):
    with pytest.raises(ServerError) as caught:
        decode_trace_request(body_of(body), 1000)

    assert (caught.value.code, caught.value.message) == error


def test_a_body_is_limited():
    with pytest.raises(ServerError, match="request JSON size of 20 bytes exceeds the maximum allowed input size of 10"):
        decode_trace_request(b" " * 20, 10)


def test_trace_settings_of_mode_triton():
    values = TraceValues(TraceLevel.TIMESTAMPS | TraceLevel.TENSORS, 1, 5, 2)

    assert encode_trace_settings(values, "triton", "/f", ()) == (
        b'{"trace_level":["TIMESTAMPS","TENSORS"],"trace_rate":"1","trace_count":"5","log_frequency":"2",'
        b'"trace_file":"/f","trace_mode":"triton"}'
    )


def test_trace_settings_of_mode_opentelemetry():
    options = (("url", "http://x"), ("resource", "a=b"), ("resource", "c=d"), ("bsp_max_queue_size", "2048"))

    assert encode_trace_settings(TraceValues(), "opentelemetry", "", options) == (
        b'{"trace_level":["OFF"],"trace_rate":"1000","trace_count":"-1","trace_mode":"opentelemetry","url":"http://x",'
        b'"resource":"a=b","resource":"c=d","bsp_max_queue_size":"2048"}'
    )
