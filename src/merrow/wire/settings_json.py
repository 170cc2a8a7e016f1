"""Log and trace settings over REST: bodies of requests -> changes, settings -> bodies.

Changes of the log come one by one, each to be made before the next is looked at: Triton changes what stands before a
mistake, and not what stands after it. Changes of tracing come together.

Every value of a trace setting is a string, also in requests; numbers are read from its start, as C's `stoi` does. A
JSON value that is no object changes nothing.

Source: Triton, http_server.cc, HandleLogging and HandleTrace; extension_logging.md, extension_trace.md.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from merrow.core.errors import InternalError, InvalidArgumentError, UnavailableError, UnsupportedError
from merrow.core.tensor import Buffer
from merrow.wire.triton_json import (
    NOT_ARRAY,
    NOT_BOOL,
    NOT_STRING,
    NOT_UINT,
    check_input_size,
    cut_at_nul,
    decode_json,
    encode_json,
    encode_string,
)

LOG_FORMATS = ("default", "ISO8601")
LOG_FILE_REFUSAL = "log file location can not be updated through network protocol"
TRACE_FILE_REFUSAL = "trace file location can not be updated through network protocol"

LEVEL_OFF = "OFF"
# Bits of a trace level, in the order in which they are written.
LEVEL_BITS: dict[str, int] = {"TIMESTAMPS": 1, "TENSORS": 2}
# Older names, which are read only.
_LEVEL_ALIASES: dict[str, int] = {**LEVEL_BITS, "MIN": 1, "MAX": 1}

_UINT32 = 2**32
_INT32_MIN, _INT32_MAX = -(2**31), 2**31 - 1
_INTEGER = re.compile(r"[ \t\n\v\f\r]*([+-]?[0-9]+)")

# Key of a number in a trace setting -> field, and what its range is said to be.
TRACE_NUMBERS: dict[str, tuple[str, str]] = {
    "trace_rate": ("rate", "[ 0, 4294967295 ]"),
    "trace_count": ("count", "[ -1, 2147483647 ]"),
    "log_frequency": ("log_frequency", "[ 0, 4294967295 ]"),
}


class LogSettingsLike(Protocol):
    """What is logged, and how."""

    @property
    def verbose(self) -> int: ...
    @property
    def info(self) -> bool: ...
    @property
    def warning(self) -> bool: ...
    @property
    def error(self) -> bool: ...
    @property
    def format(self) -> str: ...
    @property
    def file(self) -> str: ...


class TraceValuesLike(Protocol):
    """One trace setting; `level` is made of `LEVEL_BITS`."""

    @property
    def level(self) -> int: ...
    @property
    def rate(self) -> int: ...
    @property
    def count(self) -> int: ...
    @property
    def log_frequency(self) -> int: ...


LogChange = tuple[str, bool | int | str]
"""A field of the log's settings, and its new value."""

TraceChanges = Mapping[str, int | None]
"""Fields of a trace setting; None lets one fall back on what it falls back on."""


def decode_log_request(body: Buffer, max_input_byte_size: int) -> Iterator[LogChange]:
    """The changes that a body asks for, in Triton's order.

    Raises:
        ServerError: while iterating, when the next key cannot be obeyed; those before it stand.
    """
    members = _decode_members(body, max_input_byte_size)
    if members.get("log_file") is not None:
        raise UnsupportedError(LOG_FILE_REFUSAL)
    for key, field in (("log_info", "info"), ("log_warning", "warning"), ("log_error", "error")):
        value = members.get(key)
        if value is not None:
            if type(value) is not bool:
                raise InternalError(NOT_BOOL)
            yield field, value
    level = members.get("log_verbose_level")
    if level is not None:
        if type(level) is not int or level < 0:
            raise InternalError(NOT_UINT)
        yield "verbose", level % _UINT32
    name = members.get("log_format")
    if name is not None:
        if type(name) is not str:
            raise InternalError(NOT_STRING)
        if name not in LOG_FORMATS:
            raise UnavailableError(f"invalid argument for --log_format, got: {cut_at_nul(name)}")
        yield "format", name


