"""ModelStreamInfer with a real server: decoupled models, many streams, readers that do not read."""

import queue
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as client
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc as service

from merrow.testing.repository_builder import RepositoryBuilder, model_config
from merrow.testing.running_server import RunningServer

pytestmark = pytest.mark.slow

TIMEOUT_SECONDS = 20
MEGABYTE = 1 << 20
MESSAGE_SIZES = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    repository = RepositoryBuilder(tmp_path_factory.mktemp("streams"))
    repository.add_identity("bytes", datatype="UINT8", dims=(-1,))
    repository.add_add_sub(datatype="INT32", max_batch_size=0)
    repeat = model_config(
        "repeat",
        "repeat",
        [("IN", "INT32", (-1,)), ("DELAY", "UINT32", (-1,)), ("WAIT", "UINT32", (1,))],
        [("OUT", "INT32", (1,)), ("IDX", "UINT32", (1,))],
        extra_config="model_transaction_policy { decoupled: true }",
    )
    repository.add("repeat", repeat)
    with RunningServer(repository.path, "--max-stream-buffer-byte-size=1048576") as running:
        yield running


def repeat_request(values: list[int], request_id: str = "", delay_ms: int = 0) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="repeat", id=request_id)
    for name, datatype, array in (
        ("IN", "INT32", np.array(values, np.int32)),
        ("DELAY", "UINT32", np.full(len(values), delay_ms, np.uint32)),
        ("WAIT", "UINT32", np.zeros(1, np.uint32)),
    ):
        request.inputs.add(name=name, datatype=datatype, shape=array.shape)
        request.raw_input_contents.append(array.tobytes())
    return request


def bytes_request(byte_size: int, request_id: str = "") -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="bytes", id=request_id, raw_input_contents=[bytes(byte_size)])
    request.inputs.add(name="INPUT0", datatype="UINT8", shape=[byte_size])
    return request


class Stream:
    """A stream on the level of grpcio, which reads when it is asked to."""

    def __init__(self, server: RunningServer, metadata: tuple[tuple[str, str], ...] = ()) -> None:
        self._channel = grpc.insecure_channel(server.grpc_url, options=MESSAGE_SIZES)
        self._requests: queue.Queue[pb.ModelInferRequest | None] = queue.Queue()
        self.sent_count = 0
        stub = service.GRPCInferenceServiceStub(self._channel)
        self.call = stub.ModelStreamInfer(self._send(), timeout=60, metadata=metadata)

    def ask(self, *requests: pb.ModelInferRequest) -> None:
        for request in requests:
            self._requests.put(request)

    def half_close(self) -> None:
        self._requests.put(None)

    def close(self) -> None:
        self._requests.put(None)
        self.call.cancel()
        self._channel.close()

    def _send(self) -> Iterator[pb.ModelInferRequest]:
        while (request := self._requests.get()) is not None:
            self.sent_count += 1
            yield request


@pytest.fixture
def stream(server: RunningServer) -> Iterator[Stream]:
    opened = Stream(server)
    yield opened
    opened.close()


def is_final(message: pb.ModelStreamInferResponse) -> bool:
    return bool(message.infer_response.parameters["triton_final_response"].bool_param)


def test_a_decoupled_model_answers_as_often_as_it_likes(stream: Stream):
    request = repeat_request([5, 7, 9], "three")
    request.parameters["triton_enable_empty_final_response"].bool_param = True
    stream.ask(request, repeat_request([], "none"), repeat_request([1], "one"))
    stream.half_close()

    messages = list(stream.call)

    assert all(not message.error_message for message in messages)
    three = [message.infer_response for message in messages if message.infer_response.id == "three"]
    values = [np.frombuffer(each.raw_output_contents[0], np.int32).tolist() for each in three[:-1]]
    assert values == [[5], [7], [9]]
    assert [is_final(message) for message in messages if message.infer_response.id == "three"] == [False] * 3 + [True]
    assert (three[-1].model_name, three[-1].model_version, len(three[-1].outputs)) == ("repeat", "", 0)
    # Who did not ask for the end does not hear of it.
    assert [message.infer_response.id for message in messages if message.infer_response.id != "three"] == ["one"]
    assert stream.call.code() is grpc.StatusCode.OK


def test_decoupled_responses_do_not_wait_for_ordinary_ones(stream: Stream):
    slow = repeat_request([1, 2], "slow", delay_ms=300)
    stream.ask(slow, bytes_request(10, "quick"))

    assert next(stream.call).infer_response.id == "quick"
    assert [next(stream.call).infer_response.id for _ in range(2)] == ["slow", "slow"]


