"""Tensor data that is spelled out by type."""

import struct
from typing import Any

import pytest

from merrow.core.errors import InvalidArgumentError
from merrow.wire._generated.grpc_service_pb2 import InferTensorContents
from merrow.wire.proto_contents import decode_contents


def _decode(contents: InferTensorContents, datatype: str) -> bytes:
    return bytes(decode_contents(contents, datatype, "X", "m"))


def _message(contents: InferTensorContents, datatype: str) -> str:
    with pytest.raises(InvalidArgumentError) as error:
        _decode(contents, datatype)
    return error.value.message


@pytest.mark.parametrize(
    ("datatype", "field", "elements", "data"),
    [
        ("BOOL", "bool_contents", [True, False, True], b"\1\0\1"),
        ("INT8", "int_contents", [-1, 300, -129], b"\xff\x2c\x7f"),
        ("INT16", "int_contents", [-1, 70000], b"\xff\xff\x70\x11"),
        ("INT32", "int_contents", [-1, 70000], b"\xff\xff\xff\xff\x70\x11\x01\x00"),
        ("INT64", "int64_contents", [-1, 2**60], b"\xff" * 8 + b"\0\0\0\0\0\0\0\x10"),
        ("UINT8", "uint_contents", [1, 300], b"\x01\x2c"),
        ("UINT16", "uint_contents", [1, 70000], b"\x01\x00\x70\x11"),
        ("UINT32", "uint_contents", [2**32 - 1], b"\xff\xff\xff\xff"),
        ("UINT64", "uint64_contents", [2**64 - 1], b"\xff" * 8),
        ("FP32", "fp32_contents", [1.0, -2.5], struct.pack("<2f", 1.0, -2.5)),
        ("FP64", "fp64_contents", [1.0, 0.1], struct.pack("<2d", 1.0, 0.1)),
        ("BYTES", "bytes_contents", [b"", b"abc", b"\xff\0"], b"\0\0\0\0\3\0\0\0abc\2\0\0\0\xff\0"),
        ("BYTES", "bytes_contents", [b"abc"], b"\3\0\0\0abc"),
    ],
)
def test_every_datatype_has_its_field(datatype: str, field: str, elements: list[Any], data: bytes):
    assert _decode(InferTensorContents(**{field: elements}), datatype) == data


@pytest.mark.parametrize("datatype", ["BOOL", "FP32", "FP64"])
@pytest.mark.parametrize("count", [1, 127, 128, 20_000])
def test_long_contents(datatype: str, count: int):
    field, element, size = {"BOOL": ("bool", True, 1), "FP32": ("fp32", 1.5, 4), "FP64": ("fp64", 1.5, 8)}[datatype]
    packed = struct.pack(f"<{count}{'?fd'[[1, 4, 8].index(size)]}", *[element] * count)

    assert _decode(InferTensorContents(**{f"{field}_contents": [element] * count}), datatype) == packed


def test_fields_that_nobody_knows_are_no_data():
    encoded = b"\x7a\x03abc" + InferTensorContents(fp32_contents=[1.5]).SerializeToString() + b"\x7a\x03abc"

    assert _decode(InferTensorContents.FromString(encoded), "FP32") == struct.pack("<f", 1.5)


@pytest.mark.parametrize("datatype", ["FP32", "FP16", "BYTES", "nonsense"])
def test_nothing_filled_is_no_data(datatype: str):
    assert _decode(InferTensorContents(), datatype) == b""


@pytest.mark.parametrize(
    ("datatype", "contents", "found", "expected"),
    [
        ("FP32", InferTensorContents(int_contents=[1]), "INT32", "FP32"),
        ("INT8", InferTensorContents(int64_contents=[1]), "INT64", "INT8"),
        ("INT8", InferTensorContents(uint_contents=[1]), "UINT32", "INT8"),
        ("UINT8", InferTensorContents(int_contents=[1]), "INT32", "UINT8"),
        ("FP16", InferTensorContents(fp32_contents=[1]), "FP32", "FP16"),
        ("BF16", InferTensorContents(fp32_contents=[1]), "FP32", "BF16"),
        ("INT64", InferTensorContents(bool_contents=[True]), "BOOL", "INT64"),
        ("INT64", InferTensorContents(uint64_contents=[1]), "UINT64", "INT64"),
        ("FP32", InferTensorContents(fp64_contents=[1]), "FP64", "FP32"),
        ("FP32", InferTensorContents(bytes_contents=[b"a"]), "BYTES", "FP32"),
        ("STRING", InferTensorContents(bytes_contents=[b"a"]), "BYTES", "<invalid>"),
        # The first field in the order of their numbers is looked at first.
        ("FP32", InferTensorContents(int_contents=[1], fp32_contents=[1]), "INT32", "FP32"),
    ],
)
def test_a_field_of_another_datatype(datatype: str, contents: InferTensorContents, found: str, expected: str):
    assert _message(contents, datatype) == (
        f"unexpected explicit tensor data for input tensor 'X' for model 'm' of type '{found}', "
        f"expected datatype '{expected}'"
    )


def test_a_second_field():
    assert _message(InferTensorContents(fp32_contents=[1], fp64_contents=[1]), "FP32") == (
        "unexpected explicit tensor data for input tensor 'X' for model 'm', binary data was already supplied."
    )
