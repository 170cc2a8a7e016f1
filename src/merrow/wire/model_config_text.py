"""The written forms of a model's configuration: config.pbtxt, JSON, and the protobuf message.

Text and JSON are read by protobuf's own parsers into the message, and the message becomes `core.model_config` values by
one generic walk, which the rules of that module make possible. Writing JSON is ours, because the config endpoint does
not print plain protobuf JSON. Its rules:

* names as in the .proto file, in its order, except that a plain value in a oneof comes last in its object;
* numbers, booleans, strings, enums, lists and maps are always there; messages and oneofs only when set;
* 64-bit integers are numbers, except in the few fields that Triton forgot to convert from protobuf's strings.

Source: Triton, core/src/model_config_utils.cc, ModelConfigToJson; recorded from the config endpoint of Triton 2.51.
"""

import dataclasses
import functools
import json
import math
import struct
from collections.abc import Callable
from typing import Any, Final

from google.protobuf import json_format, text_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from merrow.core import model_config as values
from merrow.core.model_config import ModelConfig
from merrow.wire._generated import model_config_pb2
from merrow.wire.triton_json import encode_double, encode_string

# Printed as protobuf JSON prints every 64-bit integer: in quotes.
QUOTED_INTEGERS: Final = frozenset(
    {
        (values.ModelInstanceGroupSecondaryDevice, "device_id"),
        (values.ModelOptimizationPolicyCudaGraphSpecShape, "dim"),
        (values.ModelSequenceBatchingInitialState, "dims"),
    }
)


class ConfigTextError(ValueError):
    """A configuration that cannot be read.

    `detail` says what is wrong. `line` and `column` count from 1 and are 0 where the parser did not say; `excerpt` is
    the line itself with a caret under the column, for a log.
    """

    def __init__(self, detail: str, line: int = 0, column: int = 0, source: str = "") -> None:
        super().__init__(f"{line}:{column}: {detail}" if line else detail)
        self.detail = detail
        self.line = line
        self.column = column
        lines = source.splitlines()
        self.excerpt = f"{lines[line - 1]}\n{' ' * (column - 1)}^" if 0 < line <= len(lines) and column else ""


def decode_config_text(text: str | bytes) -> ModelConfig:
    """Read a config.pbtxt.

    Raises:
        ConfigTextError: a syntax error, an unknown field or a value of another type; it says where.
    """
    message = model_config_pb2.ModelConfig()
    try:
        source = text if isinstance(text, str) else text.decode()
    except UnicodeDecodeError as error:
        raise ConfigTextError(f"not valid UTF-8: {error}") from None
    try:
        text_format.Parse(source, message)
    except text_format.ParseError as error:
        line, column = error.GetLine() or 0, error.GetColumn() or 0
        # protobuf repeats the place and the line itself, which the error has apart.
        _, _, detail = str(error).rpartition(f"{line}:{column} : ")
        if line:
            detail = detail.removeprefix(f"'{source.splitlines()[line - 1]}': ")
        raise ConfigTextError(detail, line, column, source) from None
    return decode_config_message(message)


def decode_config_json(text: str | bytes) -> ModelConfig:
    """Read a configuration in JSON: a load request's override, or what a backend completed.

    Raises:
        ConfigTextError: not JSON, an unknown field or a value of another type.
    """
    message = model_config_pb2.ModelConfig()
    try:
        content = json.loads(text)
        if not isinstance(content, dict):
            raise ConfigTextError("the configuration must be a JSON object")
        json_format.ParseDict(content, message)
    except json.JSONDecodeError as error:
        raise ConfigTextError(error.msg, error.lineno, error.colno, error.doc) from None
    except json_format.ParseError as error:
        # protobuf adds the names of all fields after the fact that matters.
        raise ConfigTextError(str(error).partition("\n")[0]) from None
    except (UnicodeError, RecursionError) as error:
        raise ConfigTextError(str(error)) from None
    return decode_config_message(message)


def encode_config_json(config: ModelConfig) -> str:
    """The JSON of the config endpoint, compact."""
    parts: list[str] = []
    _write_object(config, parts.append)
    return "".join(parts)


def decode_config_message(message: model_config_pb2.ModelConfig) -> ModelConfig:
    """The values of a message. Maps come out sorted by key: protobuf keeps them in no order."""
    config: ModelConfig = _decode_message(message, ModelConfig)
    return config


def encode_config_message(config: ModelConfig) -> model_config_pb2.ModelConfig:
    """The message of a configuration, for gRPC."""
    message = model_config_pb2.ModelConfig()
    _encode_message(config, message)
    return message


@dataclasses.dataclass(frozen=True, slots=True)
class _Field:
    """How one field of a message corresponds to one of a dataclass."""

    attribute: str
    name: str
    is_repeated: bool
    is_map: bool
    is_optional: bool
    value_class: type[Any] | None
    enum_names: dict[int, str] | None
    enum_numbers: dict[str, int] | None
    is_float32: bool
    is_quoted: bool


@functools.cache
def _fields_of(class_name: str) -> tuple[_Field, ...]:
    """The fields of a message, by the name of its dataclass, in the order in which JSON prints them."""
    value_class = getattr(values, class_name)
    descriptor = _descriptors_by_class_name()[class_name]
    fields = [
        _describe_field(value_class, attribute.name, descriptor.fields_by_name[attribute.name.rstrip("_")])
        for attribute in dataclasses.fields(value_class)
    ]
    assert len(fields) == len(descriptor.fields), f"{class_name} does not mirror {descriptor.full_name}"
    return tuple(sorted(fields, key=lambda field: field.is_optional and field.value_class is None))