def encode_log_settings(settings: LogSettingsLike) -> bytes:
    return encode_json(
        {
            "log_file": settings.file,
            "log_info": settings.info,
            "log_warning": settings.warning,
            "log_error": settings.error,
            "log_verbose_level": settings.verbose,
            "log_format": settings.format,
        }
    )


def decode_trace_request(body: Buffer, max_input_byte_size: int) -> dict[str, int | None]:
    """The changes that a body asks for.

    Raises:
        ServerError: the first key in Triton's order that cannot be obeyed.
    """
    members = _decode_members(body, max_input_byte_size)
    if "trace_file" in members:
        raise UnsupportedError(TRACE_FILE_REFUSAL)
    changes: dict[str, int | None] = {}
    if "trace_level" in members:
        names = members["trace_level"]
        if names is not None and type(names) is not list:
            raise InternalError(NOT_ARRAY)
        if names is None:
            changes["level"] = None
        elif (level := parse_trace_level(_strings(names), len(names))) is not None:
            changes["level"] = level
    for key, (field, _) in TRACE_NUMBERS.items():
        if key in members:
            text = members[key]
            if text is not None and type(text) is not str:
                raise InternalError(NOT_STRING)
            changes[field] = None if text is None else parse_trace_number(key, cut_at_nul(text), separator="")
    return changes


def encode_trace_settings(values: TraceValuesLike, mode: str, file: str, options: Sequence[tuple[str, str]]) -> bytes:
    """`options` are those of the mode opentelemetry, which has no file; a name may stand in them several times."""
    members = [
        ("trace_level", encode_json(name_trace_level(values.level))),
        ("trace_rate", encode_string(str(values.rate))),
        ("trace_count", encode_string(str(values.count))),
    ]
    if mode == "triton":
        members.append(("log_frequency", encode_string(str(values.log_frequency))))
        members.append(("trace_file", encode_string(file)))
    members.append(("trace_mode", encode_string(mode)))
    if mode != "triton":
        members += [(name, encode_string(value)) for name, value in options]
    return b"{" + b",".join([encode_string(name) + b":" + value for name, value in members]) + b"}"


def name_trace_level(level: int) -> list[str]:
    """The names of a level's parts."""
    return [name for name, bit in LEVEL_BITS.items() if level & bit] or [LEVEL_OFF]


def parse_trace_level(names: Iterator[str], count: int) -> int | None:
    """The level that names make, of which there are `count`; None if none of them means anything.

    Raises:
        InvalidArgumentError: OFF stands beside others.
    """
    level = 0
    for name in names:
        if name == LEVEL_OFF:
            if count > 1:
                raise InvalidArgumentError("Expect only one trace level 'OFF' is specified")
            return 0
        level |= _LEVEL_ALIASES.get(name, 0)
    return level or None


def parse_trace_number(key: str, text: str, separator: str) -> int:
    """The number at the start of a text.

    Args:
        separator: what stands before the number in one of the texts, which HTTP and gRPC write in two ways.

    Raises:
        InvalidArgumentError: there is none, or it is out of range.
    """
    match = _INTEGER.match(text)
    if match is None:
        raise InvalidArgumentError(f"Unable to parse '{key}', got: {text}")
    value = int(match[1])
    if not _INT32_MIN <= value <= _INT32_MAX:
        range_text = TRACE_NUMBERS[key][1]
        raise InvalidArgumentError(f"Unable to parse '{key}', value is out of range {range_text}, got: {text}")
    if key != "trace_count":
        # Triton reads a signed number and keeps it as an unsigned one.
        return value % _UINT32
    if value < -1:
        raise InvalidArgumentError(f"Unable to parse '{key}'. Expecting value >= -1, got:{separator}{text}")
    return value


def _decode_members(body: Buffer, max_input_byte_size: int) -> dict[str, Any]:
    check_input_size(len(body), max_input_byte_size)
    document = decode_json(body)
    return document if type(document) is dict else {}


def _strings(values: Sequence[Any]) -> Iterator[str]:
    for value in values:
        if type(value) is not str:
            raise InternalError(NOT_STRING)
        yield cut_at_nul(value)
