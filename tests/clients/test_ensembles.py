"""Ensembles through the published clients, in a real server process."""

import json
import queue
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
from tritonclient.utils import InferenceServerException

from merrow.testing.repository_builder import ADD_SUB_SOURCE, RepositoryBuilder, model_config, python_config
from merrow.testing.running_server import RunningServer

pytestmark = pytest.mark.slow

SLOW_SOURCE = """\
import time

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        pb_utils.Logger.log_info("the slow model has begun")
        for request in requests:
            while not request.is_cancelled():
                time.sleep(0.005)
        pb_utils.Logger.log_info("the slow model was told")
        return [pb_utils.InferenceResponse([]) for _ in requests]
"""

FAILING_SOURCE = """\
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        error = pb_utils.TritonError("boom", pb_utils.TritonError.UNAVAILABLE)
        return [pb_utils.InferenceResponse(error=error) for _ in requests]
"""

GATE_SOURCE = """\
import os
import time

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        pb_utils.Logger.log_info("the gate was reached")
        while not os.path.exists(__file__ + ".open"):
            time.sleep(0.005)
        inputs = [pb_utils.get_input_tensor_by_name(request, "IN").as_numpy() for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("OUT", each)]) for each in inputs]
"""

PRODUCER_SOURCE = """\
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            for number in range(120):
                sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", np.full(65536, number, np.int32))]))
                print("produced", number, flush=True)
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""

CONSUMER_SOURCE = """\
import time

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        time.sleep(0.005)
        inputs = [pb_utils.get_input_tensor_by_name(request, "IN").as_numpy() for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("OUT", each[:1])]) for each in inputs]