def test_errors_are_messages_and_the_stream_goes_on(stream: Stream):
    mismatched = repeat_request([1, 2], "mismatched")
    mismatched.inputs[1].shape[:] = [1]
    mismatched.raw_input_contents[1] = bytes(4)
    stream.ask(mismatched)
    first = next(stream.call)
    stream.ask(pb.ModelInferRequest(model_name="unknown", id="unknown"))
    second = next(stream.call)
    stream.ask(repeat_request([3], "good"))
    third = next(stream.call)

    assert first.error_message == "expected IN and DELAY shape to match, got [2] and [1]"
    assert (first.infer_response.id, is_final(first)) == ("mismatched", True)
    assert second.error_message == "Request for unknown model: 'unknown' is not found"
    assert (second.infer_response.id, dict(second.infer_response.parameters)) == ("unknown", {})
    assert (third.error_message, third.infer_response.id) == ("", "good")


def test_an_error_may_end_the_stream(server: RunningServer):
    stream = Stream(server, (("triton_grpc_error", "true"),))
    mismatched = repeat_request([1, 2])
    mismatched.inputs[1].shape[:] = [1]
    mismatched.raw_input_contents[1] = bytes(4)
    stream.ask(repeat_request([3]), mismatched)

    assert next(stream.call).infer_response.outputs[0].name == "OUT"
    with pytest.raises(grpc.RpcError):
        next(stream.call)
    assert stream.call.code() is grpc.StatusCode.INVALID_ARGUMENT
    stream.close()


def test_many_streams_at_once(server: RunningServer):
    def talk(number: int) -> None:
        connection = client.InferenceServerClient(server.grpc_url)
        answers: queue.Queue[Any] = queue.Queue()
        connection.start_stream(lambda result, error: answers.put((result, error)))
        channel_requests = [[number * 100 + index for index in range(length)] for length in (5, 1, 3)]
        for index, values in enumerate(channel_requests):
            inputs = []
            for name, datatype, array in (
                ("IN", "INT32", np.array(values, np.int32)),
                ("DELAY", "UINT32", np.full(len(values), index, np.uint32)),
                ("WAIT", "UINT32", np.zeros(1, np.uint32)),
            ):
                inputs.append(client.InferInput(name, list(array.shape), datatype))
                inputs[-1].set_data_from_numpy(array)
            connection.async_stream_infer("repeat", inputs, request_id=str(index), enable_empty_final_response=True)
        seen: dict[str, list[int]] = {"0": [], "1": [], "2": []}
        open_count = len(channel_requests)
        while open_count:
            result, error = answers.get(timeout=TIMEOUT_SECONDS)
            assert error is None
            response = result.get_response()
            if response.parameters["triton_final_response"].bool_param:
                open_count -= 1
            else:
                seen[response.id].append(int(result.as_numpy("OUT")[0]))
        assert list(seen.values()) == channel_requests
        connection.stop_stream()
        connection.close()

    with ThreadPoolExecutor(20) as executor:
        list(executor.map(talk, range(40)))


def resident_byte_size(server: RunningServer) -> int:
    status = Path(f"/proc/{server.pid}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) * 1024


def wait_until_still(measure: Callable[[], int]) -> None:
    """Until a number has not changed for a while."""
    pause = threading.Event()
    still_count = 0
    while still_count < 10:
        before = measure()
        pause.wait(0.05)
        still_count = still_count + 1 if measure() == before else 0


def test_a_client_that_does_not_read_is_held_back(server: RunningServer, stream: Stream):
    """And gets everything, in order, when it reads again."""
    before = resident_byte_size(server)
    count = 200
    stream.ask(*(bytes_request(MEGABYTE, str(number)) for number in range(count)))
    stream.half_close()
    wait_until_still(lambda: stream.sent_count)

    assert stream.sent_count < count / 2
    assert resident_byte_size(server) - before < 100 * MEGABYTE
    assert [message.infer_response.id for message in stream.call] == [str(number) for number in range(count)]
    assert stream.call.code() is grpc.StatusCode.OK


def test_a_decoupled_model_does_not_fill_the_memory_for_a_client_that_does_not_read(server: RunningServer):
    stream = Stream(server)
    before = resident_byte_size(server)
    # Some fifty megabytes of responses.
    stream.ask(*(repeat_request(list(range(50_000)), "x" * 1000) for _ in range(2)))

    wait_until_still(lambda: resident_byte_size(server) // MEGABYTE)
    assert resident_byte_size(server) - before < 100 * MEGABYTE
    with pytest.raises(grpc.RpcError):
        list(stream.call)
    assert stream.call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert stream.call.details() == "the client does not read the responses of the stream"
    stream.close()
