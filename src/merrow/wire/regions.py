"""Shared memory as the codecs of both protocols see it: regions to read inputs from and to write outputs to.

Source: Triton, http_server.cc, grpc/infer_handler.cc: the allocators of responses.
"""

from typing import Protocol

from merrow.core.errors import InternalError, NotFoundError
from merrow.core.tensor import Tensor


class SharedMemoryRegions(Protocol):
    """The shared memory that clients have registered."""

    def view(self, name: str, offset: int, byte_size: int) -> memoryview:
        """A writable view of part of a region.

        Raises:
            ServerError: there is no such region, or it does not reach so far.
        """


class NoSharedMemoryRegions:
    """Regions of a server that has none."""

    def view(self, name: str, offset: int, byte_size: int) -> memoryview:
        raise NotFoundError(f"Unable to find shared memory region: '{name}'")


def write_to_region(tensor: Tensor, region: memoryview) -> None:
    """Copy an output's data to the start of the view that its request named.

    Raises:
        InternalError: the view is too small.
    """
    byte_size = len(tensor.data)
    if byte_size > len(region):
        raise InternalError(
            f"shared memory size specified with the request for output '{tensor.name}' ({len(region)} bytes) should be "
            f"at least {byte_size} bytes to hold the results"
        )
    region[:byte_size] = tensor.data
