"""Shared memory as the codecs of both protocols see it: regions to read inputs from and to write outputs to.

Source: Triton, http_server.cc, grpc/infer_handler.cc: the allocators of responses.
"""

from collections.abc import Sequence
from typing import Protocol

from merrow.core.errors import InternalError, NotFoundError
from merrow.core.region import RegionSlice, RegionTensor
from merrow.core.tensor import Tensor


class SharedMemoryRegions(Protocol):
    """The shared memory that clients have registered."""

    def find(self, name: str, offset: int, byte_size: int) -> RegionSlice:
        """Part of a region.

        Raises:
            ServerError: there is no such region, or it does not reach so far.
        """


class NoSharedMemoryRegions:
    """Regions of a server that has none."""

    def find(self, name: str, offset: int, byte_size: int) -> RegionSlice:
        raise NotFoundError(f"Unable to find shared memory region: '{name}'")


def tensor_of_region(name: str, datatype: str, shape: Sequence[int], source: RegionSlice) -> Tensor:
    """An input whose data is in shared memory.

    Raises:
        ServerError: the memory cannot be read.
    """
    if source.file is None:
        # A GPU's memory can fail to be read, which must not happen in the midst of a batch.
        return Tensor(name, datatype, shape, source.read())
    return RegionTensor(name, datatype, shape, source)


def write_to_region(tensor: Tensor, region: RegionSlice) -> None:
    """Copy an output's data to the start of what its request named.

    Raises:
        ServerError: the region is too small, or cannot be written to.
    """
    byte_size = tensor.byte_size
    if byte_size > region.byte_size:
        raise InternalError(
            f"shared memory size specified with the request for output '{tensor.name}' ({region.byte_size} bytes) "
            f"should be at least {byte_size} bytes to hold the results"
        )
    if isinstance(tensor, RegionTensor) and tensor.source is region:
        # The model's process has put it there.
        return
    region.write(tensor.data)
