"""Log and trace settings over gRPC; the counterpart of `settings_json`.

Source: Triton, grpc/grpc_server.cc, LogSettings and TraceSetting.
"""

from collections.abc import Iterator, Sequence

from google.protobuf.message import DecodeError

from merrow.core.errors import InternalError, InvalidArgumentError, UnsupportedError
from merrow.core.tensor import Buffer
from merrow.wire._generated import grpc_service_pb2
from merrow.wire.settings_json import (
    LOG_FILE_REFUSAL,
    LOG_FORMATS,
    TRACE_FILE_REFUSAL,
    TRACE_NUMBERS,
    LogChange,
    LogSettingsLike,
    TraceValuesLike,
    name_trace_level,
    parse_trace_level,
    parse_trace_number,
)


def decode_log_request(message: Buffer) -> Iterator[LogChange]:
    """The changes that a message asks for, in Triton's order.

    Raises:
        ServerError: while iterating, when the next setting cannot be obeyed; those before it stand.
    """
    try:
        settings = grpc_service_pb2.LogSettingsRequest.FromString(bytes(message)).settings
    except DecodeError:
        raise InternalError("Unable to parse request") from None
    if "log_file" in settings:
        raise UnsupportedError(LOG_FILE_REFUSAL)
    for key, field in (("log_info", "info"), ("log_warning", "warning"), ("log_error", "error")):
        if key in settings:
            if settings[key].WhichOneof("parameter_choice") != "bool_param":
                raise InvalidArgumentError(f"expect boolean for '{key}'")
            yield field, settings[key].bool_param
    if "log_verbose_level" in settings:
        if settings["log_verbose_level"].WhichOneof("parameter_choice") != "uint32_param":
            raise InvalidArgumentError("expect int32 for 'log_verbose_level'")
        yield "verbose", settings["log_verbose_level"].uint32_param
    if "log_format" in settings:
        if settings["log_format"].WhichOneof("parameter_choice") != "string_param":
            raise InvalidArgumentError("expect string for 'log_format'")
        name = settings["log_format"].string_param
        if name not in LOG_FORMATS:
            raise InvalidArgumentError(f"invalid argument for log_format, got: {name}")
        yield "format", name


def encode_log_settings(settings: LogSettingsLike) -> bytes:
    response = grpc_service_pb2.LogSettingsResponse()
    response.settings["log_file"].string_param = settings.file
    response.settings["log_info"].bool_param = settings.info
    response.settings["log_warning"].bool_param = settings.warning
    response.settings["log_error"].bool_param = settings.error
    response.settings["log_verbose_level"].uint32_param = settings.verbose
    response.settings["log_format"].string_param = settings.format
    return response.SerializeToString()


def decode_trace_request(message: Buffer) -> tuple[str, dict[str, int | None]]:
    """The model's name, "" for the server's setting, and the changes that are asked for.

    Raises:
        ServerError: the first setting in Triton's order that cannot be obeyed.
    """
    try:
        request = grpc_service_pb2.TraceSettingRequest.FromString(bytes(message))
    except DecodeError:
        raise InternalError("Unable to parse request") from None
    settings = request.settings
    if "trace_file" in settings:
        raise UnsupportedError(TRACE_FILE_REFUSAL)
    changes: dict[str, int | None] = {}
    if "trace_level" in settings:
        names = settings["trace_level"].value
        if not names:
            changes["level"] = None
        elif (level := parse_trace_level(iter(names), len(names))) is not None:
            changes["level"] = level
    for key, (field, _) in TRACE_NUMBERS.items():
        if key in settings:
            values = settings[key].value
            if len(values) > 1:
                raise InvalidArgumentError(f"expect only 1 value for '{key}'")
            changes[field] = parse_trace_number(key, values[0], separator=" ") if values else None
    return request.model_name, changes


def encode_trace_settings(values: TraceValuesLike, mode: str, file: str, options: Sequence[tuple[str, str]]) -> bytes:
    """As `settings_json.encode_trace_settings`."""
    response = grpc_service_pb2.TraceSettingResponse()
    settings = response.settings
    settings["trace_level"].value.extend(name_trace_level(values.level))
    settings["trace_rate"].value.append(str(values.rate))
    settings["trace_count"].value.append(str(values.count))
    if mode == "triton":
        settings["log_frequency"].value.append(str(values.log_frequency))
        settings["trace_file"].value.append(file)
    settings["trace_mode"].value.append(mode)
    if mode != "triton":
        for name, value in options:
            settings[name].value.append(value)
    return response.SerializeToString()


# Of a model that is not there: newer Triton loses the error of its look-up on the way.
EMPTY_TRACE_SETTINGS = b""
