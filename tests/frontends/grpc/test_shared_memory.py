"""The shared memory RPCs; what the registry says to them is its own test's."""

import asyncio
import os
import sys

import pytest

from merrow.engine.shared_memory import DISABLED, SharedMemoryRegistry
from merrow.frontends.grpc.admin import GrpcAdmin
from merrow.frontends.grpc.infer import GrpcInference
from merrow.frontends.grpc.methods import GrpcFrontend
from merrow.settings import SharedMemorySettings
from merrow.wire._generated import grpc_service_pb2 as pb
from tests.engine.test_shared_memory import FakeCuda
from tests.frontends.fakes import FakeCall, FakeEngine

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="makes shared memory in /dev/shm")

KEY = f"merrow-test-grpc-{os.getpid()}"


@pytest.fixture
def segment():
    path = f"/dev/shm/{KEY}"
    with open(path, "wb") as file:
        file.truncate(4096)
    yield KEY
    os.unlink(path)


def ask(engine, method, **fields):
    """The answer, or status and text."""

    async def run():
        admin = GrpcAdmin(engine, b"")
        call = FakeCall(b"/inference.GRPCInferenceService/" + method.encode())
        message = getattr(pb, f"{method}Request")(**fields).SerializeToString()
        GrpcFrontend(engine, admin, GrpcInference(engine)).on_unary(call, message)
        await admin.close()
        if call.status:
            return call.status, call.message
        return getattr(pb, f"{method}Response").FromString(call.sent[0])

    return asyncio.run(run())


def test_a_life_of_a_system_region(segment):
    engine = FakeEngine()

    assert ask(engine, "SystemSharedMemoryRegister", name="r", key=segment, byte_size=8) == (
        pb.SystemSharedMemoryRegisterResponse()
    )
    # A name may be empty here, though nothing can be asked about such a region.
    ask(engine, "SystemSharedMemoryRegister", name="", key=segment, byte_size=9)
    assert sorted(ask(engine, "SystemSharedMemoryStatus").regions) == ["", "r"]
    (shown,) = ask(engine, "SystemSharedMemoryStatus", name="r").regions.values()
    assert (shown.name, shown.key, shown.offset, shown.byte_size) == ("r", segment, 0, 8)
    assert ask(engine, "SystemSharedMemoryRegister", name="r", key=segment, byte_size=8) == (
        6,
        "shared memory region 'r' already in manager",
    )
    assert ask(engine, "SystemSharedMemoryStatus", name="q") == (
        5,
        "Unable to find system shared memory region: 'q'",
    )
    ask(engine, "SystemSharedMemoryUnregister", name="r")
    assert sorted(ask(engine, "SystemSharedMemoryStatus").regions) == [""]
    ask(engine, "SystemSharedMemoryUnregister")
    assert sorted(ask(engine, "SystemSharedMemoryStatus").regions) == []


def test_a_life_of_a_cuda_region():
    engine = FakeEngine()
    engine.shared_memory = SharedMemoryRegistry(SharedMemorySettings(allow_client_shm=True), FakeCuda())
    fields = {"raw_handle": FakeCuda.HANDLE, "byte_size": 8}

    assert ask(engine, "CudaSharedMemoryRegister", name="c", **fields) == pb.CudaSharedMemoryRegisterResponse()
    (shown,) = ask(engine, "CudaSharedMemoryStatus", name="c").regions.values()
    assert (shown.name, shown.device_id, shown.byte_size) == ("c", 0, 8)
    assert ask(engine, "CudaSharedMemoryRegister", name="d", device_id=1, **fields) == (
        3,
        "failed to register shared memory region: invalid args",
    )
    ask(engine, "CudaSharedMemoryUnregister", name="c")
    assert sorted(ask(engine, "CudaSharedMemoryStatus").regions) == []


def test_a_machine_without_cuda():
    assert ask(FakeEngine(), "CudaSharedMemoryRegister", name="c", raw_handle=bytes(64)) == (
        3,
        "failed to register CUDA shared memory region: 'c', GPUs not supported",
    )


@pytest.mark.parametrize("kind", ["System", "Cuda"])
def test_a_server_that_does_not_allow_it(kind):
    engine = FakeEngine()
    engine.shared_memory = SharedMemoryRegistry(SharedMemorySettings())

    for action in ("Register", "Unregister"):
        assert ask(engine, f"{kind}SharedMemory{action}", name="r") == (12, DISABLED)
    assert len(ask(engine, f"{kind}SharedMemoryStatus").regions) == 0
