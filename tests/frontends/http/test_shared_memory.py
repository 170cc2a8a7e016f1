"""The shared memory endpoints; what the registry says to them is its own test's."""

import asyncio
import base64
import json
import os
import sys

import pytest

from merrow.engine.shared_memory import DISABLED, SharedMemoryRegistry
from merrow.frontends.http.door import HttpFrontend
from merrow.frontends.http.shared_memory import HttpSharedMemory
from merrow.frontends.http.tasks import AnswerTasks
from merrow.settings import SharedMemorySettings
from tests.engine.test_shared_memory import FakeCuda
from tests.frontends.fakes import FakeEngine, FakeExchange

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="makes shared memory in /dev/shm")

KEY = f"merrow-test-http-{os.getpid()}"


@pytest.fixture
def segment():
    path = f"/dev/shm/{KEY}"
    with open(path, "wb") as file:
        file.truncate(4096)
    yield f"/{KEY}"
    os.unlink(path)


def ask(engine, method, target, body=b""):
    async def run():
        tasks = AnswerTasks()
        door = HttpFrontend(HttpSharedMemory(engine, tasks, 1000).handlers())
        exchange = FakeExchange(method, target, body)
        door.on_exchange(exchange)
        await tasks.close()
        assert exchange.content_type == b"application/json"
        return exchange.status, exchange.answer

    return asyncio.run(run())


def post(engine, target, **members):
    return ask(engine, b"POST", target, json.dumps(members).encode())


def error(text):
    return json.dumps({"error": text}, separators=(",", ":")).encode()


def test_a_life_of_a_system_region(segment):
    engine = FakeEngine()
    prefix = b"/v2/systemsharedmemory"

    assert post(engine, prefix + b"/region/r/register", key=segment, byte_size=8) == (200, b"")
    shown = json.dumps([{"name": "r", "key": segment, "offset": 0, "byte_size": 8}], separators=(",", ":")).encode()
    assert ask(engine, b"GET", prefix + b"/status") == (200, shown)
    assert ask(engine, b"GET", prefix + b"/region/r/status") == (200, shown)
    assert ask(engine, b"GET", prefix + b"/region/q/status") == (
        404,
        error("Unable to find system shared memory region: 'q'"),
    )
    assert post(engine, prefix + b"/region/r/register", key=segment, byte_size=8) == (
        400,
        error("shared memory region 'r' already in manager"),
    )
    assert post(engine, prefix + b"/region/r/unregister") == (200, b"")
    assert post(engine, prefix + b"/unregister") == (200, b"")
    assert ask(engine, b"GET", prefix + b"/status") == (200, b"[]")


def test_a_life_of_a_cuda_region():
    engine = FakeEngine()
    engine.shared_memory = SharedMemoryRegistry(SharedMemorySettings(allow_client_shm=True), FakeCuda())
    prefix = b"/v2/cudasharedmemory"
    handle = {"b64": base64.b64encode(FakeCuda.HANDLE).decode()}

    answer = post(engine, prefix + b"/region/c/register", raw_handle=handle, device_id=0, byte_size=8)
    assert answer == (200, b"")
    shown = b'[{"name":"c","device_id":0,"byte_size":8}]'
    assert ask(engine, b"GET", prefix + b"/region/c/status") == (200, shown)
    assert post(engine, prefix + b"/region/d/register", raw_handle=handle, device_id=1, byte_size=8) == (
        400,
        error("failed to register shared memory region: invalid args"),
    )
    assert post(engine, prefix + b"/unregister") == (200, b"")
    assert ask(engine, b"GET", prefix + b"/status") == (200, b"[]")


@pytest.mark.parametrize("kind", ["system", "cuda"])
def test_registering_needs_a_name(kind):
    assert post(FakeEngine(), f"/v2/{kind}sharedmemory/register".encode()) == (
        400,
        error(f"'region name' is necessary to register {kind} shared memory region"),
    )


def test_a_machine_without_cuda():
    handle = {"b64": base64.b64encode(FakeCuda.HANDLE).decode()}
    target = b"/v2/cudasharedmemory/region/c/register"

    assert post(FakeEngine(), target, raw_handle={"b64": "eA=="}, device_id=0, byte_size=8) == (
        400,
        error("'raw_handle' must be a valid base64 encoded cudaIpcMemHandle_t"),
    )
    assert post(FakeEngine(), target, raw_handle=handle, device_id=0, byte_size=8) == (
        400,
        error("failed to register CUDA shared memory region: 'c', GPUs not supported"),
    )


@pytest.mark.parametrize("kind", ["system", "cuda"])
def test_a_server_that_does_not_allow_it(kind):
    engine = FakeEngine()
    engine.shared_memory = SharedMemoryRegistry(SharedMemorySettings())
    prefix = f"/v2/{kind}sharedmemory".encode()

    for target in (b"/register", b"/region/r/register", b"/unregister", b"/region/r/unregister"):
        assert ask(engine, b"POST", prefix + target, b"{") == (501, error(DISABLED))
    assert ask(engine, b"GET", prefix + b"/status") == (200, b"[]")


@pytest.mark.parametrize(("method", "action"), [(b"POST", b"status"), (b"GET", b"register"), (b"GET", b"unregister")])
def test_wrong_methods(method, action):
    for kind in (b"system", b"cuda"):
        status, _ = ask(FakeEngine(), method, b"/v2/" + kind + b"sharedmemory/region/r/" + action)
        assert status == 405
