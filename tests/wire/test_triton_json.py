"""JSON as Triton reads and writes it. Outputs were recorded from Triton 2.51."""

import math

import numpy as np
import pytest

from merrow.core.errors import InternalError, InvalidArgumentError
from merrow.wire.rapidjson_reader import MAX_VALUE_COUNT
from merrow.wire.triton_json import (
    NOT_STRING,
    check_input_size,
    cut_at_nul,
    decode_json,
    decode_json_exactly,
    encode_double,
    encode_doubles,
    encode_json,
    encode_string,
    encode_string_bytes,
    has_repeated_names,
    member_error,
)


class TestDecoding:
    @pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
    def test_any_buffer_is_read(self, kind):
        assert decode_json(kind(b'{"a":[1,2.5,"x"],"b":{"c":null}}')) == {"a": [1, 2.5, "x"], "b": {"c": None}}

    @pytest.mark.parametrize("text", [b'{"a":1,"a":2}', b'{"a":1,"b":{"c":"x:y","c":[]},"d":[{"e":1,"e":2}]}'])
    def test_the_first_of_repeated_names_wins(self, text):
        assert decode_json(text) == decode_json_exactly(text)

    def test_a_name_repeated_with_an_escape_is_the_same_name(self):
        assert decode_json(b'{"a":1,"\\u0061":2}') == {"a": 1}

    @pytest.mark.parametrize(
        "text",
        [
            b'{"a:b":"c::d","e":["f:",1,{"g":":"},["h:i","j"]]}',
            b'[{"a":{"b":{"c":[[{"d":1}]]}}}]',
            b'{"a":["x:y","z"],"b":[":",":"]}',
            b'":"',
            b'{"a":"\\u003c\\u003e"}',
        ],
    )
    def test_colons_in_strings_are_not_taken_for_repeated_names(self, text):
        assert not has_repeated_names(text, decode_json(text))

    def test_a_repeated_name_is_not_hidden_by_an_escaped_colon(self):
        assert decode_json(b'{"a":1,"a":"\\u003a"}') == {"a": 1}

    def test_what_only_rapidjson_reads_is_read(self):
        assert decode_json(b"\xef\xbb\xbf[Infinity,-Inf]\0tail") == [math.inf, -math.inf]

    def test_bytes_that_are_not_utf8_survive_decoding_and_encoding(self):
        assert encode_json(decode_json(b'{"a":["\xff\xe9",1]}')) == b'{"a":["\xff\xe9",1]}'

    def test_a_syntax_error_is_internal_and_says_where(self):
        with pytest.raises(InternalError) as raised:
            decode_json(b'{"a":1,}')

        assert raised.value.message == (
            "failed to parse the request JSON buffer: Missing a name for object member. at 7"
        )


class TestDecodingOfManyValues:
    """More than the exact reader takes on."""

    def test_nan_and_bad_utf8_are_read(self):
        count = MAX_VALUE_COUNT + 1
        text = b'{"a":[' + b'"\xff",' * count + b'NaN,{"b:":":"}]}'

        document = decode_json(text)

        assert document["a"][:count] == ["\udcff"] * count
        assert math.isnan(document["a"][count])

    def test_rows_of_numbers_and_strings_are_not_many_values(self):
        rows = b"[1,2]," * MAX_VALUE_COUNT
        texts = b'["a:","b"],' * MAX_VALUE_COUNT
        text = b'{"a:":[[' + rows + b'[3]],[[]]],"b":[[' + texts + b'[]]],"c":[[":"],1]}'

        assert len(decode_json(text)["b"][0]) == MAX_VALUE_COUNT + 1

    @pytest.mark.parametrize(
        "repeated",
        [b'{"b":":","b":1}', b'{"b":NaN,"b":1}', b'{"b":"\\u003a"}', b'{"b":1},' * MAX_VALUE_COUNT + b'":"'],
        ids=["repeated", "repeated with NaN", "escaped colon", "many objects"],
    )
    def test_repeated_names_are_refused_and_so_is_what_might_have_some(self, repeated):
        text = b"[" + b'"",' * (MAX_VALUE_COUNT + 1) + repeated + b"]"

        with pytest.raises(InternalError, match=r"Terminate parsing due to Handler error\. at \d+$"):
            decode_json(text)

    def test_an_error_is_unspecific_and_its_offset_counts_bytes(self):
        text = b"[" + b'"\xff\xc3\xa9",' * (MAX_VALUE_COUNT + 1) + b"x]"

        with pytest.raises(InternalError) as raised:
            decode_json(text)

        assert raised.value.message == (
            f"failed to parse the request JSON buffer: Unspecific syntax error. at {len(text) - 2}"
        )

    @pytest.mark.parametrize("odd", [b'"\\ud800"', b"18446744073709551616", b"1e400", b"[" * 100_000])
    def test_what_might_be_read_differently_is_refused(self, odd):
        text = b"[" + b'"",' * (MAX_VALUE_COUNT + 1) + odd + b",NaN]"

        with pytest.raises(InternalError, match=r"Terminate parsing due to Handler error\. at \d+$"):
            decode_json(text)


