"""Random tensors: the same values as JSON, as bytes of the binary protocol, and as contents of a gRPC message."""

import random
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from tests.oracle.repository import TensorSpec

INTEGER_BITS = {
    "UINT8": 8,
    "UINT16": 16,
    "UINT32": 32,
    "UINT64": 64,
    "INT8": 8,
    "INT16": 16,
    "INT32": 32,
    "INT64": 64,
}
FORMATS = {
    "BOOL": "?",
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "FP16": "H",
    "BF16": "H",
    "FP32": "f",
    "FP64": "d",
}
# These can be sent in binary form only; their values here are the 16 bits as an integer.
BINARY_ONLY = ("FP16", "BF16")
CONTENTS_FIELDS = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
TEXTS = (
    "",
    "a",
    "text",
    "two words",
    "ü",
    "漢字",
    '"quoted"',
    "back\\slash",
    "line\nbreak",
    "\t",
    "\x01\x1f",
    "\x7f",
    "a/b",
    "𝄞",
)
FLOATS = (0.0, -0.0, 1.0, -1.5, 0.5, 0.25, 3.0, 100.0, 1e10, -(2.0**40), 2.0**-20, 65504.0, 1e20, 1e-5)

Value = bool | int | float | str


@dataclass(frozen=True, slots=True)
class TensorValue:
    """A tensor with its values, flat and row-major; a BYTES tensor's are `str`."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: tuple[Value, ...]

    def encoded(self) -> bytes:
        return encode(self.datatype, self.values)

    def nested(self) -> list[object]:
        """The values as JSON arrays that follow the shape."""
        return _nest(list(self.values), self.shape)


def encode(datatype: str, values: Sequence[Value]) -> bytes:
    """The values as the binary protocol sends them."""
    if datatype == "BYTES":
        elements = [str(value).encode() for value in values]
        return b"".join(struct.pack("<I", len(element)) + element for element in elements)
    return struct.pack(f"<{len(values)}{FORMATS[datatype]}", *values)


def random_value(rng: random.Random, datatype: str) -> Value:
    if datatype == "BYTES":
        return rng.choice(TEXTS) if rng.random() < 0.6 else "x" * rng.randrange(40)
    if datatype == "BOOL":
        return rng.random() < 0.5
    if datatype in BINARY_ONLY:
        return rng.randrange(0x7C00)  # Positive and finite in both formats.
    if datatype in INTEGER_BITS:
        bits = INTEGER_BITS[datatype]
        low, high = (0, 2**bits - 1) if datatype.startswith("U") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        return rng.choice((low, high, low + 1, high - 1, 0, 1, rng.randint(low, high), rng.randint(low, high)))
    return rng.choice(FLOATS) if rng.random() < 0.5 else float(rng.randrange(-5000, 5000)) / 8


def random_tensor(rng: random.Random, spec: TensorSpec, batch_size: int | None) -> TensorValue:
    """A tensor that the model accepts; `batch_size` is None for a model that does not batch."""
    shape = tuple(rng.choice((1, 2, 3, 5)) if dim == -1 else dim for dim in spec.dims)
    if batch_size is not None:
        shape = (batch_size, *shape)
    return tensor_of_shape(rng, spec.name, spec.datatype, shape)


def tensor_of_shape(rng: random.Random, name: str, datatype: str, shape: tuple[int, ...]) -> TensorValue:
    count = 1
    for dim in shape:
        count *= dim
    return TensorValue(name, datatype, shape, tuple(random_value(rng, datatype) for _ in range(count)))


def _nest(values: list[object], shape: tuple[int, ...]) -> list[object]:
    if len(shape) <= 1:
        return values
    if 0 in shape:
        return []
    size = len(values) // shape[0]
    return [_nest(values[start : start + size], shape[1:]) for start in range(0, len(values), size)]
