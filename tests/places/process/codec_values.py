"""Values and small parts for tests of the codecs."""

import struct

from merrow.core.request import Request
from merrow.core.tensor import Tensor
from merrow.places.process.sections import INLINE_LIMIT
from tests.places.process.place_harness import Sink

SMALL = Tensor("IN", "FP32", (1, 2), struct.pack("<2f", 1.5, -2.0))
ODD = Tensor("ODD", "BYTES", [1], b"\x05\0\0\0hello")
EMPTY = Tensor("EMPTY", "INT64", (0, 3), b"")
SCALAR = Tensor("SCALAR", "BF16", (), b"\x80\x3f")
LARGE = Tensor("LARGE", "UINT8", (INLINE_LIMIT + 1,), bytes(INLINE_LIMIT + 1))


def place_nowhere(data):
    raise AssertionError("nothing large here")


def place_at(location, segment, offset):
    return lambda data: (location, segment, offset)


def open_nothing(location, segment, offset, size):
    raise AssertionError("nothing large here")


def request_of(*tensors, **fields):
    return Request("m", 1, Sink(), {tensor.name: tensor for tensor in tensors}, **fields)


def content_of(tensor):
    return tensor.name, tensor.datatype, tuple(tensor.shape), bytes(tensor.data)
