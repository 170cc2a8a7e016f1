"""Shared memory through the published clients and a real server: what works, and what a client may do to its memory."""

import os
import queue
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc_client
import tritonclient.http as http_client
from tritonclient.utils import InferenceServerException

from merrow.testing.repository_builder import RepositoryBuilder, model_config
from merrow.testing.running_server import RunningServer

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="makes shared memory in /dev/shm"),
    pytest.mark.slow,
]

TIMEOUT_SECONDS = 20
COUNT = 5000
BYTE_SIZE = COUNT * 4
OUTPUT_OFFSET = 32768
VALUES = np.arange(COUNT, dtype=np.float32)
# One runs on the loop, one in a process of its own, and one is both in turn.
MODELS = ("identity", "python_identity", "both")
ENSEMBLE = """\
name: "both"
platform: "ensemble"
input { name: "INPUT0" data_type: TYPE_FP32 dims: [ -1 ] }
output { name: "OUTPUT0" data_type: TYPE_FP32 dims: [ -1 ] }
ensemble_scheduling {
  step {
    model_name: "identity"
    model_version: -1
    input_map { key: "INPUT0" value: "INPUT0" }
    output_map { key: "OUTPUT0" value: "BETWEEN" }
  }
  step {
    model_name: "python_identity"
    model_version: -1
    input_map { key: "INPUT0" value: "BETWEEN" }
    output_map { key: "OUTPUT0" value: "OUTPUT0" }
  }
}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    repository = RepositoryBuilder(tmp_path_factory.mktemp("shared_memory"))
    repository.add_identity("identity", dims=(-1,))
    repository.add_python_identity("python_identity", dims=(-1,))
    repository.add("both", ENSEMBLE)
    repository.add_python_identity("cached", dims=(-1,), extra_config="response_cache { enable: true }")
    repository.add_python_identity("python_text", datatype="BYTES", dims=(-1,))
    repository.add(
        "repeat",
        model_config(
            "repeat",
            "repeat",
            [("IN", "INT32", (-1,)), ("DELAY", "UINT32", (-1,)), ("WAIT", "UINT32", (1,))],
            [("OUT", "INT32", (1,)), ("IDX", "UINT32", (1,))],
            extra_config="model_transaction_policy { decoupled: true }",
        ),
    )
    flags = ("--allow-client-shm=true", "--max-shared-memory-regions=3", "--cache-config=local,size=1048576")
    with RunningServer(repository.path, *flags) as running:
        yield running


class Segment:
    """A segment of a client: its file, and what it does with it."""

    def __init__(self) -> None:
        self.key = f"/merrow-test-{uuid.uuid4().hex}"
        self.path = Path(f"/dev/shm{self.key}")
        self.byte_size = 2 * OUTPUT_OFFSET

    def __enter__(self) -> "Segment":
        self.path.write_bytes(VALUES.tobytes().ljust(self.byte_size, b"\0"))
        return self

    def __exit__(self, *exception: object) -> None:
        self.path.unlink(missing_ok=True)

    def output(self, count: int = COUNT) -> np.ndarray:
        return np.frombuffer(self.path.read_bytes(), np.float32, count, OUTPUT_OFFSET)


@pytest.fixture
def segment() -> Iterator[Segment]:
    with Segment() as made:
        yield made


class Door:
    """One way to ask the server; `infer` is unary over HTTP or gRPC, or a request of a stream."""

    def __init__(self, name: str, server: RunningServer) -> None:
        self.module: Any = http_client if name == "http" else grpc_client
        self.client = self.module.InferenceServerClient(server.http_url if name == "http" else server.grpc_url)
        self.is_stream = name == "stream"
        self.answers: queue.Queue[Any] = queue.Queue()
        if self.is_stream:
            self.client.start_stream(lambda result, error: self.answers.put((result, error)))

    def infer(self, model: str, inputs: list[Any], **options: Any) -> Any:
        if not self.is_stream:
            return self.client.infer(model, inputs, **options)
        self.client.async_stream_infer(model, inputs, **options)
        result, error = self.answers.get(timeout=TIMEOUT_SECONDS)
        if error is not None:
            raise error
        return result

    def pass_on(self, model: str, region: str, count: int = COUNT, output_offset: int = OUTPUT_OFFSET) -> Any:
        """Ask an identity model to copy the start of a region to its end."""
        tensor = self.module.InferInput("INPUT0", [count], "FP32")
        tensor.set_shared_memory(region, count * 4)
        output = self.module.InferRequestedOutput("OUTPUT0")
        output.set_shared_memory(region, count * 4, offset=output_offset)
        return self.infer(model, [tensor], outputs=[output])

    def close(self) -> None:
        self.client.unregister_system_shared_memory()
        self.client.close()


@pytest.fixture(params=["http", "grpc", "stream"])
def door(request: pytest.FixtureRequest, server: RunningServer) -> Iterator[Door]:
    opened = Door(request.param, server)
    yield opened
    opened.close()


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("count", [1, 100, COUNT])
def test_tensors_go_in_and_out(door: Door, segment: Segment, model: str, count: int):
    door.client.register_system_shared_memory("r", segment.key, segment.byte_size)

    result = door.pass_on(model, "r", count)

    np.testing.assert_array_equal(segment.output(count), VALUES[:count])
    assert not segment.output(COUNT)[count:].any()
    assert result.get_output("OUTPUT0") is not None


def test_a_region_may_be_part_of_a_segment(door: Door, segment: Segment):
    door.client.register_system_shared_memory("r", segment.key, 8192, offset=4096)
    tensor = door.module.InferInput("INPUT0", [3], "FP32")
    tensor.set_shared_memory("r", 12, offset=8)

    result = door.infer("python_identity", [tensor])

    assert result.as_numpy("OUTPUT0").tolist() == [1026.0, 1027.0, 1028.0]
    tensor.set_shared_memory("r", 12, offset=8192)
    with pytest.raises(InferenceServerException, match="Invalid offset for shared memory region: 'r'"):
        door.infer("python_identity", [tensor])


def test_texts(door: Door, segment: Segment):
    texts = [b"", b"a text", "ü漢".encode() * 3000]
    encoded = b"".join(len(text).to_bytes(4, "little") + text for text in texts)
    segment.path.write_bytes(encoded.ljust(segment.byte_size, b"\0"))
    door.client.register_system_shared_memory("r", segment.key, segment.byte_size)
    tensor = door.module.InferInput("INPUT0", [3], "BYTES")
    tensor.set_shared_memory("r", len(encoded))
    output = door.module.InferRequestedOutput("OUTPUT0")
    output.set_shared_memory("r", segment.byte_size - OUTPUT_OFFSET, offset=OUTPUT_OFFSET)

    door.infer("python_text", [tensor], outputs=[output])

    assert segment.path.read_bytes()[OUTPUT_OFFSET : OUTPUT_OFFSET + len(encoded)] == encoded
    tensor.set_shared_memory("r", len(encoded) - 1)
    with pytest.raises(InferenceServerException, match="incomplete string"):
        door.infer("python_text", [tensor])


@pytest.mark.parametrize("model", MODELS)
def test_an_output_that_does_not_fit(door: Door, segment: Segment, model: str):
    door.client.register_system_shared_memory("r", segment.key, segment.byte_size)
    tensor = door.module.InferInput("INPUT0", [COUNT], "FP32")
    tensor.set_shared_memory("r", BYTE_SIZE)
    output = door.module.InferRequestedOutput("OUTPUT0")
    output.set_shared_memory("r", BYTE_SIZE - 4, offset=OUTPUT_OFFSET)

    with pytest.raises(
        InferenceServerException,
        match=r"shared memory size specified with the request for output 'OUTPUT0' \(19996 bytes\) should be at least "
        "20000 bytes to hold the results",
    ):
        door.infer(model, [tensor], outputs=[output])
    assert not segment.output().any()


@pytest.mark.parametrize("model", MODELS)
def test_a_segment_that_was_unlinked_works_on(door: Door, segment: Segment, model: str):
    door.client.register_system_shared_memory("r", segment.key, segment.byte_size)
    with open(segment.path, "rb") as kept:
        segment.path.unlink()
        # Someone else takes the name.
        segment.path.write_bytes(bytes(segment.byte_size))

        door.pass_on(model, "r")

        np.testing.assert_array_equal(np.frombuffer(kept.read(), np.float32, COUNT, OUTPUT_OFFSET), VALUES)
    assert not any(segment.path.read_bytes())


@pytest.mark.parametrize("model", MODELS)
def test_a_segment_that_has_shrunk(door: Door, segment: Segment, model: str):
    door.client.register_system_shared_memory("r", segment.key, segment.byte_size)
    os.truncate(segment.path, 100)

    with pytest.raises(InferenceServerException, match="shared memory region 'r' has shrunk since it was registered"):
        door.pass_on(model, "r")
    os.truncate(segment.path, OUTPUT_OFFSET)
    with pytest.raises(InferenceServerException, match="shared memory region 'r' has shrunk since it was registered"):
        door.pass_on(model, "r")
    assert door.client.is_server_ready()


@pytest.mark.parametrize("model", MODELS)
def test_a_segment_that_shrinks_all_the_time(server: RunningServer, segment: Segment, model: str):
    """Whatever a client does to its memory, and whenever: the server and the model's process live on."""
    door = Door("grpc", server)
    door.client.register_system_shared_memory("r", segment.key, segment.byte_size)
    is_over = threading.Event()

    def shrink_and_grow() -> None:
        while not is_over.is_set():
            os.truncate(segment.path, 1)
            os.truncate(segment.path, segment.byte_size)

    thread = threading.Thread(target=shrink_and_grow)
    thread.start()
    texts = set()
    try:
        for _ in range(300):
            try:
                door.pass_on(model, "r")
                texts.add("answered")
            except InferenceServerException as error:
                texts.add(error.message())
    finally:
        is_over.set()
        thread.join()

    assert "answered" in texts
    assert all("shared memory" in text for text in texts - {"answered"})
    assert door.client.is_model_ready(model)
    os.truncate(segment.path, segment.byte_size)
    door.pass_on(model, "r")
    door.close()


