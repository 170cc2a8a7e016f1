import pytest

from merrow.core.errors import InternalError, NotFoundError
from merrow.core.region import RegionTensor
from merrow.core.tensor import Tensor
from merrow.wire.regions import NoSharedMemoryRegions, tensor_of_region, write_to_region
from tests.wire.memory_slice import MemorySlice

OUTPUT = Tensor("OUT", "UINT8", (3,), b"abc")


def test_a_server_without_regions_finds_none():
    with pytest.raises(NotFoundError) as refusal:
        NoSharedMemoryRegions().find("r", 0, 4)
    assert refusal.value.message == "Unable to find shared memory region: 'r'"


def test_an_input_in_a_file_is_read_when_it_is_needed():
    memory = bytearray(b"abc")
    tensor = tensor_of_region("IN", "UINT8", (3,), MemorySlice(memory))
    memory[:] = b"xyz"

    assert (tensor.name, tensor.datatype, tensor.shape, tensor.byte_size) == ("IN", "UINT8", (3,), 3)
    assert tensor.data == b"xyz"


def test_an_input_in_other_memory_is_read_at_once():
    memory = bytearray(b"abc")
    tensor = tensor_of_region("IN", "UINT8", (3,), MemorySlice(memory, file=None))
    memory[:] = b"xyz"

    assert tensor.data == b"abc"


def test_an_output_fills_the_start_of_its_region():
    region = bytearray(b".....")
    write_to_region(OUTPUT, MemorySlice(region))

    assert region == b"abc.."


def test_an_output_that_does_not_fit_is_refused_and_nothing_is_written():
    region = bytearray(b"..")
    with pytest.raises(InternalError) as refusal:
        write_to_region(OUTPUT, MemorySlice(region))
    assert refusal.value.message == (
        "shared memory size specified with the request for output 'OUT' (2 bytes) should be at least 3 bytes to hold "
        "the results"
    )
    assert region == b".."


def test_an_output_that_is_there_already_is_left_alone():
    class Untouchable(MemorySlice):
        def write(self, data):
            raise AssertionError("it was written by the model's process")

    region = Untouchable(bytearray(b"abc"))

    write_to_region(RegionTensor("OUT", "UINT8", (3,), region), region)
