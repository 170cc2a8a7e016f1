"""The exact JSON reader: values and errors as RapidJSON has them. The errors were recorded from Triton 2.51."""

import math

import pytest

from merrow.wire.rapidjson_reader import MAX_VALUE_COUNT, JsonSyntaxError, TooManyValuesError, read_document

RECORDED_ERRORS = [
    (b" ", "The document is empty.", 1),
    (b"{", "Missing a name for object member.", 1),
    (b"[", "Invalid value.", 1),
    (b"{} x", "The document root must not be followed by other values.", 3),
    (b"\xef\xbb\xbfx", "Invalid value.", 3),
    (b"x", "Invalid value.", 0),
    (b"nul", "Invalid value.", 3),
    (b"nulx", "Invalid value.", 3),
    (b"tru", "Invalid value.", 3),
    (b"falsy", "Invalid value.", 4),
    (b"True", "Invalid value.", 0),
    (b'{"a"', "Missing a colon after a name of object member.", 4),
    (b'{"a" 1}', "Missing a colon after a name of object member.", 5),
    (b'{"a":}', "Invalid value.", 5),
    (b'{"a":1', "Missing a comma or '}' after an object member.", 6),
    (b'{"a":1 "b"', "Missing a comma or '}' after an object member.", 7),
    (b'{"a":1,}', "Missing a name for object member.", 7),
    (b"{a:1}", "Missing a name for object member.", 1),
    (b"{'a':1}", "Missing a name for object member.", 1),
    (b"[1,]", "Invalid value.", 3),
    (b"[1 2]", "Missing a comma or ']' after an array element.", 3),
    (b"[,]", "Invalid value.", 1),
    (b'["\\x"]', "Invalid escape character in string.", 2),
    (b'["\\u12"]', "Incorrect hex digit after \\u escape in string.", 2),
    (b'["\\u12G4"]', "Incorrect hex digit after \\u escape in string.", 2),
    (b'["\\ud800"]', "The surrogate pair in string is invalid.", 2),
    (b'["\\ud800\\u0041"]', "The surrogate pair in string is invalid.", 2),
    (b'["\\ud800\\n"]', "The surrogate pair in string is invalid.", 2),
    (b'["\\ud800\\u12"]', "Incorrect hex digit after \\u escape in string.", 2),
    (b'["abc', "Missing a closing quotation mark in string.", 5),
    (b'["abc\n"]', "Invalid escape character in string.", 5),
    (b'["abc\x00"]', "Missing a closing quotation mark in string.", 5),
    (b'["\x01"]', "Invalid escape character in string.", 2),
    (b'["\x1f"]', "Invalid escape character in string.", 2),
    (b'["\\', "Invalid escape character in string.", 2),
    (b"1.", "Miss fraction part in number.", 2),
    (b"[1.x]", "Miss fraction part in number.", 3),
    (b"[1e]", "Miss exponent in number.", 3),
    (b"[1e+]", "Miss exponent in number.", 4),
    (b"[-]", "Invalid value.", 2),
    (b"[+1]", "Invalid value.", 1),
    (b"[.5]", "Invalid value.", 1),
    (b"[01]", "Missing a comma or ']' after an array element.", 2),
    (b"[00]", "Missing a comma or ']' after an array element.", 2),
    (b"[1e309]", "Number too big to be stored in double.", 1),
    (b"[-1e309]", "Number too big to be stored in double.", 1),
    (b"[Na]", "Invalid value.", 3),
    (b"[nan]", "Invalid value.", 2),
    (b"[N", "Invalid value.", 2),
    (b"[Infi]", "Invalid value.", 5),
    (b"[Infinit", "Invalid value.", 8),
    (b"[I]", "Invalid value.", 2),
    (b"[In]", "Invalid value.", 3),
    (b"[-I]", "Invalid value.", 3),
    (b"//c\n{}", "Invalid value.", 0),
    (b"{/*c*/}", "Missing a name for object member.", 1),
    (b"{} //", "The document root must not be followed by other values.", 3),
    (b"\x0b{}", "Invalid value.", 0),
    (b"\x00", "The document is empty.", 0),
    (b" \x00{}", "The document is empty.", 1),
    (b'{"ready":tru', "Invalid value.", 12),
    (b"[1,2", "Missing a comma or ']' after an array element.", 4),
    (b"[[1,2]", "Missing a comma or ']' after an array element.", 6),
    (b'{"a":[1,{"b":2}', "Missing a comma or ']' after an array element.", 15),
    (b'{"a":{"b":1,,}}', "Missing a name for object member.", 12),
    (b'"abc', "Missing a closing quotation mark in string.", 4),
    (b"12a", "The document root must not be followed by other values.", 2),
    (b"1 2", "The document root must not be followed by other values.", 2),
    (b"-", "Invalid value.", 1),
    (b"--1", "Invalid value.", 1),
    (b"-01", "The document root must not be followed by other values.", 2),
    (b"[1e5.5]", "Missing a comma or ']' after an array element.", 4),
    (b"[0x10]", "Missing a comma or ']' after an array element.", 2),
    (b"[1_000]", "Missing a comma or ']' after an array element.", 2),
    (b"[1.5e400]", "Number too big to be stored in double.", 1),
    (b"[0e400]", "Number too big to be stored in double.", 1),
    (b"[0.0e999]", "Number too big to be stored in double.", 1),
    (b'{"a":1}}', "The document root must not be followed by other values.", 7),
    (b'{"a":1]', "Missing a comma or '}' after an object member.", 6),
    (b"[1}", "Missing a comma or ']' after an array element.", 2),
    (b"\xff", "Invalid value.", 0),
    (b'{"\xff":1,}', "Missing a name for object member.", 7),
    (b'{"a":\x80}', "Invalid value.", 5),
    (b'["a"b]', "Missing a comma or ']' after an array element.", 4),
    (b'{"a":"b"c}', "Missing a comma or '}' after an object member.", 8),
    (b"{1:2}", "Missing a name for object member.", 1),
    (b"{null:1}", "Missing a name for object member.", 1),
    (b"[1e-5x]", "Missing a comma or ']' after an array element.", 5),
    (b"[1.5.5]", "Missing a comma or ']' after an array element.", 4),
    (b"[1.0E]", "Miss exponent in number.", 5),
    (b"[-1.]", "Miss fraction part in number.", 4),
    (b"[-e]", "Invalid value.", 2),
    (b"[1ee5]", "Miss exponent in number.", 3),
    (b"[1e00000000309]", "Number too big to be stored in double.", 1),
    (b"[1e0309]", "Number too big to be stored in double.", 1),
    (b"[0.1e310]", "Number too big to be stored in double.", 1),
    (b"[0.01e311]", "Number too big to be stored in double.", 1),
    (b'["\\a"]', "Invalid escape character in string.", 2),
    (b'["\\U0041"]', "Invalid escape character in string.", 2),
    (b'["\\u"]', "Incorrect hex digit after \\u escape in string.", 2),
    (b'["\\u00', "Incorrect hex digit after \\u escape in string.", 2),
    (b"[1,2,NaI,3]", "Invalid value.", 8),
    (b"[1,Inf.,2]", "Miss fraction part in number.", 7),
    (b"[1,-Infinitye,2]", "Miss exponent in number.", 13),
    (b"[" + b"9" * 309 + b"]", "Number too big to be stored in double.", 1),
    (b"[-" + b"2" * 309 + b"]", "Number too big to be stored in double.", 1),
    (b"[1,2,3,1e400,5]", "Number too big to be stored in double.", 7),
    # Digits of the fraction raise the limit of the exponent, as long as they are significant.
    (b"[0.12345678901234567890e326]", "Number too big to be stored in double.", 1),
    (b"[12345678901234567.12e310]", "Number too big to be stored in double.", 1),
]


