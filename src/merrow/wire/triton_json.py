"""JSON as Triton reads and writes it.

Reading: `decode_json` gives what RapidJSON would make of a text, by way of a C parser where the two agree. They differ
in what they refuse (then `rapidjson_reader` decides), and in repeated names, of which RapidJSON serves the first.
Repetition is found by counting: every member of an object has one colon, so as long as the parsed members, and the
colons inside of parsed strings, account for all colons of the text, no name was dropped.

Strings are `str`; bytes that are no UTF-8 stay in them as surrogate escapes, and are written back as they came.
Typed access has Triton's error texts, which are of kind INTERNAL: to a client, broken JSON is a 500.

Writing: compact, keys in the order given, UTF-8 raw, control characters as \\u00XX in upper case, doubles in the
shortest form that reads back, in plain notation from 1e-6 up to 21 digits, and NaN, Infinity and -Infinity bare.

Source: Triton, triton_json.h over RapidJSON.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from merrow.core.errors import InternalError, InvalidArgumentError
from merrow.core.tensor import Buffer
from merrow.wire.rapidjson_reader import MAX_VALUE_COUNT, JsonSyntaxError, TooManyValuesError, read_document

NOT_STRING = "attempt to access JSON non-string as string"
NOT_BOOL = "attempt to access JSON non-boolean as boolean"
NOT_INT = "attempt to access JSON non-signed-integer as signed-integer"
NOT_UINT = "attempt to access JSON non-unsigned-integer as unsigned-integer"
NOT_NUMBER = "attempt to access JSON non-number as double"
NOT_ARRAY = "attempt to access JSON non-array as array"
NO_MEMBERS = "attempt to get members for non-object"

# What the standard library accepts, and RapidJSON not, or not as the same: surrogates, large integers, exponents.
_READ_DIFFERENTLY = re.compile(rb"\\u[dD]|[0-9]{19}|[eE]\+?[0-9]{3}")

_SCALARS = frozenset({int, float, bool, type(None)})
_STRINGS = frozenset({str})
_LISTS = frozenset({list})

# RapidJSON writes a double with up to so many digits before the point, and zeros behind it, without an exponent.
_MAX_PLAIN_DIGITS = 21
_MAX_PLAIN_ZEROS = 5

_ESCAPED = re.compile(rb'["\\\x00-\x1f]')
_ESCAPES: dict[bytes, bytes] = {
    **{bytes([code]): b"\\u%04X" % code for code in range(0x20)},
    b'"': b'\\"',
    b"\\": b"\\\\",
    b"\b": b"\\b",
    b"\f": b"\\f",
    b"\n": b"\\n",
    b"\r": b"\\r",
    b"\t": b"\\t",
}


def decode_json(text: Buffer) -> Any:
    """The value of a JSON document: None, bool, int, float, str, list or dict.

    Raises:
        InternalError: the text is not JSON, or a large document that only RapidJSON could read.
    """
    if isinstance(text, memoryview):
        text = bytes(text)
    try:
        document = orjson.loads(text)
    except orjson.JSONDecodeError:
        return decode_odd_json(text)
    return decode_json_exactly(text) if has_repeated_names(text, document) else document


def decode_json_exactly(text: Buffer) -> Any:
    """`decode_json` by RapidJSON's own rules alone; the caller has found the text to be JSON."""
    return _decode(text, read_document)


def decode_odd_json(text: Buffer) -> Any:
    """`decode_json` of a text that a strict parser has refused."""
    return _decode(text, _read_odd_document)


def has_repeated_names(text: bytes | bytearray, document: Any) -> bool:
    """Whether an object of the text has a name twice, given what a last-one-wins parser made of it.

    True also where counting cannot tell: a colon was written as an escape, or there are too many objects to count.
    There are none for certain when the text has as many colons as the objects have members; who has seen them all need
    not ask.
    """
    # That is a colon in the parsed string, and none in the text.
    has_escaped_colon = b"\\u003a" in text or b"\\u003A" in text
    return has_escaped_colon or text.count(b":") != _count_members_and_colons(document)


def check_input_size(byte_size: int, max_input_byte_size: int) -> None:
    """Refuse JSON longer than `--http-max-input-size`."""
    if byte_size > max_input_byte_size:
        raise InvalidArgumentError(
            f"request JSON size of {byte_size} bytes exceeds the maximum allowed input size of "
            f"{max_input_byte_size} bytes. Use --http-max-input-size to increase the limit."
        )


def member_error(owner: Mapping[str, Any], name: str, mismatch: str, prefix: str = "") -> InternalError:
    """Why the member `name` cannot be read: it is missing, or `mismatch` (one of the texts above)."""
    return InternalError(prefix + (mismatch if name in owner else no_member(name)))


def uint_member(members: dict[str, Any], name: str, complaint: str) -> int:
    """An unsigned integer; `complaint` is how the error of another value, or of none, begins."""
    value = members.get(name)
    if type(value) is not int or value < 0:
        raise member_error(members, name, NOT_UINT, f"{complaint} '{name}': ")
    return value


def no_member(name: str) -> str:
    """The text for a member that an object lacks."""
    return f"attempt to access non-existing object member '{name}'"


def cut_at_nul(text: str) -> str:
    """A string as C reads it, where Triton passes one on as a C string."""
    return text.partition("\0")[0] if "\0" in text else text


def encode_json(value: Any) -> bytes:
    """Write a value made of dict, list, tuple, str, int, float, bool and None."""
    try:
        text = orjson.dumps(value)
    except orjson.JSONEncodeError:
        return _encode_slowly(value)
    # A control character that needs upper case, an exponent or a value that is not finite: rare, and looked at closely.
    if b"\\u" in text or _has_floats(value):
        return _encode_slowly(value)
    return text


