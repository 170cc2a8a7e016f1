"""Servers that Triton's environment variables hold back, as its own suites of schedulers and of clients use them."""

import queue
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as client
from tritonclient.grpc import service_pb2, service_pb2_grpc

from merrow.testing.running_server import RunningServer
from tests.clients import probe_models

pytestmark = pytest.mark.slow

TIMEOUT_SECONDS = 20

IDENTITY = """
backend: "identity"
max_batch_size: 8
input { name: "INPUT0" data_type: TYPE_INT32 dims: [ 1 ] }
output { name: "OUTPUT0" data_type: TYPE_INT32 dims: [ 1 ] }
"""


def run_sequences(server: RunningServer, model: str, sequences: Sequence[Sequence[int]]) -> list[list[int]]:
    """Send each sequence's requests without waiting for answers; returns its answers in order."""
    answers: queue.Queue[Any] = queue.Queue()
    with client.InferenceServerClient(server.grpc_url) as grpc_client:
        grpc_client.start_stream(lambda result, error: answers.put(error or result))
        for number, values in enumerate(sequences):
            for index, value in enumerate(values):
                tensor = client.InferInput("INPUT", [1, 1], "INT32")
                tensor.set_data_from_numpy(np.array([[value]], np.int32))
                grpc_client.async_stream_infer(
                    model,
                    [tensor],
                    request_id=f"{number} {index}",
                    sequence_id=number + 1,
                    sequence_start=index == 0,
                    sequence_end=index == len(values) - 1,
                )
        found = {}
        for _ in range(sum(map(len, sequences))):
            answer = answers.get(timeout=TIMEOUT_SECONDS)
            assert isinstance(answer, client.InferResult), answer
            number, index = map(int, answer.get_response().id.split())
            found[number, index] = int(answer.as_numpy("OUTPUT")[0, 0])
        grpc_client.stop_stream()
    return [[found[number, index] for index in range(len(values))] for number, values in enumerate(sequences)]


def batches(server: RunningServer, model: str) -> dict[int, int]:
    """How many executions there were of each size."""
    with client.InferenceServerClient(server.grpc_url) as grpc_client:
        (statistics,) = grpc_client.get_inference_statistics(model).model_stats
    return {each.batch_size: each.compute_infer.count for each in statistics.batch_stats}


# Of the tables of Triton's L0_sequence_batcher those with 12 requests held: the sequences, and the executions of each
# batch size with one instance of four slots, two of two, and four of one.
HELD = 12
SCENARIOS = {
    "skip_batch": (
        [[1, 11, 12, 13], [11, 111, 112, 113], [111, 1111], [1111, 11111]],
        ({4: 2, 2: 2}, {2: 4, 1: 4}, {1: 12}),
    ),
    "full_batch": ([[1, 2, 3], [11, 12, 13], [111, 112, 113], [1111, 1112, 1113]], ({4: 3}, {2: 6}, {1: 12})),
    "backlog": (
        [[1, 2, 3], [11, 12, 13], [111, 112, 113], [1111, 1112, 1113], [11111, 11112, 11113]],
        ({4: 3, 1: 3}, {2: 6, 1: 3}, {1: 15}),
    ),
}


def test_sequences_are_batched_as_triton_batches_them(tmp_path: Path):
    texts = {
        f"{scenario}_{size}": probe_models.sequence(
            size, instances=f"instance_group {{ kind: KIND_CPU count: {4 // size} }}\n"
        )
        for scenario in SCENARIOS
        for size in (4, 2, 1)
    }
    models = probe_models.build(tmp_path / "models", **texts)
    with RunningServer(models, environment={"TRITONSERVER_DELAY_SCHEDULER": str(HELD)}) as server:
        for scenario, (sequences, expected) in SCENARIOS.items():
            for size, executions in zip((4, 2, 1), expected, strict=True):
                model = f"{scenario}_{size}"
                assert run_sequences(server, model, sequences) == [np.cumsum(values).tolist() for values in sequences]
                assert batches(server, model) == executions, model


def test_a_backlog_is_waited_for(tmp_path: Path):
    models = probe_models.build(tmp_path / "models", sequence=probe_models.sequence(4))
    environment = {"TRITONSERVER_DELAY_SCHEDULER": "10", "TRITONSERVER_BACKLOG_DELAY_SCHEDULER": "2"}
    sequences = [[1, 2, 3], [11, 13], [111, 113], [1111, 1112, 1113], [11111], [22222]]
    with RunningServer(models, environment=environment) as server:
        totals = run_sequences(server, "sequence", sequences)

        assert totals == [np.cumsum(values).tolist() for values in sequences]
        assert batches(server, "sequence") == {4: 3}
        assert "Delaying scheduler until 2 backlog queued requests..." in server.log