@pytest.mark.parametrize(("text", "message", "offset"), RECORDED_ERRORS, ids=lambda value: repr(value)[:40])
def test_what_is_not_json_is_refused_as_rapidjson_refuses_it(text, message, offset):
    with pytest.raises(JsonSyntaxError) as raised:
        read_document(text)

    assert (raised.value.message, raised.value.offset) == (message, offset)
    assert str(raised.value) == f"{message} at {offset}"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b"null", None),
        (b"true", True),
        (b"false", False),
        (b"12", 12),
        (b"-0", 0),
        (b"-12", -12),
        (b"1.0", 1.0),
        (b"1e2", 100.0),
        (b"1E+0000000000000000000000001", 10.0),
        (b"-0.0", -0.0),
        (b"[]", []),
        (b"{}", {}),
        (b'[1, 2 ,3\t,\n4.5,"x",[],{}]', [1, 2, 3, 4.5, "x", [], {}]),
        (b'{"a": {"b" : [1]}, "c":null}', {"a": {"b": [1]}, "c": None}),
        (b" \t\n\r[ ] \t\n\r", []),
    ],
)
def test_values_are_read_as_rapidjson_reads_them(text, value):
    read = read_document(text)

    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b"18446744073709551615", 18446744073709551615),
        (b"18446744073709551616", 18446744073709551616.0),
        (b"-9223372036854775808", -9223372036854775808),
        (b"-9223372036854775809", -9223372036854775808.0),
        (b"1" * 309, float("1" * 309)),
        (b"123456789012345678901234567890e300", math.inf),
        (b"1.7976931348623157e308", 1.7976931348623157e308),
        # RapidJSON looks at the exponent, not at the value.
        (b"1.8e308", math.inf),
        (b"-1.0e309", -math.inf),
        (b"0.1e309", 1e308),
        (b"0.12345678901234567890e325", math.inf),
        (b"12345678901234567.12e309", math.inf),
        (b"1e-400", 0.0),
        (b"1e-99999999999", 0.0),
        (b"0." + b"0" * 400 + b"1", 0.0),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_large_and_small_numbers(text, value):
    for read in (read_document(text), *read_document(b"[" + text + b"," + text + b"," + text + b"]")):
        assert read == value
        assert type(read) is type(value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b"Inf", math.inf),
        (b"Infinity", math.inf),
        (b"-Inf", -math.inf),
        (b"-Infinity", -math.inf),
        (b"NInfinity", math.inf),
        (b"Infinity.5", 0.5),
        (b"-Infe1", 0.0),
    ],
)
def test_infinities_are_numbers(text, value):
    assert read_document(text) == value
    assert read_document(b"[1," + text + b",2," + text + b"]") == [1, value, 2, value]


