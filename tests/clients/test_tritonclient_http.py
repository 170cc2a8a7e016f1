"""`tritonclient.http`, unmodified."""

from collections.abc import Iterator

import numpy as np
import pytest
import tritonclient.http as client
from tritonclient.utils import InferenceServerException

from tests.clients.arrays import ARRAYS, BINARY_ONLY, assert_same
from tests.clients.conftest import Endpoints

LEFT = np.array([10, 20, 30, 40], dtype=np.int32)
RIGHT = np.array([1, 2, 3, 4], dtype=np.int32)


@pytest.fixture(name="http")
def http_client(server: Endpoints) -> Iterator[client.InferenceServerClient]:
    with client.InferenceServerClient(server.http, concurrency=4) as http:
        yield http


def add_sub_inputs(is_binary: bool = True) -> list[client.InferInput]:
    inputs = []
    for name, array in (("INPUT0", LEFT), ("INPUT1", RIGHT)):
        tensor = client.InferInput(name, list(array.shape), "INT32")
        tensor.set_data_from_numpy(array, binary_data=is_binary)
        inputs.append(tensor)
    return inputs


def test_health(http: client.InferenceServerClient):
    assert http.is_server_live()
    assert http.is_server_ready()
    assert http.is_model_ready("add_sub")
    assert http.is_model_ready("versions", "1")
    assert not http.is_model_ready("unknown")
    assert not http.is_model_ready("versions", "2")


def test_server_metadata(http: client.InferenceServerClient):
    metadata = http.get_server_metadata()

    assert metadata["name"] == "triton"
    assert "binary_tensor_data" in metadata["extensions"]


def test_model_metadata(http: client.InferenceServerClient):
    assert http.get_model_metadata("versions") == {
        "name": "versions",
        "versions": ["1", "3"],
        "platform": "python",
        "inputs": [{"name": "IN0", "datatype": "INT16", "shape": [2]}],
        "outputs": [{"name": "OUT0", "datatype": "INT16", "shape": [2]}],
    }
    assert http.get_model_metadata("versions", "3")["versions"] == ["3"]


def test_model_config(http: client.InferenceServerClient):
    config = http.get_model_config("ident")

    assert config["max_batch_size"] == 8
    assert config["dynamic_batching"]["preferred_batch_size"] == [4, 8]
    assert config["input"][0]["dims"] == [16]


def test_statistics_count_an_inference(http: client.InferenceServerClient):
    def successes() -> int:
        (statistics,) = http.get_inference_statistics("add_sub")["model_stats"]
        return statistics["inference_stats"]["success"]["count"]

    before = successes()
    http.infer("add_sub", add_sub_inputs())

    assert successes() == before + 1
    assert {model["name"] for model in http.get_inference_statistics()["model_stats"]} >= {"add_sub", "types"}


def test_repository_index(http: client.InferenceServerClient):
    index = http.get_model_repository_index()

    assert {"name": "versions", "version": "3", "state": "READY"} in index


def test_loading_is_refused_without_explicit_model_control(http: client.InferenceServerClient):
    for call in (http.load_model, http.unload_model):
        with pytest.raises(InferenceServerException, match="explicit model load / unload is not allowed"):
            call("add_sub")


@pytest.mark.parametrize(
    ("datatype", "binary_in", "binary_out"),
    [
        (datatype, binary_in, binary_out)
        for datatype in ARRAYS
        for binary_in in (True, False)
        for binary_out in (True, False)
        # The others have no form in JSON.
        if datatype not in BINARY_ONLY or (binary_in and binary_out)
    ],
)
def test_every_datatype_goes_in_and_out(
    http: client.InferenceServerClient, datatype: str, binary_in: bool, binary_out: bool
):
    tensor = client.InferInput(f"IN_{datatype}", [3], datatype)
    tensor.set_data_from_numpy(ARRAYS[datatype], binary_data=binary_in)
    output = client.InferRequestedOutput(f"OUT_{datatype}", binary_data=binary_out)

    result = http.infer("types", [tensor], outputs=[output])

    assert_same(result.as_numpy(f"OUT_{datatype}"), datatype)


