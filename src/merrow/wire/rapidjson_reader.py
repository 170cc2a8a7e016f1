"""Reads JSON as RapidJSON reads it, down to the message and the byte offset of an error.

This is the slow, exact reader behind `triton_json.decode_json`, for what a strict parser refuses and for documents
with repeated names. Its grammar is JSON with RapidJSON's habits:

    NaN, Inf, Infinity and their negatives      are numbers
    a repeated name                             keeps its first value
    integers beyond 64 bits                     become doubles
    bytes that are not UTF-8, lone surrogates   are kept: they become surrogate escapes of the `str` (PEP 383)
    a byte order mark                           is skipped, even in part
    a NUL outside of a string                   ends the document, whatever follows

There is no recursion, so nesting costs memory only. Runs of plain numbers are converted in C, everything else value by
value, up to a limit, so that a large document cannot hold up the thread that serves all clients. A double is rounded
correctly, where RapidJSON may be off by one in the last place.

Source: RapidJSON 1.1, reader.h, with kParseNanAndInfFlag; errors compared with Triton 2.51.
"""

import math
import re
from typing import Any, NoReturn

import orjson

_EMPTY = "The document is empty."
_NOT_SINGULAR = "The document root must not be followed by other values."
_INVALID_VALUE = "Invalid value."
_NO_NAME = "Missing a name for object member."
_NO_COLON = "Missing a colon after a name of object member."
_NO_COMMA_IN_OBJECT = "Missing a comma or '}' after an object member."
_NO_COMMA_IN_ARRAY = "Missing a comma or ']' after an array element."
_BAD_HEX = "Incorrect hex digit after \\u escape in string."
_BAD_SURROGATE = "The surrogate pair in string is invalid."
_BAD_ESCAPE = "Invalid escape character in string."
_NO_QUOTE = "Missing a closing quotation mark in string."
_TOO_BIG = "Number too big to be stored in double."
_NO_FRACTION = "Miss fraction part in number."
_NO_EXPONENT = "Miss exponent in number."
# What RapidJSON says when the receiver of its events has had enough.
_TERMINATED = "Terminate parsing due to Handler error."

# Values read one by one; they take a microsecond or two each.
MAX_VALUE_COUNT = 50_000

_SPACE = re.compile(rb"[ \n\r\t]*")
_PLAIN_STRING = re.compile(rb'"([^"\\\x00-\x1f]*)"')
_PLAIN_CHARACTERS = re.compile(rb'[^"\\\x00-\x1f]*')
_HEX = re.compile(rb"[0-9A-Fa-f]{4}")
_INTEGER = re.compile(rb"(-?)(0|[1-9][0-9]*)")
_FRACTION = re.compile(rb"\.([0-9]*)")
_EXPONENT = re.compile(rb"[eE]([+-]?)([0-9]*)")
# At most so many at a time: a repeated group costs the matcher memory for each repetition.
_NUMBER_RUN = re.compile(
    rb"(?:-?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,2})?|NaN|Inf(?:inity)?)[ \n\r\t]*,[ \n\r\t]*){2,5000}"
)

_ESCAPES = {
    ord('"'): b'"',
    ord("/"): b"/",
    ord("\\"): b"\\",
    ord("b"): b"\b",
    ord("f"): b"\f",
    ord("n"): b"\n",
    ord("r"): b"\r",
    ord("t"): b"\t",
}
_LITERALS: dict[int, tuple[bytes, Any]] = {
    ord("n"): (b"null", None),
    ord("t"): (b"true", True),
    ord("f"): (b"false", False),
}

_QUOTE, _COMMA, _COLON = ord('"'), ord(","), ord(":")
_OPEN_OBJECT, _CLOSE_OBJECT, _OPEN_ARRAY, _CLOSE_ARRAY = ord("{"), ord("}"), ord("["), ord("]")

_MAX_UINT64 = 2**64 - 1
_MIN_INT64 = -(2**63)
_MAX_EXACT_SIGNIFICAND = 2**53 - 1
_MAX_SIGNIFICANT_DIGITS = 17
_MAX_EXPONENT = 308
_MAX_DOUBLE_TENTH = 1.7976931348623157e307


class JsonSyntaxError(ValueError):
    """The text is not JSON; `message` is RapidJSON's, `offset` counts bytes."""

    def __init__(self, message: str, offset: int) -> None:
        super().__init__(f"{message} at {offset}")
        self.message = message
        self.offset = offset


class TooManyValuesError(JsonSyntaxError):
    """The text may be JSON, but to find out would take too long."""

    def __init__(self, offset: int) -> None:
        super().__init__(_TERMINATED, offset)


def read_document(text: bytes) -> Any:
    """The value of a JSON document: None, bool, int, float, str, list or dict.

    Raises:
        TooManyValuesError: there are more than MAX_VALUE_COUNT values besides plain numbers in arrays.
        JsonSyntaxError: where and how RapidJSON would refuse it.
    """
    return _Reader(text).read()