def test_nan_is_a_number():
    assert math.isnan(read_document(b"NaN"))
    numbers = read_document(b"[1,NaN,2.5,-NaN , 3]")
    assert [str(number) for number in numbers] == ["1", "nan", "2.5", "nan", "3"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b'"abc"', "abc"),
        (b'""', ""),
        (b'"\\"\\\\\\/\\b\\f\\n\\r\\t"', '"\\/\b\f\n\r\t'),
        (b'"a\\u0000b\\u00e9\\uD83d\\ude00"', "a\0b\u00e9\U0001f600"),
        ('"caf\u00e9"'.encode(), "caf\u00e9"),
        (b'"\x7f"', "\x7f"),
    ],
)
def test_escapes_become_what_they_stand_for(text, value):
    assert read_document(text) == value


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (b'"\xff\xfe"', b"\xff\xfe"),
        (b'"a\xe9\\n"', b"a\xe9\n"),
        # A low surrogate alone is written as it is; a high one would have been refused.
        (b'"\\udc00"', b"\xed\xb0\x80"),
    ],
)
def test_bytes_that_are_not_utf8_are_kept(text, kept):
    assert read_document(text).encode("utf-8", "surrogateescape") == kept


@pytest.mark.parametrize(
    "text", [b"[1]\0garbage", b"[1] \0", b"\xef\xbb\xbf[1]", b"\xef[1]", b"\xef\xbb[1]", b"\xbb[1]"]
)
def test_a_byte_order_mark_and_what_follows_a_nul_are_skipped(text):
    assert read_document(text) == [1]


def test_the_first_of_repeated_names_wins():
    assert read_document(b'{"a":1,"b":2,"a":[3],"b":4}') == {"a": 1, "b": 2}


def test_nesting_has_no_limit():
    document = read_document(b"[" * 20_000 + b"1,2" + b"]" * 20_000)

    for _ in range(20_000 - 1):
        (document,) = document
    assert document == [1, 2]


def test_numbers_in_arrays_do_not_count_as_values():
    numbers = read_document(b"[" + b"1," * (2 * MAX_VALUE_COUNT) + b"NaN]")

    assert len(numbers) == 2 * MAX_VALUE_COUNT + 1


@pytest.mark.parametrize("value", [b"{}", b"NaN"])
def test_too_many_values_are_refused(value):
    with pytest.raises(TooManyValuesError, match=r"^Terminate parsing due to Handler error\. at \d+$"):
        read_document(b"[" + (value + b",") * MAX_VALUE_COUNT + b"{}]")


@pytest.mark.parametrize("length", range(1, 53))
def test_a_document_cut_anywhere_is_refused_where_it_ends(length):
    text = b'{"a":[1,-2.5e3,true,null,"x\\n\xc3\xa9"],"b":{"c":[]},"d":1}'
    assert len(text) == 53

    with pytest.raises(JsonSyntaxError) as raised:
        read_document(text[:length])

    # But for a token that is cut, which is reported where it begins.
    assert length - 3 <= raised.value.offset <= length
