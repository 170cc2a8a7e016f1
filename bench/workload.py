"""What a scenario sends: one tensor to an identity model, the same in every request."""

import struct
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Workload:
    """`data` is the tensor as the binary protocol sends it, FP32; the answer must hold the same bytes."""

    model: str
    input_name: str
    output_name: str
    shape: tuple[int, ...]
    data: bytes


def small_tensor(model: str) -> Workload:
    """FP32 [1, 16]."""
    return Workload(model, "INPUT0", "OUTPUT0", (1, 16), struct.pack("<16f", *range(16)))


def large_tensor(model: str, byte_size: int) -> Workload:
    """FP32 of this many bytes, in one dimension."""
    count = byte_size // 4
    period = struct.pack("<1024f", *range(1024))
    data = (period * (count // 1024 + 1))[:byte_size]
    return Workload(model, "INPUT0", "OUTPUT0", (count,), data)
