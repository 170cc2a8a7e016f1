"""Clients that leave, in every way and at every stage, and a real server that stops working for them."""

import json
import queue
import re
import socket
import threading
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as client
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc as service
from tritonclient.utils import InferenceServerException

from merrow.testing.repository_builder import RepositoryBuilder, model_config, python_config
from merrow.testing.running_server import RunningServer

pytestmark = pytest.mark.slow

TIMEOUT_SECONDS = 20

# Says when it begins, and when it sees that its client has left, and runs until then.
WATCHFUL = """\
import threading
import time
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            pb_utils.Logger.log_info(f"{request.request_id()} begins")
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline and not request.is_cancelled():
                threading.Event().wait(0.01)
            pb_utils.Logger.log_info(f"{request.request_id()} ends, cancelled: {request.is_cancelled()}")
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", request.inputs()[0].as_numpy())]))
        return responses
"""


# Sends a number every now and then until its client leaves.
COUNTING = """\
import threading
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            request_id, number = request.request_id(), 0
            while number < 2000 and not sender.is_cancelled():
                sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", np.array([number], np.float32))]))
                number += 1
                threading.Event().wait(0.01)
            pb_utils.Logger.log_info(f"{request_id} ends, cancelled: {sender.is_cancelled()}")
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""

ENSEMBLE = """\
platform: "ensemble"
input { name: "IN" data_type: TYPE_FP32 dims: [ 1 ] }
output { name: "OUT" data_type: TYPE_FP32 dims: [ 1 ] }
ensemble_scheduling {
  step {
    model_name: "watchful"
    model_version: -1
    input_map { key: "IN" value: "IN" }
    output_map { key: "OUT" value: "BETWEEN" }
  }
  step {
    model_name: "watchful"
    model_version: -1
    input_map { key: "IN" value: "BETWEEN" }
    output_map { key: "OUT" value: "OUT" }
  }
}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    repository = RepositoryBuilder(tmp_path_factory.mktemp("cancellation"))
    watchful = python_config("watchful", [("IN", "FP32", (1,))], [("OUT", "FP32", (1,))])
    repository.add("watchful", watchful, {"1/model.py": WATCHFUL})
    # Waits in its batcher for others that never come.
    patient = model_config(
        "patient",
        "identity",
        [("IN", "FP32", (1,))],
        [("OUT", "FP32", (1,))],
        8,
        "dynamic_batching { preferred_batch_size: [ 8 ] max_queue_delay_microseconds: 20000000 }",
    )
    repository.add("patient", patient)
    counting = python_config(
        "counting",
        [("IN", "FP32", (1,))],
        [("OUT", "FP32", (1,))],
        extra_config="model_transaction_policy { decoupled: true }",
    )
    repository.add("counting", counting, {"1/model.py": COUNTING})
    repository.add("ensemble", f'name: "ensemble"\n{ENSEMBLE}')
    with RunningServer(repository.path) as running:
        yield running


def make_input(shape: tuple[int, ...] = (1,)) -> client.InferInput:
    tensor = client.InferInput("IN", list(shape), "FP32")
    tensor.set_data_from_numpy(np.zeros(shape, np.float32))
    return tensor


class Caller:
    """A request that is under way; `leave` is what the test is about."""

    def __init__(self, leave: Callable[[], None], close: Callable[[], None]) -> None:
        self.leave = leave
        self.close = close


def over_http(server: RunningServer, model: str, request_id: str, shape: tuple[int, ...]) -> Caller:
    """Leaves by closing the connection."""
    address, port = server.http_url.rsplit(":", 1)
    connection = socket.create_connection((address, int(port)), timeout=TIMEOUT_SECONDS)
    tensor = {"name": "IN", "datatype": "FP32", "shape": shape, "data": [0.0]}
    body = json.dumps({"id": request_id, "inputs": [tensor]}).encode()
    head = f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    return Caller(connection.close, connection.close)


def over_grpc(server: RunningServer, model: str, request_id: str, shape: tuple[int, ...]) -> Caller:
    """Leaves by cancelling the call."""
    connection = client.InferenceServerClient(server.grpc_url)
    answers: queue.Queue[Any] = queue.Queue()

    def answer(result: Any, error: Any) -> None:
        answers.put((result, error))

    call = connection.async_infer(model, [make_input(shape)], answer, request_id=request_id)

    def leave() -> None:
        call.cancel()
        _, error = answers.get(timeout=TIMEOUT_SECONDS)
        assert error.status() == "StatusCode.CANCELLED"

    return Caller(leave, connection.close)


def by_deadline(server: RunningServer, model: str, request_id: str, shape: tuple[int, ...]) -> Caller:
    """Leaves by itself, after a second."""
    connection = client.InferenceServerClient(server.grpc_url)
    answers: queue.Queue[Any] = queue.Queue()

    def answer(result: Any, error: Any) -> None:
        answers.put((result, error))

    connection.async_infer(model, [make_input(shape)], answer, request_id=request_id, client_timeout=1.0)

    def leave() -> None:
        _, error = answers.get(timeout=TIMEOUT_SECONDS)
        assert error.status() == "StatusCode.DEADLINE_EXCEEDED"

    return Caller(leave, connection.close)


def on_a_stream(server: RunningServer, model: str, request_id: str, shape: tuple[int, ...]) -> Caller:
    """Leaves by cancelling its stream. (The client's own leaves a thread behind when it does.)"""
    channel = grpc.insecure_channel(server.grpc_url)
    is_over = threading.Event()
    request = pb.ModelInferRequest(model_name=model, id=request_id, raw_input_contents=[bytes(4)])
    request.inputs.add(name="IN", datatype="FP32", shape=shape)

    def requests() -> Iterator[pb.ModelInferRequest]:
        yield request
        is_over.wait(TIMEOUT_SECONDS)

    call = service.GRPCInferenceServiceStub(channel).ModelStreamInfer(requests())

    def leave() -> None:
        call.cancel()
        is_over.set()

    return Caller(leave, channel.close)


