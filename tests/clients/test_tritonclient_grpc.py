"""`tritonclient.grpc`, unmodified."""

import queue
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as client
from tritonclient.utils import InferenceServerException

from tests.clients.arrays import ARRAYS, assert_same
from tests.clients.conftest import Endpoints

LEFT = np.array([10, 20, 30, 40], dtype=np.int32)
RIGHT = np.array([1, 2, 3, 4], dtype=np.int32)
TIMEOUT_SECONDS = 20


@pytest.fixture(name="grpc")
def grpc_client(server: Endpoints) -> Iterator[client.InferenceServerClient]:
    with client.InferenceServerClient(server.grpc) as grpc:
        yield grpc


def add_sub_inputs() -> list[client.InferInput]:
    inputs = []
    for name, array in (("INPUT0", LEFT), ("INPUT1", RIGHT)):
        tensor = client.InferInput(name, list(array.shape), "INT32")
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    return inputs


def failing_input(code: int) -> client.InferInput:
    tensor = client.InferInput("CODE", [1, 1], "INT32")
    tensor.set_data_from_numpy(np.array([[code]], dtype=np.int32))
    return tensor


def test_health(grpc: client.InferenceServerClient):
    assert grpc.is_server_live()
    assert grpc.is_server_ready()
    assert grpc.is_model_ready("add_sub")
    assert grpc.is_model_ready("versions", "1")


def test_server_metadata(grpc: client.InferenceServerClient):
    metadata = grpc.get_server_metadata()

    assert metadata.name == "triton"
    assert "binary_tensor_data" in metadata.extensions
    assert grpc.get_server_metadata(as_json=True)["name"] == "triton"


def test_model_metadata(grpc: client.InferenceServerClient):
    metadata = grpc.get_model_metadata("versions")

    assert list(metadata.versions) == ["1", "3"]
    assert metadata.inputs[0].datatype == "INT16"
    assert list(grpc.get_model_metadata("versions", "3").versions) == ["3"]


def test_model_config(grpc: client.InferenceServerClient):
    config = grpc.get_model_config("ident").config

    assert config.max_batch_size == 8
    assert list(config.dynamic_batching.preferred_batch_size) == [4, 8]


def test_statistics_count_an_inference(grpc: client.InferenceServerClient):
    def successes() -> int:
        (statistics,) = grpc.get_inference_statistics("add_sub").model_stats
        return statistics.inference_stats.success.count

    before = successes()
    grpc.infer("add_sub", add_sub_inputs())

    assert successes() == before + 1
    assert len(grpc.get_inference_statistics().model_stats) >= 6


def test_repository_index(grpc: client.InferenceServerClient):
    models = {(model.name, model.version, model.state) for model in grpc.get_model_repository_index().models}

    assert ("versions", "3", "READY") in models


def test_loading_is_refused_without_explicit_model_control(grpc: client.InferenceServerClient):
    for call in (grpc.load_model, grpc.unload_model):
        with pytest.raises(InferenceServerException, match="explicit model load / unload is not allowed"):
            call("add_sub")


@pytest.mark.parametrize("datatype", ARRAYS)
def test_every_datatype_goes_in_and_out(grpc: client.InferenceServerClient, datatype: str):
    tensor = client.InferInput(f"IN_{datatype}", [3], datatype)
    tensor.set_data_from_numpy(ARRAYS[datatype])

    result = grpc.infer("types", [tensor], outputs=[client.InferRequestedOutput(f"OUT_{datatype}")])

    assert_same(result.as_numpy(f"OUT_{datatype}"), datatype)


def test_only_requested_outputs_come(grpc: client.InferenceServerClient):
    result = grpc.infer("add_sub", add_sub_inputs(), outputs=[client.InferRequestedOutput("OUTPUT1")])

    assert result.as_numpy("OUTPUT0") is None
    np.testing.assert_array_equal(result.as_numpy("OUTPUT1"), LEFT - RIGHT)


def test_request_id_and_version_are_echoed(grpc: client.InferenceServerClient):
    tensor = client.InferInput("IN0", [2], "INT16")
    tensor.set_data_from_numpy(np.array([1, -1], dtype=np.int16))

    response = grpc.infer("versions", [tensor], model_version="1", request_id="my id").get_response()

    assert (response.id, response.model_name, response.model_version) == ("my id", "versions", "1")


def test_parameters_reach_the_model(grpc: client.InferenceServerClient):
    result = grpc.infer(
        "request_view",
        [],
        request_id="r",
        sequence_id=7,
        sequence_end=True,
        priority=1,
        timeout=1000,
        parameters={"a": 1, "b": "x", "c": True},
    )

    view = [line.decode() for line in result.as_numpy("VIEW").tolist()]
    assert view == [
        "id 'r'",
        "correlation id 7",
        "flags 2",
        "timeout 1000",
        'parameters {"a": 1, "b": "x", "c": true}',
        "requested ['ARGS', 'VIEW']",
    ]


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_requests(grpc: client.InferenceServerClient, algorithm: str):
    result = grpc.infer("add_sub", add_sub_inputs(), compression_algorithm=algorithm)

    np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), LEFT + RIGHT)


def test_async_infer(grpc: client.InferenceServerClient):
    answers: queue.Queue[Any] = queue.Queue()

    for _ in range(20):
        grpc.async_infer("add_sub", add_sub_inputs(), lambda result, error: answers.put((result, error)))

    for _ in range(20):
        result, error = answers.get(timeout=TIMEOUT_SECONDS)
        assert error is None
        np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), LEFT + RIGHT)


def test_errors_are_raised_with_their_code_and_text(grpc: client.InferenceServerClient):
    with pytest.raises(InferenceServerException, match="unknown model: 'unknown' is not found") as unknown:
        grpc.infer("unknown", add_sub_inputs())
    with pytest.raises(InferenceServerException, match="code 5 as asked") as unsupported:
        grpc.infer("failing", [failing_input(5)])

    assert unknown.value.status() == "StatusCode.NOT_FOUND"
    assert unsupported.value.status() == "StatusCode.UNIMPLEMENTED"


def test_a_stream_answers_in_order(grpc: client.InferenceServerClient):
    answers: queue.Queue[Any] = queue.Queue()
    grpc.start_stream(lambda result, error: answers.put((result, error)))

    for number in range(20):
        grpc.async_stream_infer("add_sub", add_sub_inputs(), request_id=str(number))

    for number in range(20):
        result, error = answers.get(timeout=TIMEOUT_SECONDS)
        assert error is None
        assert result.get_response().id == str(number)
        np.testing.assert_array_equal(result.as_numpy("OUTPUT1"), LEFT - RIGHT)
    grpc.stop_stream()


def test_a_stream_survives_an_error(grpc: client.InferenceServerClient):
    answers: queue.Queue[Any] = queue.Queue()
    grpc.start_stream(lambda result, error: answers.put((result, error)))

    grpc.async_stream_infer("failing", [failing_input(3)], request_id="bad")
    grpc.async_stream_infer("unknown", add_sub_inputs(), request_id="unknown")
    grpc.async_stream_infer("add_sub", add_sub_inputs(), request_id="good")

    errors = [answers.get(timeout=TIMEOUT_SECONDS)[1] for _ in range(2)]
    assert "code 3 as asked" in str(errors[0])
    assert "unknown model: 'unknown' is not found" in str(errors[1])
    result, error = answers.get(timeout=TIMEOUT_SECONDS)
    assert error is None
    assert result.get_response().id == "good"
    grpc.stop_stream()