class _Reader:
    """One document being read, from left to right."""

    __slots__ = ("_position", "_remaining_count", "_text")

    def __init__(self, text: bytes) -> None:
        # The end reads as NUL, like a NUL in the text.
        self._text = text + b"\0"
        self._position = 0
        self._remaining_count = MAX_VALUE_COUNT

    def read(self) -> Any:
        for byte in b"\xef\xbb\xbf":
            if self._text[self._position] == byte:
                self._position += 1
        if not self._next():
            self._fail(_EMPTY)
        value = self._read_value()
        if self._next():
            self._fail(_NOT_SINGULAR)
        return value

    def _next(self) -> int:
        """Skip white space; the byte that follows, 0 at the end."""
        first = self._text[self._position]
        if first > 0x20:
            return first
        match = _SPACE.match(self._text, self._position)
        assert match is not None
        self._position = match.end()
        return self._text[self._position]

    def _fail(self, message: str, offset: int | None = None) -> NoReturn:
        raise JsonSyntaxError(message, self._position if offset is None else offset)

    def _count_value(self) -> None:
        if not self._remaining_count:
            raise TooManyValuesError(self._position)
        self._remaining_count -= 1

    def _read_value(self) -> Any:
        text = self._text
        # The containers that are open, and for each of them the name whose value is being read (None for an array).
        containers: list[Any] = []
        names: list[str | None] = []
        while True:
            # Here a value begins.
            self._count_value()
            first = text[self._position]
            value: Any
            if first == _OPEN_OBJECT:
                self._position += 1
                if self._next() != _CLOSE_OBJECT:
                    containers.append({})
                    names.append(self._read_name())
                    continue
                self._position += 1
                value = {}
            elif first == _OPEN_ARRAY:
                self._position += 1
                if self._next() != _CLOSE_ARRAY:
                    elements: list[Any] = []
                    containers.append(elements)
                    names.append(None)
                    self._read_numbers(elements)
                    continue
                self._position += 1
                value = []
            elif first == _QUOTE:
                value = self._read_string()
            elif first in _LITERALS:
                value = self._read_literal(*_LITERALS[first])
            else:
                value = self._read_number()

            # Here a value has ended: it closes any number of containers, until one goes on.
            while containers:
                container = containers[-1]
                after = self._next()
                name = names[-1]
                if name is None:
                    container.append(value)
                    if after == _COMMA:
                        self._position += 1
                        self._next()
                        self._read_numbers(container)
                        break
                    if after != _CLOSE_ARRAY:
                        self._fail(_NO_COMMA_IN_ARRAY)
                else:
                    container.setdefault(name, value)
                    if after == _COMMA:
                        self._position += 1
                        self._next()
                        names[-1] = self._read_name()
                        break
                    if after != _CLOSE_OBJECT:
                        self._fail(_NO_COMMA_IN_OBJECT)
                self._position += 1
                names.pop()
                value = containers.pop()
            else:
                return value

    def _read_name(self) -> str:
        if self._text[self._position] != _QUOTE:
            self._fail(_NO_NAME)
        name = self._read_string()
        if self._next() != _COLON:
            self._fail(_NO_COLON)
        self._position += 1
        self._next()
        return name

    def _read_string(self) -> str:
        text = self._text
        # What is no UTF-8 is kept byte by byte; `encode("utf-8", "surrogateescape")` gives it back.
        match = _PLAIN_STRING.match(text, self._position)
        if match is not None:
            self._position = match.end()
            return match[1].decode("utf-8", "surrogateescape")
        position = self._position + 1
        pieces: list[bytes] = []
        while True:
            match = _PLAIN_CHARACTERS.match(text, position)
            assert match is not None
            position = match.end()
            pieces.append(match[0])
            stop = text[position]
            if stop == _QUOTE:
                self._position = position + 1
                return b"".join(pieces).decode("utf-8", "surrogateescape")
            if stop < 0x20:
                self._fail(_BAD_ESCAPE if stop else _NO_QUOTE, position)
            escape = text[position + 1]
            if escape in _ESCAPES:
                pieces.append(_ESCAPES[escape])
                position += 2
            elif escape == ord("u"):
                position, character = self._read_code_point(position)
                pieces.append(character)
            else:
                self._fail(_BAD_ESCAPE, position)

    def _read_code_point(self, start: int) -> tuple[int, bytes]:
        """A \\uXXXX escape, or a pair of them: where it ends, and its UTF-8."""
        text = self._text
        match = _HEX.match(text, start + 2)
        if match is None:
            self._fail(_BAD_HEX, start)
        end = match.end()
        code_point = int(match[0], 16)
        if 0xD800 <= code_point <= 0xDBFF:
            if text[end : end + 2] != b"\\u":
                self._fail(_BAD_SURROGATE, start)
            match = _HEX.match(text, end + 2)
            if match is None:
                self._fail(_BAD_HEX, start)
            end = match.end()
            low = int(match[0], 16)
            if not 0xDC00 <= low <= 0xDFFF:
                self._fail(_BAD_SURROGATE, start)
            code_point = 0x10000 + ((code_point - 0xD800) << 10 | (low - 0xDC00))
        return end, chr(code_point).encode("utf-8", "surrogatepass")

    def _read_literal(self, word: bytes, value: Any) -> Any:
        if not self._take(word):
            self._fail(_INVALID_VALUE)
        return value

    def _take(self, word: bytes) -> bool:
        """Go past a word, or past as much of it as is there."""
        for expected in word:
            if self._text[self._position] != expected:
                return False
            self._position += 1
        return True

    def _read_numbers(self, elements: list[Any]) -> None:
        """Take the plain numbers that begin an array's rest, each with the comma behind it."""
        while (match := _NUMBER_RUN.match(self._text, self._position)) is not None:
            run = match[0].rstrip(b" \n\r\t,")
            try:
                elements += orjson.loads(b"[" + run + b"]")
                self._position = match.end()
            except orjson.JSONDecodeError:
                # Not a number, infinite, or too big: one by one.
                end = match.end()
                while self._position < end:
                    self._count_value()
                    elements.append(self._read_number())
                    self._next()
                    self._position += 1
                    self._next()

    def _read_number(self) -> int | float:
        text = self._text
        start = self._position
        match = _INTEGER.match(text, start)
        if match is None:
            special = self._read_nan_or_infinity()
            if text[self._position] not in b".eE":
                return special
            # RapidJSON reads on, and forgets what it had: Infinity.5 is a half.
            sign, integer = b"", b"0"
        else:
            sign, integer = match.groups()
            self._position = match.end()
        # The checks come in the order in which RapidJSON meets what they check.
        if len(integer) >= _MAX_EXPONENT and _overflows(integer, is_negative=sign == b"-"):
            self._fail(_TOO_BIG, start)
        end = self._position
        fraction = _FRACTION.match(text, end)
        if fraction is not None:
            end = fraction.end()
            if not fraction[1]:
                self._fail(_NO_FRACTION, end)
        exponent = _EXPONENT.match(text, end)
        if exponent is not None:
            exponent_sign, digits = exponent.groups()
            end = exponent.end()
            if not digits:
                self._fail(_NO_EXPONENT, end)
            limit = _max_exponent(integer, fraction[1] if fraction else b"")
            if exponent_sign != b"-" and len(digits) > 1 and _exceeds(digits, limit):
                self._fail(_TOO_BIG, start)
        number = sign + integer + text[self._position : end]
        self._position = end
        if fraction is None and exponent is None and len(integer) <= 20:
            value = int(number)
            if _MIN_INT64 <= value <= _MAX_UINT64:
                return value
        return float(number)

    def _read_nan_or_infinity(self) -> float:
        text = self._text
        is_negative = text[self._position] == ord("-")
        self._position += is_negative
        if text[self._position] not in b"NI":
            self._fail(_INVALID_VALUE)
        # What was taken in vain for NaN stays taken: NInf and NaInf are infinite.
        if self._take(b"NaN"):
            return math.nan
        if not self._take(b"Inf"):
            self._fail(_INVALID_VALUE)
        if text[self._position] == ord("i") and not self._take(b"inity"):
            self._fail(_INVALID_VALUE)
        return -math.inf if is_negative else math.inf


