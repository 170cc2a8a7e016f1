"""Tensor data in JSON, both ways. Texts and bytes were compared with Triton 2.51, and the newer texts with 2.73's."""

import struct

import numpy as np
import pytest

from merrow.core.errors import InternalError, InvalidArgumentError, ServerError
from merrow.core.tensor import Tensor
from merrow.wire.json_tensor import decode_json_data, encode_json_data

TOO_MANY = "Unable to parse 'data': Shape does not match true shape of 'data' field"
TOO_FEW = "Failed to parse 'data' field: shape does not match true shape"
NOT_BOOLEAN = "Unable to parse 'data': attempt to access JSON non-boolean as boolean"
NOT_UNSIGNED = "Unable to parse 'data': attempt to access JSON non-unsigned-integer as unsigned-integer"
NOT_SIGNED = "Unable to parse 'data': attempt to access JSON non-signed-integer as signed-integer"
NOT_NUMBER = "Unable to parse 'data': attempt to access JSON non-number as double"
TOO_DEEP = "Unable to parse 'data': JSON nesting depth exceeds maximum allowed limit (100)"


def decode(data, datatype, count, may_hold_booleans=True):
    return bytes(decode_json_data(data, datatype, count, may_hold_booleans))


def refusal(data, datatype, count, may_hold_booleans=True):
    with pytest.raises(ServerError) as raised:
        decode_json_data(data, datatype, count, may_hold_booleans)
    return type(raised.value), raised.value.message


