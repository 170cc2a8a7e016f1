"""What becomes of sequences when somebody goes away: a client, or the process of the model."""

import queue
import threading
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as client
from tritonclient.utils import InferenceServerException

from merrow.testing.repository_builder import RepositoryBuilder
from merrow.testing.running_server import RunningServer
from tests.clients import probe_models

pytestmark = pytest.mark.slow

TIMEOUT_SECONDS = 20

# Adds up, and dies of a 13. Of START it knows only by its control, as its instance may be another than before.
MORTAL = """
import os

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.total = 0

    def execute(self, requests):
        (request,) = requests
        value, start = (
            int(pb_utils.get_input_tensor_by_name(request, name).as_numpy().reshape(-1)[0])
            for name in ("INPUT", "START")
        )
        if value == 13:
            os._exit(1)
        self.total = value if start else self.total + value
        output = pb_utils.Tensor("OUTPUT", np.array([[self.total]], np.int32))
        return [pb_utils.InferenceResponse([output])]
"""
MORTAL_CONFIG = (
    f'name: "mortal"\nbackend: "python"\nmax_batch_size: 1\n{probe_models.SCALAR}{probe_models.CPU}'
    f"sequence_batching {{ max_sequence_idle_microseconds: 60000000\n{probe_models.START_READY}}}\n"
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    path = tmp_path_factory.mktemp("life") / "models"
    slow = probe_models.sequence(1) + 'parameters { key: "execute_delay_ms" value { string_value: "300" } }\n'
    probe_models.build(path, slow=slow, quick=probe_models.sequence(2))
    RepositoryBuilder(path).add("mortal", MORTAL_CONFIG, {"1/model.py": MORTAL})
    with RunningServer(path, "--log-verbose=1") as running:
        yield running


@pytest.fixture
def grpc(server: RunningServer) -> Iterator[client.InferenceServerClient]:
    with client.InferenceServerClient(server.grpc_url) as grpc:
        yield grpc


def given(value: int) -> list[client.InferInput]:
    tensor = client.InferInput("INPUT", [1, 1], "INT32")
    tensor.set_data_from_numpy(np.array([[value]], np.int32))
    return [tensor]


def step(grpc: client.InferenceServerClient, model: str, value: int, **sequence: Any) -> int:
    return int(grpc.infer(model, given(value), **sequence).as_numpy("OUTPUT")[0, 0])


def metric(server: RunningServer, family: str, *labels: str) -> float:
    """The value of a metric, 0 if it is not there."""
    text = urllib.request.urlopen(f"http://{server.metrics_url}/metrics", timeout=TIMEOUT_SECONDS).read().decode()
    return sum(
        float(line.rsplit(" ", 1)[1])
        for line in text.splitlines()
        if line.startswith(family) and all(label in line for label in labels)
    )


def evictions(server: RunningServer, model: str, reason: str) -> float:
    return metric(server, "merrow_sequence_evictions", f'model="{model}"', f'reason="{reason}"')


def pending(server: RunningServer, model: str) -> float:
    return metric(server, "nv_inference_pending_request_count", f'model="{model}"')


def test_a_client_that_leaves_frees_the_slot(server: RunningServer, grpc: client.InferenceServerClient):
    answers: queue.Queue[Any] = queue.Queue()

    def on_answer(result: Any, error: Any) -> None:
        answers.put(error or int(result.as_numpy("OUTPUT")[0, 0]))

    assert step(grpc, "slow", 1, sequence_id=1, sequence_start=True) == 1
    running = grpc.async_infer("slow", given(2), on_answer, sequence_id=1)
    queued = grpc.async_infer("slow", given(4), on_answer, sequence_id=1)
    # Without an end of the first sequence, the second would wait for as long as the first may be idle.
    waiting = grpc.async_infer("slow", given(8), on_answer, sequence_id=2, sequence_start=True, sequence_end=True)
    while pending(server, "slow") < 2:
        pass
    queued.cancel()
    got = [answers.get(timeout=TIMEOUT_SECONDS) for _ in range(3)]

    assert [answer for answer in got if isinstance(answer, int)] == [3, 8]
    assert evictions(server, "slow", "cancelled") == 1
    assert "sequence 1 of model 'slow' was ended: a client left while its request was queued" in server.log
    with pytest.raises(InferenceServerException, match="must specify the START flag"):
        step(grpc, "slow", 1, sequence_id=1)
    del running, waiting


def test_a_model_process_that_dies_ends_its_sequences(server: RunningServer, grpc: client.InferenceServerClient):
    assert step(grpc, "mortal", 5, sequence_id=1, sequence_start=True) == 5
    assert step(grpc, "mortal", 6, sequence_id=1) == 11
    with pytest.raises(InferenceServerException):
        step(grpc, "mortal", 13, sequence_id=1)
    while not grpc.is_model_ready("mortal"):
        pass

    # What the process knew is gone: going on would give wrong answers.
    with pytest.raises(InferenceServerException) as caught:
        step(grpc, "mortal", 7, sequence_id=1)
    assert caught.value.message() == (
        "inference request for sequence 1 to model 'mortal' must specify the START flag on the first request of the "
        "sequence"
    )
    assert step(grpc, "mortal", 7, sequence_id=1, sequence_start=True, sequence_end=True) == 7
    assert evictions(server, "mortal", "instance_lost") == 1


def test_why_batches_were_cut_is_logged(server: RunningServer, grpc: client.InferenceServerClient):
    step(grpc, "quick", 5, sequence_id=1, sequence_start=True, sequence_end=True)

    assert (
        "model 'quick' version 1: batch of 1 requests (1 rows) for instance 'quick_0_0', cut because nothing else waits"
    ) in server.log


def test_many_clients_at_once_get_their_own_sums(grpc: client.InferenceServerClient):
    sums: dict[int, list[int]] = {}

    def run(number: int) -> None:
        sums[number] = [
            step(
                grpc,
                "quick",
                number * 100 + index,
                sequence_id=number,
                sequence_start=index == 0,
                sequence_end=index == 9,
            )
            for index in range(10)
        ]

    threads = [threading.Thread(target=run, args=(number,)) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sums == {number: np.cumsum([number * 100 + index for index in range(10)]).tolist() for number in range(1, 9)}
