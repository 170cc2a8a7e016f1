"""`InferTensorContents`: tensor data that a gRPC request spells out by type instead of sending raw bytes.

Each datatype has its one field, and narrow integers travel in a wider one, whose low-order bytes are taken without a
range check. FP16 and BF16 have no field: they can only be sent raw.

Source: Triton, grpc/infer_handler.cc, InferGRPCToInput.
"""

import struct
from collections.abc import Mapping
from typing import Final

import numpy as np

from merrow.core.datatypes import BYTES, ELEMENT_BYTE_SIZES, NUMPY_DTYPES
from merrow.core.errors import InvalidArgumentError
from merrow.core.tensor import Buffer
from merrow.wire._generated.grpc_service_pb2 import InferTensorContents

_LENGTH: Final = struct.Struct("<I")

# The datatypes of a field; the first is the one that errors name.
_DATATYPES: Final[Mapping[str, tuple[str, ...]]] = {
    "bool_contents": ("BOOL",),
    "int_contents": ("INT32", "INT8", "INT16"),
    "int64_contents": ("INT64",),
    "uint_contents": ("UINT32", "UINT8", "UINT16"),
    "uint64_contents": ("UINT64",),
    "fp32_contents": ("FP32",),
    "fp64_contents": ("FP64",),
    "bytes_contents": (BYTES,),
}

# Protobuf packs these as the tensor's own bytes.
_PACKED_AS_TENSOR: Final = frozenset({"BOOL", "FP32", "FP64"})


def decode_contents(contents: InferTensorContents, datatype: str, input_name: str, model_name: str) -> Buffer:
    """The encoded data of an input given by type; empty if no field is filled.

    Raises:
        InvalidArgumentError: a field of another datatype is filled, or a second one.
    """
    data: Buffer = b""
    # In order of their numbers, as Triton looks at them.
    for descriptor, elements in contents.ListFields():
        datatypes = _DATATYPES[descriptor.name]
        subject = f"unexpected explicit tensor data for input tensor '{input_name}' for model '{model_name}'"
        if data:
            raise InvalidArgumentError(f"{subject}, binary data was already supplied.")
        if datatype not in datatypes:
            expected = datatype if datatype in ELEMENT_BYTE_SIZES else "<invalid>"
            raise InvalidArgumentError(f"{subject} of type '{datatypes[0]}', expected datatype '{expected}'")
        if datatype == BYTES:
            data = b"".join([_LENGTH.pack(len(element)) + element for element in elements])
        elif datatype in _PACKED_AS_TENSOR:
            data = _packed_field(contents, len(elements) * ELEMENT_BYTE_SIZES[datatype])
        else:
            data = np.array(elements[:], NUMPY_DTYPES[datatypes[0]]).astype(NUMPY_DTYPES[datatype]).tobytes()
    return data


def _packed_field(contents: InferTensorContents, byte_size: int) -> Buffer:
    """The content of the only field that is set: what follows its tag and its length.

    Taking a hundred elements out one by one would take longer than this takes for a hundred thousand.
    """
    contents.DiscardUnknownFields()
    return memoryview(contents.SerializeToString())[-byte_size:]