class TestAccess:
    def test_a_missing_member_and_a_wrong_one_have_different_texts(self):
        assert member_error({}, "x", NOT_STRING, "Unable to parse 'x': ").message == (
            "Unable to parse 'x': attempt to access non-existing object member 'x'"
        )
        assert member_error({"x": 1}, "x", NOT_STRING).message == "attempt to access JSON non-string as string"

    def test_c_strings_end_at_a_nul(self):
        assert cut_at_nul("a\0b\0c") == "a"
        assert cut_at_nul("abc") == "abc"

    def test_json_may_be_as_long_as_the_limit(self):
        check_input_size(10, 10)

        with pytest.raises(InvalidArgumentError) as raised:
            check_input_size(11, 10)

        assert raised.value.message == (
            "request JSON size of 11 bytes exceeds the maximum allowed input size of 10 bytes. "
            "Use --http-max-input-size to increase the limit."
        )


class TestEncoding:
    @pytest.mark.parametrize(
        ("text", "encoded"),
        [
            ("", b'""'),
            ("caf\u00e9/\x7f", '"caf\u00e9/\x7f"'.encode()),
            ('q"\\', b'"q\\"\\\\"'),
            ("\b\f\n\r\t", b'"\\b\\f\\n\\r\\t"'),
            ("\0\x0b\x1a\x1f", b'"\\u0000\\u000B\\u001A\\u001F"'),
            # A backslash and a letter, not an escape.
            ("\\u001f", b'"\\\\u001f"'),
            ("\udcff", b'"\xff"'),
        ],
    )
    def test_strings_are_escaped_as_triton_escapes_them(self, text, encoded):
        assert encode_string(text) == encoded
        assert encode_string_bytes(text.encode("utf-8", "surrogateescape")) == encoded
        assert encode_json({text: [text]}) == b"{%b:[%b]}" % (encoded, encoded)

    @pytest.mark.parametrize(
        ("value", "encoded"),
        [
            (0.0, b"0.0"),
            (-0.0, b"-0.0"),
            (1.0, b"1.0"),
            (-15.0, b"-15.0"),
            (0.1, b"0.1"),
            (0.10000000149011612, b"0.10000000149011612"),
            (123.456, b"123.456"),
            (1e15, b"1000000000000000.0"),
            (1e16, b"10000000000000000.0"),
            (123456789012345680.0, b"123456789012345680.0"),
            (1e20, b"100000000000000000000.0"),
            (100000002004087734272.0, b"100000002004087730000.0"),
            (1e21, b"1e21"),
            (1.0000000200408773e21, b"1.0000000200408773e21"),
            (-1e22, b"-1e22"),
            (1e300, b"1e300"),
            (1.7976931348623157e308, b"1.7976931348623157e308"),
            (1e-5, b"0.00001"),
            (1.5e-5, b"0.000015"),
            (-1e-6, b"-0.000001"),
            (9.99e-6, b"0.00000999"),
            (1e-7, b"1e-7"),
            (-1.5e-7, b"-1.5e-7"),
            (2.2250738585072014e-308, b"2.2250738585072014e-308"),
            (5e-324, b"5e-324"),
            (math.nan, b"NaN"),
            (math.inf, b"Infinity"),
            (-math.inf, b"-Infinity"),
        ],
    )
    def test_doubles_are_written_as_triton_writes_them(self, value, encoded):
        assert encode_double(value) == encoded
        assert encode_doubles(np.array([1.5, value, value])) == b"[1.5,%b,%b]" % (encoded, encoded)
        assert encode_json([value]) == b"[%b]" % encoded

    def test_doubles_of_all_magnitudes_read_back(self):
        generator = np.random.default_rng(7)
        values = generator.standard_normal(2000) * 10.0 ** generator.integers(-30, 30, 2000)
        written = encode_doubles(values.copy())

        assert decode_json(written) == values.tolist()
        assert all(decode_json(encode_double(value)) == value for value in values.tolist())

    def test_an_empty_array_of_doubles(self):
        assert encode_doubles(np.array([])) == b"[]"

    def test_other_values(self):
        value = {"a": None, "b": [True, False], "c": (1, 18446744073709551615, -5), "d": {}, "e": "x"}

        assert encode_json(value) == b'{"a":null,"b":[true,false],"c":[1,18446744073709551615,-5],"d":{},"e":"x"}'
        assert encode_json({**value, "f": 1e20, "g": "\x1f"}) == (
            b'{"a":null,"b":[true,false],"c":[1,18446744073709551615,-5],"d":{},"e":"x",'
            b'"f":100000000000000000000.0,"g":"\\u001F"}'
        )