def test_dynamic_batches_are_held_and_then_cut_as_preferred(tmp_path: Path):
    models = probe_models.build(
        tmp_path / "models", identity=IDENTITY + "dynamic_batching { preferred_batch_size: [ 2, 6 ] }\n"
    )
    with RunningServer(models, environment={"TRITONSERVER_DELAY_SCHEDULER": "2"}) as server:
        answers: queue.Queue[Any] = queue.Queue()
        with client.InferenceServerClient(server.grpc_url) as grpc_client:
            for rows in (3, 4):
                tensor = client.InferInput("INPUT0", [rows, 1], "INT32")
                tensor.set_data_from_numpy(np.zeros((rows, 1), np.int32))
                grpc_client.async_infer("identity", [tensor], lambda result, error: answers.put(error or result))
            for _ in range(2):
                assert isinstance(answers.get(timeout=TIMEOUT_SECONDS), client.InferResult)
        assert batches(server, "identity") == {3: 1, 4: 1}


def infer_identity(server: RunningServer, timeout: float | None = None) -> float:
    """How long a request took."""
    tensor = client.InferInput("INPUT0", [1, 1], "INT32")
    tensor.set_data_from_numpy(np.zeros((1, 1), np.int32))
    with client.InferenceServerClient(server.grpc_url) as grpc_client:
        start = time.monotonic()
        grpc_client.infer("identity", [tensor], client_timeout=timeout)
        return time.monotonic() - start


def test_an_inference_is_held_back(tmp_path: Path):
    models = probe_models.build(tmp_path / "models", identity=IDENTITY)
    environment = {
        "TRITONSERVER_DELAY_GRPC_PROCESS_ENTRY": "50",
        "TRITONSERVER_DELAY_GRPC_PROCESS": "50",
        "TRITONSERVER_DELAY_RESPONSE_COMPLETE_EXEC": "100",
        "TRITONSERVER_DELAY_RESPONSE_COMPLETION": "100",
    }
    with RunningServer(models, environment=environment) as server:
        assert infer_identity(server) >= 0.3
        # Nobody else waits: the others are answered meanwhile.
        threads = [threading.Thread(target=infer_identity, args=(server,)) for _ in range(20)]
        start = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert time.monotonic() - start < 20 * 0.3
        with pytest.raises(client.InferenceServerException, match="Deadline Exceeded"):
            infer_identity(server, timeout=0.2)
        assert infer_identity(server) >= 0.3


def test_administration_is_held_back_and_answers_one_after_another(tmp_path: Path):
    models = probe_models.build(tmp_path / "models", identity=IDENTITY)
    with (
        RunningServer(models, environment={"TRITONSERVER_SERVER_DELAY_GRPC_RESPONSE_SEC": "1"}) as server,
        client.InferenceServerClient(server.grpc_url) as grpc_client,
    ):
        start = time.monotonic()
        threads = [threading.Thread(target=grpc_client.is_server_live) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert time.monotonic() - start >= 2
        infer_identity(server)


def stream_times(server: RunningServer, model: str, request: service_pb2.ModelInferRequest, count: int) -> list[float]:
    """When each response to one request on a stream came."""
    request.model_name = model
    with grpc.insecure_channel(server.grpc_url) as channel:
        start = time.monotonic()
        call = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer(iter([request]))
        return [time.monotonic() - start for _, _ in zip(range(count), call, strict=False)]


def test_a_stream_is_held_back(tmp_path: Path):
    models = probe_models.build(tmp_path / "models", identity=IDENTITY, square=probe_models.square())
    environment = {"TRITONSERVER_DELAY_GRPC_COMPLETE": "100", "TRITONSERVER_DELAY_GRPC_RESPONSE": "100"}
    with RunningServer(models, environment=environment) as server:
        square = service_pb2.ModelInferRequest(
            inputs=[service_pb2.ModelInferRequest.InferInputTensor(name="IN", datatype="INT32", shape=[1])],
            raw_input_contents=[np.array([2], np.int32).tobytes()],
        )
        first, second = stream_times(server, "square", square, 2)
        assert first >= 0.2
        assert second >= 0.4
        identity = service_pb2.ModelInferRequest(
            inputs=[service_pb2.ModelInferRequest.InferInputTensor(name="INPUT0", datatype="INT32", shape=[1, 1])],
            raw_input_contents=[bytes(4)],
        )
        (only,) = stream_times(server, "identity", identity, 1)
        assert only >= 0.1
