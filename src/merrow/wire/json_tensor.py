"""The `data` of a tensor in JSON <-> its encoded bytes.

Decoding takes any nesting: leaves count row-major, and only their number must fit the shape. Types are strict (1.0 is
no integer, 0 no boolean), ranges are not: integers wrap to the width of the datatype, and what FP32 cannot hold is
infinite. The common case, a flat list of the right length, is converted by one call into C that also refuses most
wrong types; what that call refuses is looked at leaf by leaf, in Triton's order, to find out why, if there is a reason.

Encoding is flat. FP32 is widened to a double first, so 0.1 reads 0.10000000149011612.

Source: Triton, http_server.cc (ReadDataFromJson, WriteDataToJson).
"""

import struct
from array import array
from collections.abc import Iterator
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from merrow.core.datatypes import BYTES, NUMPY_DTYPES
from merrow.core.errors import InternalError, InvalidArgumentError, ServerError
from merrow.core.tensor import Buffer, Tensor, element_count
from merrow.wire.triton_json import (
    NOT_BOOL,
    NOT_INT,
    NOT_NUMBER,
    NOT_STRING,
    NOT_UINT,
    encode_doubles,
    encode_string_bytes,
)

MAX_NESTING_DEPTH = 100

# Up to so many elements, one call with an argument each is faster than the ways that allocate an array.
_SMALL_ELEMENT_COUNT = 256

_LENGTH = struct.Struct("<I")

# Codes of `struct` and `array` (the same but for the size of "l" and "L", which is why they are not used).
_STRUCT_CODES = {
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "FP32": "f",
    "FP64": "d",
}
_NOT_OF_KIND = {"b": NOT_BOOL, "u": NOT_UINT, "i": NOT_INT, "f": NOT_NUMBER}
_TYPES_OF_KIND: dict[str, frozenset[type]] = {
    "b": frozenset({bool}),
    "u": frozenset({int}),
    "i": frozenset({int}),
    "f": frozenset({int, float}),
}
# Of integers in JSON; the width of the datatype does not matter.
_RANGES = {"b": (0, 0), "u": (0, 2**64 - 1), "i": (-(2**63), 2**63 - 1), "f": (-(2**63), 2**64 - 1)}


def decode_json_data(data: list[Any], datatype: str, count: int, may_hold_booleans: bool) -> Buffer:
    """The encoded bytes of a tensor of `count` elements; for BYTES, of as many as there are.

    Args:
        data: the parsed array; any nesting.
        datatype: one that can travel as JSON, so neither FP16, BF16 nor unknown.
        may_hold_booleans: False when the text has no `true` and no `false` in it, which saves looking.

    Raises:
        InternalError: a leaf has the wrong type, or there are too many or too few.
        InvalidArgumentError: the nesting is deeper than Triton allows.
    """
    if datatype == BYTES:
        return _encode_elements(data)
    code = _STRUCT_CODES.get(datatype)
    if code is not None and len(data) == count and not (may_hold_booleans and bool in set(map(type, data))):
        try:
            if count <= _SMALL_ELEMENT_COUNT:
                return struct.pack(f"<{count}{code}", *data)
            return _little_endian(array("d" if code == "f" else code, data), datatype)
        except (struct.error, TypeError, OverflowError):
            # A type that does not fit, nesting, or a value to be wrapped.
            pass
    return _decode_carefully(data, datatype, count)


def encode_json_data(tensor: Tensor) -> bytes:
    """A tensor's elements as a flat JSON array.

    Raises:
        InvalidArgumentError: FP16 and BF16 cannot be written as JSON.
        InternalError: the tensor does not hold what its shape says.
    """
    datatype, data = tensor.datatype, tensor.data
    if datatype == BYTES:
        return _encode_strings(tensor)
    code = _STRUCT_CODES.get(datatype)
    if code is None and datatype != "BOOL":
        if datatype in ("FP16", "BF16"):
            raise InvalidArgumentError(
                f"sending {datatype} data via JSON is not supported. Please use the binary data format for output"
            )
        raise InvalidArgumentError("Invalid data type for output tensor")
    dtype = NUMPY_DTYPES[datatype]
    count = element_count(tensor.shape)
    if len(data) != count * dtype.itemsize:
        raise InternalError(
            f"Failed to write 'data' field: output tensor shape does not match size of output for '{tensor.name}'"
        )
    if not count:
        return b"[]"
    if code is None:
        # Any byte but 0 is true.
        return orjson.dumps(np.frombuffer(data, np.uint8).astype(np.bool_), option=orjson.OPT_SERIALIZE_NUMPY)
    if count <= _SMALL_ELEMENT_COUNT:
        values = struct.unpack(f"<{count}{code}", data)
        text = orjson.dumps(values)
        # An exponent, or null for what is not finite: RapidJSON may write it in another way.
        if dtype.kind == "f" and (b"e" in text or b"n" in text):
            return encode_doubles(np.array(values, np.float64))
        return text
    elements = np.frombuffer(data, dtype)
    if dtype.kind == "f":
        return encode_doubles(elements.astype(np.float64))
    # orjson reads the array in place: it must be aligned.
    return orjson.dumps(np.require(elements, requirements="A"), option=orjson.OPT_SERIALIZE_NUMPY)