def encode_string(text: str) -> bytes:
    """Write a string, quotes included."""
    try:
        encoded = orjson.dumps(text)
    except orjson.JSONEncodeError:
        return encode_string_bytes(text.encode("utf-8", "surrogateescape"))
    if b"\\u" in encoded:
        return encode_string_bytes(text.encode())
    return encoded


def encode_string_bytes(text: bytes) -> bytes:
    """Write a string given as bytes, quotes included; what is no UTF-8 is written raw."""
    return b'"' + _ESCAPED.sub(lambda match: _ESCAPES[match[0]], text) + b'"'


def encode_double(value: float) -> bytes:
    """Write one number."""
    if math.isnan(value):
        return b"NaN"
    if math.isinf(value):
        return b"Infinity" if value > 0 else b"-Infinity"
    if value == 0.0:
        return b"-0.0" if math.copysign(1.0, value) < 0 else b"0.0"
    sign = b"-" if value < 0 else b""
    mantissa, _, exponent = repr(abs(value)).encode().partition(b"e")
    integer, _, fraction = mantissa.partition(b".")
    written = integer + fraction
    digits = written.lstrip(b"0")
    # The value is 0.<digits> times ten to the power of `point`.
    point = len(integer) + int(exponent or 0) - (len(written) - len(digits))
    digits = digits.rstrip(b"0")
    if len(digits) <= point <= _MAX_PLAIN_DIGITS:
        return sign + digits + b"0" * (point - len(digits)) + b".0"
    if 0 < point <= _MAX_PLAIN_DIGITS:
        return sign + digits[:point] + b"." + digits[point:]
    if -_MAX_PLAIN_ZEROS <= point <= 0:
        return sign + b"0." + b"0" * -point + digits
    if len(digits) == 1:
        return sign + digits + b"e%d" % (point - 1)
    return sign + digits[:1] + b"." + digits[1:] + b"e%d" % (point - 1)


def encode_doubles(values: "npt.NDArray[np.float64]") -> bytes:
    """Write an array of numbers, brackets included. `values` is one-dimensional and contiguous, and may be changed."""
    # orjson agrees with RapidJSON but for values that are not finite, and where it takes to exponents earlier.
    magnitudes = np.abs(values)
    # NaN compares false, and so is special.
    is_plain = (magnitudes < 1e-6) | ((magnitudes >= 1e-5) & (magnitudes < 1e16))
    special = values[~is_plain]
    if not special.size:
        return orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY)
    # Each of them is written as NaN, which comes out as null, and then put there.
    values[~is_plain] = np.nan
    pieces = orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY).split(b"null")
    numbers = [*map(encode_double, special.tolist()), b""]
    return b"".join([part for pair in zip(pieces, numbers, strict=True) for part in pair])


def _decode(text: Buffer, read: Callable[[bytes], Any]) -> Any:
    try:
        return read(bytes(text))
    except JsonSyntaxError as error:
        raise InternalError(f"failed to parse the request JSON buffer: {error}") from None


def _read_odd_document(text: bytes) -> Any:
    """`read_document`, but when that gives up on a large document, the standard library may read it.

    It knows NaN, and takes bytes that are not UTF-8. About what is wrong it says less than RapidJSON.
    """
    try:
        return read_document(text)
    except TooManyValuesError:
        if _READ_DIFFERENTLY.search(text):
            raise
    characters = text.decode("utf-8", "surrogateescape")
    try:
        document = json.loads(characters)
    except json.JSONDecodeError as error:
        offset = len(characters[: error.pos].encode("utf-8", "surrogateescape"))
        raise JsonSyntaxError("Unspecific syntax error.", offset) from None
    except RecursionError:
        raise TooManyValuesError(len(text)) from None
    if has_repeated_names(text, document):
        raise TooManyValuesError(len(text))
    return document


def _count_members_and_colons(document: Any) -> int:
    """Members of all objects, plus the colons in their names and in all strings; fewer if there are too many."""
    count = 0
    pending = [document]
    for _ in range(MAX_VALUE_COUNT):
        if not pending:
            break
        value = pending.pop()
        kind = type(value)
        if kind is str:
            count += value.count(":")
        elif kind is dict:
            count += len(value) + "".join(value).count(":")
            pending.extend(value.values())
        elif kind is list:
            kinds = set(map(type, value))
            # Rows of a tensor, and rows of rows, are seen through in C.
            while kinds == _LISTS:
                value = list(chain.from_iterable(value))
                kinds = set(map(type, value))
            if kinds == _STRINGS:
                count += "".join(value).count(":")
            elif not kinds <= _SCALARS:
                pending.extend(value)
    return count


def _has_floats(value: Any) -> bool:
    if isinstance(value, float):
        return True
    if isinstance(value, dict):
        return any(map(_has_floats, value.values()))
    return isinstance(value, (list, tuple)) and any(map(_has_floats, value))


def _encode_slowly(value: Any) -> bytes:
    if isinstance(value, str):
        return encode_string(value)
    if isinstance(value, float):
        return encode_double(value)
    if isinstance(value, dict):
        members = [encode_string(name) + b":" + _encode_slowly(item) for name, item in value.items()]
        return b"{" + b",".join(members) + b"}"
    if isinstance(value, (list, tuple)):
        return b"[" + b",".join(map(_encode_slowly, value)) + b"]"
    return orjson.dumps(value)