"""


def ensemble_config(
    inputs: list[tuple[str, str, tuple[int, ...]]],
    outputs: list[tuple[str, str, tuple[int, ...]]],
    steps: list[tuple[str, dict[str, str], dict[str, str]]],
    max_batch_size: int = 0,
    extra: str = "",
) -> str:
    text = model_config("", "", inputs, outputs, max_batch_size).replace(
        'name: ""\nbackend: ""', 'platform: "ensemble"'
    )
    text += "ensemble_scheduling {\n"
    for model_name, input_map, output_map in steps:
        text += f'  step {{ model_name: "{model_name}" model_version: -1\n'
        text += "".join(f'    input_map {{ key: "{key}" value: "{value}" }}\n' for key, value in input_map.items())
        text += "".join(f'    output_map {{ key: "{key}" value: "{value}" }}\n' for key, value in output_map.items())
        text += "  }\n"
    return text + extra + "}\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    repository = RepositoryBuilder(tmp_path_factory.mktemp("ensembles"))
    int32_pair = [("INPUT0", "INT32", (4,)), ("INPUT1", "INT32", (4,))]
    outputs = [("OUTPUT0", "INT32", (4,)), ("OUTPUT1", "INT32", (4,))]
    repository.add("add_sub", python_config("add_sub", int32_pair, outputs, 8), {"1/model.py": ADD_SUB_SOURCE})
    repository.add_identity("identity", "INT32", (4,), 8)
    one = [("IN", "INT32", (1,))], [("OUT", "INT32", (1,))]
    repository.add("slow", python_config("slow", *one), {"1/model.py": SLOW_SOURCE})
    repository.add("failing", python_config("failing", *one), {"1/model.py": FAILING_SOURCE})
    decoupled = "model_transaction_policy { decoupled: true }"
    repository.add("square", model_config("square", "square", *one, 0, decoupled))
    repository.add_identity("one_identity", "INT32", (1,))
    step = ("add_sub", {"INPUT0": "X", "INPUT1": "Y"}, {"OUTPUT0": "SUM", "OUTPUT1": "DIFFERENCE"})
    repository.add(
        "two_steps",
        ensemble_config(
            [("X", "INT32", (4,)), ("Y", "INT32", (4,))],
            [("RESULT", "INT32", (4,)), ("DIFFERENCE", "INT32", (4,))],
            [step, ("identity", {"INPUT0": "SUM"}, {"OUTPUT0": "RESULT"})],
            8,
        ),
    )
    chain = [("X", "INT32", (1,))], [("Z", "INT32", (1,))]
    for name, model in (("waits", "slow"), ("fails", "failing")):
        repository.add(name, ensemble_config(*chain, [(model, {"IN": "X"}, {"OUT": "Z"})]))
    repository.add(
        "streams",
        ensemble_config(
            *chain,
            [("square", {"IN": "X"}, {"OUT": "Y"}), ("one_identity", {"INPUT0": "Y"}, {"OUTPUT0": "Z"})],
            extra="max_inflight_requests: 2\n",
        ),
    )
    with RunningServer(repository.path) as running:
        yield running


def int32(client: object, name: str, values: object) -> object:
    array = np.array(values, dtype=np.int32)
    tensor = client.InferInput(name, array.shape, "INT32")  # type: ignore[attr-defined]
    tensor.set_data_from_numpy(array)
    return tensor


def statistics(server: RunningServer, model: str) -> dict[str, object]:
    with urllib.request.urlopen(f"http://{server.http_url}/v2/models/{model}/stats") as reply:
        (entry,) = json.load(reply)["model_stats"]
    assert isinstance(entry, dict)
    return entry


@pytest.mark.parametrize("client", [httpclient, grpcclient])
def test_two_steps_over_both_protocols(server: RunningServer, client: object):
    url = server.http_url if client is httpclient else server.grpc_url
    with client.InferenceServerClient(url) as connection:  # type: ignore[attr-defined]
        inputs = [int32(client, "X", [[1, 2, 3, 4], [5, 6, 7, 8]]), int32(client, "Y", [[1, 1, 1, 1], [2, 2, 2, 2]])]
        result = connection.infer("two_steps", inputs)

    assert result.as_numpy("RESULT").tolist() == [[2, 3, 4, 5], [7, 8, 9, 10]]
    assert result.as_numpy("DIFFERENCE").tolist() == [[0, 1, 2, 3], [3, 4, 5, 6]]


def test_many_requests_at_once_each_get_their_own_answer(server: RunningServer):
    before = statistics(server, "two_steps")["inference_stats"]["success"]["count"]  # type: ignore[index]
    with grpcclient.InferenceServerClient(server.grpc_url) as connection:

        def ask(number: int) -> list[list[int]]:
            rows = number % 3 + 1
            inputs = [
                int32(grpcclient, "X", [[number] * 4] * rows),
                int32(grpcclient, "Y", [[row] * 4 for row in range(rows)]),
            ]
            answer: list[list[int]] = connection.infer("two_steps", inputs).as_numpy("RESULT").tolist()
            return answer

        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(ask, range(200)))

    assert answers == [[[number + row] * 4 for row in range(number % 3 + 1)] for number in range(200)]
    counted = statistics(server, "two_steps")
    assert counted["inference_stats"]["success"]["count"] == before + 200  # type: ignore[index]
    assert counted["inference_stats"]["compute_infer"]["ns"] > 0  # type: ignore[index]


def test_an_output_that_is_not_asked_for_saves_its_steps(server: RunningServer):
    before = statistics(server, "identity")["execution_count"]
    with httpclient.InferenceServerClient(server.http_url) as connection:
        inputs = [int32(httpclient, "X", [[1] * 4]), int32(httpclient, "Y", [[1] * 4])]
        result = connection.infer("two_steps", inputs, outputs=[httpclient.InferRequestedOutput("DIFFERENCE")])

    assert [output["name"] for output in result.get_response()["outputs"]] == ["DIFFERENCE"]
    assert statistics(server, "identity")["execution_count"] == before


def test_an_error_of_a_step_says_in_which_ensemble(server: RunningServer):
    with (
        httpclient.InferenceServerClient(server.http_url) as connection,
        pytest.raises(InferenceServerException) as raised,
    ):
        connection.infer("fails", [int32(httpclient, "X", [1])])
    assert (raised.value.status(), raised.value.message()) == ("503", "in ensemble 'fails', boom")


def test_responses_of_a_decoupled_step_come_in_order(server: RunningServer):
    received: queue.Queue[tuple[object, object]] = queue.Queue()
    with grpcclient.InferenceServerClient(server.grpc_url) as connection:
        connection.start_stream(lambda result, error: received.put((result, error)))
        connection.async_stream_infer(
            "streams", [int32(grpcclient, "X", [12])], request_id="r", enable_empty_final_response=True
        )
        values = []
        while True:
            result, error = received.get(timeout=20)
            assert error is None
            response = result.get_response()  # type: ignore[attr-defined]
            if response.outputs:
                values += result.as_numpy("Z").tolist()  # type: ignore[attr-defined]
            if response.parameters["triton_final_response"].bool_param:
                break
        connection.stop_stream()
    assert values == [12] * 12


def test_the_configuration_says_that_a_step_is_decoupled(server: RunningServer):
    with httpclient.InferenceServerClient(server.http_url) as connection:
        config = connection.get_model_config("streams")
    assert config["model_transaction_policy"] == {"decoupled": True}
    assert config["instance_group"] == []


def test_a_client_that_leaves_reaches_the_model_of_the_step(server: RunningServer):
    with grpcclient.InferenceServerClient(server.grpc_url) as connection:
        answered: queue.Queue[tuple[object, object]] = queue.Queue()
        call = connection.async_infer(
            "waits", [int32(grpcclient, "X", [1])], lambda result, error: answered.put((result, error))
        )
        server.wait_for_log("the slow model has begun")
        call.cancel()
        _, error = answered.get(timeout=20)
        assert error is not None
    server.wait_for_log("the slow model was told")


def test_a_step_that_runs_ahead_is_held_back(tmp_path: Path):
    """With max_inflight_requests, a fast decoupled model waits for the slow one after it."""
    repository = RepositoryBuilder(tmp_path)
    one, many = [("IN", "INT32", (1,))], [("OUT", "INT32", (-1,))]
    decoupled = "model_transaction_policy { decoupled: true }"
    repository.add("producer", python_config("producer", one, many, 0, decoupled), {"1/model.py": PRODUCER_SOURCE})
    consumer = python_config("consumer", [("IN", "INT32", (-1,))], [("OUT", "INT32", (1,))])
    repository.add("consumer", consumer, {"1/model.py": CONSUMER_SOURCE})
    steps = [("producer", {"IN": "X"}, {"OUT": "Y"}), ("consumer", {"IN": "Y"}, {"OUT": "Z"})]
    config = ensemble_config([("X", "INT32", (1,))], [("Z", "INT32", (1,))], steps, extra="max_inflight_requests: 2\n")
    repository.add("held", config)
    received: queue.Queue[tuple[object, object]] = queue.Queue()
    with RunningServer(tmp_path) as server, grpcclient.InferenceServerClient(server.grpc_url) as connection:
        connection.start_stream(lambda result, error: received.put((result, error)))
        connection.async_stream_infer("held", [int32(grpcclient, "X", [1])])
        values = []
        for _ in range(120):
            result, error = received.get(timeout=30)
            assert error is None
            values += result.as_numpy("Z").tolist()  # type: ignore[attr-defined]
            if len(values) == 30:
                produced = server.log.count("produced ")
        connection.stop_stream()
    assert values == list(range(120))
    assert produced < 90


def test_what_an_ensemble_of_ensembles_accepted_is_finished_through_an_unload(tmp_path: Path):
    repository = RepositoryBuilder(tmp_path)
    one = [("IN", "INT32", (1,))], [("OUT", "INT32", (1,))]
    gate = repository.add("gate", python_config("gate", *one), {"1/model.py": GATE_SOURCE})
    repository.add_identity("leaf", "INT32", (1,))
    chain = [("X", "INT32", (1,))], [("Z", "INT32", (1,))]
    repository.add("inner", ensemble_config(*chain, [("leaf", {"INPUT0": "X"}, {"OUTPUT0": "Z"})]))
    steps = [("gate", {"IN": "X"}, {"OUT": "Y"}), ("inner", {"X": "Y"}, {"Z": "Z"})]
    repository.add("outer", ensemble_config(*chain, steps))
    answered: queue.Queue[tuple[object, object]] = queue.Queue()
    with (
        RunningServer(tmp_path, "--model-control-mode=explicit", "--load-model=outer") as server,
        grpcclient.InferenceServerClient(server.grpc_url) as connection,
    ):
        connection.async_infer(
            "outer", [int32(grpcclient, "X", [7])], lambda result, error: answered.put((result, error))
        )
        server.wait_for_log("the gate was reached")
        connection.unload_model("leaf")
        with pytest.raises(
            InferenceServerException, match="Request for unknown model: 'outer' has no available versions"
        ):
            connection.infer("outer", [int32(grpcclient, "X", [7])])
        (gate / "1" / "model.py.open").touch()
        result, error = answered.get(timeout=20)
        assert error is None
        assert result.as_numpy("Z").tolist() == [7]  # type: ignore[attr-defined]
        server.wait_for_log("successfully unloaded 'leaf' version 1")


LOAD_FAILURES = {
    "circle_a": (
        ensemble_config([("X", "INT32", (4,))], [("Z", "INT32", (4,))], [("circle_b", {"X": "X"}, {"Z": "Z"})]),
        "circular dependency between ensembles: circle_a -> ... -> circle_b -> circle_a",
    ),
    "circle_b": (
        ensemble_config([("X", "INT32", (4,))], [("Z", "INT32", (4,))], [("circle_a", {"X": "X"}, {"Z": "Z"})]),
        "circular dependency between ensembles: circle_b -> ... -> circle_a -> circle_b",
    ),
    "mismatch": (
        ensemble_config(
            [("X", "INT32", (4,))], [("Z", "FP32", (4,))], [("identity", {"INPUT0": "X"}, {"OUTPUT0": "Z"})]
        ),
        "in ensemble mismatch, ensemble tensor Z: inconsistent data type: TYPE_FP32 is inferred from model mismatch "
        "while TYPE_INT32 is inferred from model identity",
    ),
    "too_large": (
        ensemble_config(
            [("X", "INT32", (4,))], [("Z", "INT32", (4,))], [("identity", {"INPUT0": "X"}, {"OUTPUT0": "Z"})], 16
        ),
        "ensemble too_large allows maximum batch size 16, but it contains model identity which only allows maximum "
        "batch size to be 8",
    ),
    "incomplete": (
        ensemble_config([("X", "INT32", (4,))], [("Z", "INT32", (4,))], [("nowhere", {"I": "X"}, {"O": "Z"})]),
        "ensemble incomplete contains models that are not available or ambiguous: nowhere",
    ),
    "unwanted": (
        ensemble_config(
            [("X", "INT32", (4,))], [("Z", "INT32", (4,))], [("identity", {"INPUT9": "X"}, {"OUTPUT0": "Z"})]
        ),
        "in ensemble unwanted, ensemble tensor X is mapping to non-existing input INPUT9 in model identity",
    ),
}


def test_what_does_not_fit_together_is_refused_at_load(tmp_path: Path):
    repository = RepositoryBuilder(tmp_path)
    repository.add_identity("identity", "INT32", (4,), 8)
    for name, (config, _) in LOAD_FAILURES.items():
        repository.add(name, config)
    with (
        RunningServer(tmp_path, "--model-control-mode=explicit") as running,
        httpclient.InferenceServerClient(running.http_url) as connection,
    ):
        for name, (_, text) in LOAD_FAILURES.items():
            with pytest.raises(InferenceServerException) as raised:
                connection.load_model(name)
            assert text in raised.value.message() or text in running.log, name
