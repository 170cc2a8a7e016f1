import pytest

from merrow.core.errors import InternalError, NotFoundError
from merrow.core.tensor import Tensor
from merrow.wire.regions import NoSharedMemoryRegions, write_to_region

OUTPUT = Tensor("OUT", "UINT8", (3,), b"abc")


def test_a_server_without_regions_finds_none():
    with pytest.raises(NotFoundError) as refusal:
        NoSharedMemoryRegions().view("r", 0, 4)
    assert refusal.value.message == "Unable to find shared memory region: 'r'"


def test_an_output_fills_the_start_of_its_region():
    region = bytearray(b".....")
    write_to_region(OUTPUT, memoryview(region))

    assert region == b"abc.."


def test_an_output_that_does_not_fit_is_refused_and_nothing_is_written():
    region = bytearray(b"..")
    with pytest.raises(InternalError) as refusal:
        write_to_region(OUTPUT, memoryview(region))
    assert refusal.value.message == (
        "shared memory size specified with the request for output 'OUT' (2 bytes) should be at least 3 bytes to hold "
        "the results"
    )
    assert region == b".."