class TestDecoding:
    @pytest.mark.parametrize(
        ("datatype", "data", "encoded"),
        [
            ("BOOL", [True, False, True], b"\1\0\1"),
            ("UINT8", [0, 255], b"\0\xff"),
            ("INT8", [-1, 127], b"\xff\x7f"),
            ("UINT16", [1, 65535], b"\1\0\xff\xff"),
            ("INT16", [-2, 258], b"\xfe\xff\2\1"),
            ("UINT32", [1, 2**32 - 1], b"\1\0\0\0\xff\xff\xff\xff"),
            ("INT32", [-1, 1], b"\xff\xff\xff\xff\1\0\0\0"),
            ("UINT64", [2**64 - 1, 1], b"\xff" * 8 + b"\1" + b"\0" * 7),
            ("INT64", [-(2**63), 1], b"\0" * 7 + b"\x80\1" + b"\0" * 7),
            ("FP32", [1, 0.1, -2.5], struct.pack("<3f", 1, 0.1, -2.5)),
            ("FP64", [1, 0.1, -2.5, 2**64 - 1], struct.pack("<4d", 1, 0.1, -2.5, 2**64)),
        ],
    )
    def test_each_datatype_flat_nested_and_large(self, datatype, data, encoded):
        count = len(data)
        assert decode(data, datatype, count) == encoded
        assert decode([[element] for element in data], datatype, count) == encoded
        assert decode([[[data[0]], data[1:]], []], datatype, count) == encoded
        assert decode(data * 1000, datatype, count * 1000) == encoded * 1000
        assert decode([data] * 1000, datatype, count * 1000) == encoded * 1000
        if datatype != "BOOL":
            assert decode(data, datatype, count, may_hold_booleans=False) == encoded
            assert decode(data * 1000, datatype, count * 1000, may_hold_booleans=False) == encoded * 1000

    @pytest.mark.parametrize(
        ("datatype", "value", "wrapped"),
        [
            ("UINT8", 256, 0),
            ("UINT8", 2**64 - 1, 255),
            ("INT8", 128, -128),
            ("INT8", -(2**63), 0),
            ("UINT16", 65536 + 7, 7),
            ("INT16", -32769, 32767),
            ("UINT32", 2**32 + 1, 1),
            ("INT32", 4294967296, 0),
            ("INT32", 2**31, -(2**31)),
        ],
    )
    def test_integers_wrap(self, datatype, value, wrapped):
        dtype = Tensor("x", datatype, (2,), decode([value, 1], datatype, 2)).as_numpy()

        assert dtype.tolist() == [wrapped, 1]
        assert decode([value] * 1000, datatype, 1000) == decode([value], datatype, 1) * 1000

    def test_what_fp32_cannot_hold_becomes_infinite_or_zero(self):
        data = [1e39, -1e39, 1e-50, float("nan"), 3.4e38]
        for repeated in (1, 100):
            encoded = decode(data * repeated, "FP32", 5 * repeated)
            values = np.frombuffer(encoded, "<f4")[:5]
            assert [str(value) for value in values.tolist()] == ["inf", "-inf", "0.0", "nan", "3.3999999521443642e+38"]

    @pytest.mark.parametrize(
        ("datatype", "leaf", "text"),
        [
            ("BOOL", 1, NOT_BOOLEAN),
            ("BOOL", "true", NOT_BOOLEAN),
            ("UINT8", -1, NOT_UNSIGNED),
            ("UINT64", 1.0, NOT_UNSIGNED),
            ("UINT32", True, NOT_UNSIGNED),
            ("UINT16", 2.0**64, NOT_UNSIGNED),
            ("INT8", 2**63, NOT_SIGNED),
            ("INT64", 2**64 - 1, NOT_SIGNED),
            ("INT32", 1.0, NOT_SIGNED),
            ("INT16", False, NOT_SIGNED),
            ("INT64", None, NOT_SIGNED),
            ("FP32", True, NOT_NUMBER),
            ("FP32", None, NOT_NUMBER),
            ("FP64", "1", NOT_NUMBER),
            ("FP64", {}, NOT_NUMBER),
        ],
    )
    def test_a_leaf_of_the_wrong_type_is_refused(self, datatype, leaf, text):
        good = True if datatype == "BOOL" else 1
        may_hold_booleans = good is True or isinstance(leaf, bool)
        for data in ([good, leaf], [[good], [leaf]], [[good, [leaf]]]):
            assert refusal(data, datatype, 2, may_hold_booleans) == (InternalError, text)
        assert refusal([good] * 1000 + [leaf], datatype, 1001, may_hold_booleans) == (InternalError, text)

    @pytest.mark.parametrize(
        ("data", "text"),
        [
            ([], TOO_FEW),
            ([1], TOO_FEW),
            ([[], [1]], TOO_FEW),
            ([1, 2, 3], TOO_MANY),
            ([[1, 2], [3, 4]], TOO_MANY),
            # Of two errors, the one met first.
            ([1, 2, "x"], TOO_MANY),
            ([1, "x", 3], NOT_NUMBER),
            (["x"], NOT_NUMBER),
        ],
    )
    def test_the_number_of_leaves_must_be_that_of_the_shape(self, data, text):
        assert refusal(data, "FP32", 2) == (InternalError, text)

    def test_nan_is_not_mistaken_for_a_wrong_leaf(self):
        assert refusal([float("nan")], "FP32", 2) == (InternalError, TOO_FEW)

    @pytest.mark.parametrize("datatype", ["FP32", "BYTES"])
    def test_nesting_may_be_a_hundred_deep(self, datatype):
        leaf = "a" if datatype == "BYTES" else 1
        deepest: list = [leaf]
        for _ in range(99):
            deepest = [deepest]

        assert decode(deepest, datatype, 1) in (struct.pack("<f", 1), b"\1\0\0\0a")
        assert refusal([deepest], datatype, 1) == (InvalidArgumentError, TOO_DEEP)
        assert refusal([leaf, [deepest]], datatype, 2) == (InvalidArgumentError, TOO_DEEP)

    def test_bytes_elements_get_a_length(self):
        data = ["a", ["", ["caf\u00e9"]], "x\0y", "\udcff"]

        assert decode(data, "BYTES", 5) == (b"\1\0\0\0a\0\0\0\0\5\0\0\0caf\xc3\xa9\3\0\0\0x\0y\1\0\0\0\xff")

    @pytest.mark.parametrize("leaf", [1, None, True, {}])
    def test_bytes_elements_must_be_strings(self, leaf):
        assert refusal(["a", [leaf]], "BYTES", 2) == (
            InternalError,
            "Unable to parse JSON bytes array: attempt to access JSON non-string as string",
        )


def tensor(datatype, shape, data):
    return Tensor("OUT", datatype, shape, data)