def _overflows(digits: bytes, is_negative: bool) -> bool:
    """Whether RapidJSON gives up on an integer this long: digit by digit, exactly at first, then as a double."""
    limit, last_digit = (-_MIN_INT64 // 10, ord("8")) if is_negative else (_MAX_UINT64 // 10, ord("5"))
    exact, taken = 0, 0
    while exact < limit or (exact == limit and digits[taken] <= last_digit):
        exact = exact * 10 + (digits[taken] - ord("0"))
        taken += 1
    value = float(exact)
    for digit in digits[taken:]:
        if value >= _MAX_DOUBLE_TENTH:
            return True
        value = value * 10.0 + (digit - ord("0"))
    return False


def _exceeds(digits: bytes, limit: int) -> bool:
    significant = digits.lstrip(b"0")
    return len(significant) > len(str(limit)) or (len(significant) > 0 and int(significant) > limit)


def _max_exponent(integer: bytes, fraction: bytes) -> int:
    """The largest exponent RapidJSON accepts: 308, and one more for each digit of the fraction that it took in."""
    significand = int(integer[:20])
    significant_digits = len(integer) - 1
    taken = 0
    for digit in fraction:
        if significand > _MAX_EXACT_SIGNIFICAND and significant_digits >= _MAX_SIGNIFICANT_DIGITS:
            break
        significand = significand * 10 + (digit - ord("0"))
        significant_digits += significand > 0
        taken += 1
    return _MAX_EXPONENT + taken
