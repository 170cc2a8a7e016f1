"""Ragged batches through the published client: requests of different length in one execution."""

import json
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpcclient

from merrow.testing.repository_builder import RepositoryBuilder
from merrow.testing.running_server import RunningServer
from tests.backends.onnx.test_ragged import ragged_model

pytestmark = pytest.mark.slow

CONFIG = """
platform: "onnxruntime_onnx"
max_batch_size: 16
input { name: "x" data_type: TYPE_FP32 dims: [ -1 ] allow_ragged_batch: true }
output { name: "DOUBLED" data_type: TYPE_FP32 dims: [ -1 ] }
output { name: "SUM" data_type: TYPE_FP32 dims: [ 1 ] }
batch_input {
  kind: BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO
  target_name: "bounds" data_type: TYPE_INT32 source_input: "x"
}
batch_output { target_name: "DOUBLED" kind: BATCH_SCATTER_WITH_INPUT_SHAPE source_input: "x" }
dynamic_batching { max_queue_delay_microseconds: 200000 preferred_batch_size: [ 8 ] }
instance_group { count: 1 kind: KIND_CPU }
"""


def test_requests_of_different_length_share_an_execution(tmp_path: Path):
    RepositoryBuilder(tmp_path).add("ragged", CONFIG, {"1/model.onnx": ragged_model()})
    with RunningServer(tmp_path) as server, grpcclient.InferenceServerClient(server.grpc_url) as connection:

        def ask(length: int) -> tuple[list[list[float]], list[list[float]]]:
            array = np.arange(length, dtype=np.float32).reshape(1, length)
            tensor = grpcclient.InferInput("x", array.shape, "FP32")
            tensor.set_data_from_numpy(array)
            result = connection.infer("ragged", [tensor])
            return result.as_numpy("DOUBLED").tolist(), result.as_numpy("SUM").tolist()

        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(ask, range(1, 9)))
        with urllib.request.urlopen(f"http://{server.http_url}/v2/models/ragged/stats") as reply:
            statistics = json.load(reply)["model_stats"][0]

    for length, (doubled, total) in enumerate(answers, start=1):
        assert doubled == [[2.0 * value for value in range(length)]]
        assert total == [[float(sum(range(length)))]]
    assert statistics["inference_count"] == 8
    assert statistics["execution_count"] < 8