def test_all_datatypes_in_one_request(http: client.InferenceServerClient):
    inputs = []
    for datatype, array in ARRAYS.items():
        inputs.append(client.InferInput(f"IN_{datatype}", [3], datatype))
        inputs[-1].set_data_from_numpy(array)

    result = http.infer("types", inputs)

    for datatype in ARRAYS:
        assert_same(result.as_numpy(f"OUT_{datatype}"), datatype)


def test_only_requested_outputs_come(http: client.InferenceServerClient):
    result = http.infer("add_sub", add_sub_inputs(), outputs=[client.InferRequestedOutput("OUTPUT1")])

    assert result.as_numpy("OUTPUT0") is None
    np.testing.assert_array_equal(result.as_numpy("OUTPUT1"), LEFT - RIGHT)


def test_request_id_and_version_are_echoed(http: client.InferenceServerClient):
    tensor = client.InferInput("IN0", [2], "INT16")
    tensor.set_data_from_numpy(np.array([1, -1], dtype=np.int16))

    response = http.infer("versions", [tensor], model_version="1", request_id="my id").get_response()

    assert (response["id"], response["model_name"], response["model_version"]) == ("my id", "versions", "1")


def test_parameters_reach_the_model(http: client.InferenceServerClient):
    result = http.infer(
        "request_view",
        [],
        request_id="r",
        sequence_id=7,
        sequence_start=True,
        timeout=1000,
        parameters={"a": 1, "b": "x", "c": True},
    )

    view = [line.decode() for line in result.as_numpy("VIEW").tolist()]
    assert view == [
        "id 'r'",
        "correlation id 7",
        "flags 1",
        "timeout 1000",
        'parameters {"a": 1, "b": "x", "c": true}',
        "requested ['ARGS', 'VIEW']",
    ]


def test_classification(http: client.InferenceServerClient):
    tensor = client.InferInput("IN0", [1, 16], "FP32")
    tensor.set_data_from_numpy(np.array([[0, 5, 2, *[-1] * 13]], dtype=np.float32))

    result = http.infer("ident", [tensor], outputs=[client.InferRequestedOutput("OUT0", class_count=2)])

    assert result.as_numpy("OUT0").tolist() == [[b"5.000000:1:one", b"2.000000:2:two"]]


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compression_both_ways(http: client.InferenceServerClient, algorithm: str):
    result = http.infer(
        "add_sub",
        add_sub_inputs(),
        request_compression_algorithm=algorithm,
        response_compression_algorithm=algorithm,
    )

    np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), LEFT + RIGHT)


def test_async_infer(http: client.InferenceServerClient):
    pending = [http.async_infer("add_sub", add_sub_inputs(is_binary=number % 2 == 0)) for number in range(20)]

    for request in pending:
        np.testing.assert_array_equal(request.get_result().as_numpy("OUTPUT0"), LEFT + RIGHT)


def test_errors_are_raised_with_their_status_and_text(http: client.InferenceServerClient):
    with pytest.raises(InferenceServerException, match="unknown model: 'unknown' is not found") as unknown:
        http.infer("unknown", add_sub_inputs())
    with pytest.raises(InferenceServerException, match="expected 2 inputs but got 1 inputs for model 'add_sub'"):
        http.infer("add_sub", add_sub_inputs()[:1])

    assert unknown.value.status() == "404"


def test_a_models_error_is_raised(http: client.InferenceServerClient):
    tensor = client.InferInput("CODE", [1, 1], "INT32")
    tensor.set_data_from_numpy(np.array([[5]], dtype=np.int32))

    with pytest.raises(InferenceServerException, match="code 5 as asked") as raised:
        http.infer("failing", [tensor])

    assert raised.value.status() == "501"