WAYS = (over_http, over_grpc, by_deadline, on_a_stream)


def metric(server: RunningServer, family: str, model: str, **labels: str) -> float:
    with urllib.request.urlopen(f"http://{server.metrics_url}/metrics") as response:
        text = response.read().decode()
    wanted = {"model": model, "version": "1", **labels}
    for line in text.splitlines():
        if line.startswith(f"{family}{{") and dict(re.findall(r'(\w+)="([^"]*)"', line)) == wanted:
            return float(line.rsplit(" ", 1)[1])
    return 0.0


def cancelled_count(server: RunningServer, model: str) -> float:
    return metric(server, "nv_inference_request_failure", model, reason="CANCELED")


def wait_until(condition: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(TIMEOUT_SECONDS * 50):
        if condition():
            return
        pause.wait(0.02)
    raise TimeoutError


@pytest.mark.parametrize("way", WAYS)
def test_while_it_executes_and_while_it_waits_for_the_instance(server: RunningServer, way: Callable[..., Caller]):
    running_id, waiting_id = (f"{uuid.uuid4().hex}" for _ in range(2))
    before = cancelled_count(server, "watchful")
    running = way(server, "watchful", running_id, (1,))
    server.wait_for_log(f"{running_id} begins")
    waiting = (
        over_grpc(server, "watchful", waiting_id, (1,))
        if way is by_deadline
        else way(server, "watchful", waiting_id, (1,))
    )
    wait_until(lambda: metric(server, "nv_inference_pending_request_count", "watchful") >= 1)

    waiting.leave()
    wait_until(lambda: cancelled_count(server, "watchful") == before + 1)
    running.leave()

    server.wait_for_log(f"{running_id} ends, cancelled: True")
    # What comes after finds the instance free, and the one that waited never began.
    last_id = uuid.uuid4().hex
    last = over_grpc(server, "watchful", last_id, (1,))
    server.wait_for_log(f"{last_id} begins")
    last.leave()
    server.wait_for_log(f"{last_id} ends, cancelled: True")
    assert f"{waiting_id} begins" not in server.log
    for caller in (running, waiting, last):
        caller.close()


@pytest.mark.parametrize("way", WAYS)
def test_while_it_waits_to_be_batched(server: RunningServer, way: Callable[..., Caller]):
    executions = metric(server, "nv_inference_exec_count", "patient")
    before = cancelled_count(server, "patient")
    caller = way(server, "patient", "p", (1, 1))
    wait_until(lambda: metric(server, "nv_inference_pending_request_count", "patient") == 1)

    caller.leave()

    wait_until(lambda: cancelled_count(server, "patient") == before + 1)
    assert metric(server, "nv_inference_pending_request_count", "patient") == 0
    assert metric(server, "nv_inference_exec_count", "patient") == executions
    caller.close()


def test_in_the_midst_of_decoupled_responses(server: RunningServer):
    request_id = uuid.uuid4().hex
    channel = grpc.insecure_channel(server.grpc_url)
    is_over = threading.Event()
    request = pb.ModelInferRequest(model_name="counting", id=request_id, raw_input_contents=[bytes(4)])
    request.inputs.add(name="IN", datatype="FP32", shape=[1])

    def requests() -> Iterator[pb.ModelInferRequest]:
        yield request
        is_over.wait(TIMEOUT_SECONDS)

    call = service.GRPCInferenceServiceStub(channel).ModelStreamInfer(requests())
    for expected in range(3):
        response = next(call).infer_response
        assert np.frombuffer(response.raw_output_contents[0], np.float32).tolist() == [expected]

    call.cancel()
    is_over.set()

    server.wait_for_log(f"{request_id} ends, cancelled: True")
    channel.close()


@pytest.mark.parametrize("way", WAYS)
def test_in_a_step_of_an_ensemble(server: RunningServer, way: Callable[..., Caller]):
    request_id = uuid.uuid4().hex
    caller = way(server, "ensemble", request_id, (1,))
    server.wait_for_log(f"{request_id} begins")

    caller.leave()

    server.wait_for_log(f"{request_id} ends, cancelled: True")
    # The second step never began.
    last_id = uuid.uuid4().hex
    last = over_grpc(server, "watchful", last_id, (1,))
    server.wait_for_log(f"{last_id} begins")
    last.leave()
    server.wait_for_log(f"{last_id} ends, cancelled: True")
    assert server.log.count(f"{request_id} begins") == 1
    caller.close()
    last.close()


def test_half_closing_is_not_leaving(server: RunningServer):
    """A client that has said everything is answered, and its stream ends then."""
    connection = client.InferenceServerClient(server.grpc_url)
    answers: queue.Queue[Any] = queue.Queue()
    connection.start_stream(lambda result, error: answers.put((result, error)))
    for _ in range(8):
        connection.async_stream_infer("patient", [make_input((1, 1))])
    connection.stop_stream()

    for _ in range(8):
        result, error = answers.get(timeout=TIMEOUT_SECONDS)
        assert error is None
        assert result.as_numpy("OUT").shape == (1, 1)
    connection.close()


def test_a_client_that_left_hears_no_more(server: RunningServer):
    connection = client.InferenceServerClient(server.grpc_url)
    with pytest.raises(InferenceServerException, match="Deadline Exceeded"):
        connection.infer("watchful", [make_input()], client_timeout=0.2)
    assert connection.is_server_ready()
    connection.close()
