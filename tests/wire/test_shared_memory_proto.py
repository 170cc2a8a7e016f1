from types import SimpleNamespace

import pytest

from merrow.core.errors import InternalError
from merrow.wire._generated import grpc_service_pb2
from merrow.wire.shared_memory_json import CudaRegistration, SystemRegistration
from merrow.wire.shared_memory_proto import (
    decode_cuda_registration,
    decode_region_name,
    decode_system_registration,
    encode_cuda_regions,
    encode_system_regions,
)


@pytest.mark.parametrize("kind", ["System", "Cuda"])
@pytest.mark.parametrize("action", ["Status", "Unregister"])
def test_requests_for_a_region_or_all(kind, action):
    message_class = getattr(grpc_service_pb2, f"{kind}SharedMemory{action}Request")

    assert decode_region_name(message_class(name="r").SerializeToString()) == "r"
    assert decode_region_name(b"") == ""


def test_system_registrations():
    request = grpc_service_pb2.SystemSharedMemoryRegisterRequest(name="r", key="/k", offset=1, byte_size=2**64 - 1)

    assert decode_system_registration(request.SerializeToString()) == ("r", SystemRegistration("/k", 1, 2**64 - 1))


def test_cuda_registrations():
    request = grpc_service_pb2.CudaSharedMemoryRegisterRequest(
        name="r", raw_handle=b"\0\xff", device_id=-1, byte_size=8
    )

    assert decode_cuda_registration(request.SerializeToString()) == ("r", CudaRegistration(b"\0\xff", -1, 8))


@pytest.mark.parametrize("decode", [decode_region_name, decode_system_registration, decode_cuda_registration])
def test_bytes_that_are_no_message(decode):
    with pytest.raises(InternalError) as raised:
        decode(b"\xff")
    assert raised.value.message == "Unable to parse request"


def test_system_regions_by_name():
    regions = [SimpleNamespace(name=name, key="/k", offset=4096, byte_size=8) for name in "ab"]

    response = grpc_service_pb2.SystemSharedMemoryStatusResponse.FromString(encode_system_regions(regions))

    assert sorted(response.regions) == ["a", "b"]
    status = response.regions["b"]
    assert (status.name, status.key, status.offset, status.byte_size) == ("b", "/k", 4096, 8)
    assert encode_system_regions([]) == b""


def test_cuda_regions_by_name():
    region = SimpleNamespace(name="a", device_id=1, byte_size=8)

    response = grpc_service_pb2.CudaSharedMemoryStatusResponse.FromString(encode_cuda_regions([region]))

    status = response.regions["a"]
    assert (status.name, status.device_id, status.byte_size) == ("a", 1, 8)
