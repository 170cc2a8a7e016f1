"""The shared memory RPCs: requests -> values, regions -> responses.

The counterpart of `shared_memory_json`, whose values these are.

Source: protos/grpc_service.proto.
"""

from collections.abc import Iterable

from merrow.core.tensor import Buffer
from merrow.wire._generated import grpc_service_pb2
from merrow.wire.admin_proto import parse_message
from merrow.wire.shared_memory_json import CudaRegionLike, CudaRegistration, SystemRegionLike, SystemRegistration
from merrow.wire.triton_json import cut_at_nul


def decode_region_name(message: Buffer) -> str:
    """The region of a status or unregister request; "" for all.

    The four messages have the same one field.
    """
    return parse_message(grpc_service_pb2.SystemSharedMemoryStatusRequest, message).name


def decode_system_registration(message: Buffer) -> tuple[str, SystemRegistration]:
    """The name, and what is to be registered."""
    request = parse_message(grpc_service_pb2.SystemSharedMemoryRegisterRequest, message)
    return request.name, SystemRegistration(cut_at_nul(request.key), request.offset, request.byte_size)


def decode_cuda_registration(message: Buffer) -> tuple[str, CudaRegistration]:
    """The name, and what is to be registered; a negative device is there as a number that no device has."""
    request = parse_message(grpc_service_pb2.CudaSharedMemoryRegisterRequest, message)
    return request.name, CudaRegistration(request.raw_handle, request.device_id, request.byte_size)


def encode_system_regions(regions: Iterable[SystemRegionLike]) -> bytes:
    response = grpc_service_pb2.SystemSharedMemoryStatusResponse()
    for region in regions:
        status = response.regions[region.name]
        status.name, status.key = region.name, region.key
        status.offset, status.byte_size = region.offset, region.byte_size
    return response.SerializeToString(deterministic=True)


def encode_cuda_regions(regions: Iterable[CudaRegionLike]) -> bytes:
    response = grpc_service_pb2.CudaSharedMemoryStatusResponse()
    for region in regions:
        status = response.regions[region.name]
        status.name, status.device_id, status.byte_size = region.name, region.device_id, region.byte_size
    return response.SerializeToString(deterministic=True)
