"""Frozen dataclasses to and from plain values: dicts, lists, strings, numbers, booleans, None.

What crosses a process boundary, or comes back from a model's own code, is plain; a configuration is dataclasses. The
walk follows the types of the fields, so it serves every dataclass that keeps the rules of `core.model_config`. Fields
that are None or hold their default are left out. Nothing is executed or looked up by a name found in the data.
"""

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

_Value = TypeVar("_Value")


def encode_plain(value: Any) -> Any:
    """The plain form of a dataclass, a container of dataclasses, or a scalar."""
    if dataclasses.is_dataclass(value):
        return {
            field.name.rstrip("_"): encode_plain(content)
            for field in dataclasses.fields(value)
            if (content := getattr(value, field.name)) is not None and not _is_default(field, content)
        }
    if isinstance(value, Mapping):
        return {str(key): encode_plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [encode_plain(item) for item in value]
    return value


def decode_plain(value_class: type[_Value], content: Any) -> _Value:
    """The dataclass that a plain dict describes.

    Integers may be strings of digits, as protobuf's JSON writes 64-bit ones.

    Raises:
        ValueError: an unknown field, or a value of another type; it names the field.
    """
    result: _Value = _decode(value_class, content, value_class.__name__)
    return result


def _is_default(field: "dataclasses.Field[Any]", content: object) -> bool:
    if field.default is not dataclasses.MISSING:
        return content is field.default or (type(content) is type(field.default) and content == field.default)
    return field.default_factory is not dataclasses.MISSING and content == field.default_factory()


@functools.cache
def _field_types(value_class: type[Any]) -> dict[str, tuple[str, Any]]:
    """Name in the data -> (attribute, type)."""
    hints = typing.get_type_hints(value_class)
    return {field.name.rstrip("_"): (field.name, hints[field.name]) for field in dataclasses.fields(value_class)}


def _decode(expected: Any, content: Any, where: str) -> Any:
    if dataclasses.is_dataclass(expected):
        if not isinstance(content, Mapping):
            raise ValueError(f"{where}: expected an object, got {content!r}")
        value_class: Any = expected
        types_of_fields = _field_types(value_class)
        attributes: dict[str, Any] = {}
        for name, item in content.items():
            if name not in types_of_fields:
                raise ValueError(f"{where}: no field named {name!r}")
            attribute, field_type = types_of_fields[name]
            attributes[attribute] = _decode(field_type, item, f"{where}.{name}")
        return value_class(**attributes)
    origin = typing.get_origin(expected)
    arguments = typing.get_args(expected)
    if origin in (typing.Union, types.UnionType):
        if content is None and type(None) in arguments:
            return None
        (expected,) = (argument for argument in arguments if argument is not type(None))
        return _decode(expected, content, where)
    if origin is tuple:
        if not isinstance(content, (list, tuple)):
            raise ValueError(f"{where}: expected a list, got {content!r}")
        return tuple([_decode(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(content)])
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(content, Mapping):
            raise ValueError(f"{where}: expected an object, got {content!r}")
        key_type, item_type = arguments
        return {
            _decode(key_type, key, f"{where} key"): _decode(item_type, item, f"{where}[{key!r}]")
            for key, item in content.items()
        }
    return _decode_scalar(expected, content, where)


def _decode_scalar(expected: Any, content: Any, where: str) -> Any:
    if expected is float and isinstance(content, int) and not isinstance(content, bool):
        return float(content)
    if expected is int and isinstance(content, str):
        try:
            return int(content)
        except ValueError:
            raise ValueError(f"{where}: expected an integer, got {content!r}") from None
    if type(content) is not expected:
        raise ValueError(f"{where}: expected {expected.__name__}, got {content!r}")
    return content
