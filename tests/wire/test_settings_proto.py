"""Log and trace settings as messages, against what Triton 2.51 answered."""

import pytest

from merrow.core.errors import ErrorCode, ServerError
from merrow.observe.trace_settings import TraceLevel, TraceValues
from merrow.settings import LogSettings
from merrow.wire._generated import grpc_service_pb2 as pb
from merrow.wire.settings_proto import (
    decode_log_request,
    decode_trace_request,
    encode_log_settings,
    encode_trace_settings,
)


def log_request(**settings):
    request = pb.LogSettingsRequest()
    for key, value in settings.items():
        if isinstance(value, bool):
            request.settings[key].bool_param = value
        elif isinstance(value, int):
            request.settings[key].uint32_param = value
        else:
            request.settings[key].string_param = value
    return request.SerializeToString()


def log_changes(**settings):
    changes = []
    try:
        for change in decode_log_request(log_request(**settings)):
            changes.append(change)
    except ServerError as error:
        return changes, (error.code, error.message)
    return changes, None


def invalid(text):
    return ErrorCode.INVALID_ARG, text


@pytest.mark.parametrize(
    ("settings", "changes", "error"),
    [
        ({}, [], None),
        ({"zzz": True}, [], None),
        ({"log_info": False, "log_verbose_level": 2}, [("info", False), ("verbose", 2)], None),
        (
            {"log_info": False, "log_file": "x"},
            [],
            (ErrorCode.UNSUPPORTED, "log file location can not be updated through network protocol"),
        ),
        ({"log_info": "x"}, [], invalid("expect boolean for 'log_info'")),
        ({"log_warning": 1}, [], invalid("expect boolean for 'log_warning'")),
        ({"log_verbose_level": True}, [], invalid("expect int32 for 'log_verbose_level'")),
        ({"log_format": True}, [], invalid("expect string for 'log_format'")),
        ({"log_format": "ISO8601"}, [("format", "ISO8601")], None),
        (
            {"log_error": False, "log_format": "x"},
            [("error", False)],
            invalid("invalid argument for log_format, got: x"),
        ),
    ],
)
def test_changes_of_the_log_come_until_the_first_mistake(settings, changes, error):
    assert log_changes(**settings) == (changes, error)


def test_log_settings():
    response = pb.LogSettingsResponse.FromString(encode_log_settings(LogSettings(verbose=1, error=False)))

    assert {key: value.WhichOneof("parameter_choice") for key, value in response.settings.items()} == {
        "log_file": "string_param",
        "log_info": "bool_param",
        "log_warning": "bool_param",
        "log_error": "bool_param",
        "log_verbose_level": "uint32_param",
        "log_format": "string_param",
    }
    assert response.settings["log_verbose_level"].uint32_param == 1
    assert response.settings["log_error"].bool_param is False


def trace_request(model_name="", **settings):
    request = pb.TraceSettingRequest(model_name=model_name)
    for key, values in settings.items():
        request.settings[key].value.extend(values)
    return request.SerializeToString()


@pytest.mark.parametrize(
    ("settings", "changes"),
    [
        ({}, {}),
        ({"zzz": ["1"], "trace_mode": ["x"]}, {}),
        ({"trace_rate": ["5"]}, {"rate": 5}),
        ({"trace_rate": []}, {"rate": None}),
        ({"trace_level": []}, {"level": None}),
        ({"trace_level": ["zz"]}, {}),
        ({"trace_level": ["TENSORS", "TIMESTAMPS"]}, {"level": 3}),
        ({"trace_count": ["-1"], "log_frequency": ["7"]}, {"count": -1, "log_frequency": 7}),
    ],
)
def test_trace_changes(settings, changes):
    assert decode_trace_request(trace_request("m", **settings)) == ("m", changes)


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"trace_rate": ["5", "6"]}, invalid("expect only 1 value for 'trace_rate'")),
        ({"trace_count": ["1", "2"]}, invalid("expect only 1 value for 'trace_count'")),
        ({"log_frequency": ["1", "2"]}, invalid("expect only 1 value for 'log_frequency'")),
        ({"trace_count": ["-2"]}, invalid("Unable to parse 'trace_count'. Expecting value >= -1, got: -2")),
        ({"trace_level": ["OFF", "OFF"]}, invalid("Expect only one trace level 'OFF' is specified")),
        (
            {"trace_rate": ["abc"], "trace_file": []},
            (ErrorCode.UNSUPPORTED, "trace file location can not be updated through network protocol"),
        ),
    ],
)
def test_trace_mistakes(settings, error):
    with pytest.raises(ServerError) as caught:
        decode_trace_request(trace_request(**settings))

    assert (caught.value.code, caught.value.message) == error


@pytest.mark.parametrize("decode", [decode_trace_request, lambda message: list(decode_log_request(message))])
def test_what_is_no_message_is_refused(decode):
    with pytest.raises(ServerError, match="Unable to parse request"):
        decode(b"\xff")


def test_trace_settings():
    values = TraceValues(TraceLevel.TIMESTAMPS, 1, 5, 2)

    triton = pb.TraceSettingResponse.FromString(encode_trace_settings(values, "triton", "/f", ()))
    assert {key: list(value.value) for key, value in triton.settings.items()} == {
        "trace_level": ["TIMESTAMPS"],
        "trace_rate": ["1"],
        "trace_count": ["5"],
        "log_frequency": ["2"],
        "trace_file": ["/f"],
        "trace_mode": ["triton"],
    }
    options = (("resource", "a=b"), ("resource", "c=d"))
    other = pb.TraceSettingResponse.FromString(encode_trace_settings(values, "opentelemetry", "", options))
    assert list(other.settings["resource"].value) == ["a=b", "c=d"]
    assert "trace_file" not in other.settings