class TestEncoding:
    @pytest.mark.parametrize(
        ("datatype", "data", "text"),
        [
            ("BOOL", b"\0\1\2\xff", b"[false,true,true,true]"),
            ("UINT8", b"\0\xff", b"[0,255]"),
            ("INT8", b"\xff\x7f", b"[-1,127]"),
            ("UINT16", b"\1\0\xff\xff", b"[1,65535]"),
            ("INT16", b"\xfe\xff\2\1", b"[-2,258]"),
            ("UINT32", b"\xff\xff\xff\xff", b"[4294967295]"),
            ("INT32", b"\xff\xff\xff\xff", b"[-1]"),
            ("UINT64", b"\xff" * 8, b"[18446744073709551615]"),
            ("INT64", b"\0" * 7 + b"\x80", b"[-9223372036854775808]"),
            ("FP32", struct.pack("<5f", 0.1, 1e20, 1e21, 1e-7, 5e-6), None),
            ("FP32", struct.pack("<4f", 1, -0.0, float("nan"), -float("inf")), b"[1.0,-0.0,NaN,-Infinity]"),
            ("FP64", struct.pack("<5d", 1, 0.1, 1e22, 1e300, 5e-324), b"[1.0,0.1,1e22,1e300,5e-324]"),
        ],
    )
    def test_each_datatype_small_large_and_unaligned(self, datatype, data, text):
        if text is None:
            text = (
                b"[0.10000000149011612,100000002004087730000.0,1.0000000200408773e21,1.0000000116860974e-7,"
                b"0.000004999999873689376]"
            )
        count = text.count(b",") + 1
        assert encode_json_data(tensor(datatype, (count,), data)) == text
        large = encode_json_data(tensor(datatype, (1000, count), data * 1000))
        assert large == b"[" + b",".join([text[1:-1]] * 1000) + b"]"
        unaligned = memoryview(b"x" + data * 1000)[1:]
        assert encode_json_data(tensor(datatype, [count * 1000], unaligned)) == large

    @pytest.mark.parametrize("datatype", ["BOOL", "INT64", "FP32", "BYTES"])
    def test_no_elements(self, datatype):
        assert encode_json_data(tensor(datatype, (0, 4), b"")) == b"[]"

    def test_a_scalar(self):
        assert encode_json_data(tensor("INT8", (), b"\5")) == b"[5]"

    @pytest.mark.parametrize("datatype", ["FP16", "BF16"])
    def test_half_precision_does_not_travel_as_json(self, datatype):
        with pytest.raises(InvalidArgumentError) as raised:
            encode_json_data(tensor(datatype, (1,), b"\0\0"))

        assert raised.value.message == (
            f"sending {datatype} data via JSON is not supported. Please use the binary data format for output"
        )

    def test_an_unknown_datatype_is_refused(self):
        with pytest.raises(InvalidArgumentError, match=r"^Invalid data type for output tensor$"):
            encode_json_data(tensor("STRING", (1,), b"\0\0"))

    @pytest.mark.parametrize("data", [b"", b"\0" * 7, b"\0" * 9])
    def test_data_that_does_not_fit_the_shape_is_an_internal_error(self, data):
        with pytest.raises(InternalError) as raised:
            encode_json_data(tensor("FP32", (2,), data))

        assert raised.value.message == (
            "Failed to write 'data' field: output tensor shape does not match size of output for 'OUT'"
        )

    def test_bytes_are_strings(self):
        data = b'\1\0\0\0a\0\0\0\0\5\0\0\0caf\xc3\xa9\2\0\0\0"\\'

        assert encode_json_data(tensor("BYTES", (4,), data)) == '["a","","caf\u00e9","\\"\\\\"]'.encode()
        # More than the shape says is ignored.
        assert encode_json_data(tensor("BYTES", (1,), memoryview(data))) == b'["a"]'

    def test_bytes_that_are_not_utf8_are_copied(self):
        data = b"\2\0\0\0\xff\xfe\3\0\0\0\x1f\n\x7f"

        assert encode_json_data(tensor("BYTES", (2,), data)) == b'["\xff\xfe","\\u001F\\n\x7f"]'

    @pytest.mark.parametrize("length", range(10))
    def test_bytes_cut_short_are_an_internal_error(self, length):
        data = b"\1\0\0\0a\1\0\0\0b"
        assert length < len(data)

        with pytest.raises(InternalError) as raised:
            encode_json_data(tensor("BYTES", (2,), data[:length]))

        assert raised.value.message == "output tensor shape does not match size of output for 'OUT'"