def test_a_region_may_go_while_requests_use_it(server: RunningServer, segment: Segment):
    door = Door("stream", server)
    door.client.register_system_shared_memory("r", segment.key, segment.byte_size)
    inputs = []
    for name, byte_size, offset in (("IN", 12, 0), ("DELAY", 12, 100), ("WAIT", 4, 200)):
        inputs.append(grpc_client.InferInput(name, [byte_size // 4], "INT32" if name == "IN" else "UINT32"))
        inputs[-1].set_shared_memory("r", byte_size, offset=offset)
    content = bytearray(segment.byte_size)
    content[0:12] = np.array([5, 7, 9], np.int32).tobytes()
    content[100:112] = np.array([100, 100, 100], np.uint32).tobytes()
    segment.path.write_bytes(content)
    output = grpc_client.InferRequestedOutput("OUT")
    output.set_shared_memory("r", 4, offset=OUTPUT_OFFSET)
    outputs = [output, grpc_client.InferRequestedOutput("IDX")]

    door.client.async_stream_infer("repeat", inputs, outputs=outputs, enable_empty_final_response=True)
    seen = []
    for index in range(4):
        result, error = door.answers.get(timeout=TIMEOUT_SECONDS)
        assert error is None
        if index == 0:
            door.client.unregister_system_shared_memory("r")
            assert len(door.client.get_system_shared_memory_status().regions) == 0
        if index < 3:
            assert result.as_numpy("IDX").tolist() == [index]
            seen.append(int(np.frombuffer(segment.path.read_bytes(), np.int32, 1, OUTPUT_OFFSET)[0]))

    # Each response overwrites the one before.
    assert seen == [5, 7, 9]
    with pytest.raises(InferenceServerException, match="Unable to find shared memory region: 'r'"):
        door.infer("repeat", inputs)
    door.close()


def test_what_is_kept_for_others_is_out_of_the_clients_reach(server: RunningServer, segment: Segment):
    door = Door("http", server)
    door.client.register_system_shared_memory("r", segment.key, segment.byte_size)
    door.pass_on("cached", "r")
    np.testing.assert_array_equal(segment.output(), VALUES)
    with open(segment.path, "r+b") as file:
        file.seek(OUTPUT_OFFSET)
        file.write(bytes(BYTE_SIZE))

    tensor = http_client.InferInput("INPUT0", [COUNT], "FP32")
    tensor.set_data_from_numpy(VALUES)
    result = door.infer("cached", [tensor])

    np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), VALUES)
    statistics = door.client.get_inference_statistics("cached")["model_stats"][0]
    assert statistics["inference_stats"]["cache_hit"]["count"] == 1
    door.close()


def test_there_are_only_so_many_regions(door: Door, segment: Segment):
    for name in "abc":
        door.client.register_system_shared_memory(name, segment.key, 4)
    with pytest.raises(InferenceServerException, match="--max-shared-memory-regions is 3"):
        door.client.register_system_shared_memory("d", segment.key, 4)


def test_nothing_stays_open(server: RunningServer, segment: Segment):
    def open_files() -> int:
        pids = [server.pid, *_descendants(server.pid)]
        links = [link for pid in pids for link in Path(f"/proc/{pid}/fd").iterdir()]
        return sum(os.readlink(link).startswith(str(segment.path)) for link in links if link.is_symlink())

    door = Door("http", server)
    door.client.register_system_shared_memory("r", segment.key, segment.byte_size)
    for model in MODELS:
        door.pass_on(model, "r")
    assert open_files() >= 1

    door.client.unregister_system_shared_memory("r")

    deadline = threading.Event()
    for _ in range(200):
        if not open_files():
            break
        deadline.wait(0.02)
        # A process lets go when it next has something to do.
        door.infer("python_identity", [_plain_input()])
    assert open_files() == 0
    door.close()


def _plain_input() -> http_client.InferInput:
    tensor = http_client.InferInput("INPUT0", [1], "FP32")
    tensor.set_data_from_numpy(np.zeros(1, np.float32))
    return tensor


def _descendants(pid: int) -> list[int]:
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, path.read_text().split()):
            found += [child, *_descendants(child)]
    return found


def test_it_is_off_by_default(tmp_path: Path, segment: Segment):
    repository = RepositoryBuilder(tmp_path)
    repository.add_identity()
    with RunningServer(repository.path) as server:
        for name in ("http", "grpc"):
            door = Door(name, server)
            with pytest.raises(InferenceServerException, match="Client shared memory is disabled"):
                door.client.register_system_shared_memory("r", segment.key, 4)
            status = door.client.get_system_shared_memory_status()
            assert not (status if name == "http" else status.regions)
            door.client.close()