def _describe_field(value_class: type[Any], attribute: str, field: FieldDescriptor) -> _Field:
    nested = field.message_type
    is_map = nested is not None and nested.GetOptions().map_entry
    # Of a map, what is described is its values.
    content = nested.fields_by_name["value"] if is_map and nested is not None else field
    value_type = None
    if content.message_type is not None:
        value_type = getattr(values, _class_name(content.message_type))
    enum = content.enum_type
    return _Field(
        attribute=attribute,
        name=field.name,
        is_repeated=isinstance(_default_of(value_class, attribute), tuple),
        is_map=is_map,
        is_optional=_default_of(value_class, attribute) is None,
        value_class=value_type,
        enum_names={value.number: value.name for value in enum.values} if enum is not None else None,
        enum_numbers={value.name: value.number for value in enum.values} if enum is not None else None,
        is_float32=content.cpp_type == FieldDescriptor.CPPTYPE_FLOAT,
        is_quoted=(value_class, attribute) in QUOTED_INTEGERS,
    )


@functools.cache
def _descriptors_by_class_name() -> dict[str, Descriptor]:
    found: dict[str, Descriptor] = {}
    pending = list(model_config_pb2.DESCRIPTOR.message_types_by_name.values())
    while pending:
        descriptor = pending.pop()
        found[_class_name(descriptor)] = descriptor
        pending.extend(descriptor.nested_types)
    return found


def _class_name(descriptor: Descriptor) -> str:
    """`inference.ModelVersionPolicy.Latest` -> `ModelVersionPolicyLatest`."""
    return "".join(descriptor.full_name.split(".")[1:])


def _default_of(value_class: type[Any], attribute: str) -> object:
    return getattr(value_class(), attribute)


def _decode_message(message: Message, value_class: type[Any]) -> Any:
    attributes: dict[str, Any] = {}
    for field in _fields_of(value_class.__name__):
        content = getattr(message, field.name)
        if field.is_map:
            attributes[field.attribute] = {key: _decode_value(content[key], field) for key in sorted(content)}
        elif field.is_repeated:
            attributes[field.attribute] = tuple([_decode_value(item, field) for item in content])
        elif not field.is_optional or message.HasField(field.name):
            attributes[field.attribute] = _decode_value(content, field)
    return value_class(**attributes)


def _decode_value(content: Any, field: _Field) -> object:
    if field.value_class is not None:
        return _decode_message(content, field.value_class)
    if field.enum_names is not None:
        # A number that this version of the protocol has no name for stays a number, in digits.
        return field.enum_names.get(content, str(content))
    return content


def _encode_message(value: Any, message: Any) -> None:
    for field in _fields_of(type(value).__name__):
        content = getattr(value, field.attribute)
        if content is None:
            continue
        if field.is_map:
            target = getattr(message, field.name)
            for key, item in content.items():
                if field.value_class is not None:
                    _encode_message(item, target[key])
                else:
                    target[key] = item
        elif field.is_repeated:
            target = getattr(message, field.name)
            for item in content:
                if field.value_class is not None:
                    _encode_message(item, target.add())
                else:
                    target.append(_encode_scalar(item, field))
        elif field.value_class is not None:
            target = getattr(message, field.name)
            # An empty message is set, too.
            target.SetInParent()
            _encode_message(content, target)
        else:
            setattr(message, field.name, _encode_scalar(content, field))


def _encode_scalar(content: Any, field: _Field) -> Any:
    if field.enum_numbers is not None:
        number = field.enum_numbers.get(content)
        return int(content) if number is None else number
    return content


def _write_object(value: Any, write: Callable[[str], None]) -> None:
    separator = "{"
    for field in _fields_of(type(value).__name__):
        content = getattr(value, field.attribute)
        if content is None:
            continue
        write(f'{separator}"{field.name}":')
        separator = ","
        if field.is_map:
            item_separator = "{"
            for key, item in content.items():
                write(f"{item_separator}{_quote(str(key))}:")
                item_separator = ","
                _write_value(item, field, write)
            write("}" if content else "{}")
        elif field.is_repeated:
            item_separator = "["
            for item in content:
                write(item_separator)
                item_separator = ","
                _write_value(item, field, write)
            write("]" if content else "[]")
        else:
            _write_value(content, field, write)
    write("{}" if separator == "{" else "}")


def _write_value(content: Any, field: _Field, write: Callable[[str], None]) -> None:
    if field.value_class is not None:
        _write_object(content, write)
    elif isinstance(content, str):
        write(_quote(content))
    elif isinstance(content, bool):
        write("true" if content else "false")
    elif isinstance(content, float):
        write(_format_float(content, field.is_float32))
    else:
        write(f'"{content}"' if field.is_quoted else str(content))


def _quote(text: str) -> str:
    return encode_string(text).decode()


def _format_float(number: float, is_float32: bool) -> str:
    """A float as protobuf writes it, then as Triton's JSON writer repeats it: what reads as an integer stays one."""
    if math.isnan(number):
        return '"NaN"'
    if math.isinf(number):
        return '"Infinity"' if number > 0 else '"-Infinity"'
    digits = _shortest_float32(number) if is_float32 else _shortest_float64(number)
    return digits if digits.lstrip("-").isdigit() else encode_double(float(digits)).decode()


def _shortest_float32(number: float) -> str:
    """Few digits that give the same 32-bit float, as C++'s protobuf finds them."""
    digits = f"{number:.6g}"
    return digits if struct.pack("<f", float(digits)) == struct.pack("<f", number) else f"{number:.9g}"


def _shortest_float64(number: float) -> str:
    digits = f"{number:.15g}"
    return digits if float(digits) == number else f"{number:.17g}"
