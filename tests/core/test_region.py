from merrow.core.region import RegionTensor
from tests.wire.memory_slice import MemorySlice


def test_what_was_looked_at_once_stays():
    memory = bytearray(b"\1\2\3\4")
    tensor = RegionTensor("IN", "UINT8", (2,), MemorySlice(memory, 1, 2))

    assert not tensor.is_copied
    assert tensor.byte_size == 2
    assert not tensor.is_copied

    assert tensor.as_numpy().tolist() == [2, 3]
    assert tensor.is_copied
    memory[1] = 9
    assert tensor.data == b"\2\3"
