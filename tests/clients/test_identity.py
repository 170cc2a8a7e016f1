"""The identity backend under a real server: its metric, its activities in traces, and its lines in the log."""

import json
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http as client

from merrow.places.process.system import is_available
from merrow.testing.repository_builder import RepositoryBuilder
from merrow.testing.running_server import RunningServer

pytestmark = pytest.mark.slow

PLACES = ("inline", "thread", *(["process"] if is_available() else []))
TRACING = {"enable_custom_tracing": "true", "nested_span_count": "2", "single_activity_frequency": "2"}


def parameters(**values: str) -> str:
    return "".join(
        f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n' for key, value in values.items()
    )


def counters(server: RunningServer) -> dict[str, str]:
    """By model and version."""
    with urllib.request.urlopen(f"http://{server.metrics_url}/metrics", timeout=10) as answer:
        lines = [line for line in answer.read().decode().splitlines() if "input_byte_size_counter" in line]
    if lines:
        assert lines[:2] == [
            "# HELP input_byte_size_counter Cumulative input byte size of all requests received by the model",
            "# TYPE input_byte_size_counter counter",
        ]
    return dict(line.removeprefix("input_byte_size_counter").rsplit(" ", 1) for line in lines[2:])


def infer(http: client.InferenceServerClient, model: str, **arguments: object) -> np.ndarray:
    tensor = client.InferInput("INPUT0", [1, 5], "FP32")
    tensor.set_data_from_numpy(np.ones((1, 5), np.float32), binary_data=True)
    return http.infer(model, [tensor], **arguments).as_numpy("OUTPUT0")


@pytest.mark.parametrize("place", PLACES)
def test_bytes_of_inputs_are_counted_from_load_to_unload(tmp_path: Path, place: str):
    builder = RepositoryBuilder(tmp_path)
    group = "instance_group { kind: KIND_CPU count: 2 }\n"
    builder.add_identity("m", dims=(1, 5), extra_config=parameters(EXECUTION_PLACE=place) + group)
    with (
        RunningServer(tmp_path, "--model-control-mode=explicit") as server,
        client.InferenceServerClient(server.http_url) as http,
    ):
        assert counters(server) == {}
        for _ in range(2):
            http.load_model("m")
            assert counters(server) == {'{model="m",version="1"}': "0"}
            for _ in range(5):
                assert infer(http, "m").tolist() == [[1.0] * 5]
            assert counters(server) == {'{model="m",version="1"}': "100"}
            with pytest.raises(client.InferenceServerException) as caught:
                infer(http, "m", sequence_id="text", request_id="r")
            assert caught.value.message() == "[request id: r] correlation ID in request is not an unsigned int"
            assert counters(server) == {'{model="m",version="1"}': "100"}
            http.unload_model("m")
            deadline = time.monotonic() + 15
            while http.get_model_repository_index()[0].get("state") != "UNAVAILABLE":
                assert time.monotonic() < deadline
            assert counters(server) == {}


def test_activities_are_in_a_trace_and_lines_in_a_verbose_log(tmp_path: Path):
    builder = RepositoryBuilder(tmp_path / "models")
    for place in ("inline", "thread"):
        builder.add_identity(place, dims=(1, 5), extra_config=parameters(EXECUTION_PLACE=place, **TRACING))
    file = tmp_path / "trace.json"
    trace = (f"--trace-config=triton,file={file}", "--trace-config=level=TIMESTAMPS", "--trace-config=rate=1")
    with (
        RunningServer(builder.path, "--log-verbose=1", *trace) as server,
        client.InferenceServerClient(server.http_url) as http,
    ):
        for place in ("inline", "thread"):
            infer(http, place)
        server.wait_for_log("input INPUT0: datatype = FP32, shape = [1,5], byte_size = 20, buffer_count = 1", 2)
        server.wait_for_log("requested_output OUTPUT0", 2)

    for number in (1, 2):
        times = [
            (stamp["name"], stamp["ns"])
            for entry in json.loads(file.read_text())
            if entry["id"] == number
            for stamp in entry.get("timestamps", ())
        ]
        assert [name for name, _ in times if name.startswith("CUSTOM")] == [
            "CUSTOM_ACTIVITY_START",
            "CUSTOM_ACTIVITY_END",
            "CUSTOM_SINGLE_ACTIVITY",
            "CUSTOM_ACTIVITY0_START",
            "CUSTOM_SINGLE_ACTIVITY",
            "CUSTOM_ACTIVITY1_START",
            "CUSTOM_ACTIVITY1_END",
            "CUSTOM_ACTIVITY0_END",
        ]
        at = dict(times)
        assert at["COMPUTE_START"] <= at["CUSTOM_ACTIVITY_START"] <= at["CUSTOM_ACTIVITY_END"] - 100_000_000
        assert at["CUSTOM_ACTIVITY0_END"] <= at["COMPUTE_END"]


@pytest.mark.skipif(not is_available(), reason="needs fork and Unix sockets")
def test_activities_are_refused_in_a_process_of_the_model_s_own(tmp_path: Path):
    RepositoryBuilder(tmp_path).add_identity("m", extra_config=parameters(EXECUTION_PLACE="process", **TRACING))
    with (
        RunningServer(tmp_path, "--model-control-mode=explicit") as server,
        client.InferenceServerClient(server.http_url) as http,
    ):
        with pytest.raises(client.InferenceServerException) as caught:
            http.load_model("m")
        assert "parameter 'enable_custom_tracing' of model 'm' works in the server's process only" in str(caught.value)
        assert counters(server) == {}