def _decode_carefully(data: list[Any], datatype: str, count: int) -> Buffer:
    dtype = NUMPY_DTYPES[datatype]
    leaves = _flatten(data)
    types = set(map(type, leaves)) if leaves is not None else set()
    if leaves is None or len(leaves) != count or not types <= _TYPES_OF_KIND[dtype.kind]:
        raise _find_error(data, dtype.kind, count)
    if dtype.kind == "b":
        return bytes(leaves)
    if dtype.kind == "f":
        return _little_endian(array("d", leaves), datatype)
    try:
        return _little_endian(array("Q" if dtype.kind == "u" else "q", leaves), datatype)
    except OverflowError:
        raise _find_error(data, dtype.kind, count) from None


def _little_endian(elements: "array[Any]", datatype: str) -> Buffer:
    """The elements as the datatype wants them: integers wrap, doubles round or become infinite."""
    dtype = NUMPY_DTYPES[datatype]
    values: npt.NDArray[Any] = np.frombuffer(elements, dtype=elements.typecode)
    if values.dtype != dtype:
        with np.errstate(over="ignore"):
            values = values.astype(dtype)
    return values.view(np.uint8).data


def _flatten(data: list[Any]) -> list[Any] | None:
    """The leaves of lists nested alike; of others too, but slower. None when the nesting is too deep."""
    elements = data
    for _ in range(MAX_NESTING_DEPTH):
        types = set(map(type, elements))
        if list not in types:
            return elements
        if len(types) > 1:
            try:
                return list(_iterate_leaves(data))
            except ServerError:
                return None
        elements = list(chain.from_iterable(elements))
    return None


def _iterate_leaves(data: list[Any]) -> Iterator[Any]:
    """The leaves, row-major.

    Raises:
        InvalidArgumentError: at the point where the nesting becomes too deep.
    """
    open_lists = [iter(data)]
    while open_lists:
        for element in open_lists[-1]:
            if type(element) is list:
                if len(open_lists) == MAX_NESTING_DEPTH:
                    raise InvalidArgumentError(
                        "Unable to parse 'data': JSON nesting depth exceeds maximum allowed limit "
                        f"({MAX_NESTING_DEPTH})"
                    )
                open_lists.append(iter(element))
                break
            yield element
        else:
            open_lists.pop()


def _find_error(data: list[Any], kind: str, count: int) -> ServerError:
    """Why numeric data cannot be decoded: the first thing wrong, in Triton's order."""
    types = _TYPES_OF_KIND[kind]
    low, high = _RANGES[kind]
    seen = 0
    try:
        for leaf in _iterate_leaves(data):
            if seen == count:
                return InternalError("Unable to parse 'data': Shape does not match true shape of 'data' field")
            if type(leaf) not in types or (type(leaf) is int and not low <= leaf <= high):
                return InternalError(f"Unable to parse 'data': {_NOT_OF_KIND[kind]}")
            seen += 1
    except ServerError as error:
        return error
    assert seen < count, "data that can be decoded was refused"
    return InternalError("Failed to parse 'data' field: shape does not match true shape")


def _encode_elements(data: list[Any]) -> bytes:
    pieces: list[bytes] = []
    pack = _LENGTH.pack
    for text in _iterate_leaves(data):
        if type(text) is not str:
            raise InternalError(f"Unable to parse JSON bytes array: {NOT_STRING}")
        element = text.encode("utf-8", "surrogateescape")
        pieces.append(pack(len(element)))
        pieces.append(element)
    return b"".join(pieces)


def _encode_strings(tensor: Tensor) -> bytes:
    elements = _take_elements(tensor)
    try:
        text = orjson.dumps([element.decode() for element in elements])
    except UnicodeDecodeError:
        text = b""
    if not text or b"\\u" in text:
        # Bytes that are no UTF-8 go out as they are; control characters have upper-case digits.
        text = b"[" + b",".join(map(encode_string_bytes, elements)) + b"]"
    return text


def _take_elements(tensor: Tensor) -> list[bytes]:
    """As many elements as the shape says; what follows them is ignored."""
    data = bytes(tensor.data)
    elements: list[bytes] = []
    position, end = 0, len(data)
    unpack = _LENGTH.unpack_from
    for _ in range(element_count(tensor.shape)):
        start = position + 4
        if start <= end:
            position = start + unpack(data, position)[0]
        if start > end or position > end:
            raise InternalError(f"output tensor shape does not match size of output for '{tensor.name}'")
        elements.append(data[start:position])
    return elements
