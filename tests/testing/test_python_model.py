"""The harness as a user's tests would use it."""

import sys

import numpy as np
import pytest

from merrow.core.errors import InternalError, InvalidArgumentError, UnavailableError
from merrow.testing.python_model import (
    ModelRequest,
    ModelResponse,
    PythonModelHarness,
    install_backend_utils,
    run_model,
)
from merrow.testing.repository_builder import RepositoryBuilder, python_config

ONES = np.ones((1, 4), np.float32)


@pytest.fixture(autouse=True)
def modules_as_before():
    """Models are imported under the names that they have in a server."""
    before = dict(sys.modules)
    path = list(sys.path)
    yield
    for name in [name for name in sys.modules if name not in before]:
        del sys.modules[name]
    sys.path[:] = path


@pytest.fixture
def repository(tmp_path):
    return RepositoryBuilder(tmp_path / "models")


def add_model(repository, source, extra_config="", max_batch_size=8, name="m"):
    config = python_config(
        name, [("IN", "FP32", (4,))], [("OUT", "FP32", (4,)), ("TEXT", "BYTES", (1,))], max_batch_size, extra_config
    )
    return repository.add(name, config, {"1/model.py": source})


LIFE = """\
import json

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.args = args
        self.factor = float(json.loads(args["model_config"])["parameters"]["factor"]["string_value"])

    def execute(self, requests):
        responses = []
        for request in requests:
            array = pb_utils.get_input_tensor_by_name(request, "IN").as_numpy()
            if array[0, 0] < 0:
                raise ValueError("negative")
            if array[0, 0] > 100:
                error = pb_utils.TritonError("too large", pb_utils.TritonError.INVALID_ARG)
                responses.append(pb_utils.InferenceResponse(error=error))
                continue
            array *= self.factor
            text = np.array([[f"{len(requests)} {request.request_id()} {request.parameters()}".encode()]], dtype=object)
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", array), pb_utils.Tensor("TEXT", text)]))
        return responses

    def finalize(self):
        open(self.args["model_repository"] + "/finalized", "w").close()
"""
FACTOR = 'parameters { key: "factor" value { string_value: "3" } }'


def test_a_model_lives_as_in_a_server(repository):
    directory = add_model(repository, LIFE, FACTOR)
    with PythonModelHarness(directory) as model:
        outputs = model.execute({"IN": ONES}, id="one", parameters={"p": 1})
        assert not (directory / "finalized").exists()

    assert outputs["OUT"].tolist() == [[3, 3, 3, 3]]
    assert outputs["TEXT"].tolist() == [[b'1 one {"p":1}']]
    # The test's own array is as it was.
    assert ONES.tolist() == [[1, 1, 1, 1]]
    assert (directory / "finalized").exists()


def test_several_requests_make_one_batch(repository):
    with PythonModelHarness(add_model(repository, LIFE, FACTOR)) as model:
        first, second = model.execute_batch([ModelRequest({"IN": ONES}), ModelRequest({"IN": ONES * 200})])

    assert first[0].outputs["TEXT"].tolist() == [[b"2  {}"]]
    assert isinstance(second[0].error, InvalidArgumentError)
    assert second[0].error.message == "too large"


def test_errors_are_those_that_a_client_would_see(repository):
    directory = add_model(repository, LIFE, FACTOR)
    with PythonModelHarness(directory) as model:
        with pytest.raises(InternalError) as failed:
            model.execute({"IN": -ONES})
        with pytest.raises(InvalidArgumentError, match="too large"):
            model.execute({"IN": ONES * 200})
        with pytest.raises(InvalidArgumentError, match="unexpected shape for input 'IN' for model 'm'"):
            model.execute({"IN": np.ones((1, 5), np.float32)})
        with pytest.raises(InvalidArgumentError, match="inference input 'IN' data-type is 'INT32'"):
            model.execute({"IN": np.ones((1, 4), np.int32)})
    assert failed.value.message == (
        "Failed to process the request(s) for model 'm_0_0', message: ValueError: negative\n\n"
        f"At:\n  {directory}/1/model.py(17): execute\n"
    )


def test_a_configuration_of_the_test_replaces_the_model_s(repository):
    directory = add_model(repository, LIFE, FACTOR)
    for config in (
        (directory / "config.pbtxt").read_text().replace('"3"', '"5"'),
        {
            "max_batch_size": 8,
            "input": [{"name": "IN", "data_type": "TYPE_FP32", "dims": [4]}],
            "output": [
                {"name": "OUT", "data_type": "TYPE_FP32", "dims": [4]},
                {"name": "TEXT", "data_type": "TYPE_STRING", "dims": [1]},
            ],
            "parameters": {"factor": {"string_value": "5"}},
        },
    ):
        assert run_model(directory, {"IN": ONES}, config)["OUT"].tolist() == [[5, 5, 5, 5]]


def test_a_configuration_that_is_none_is_refused(repository):
    directory = add_model(repository, LIFE, FACTOR)
    with pytest.raises(InvalidArgumentError, match="the configuration cannot be read"):
        PythonModelHarness(directory, "max_batch_size: many")


def test_a_model_that_does_not_load_says_why(repository):
    directory = add_model(repository, "import nothing_of_this_name")
    with pytest.raises(InternalError, match="ModuleNotFoundError: No module named 'nothing_of_this_name'"):
        PythonModelHarness(directory).__enter__()


COMPLETING = """\
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        config.add_input({"name": "IN", "data_type": "TYPE_FP32", "dims": [-1]})
        config.add_output({"name": "OUT", "data_type": "TYPE_FP32", "dims": [-1]})
        config.set_max_batch_size(0)
        return config

    def execute(self, requests):
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor("OUT", request.inputs()[0].as_numpy() + 1)])
            for request in requests
        ]
"""


def test_a_file_that_completes_its_configuration_needs_no_other(tmp_path):
    (tmp_path / "plus_one.py").write_text(COMPLETING)
    with PythonModelHarness(tmp_path / "plus_one.py") as model:
        assert model.config.name == "plus_one"
        assert [each.name for each in model.config.input] == ["IN"]
        assert model.execute({"IN": np.arange(3, dtype=np.float32)})["OUT"].tolist() == [1, 2, 3]


def test_versions_are_chosen(repository):
    directory = add_model(repository, LIFE, FACTOR)
    (directory / "2").mkdir()
    (directory / "2" / "model.py").write_text(LIFE.replace("*= self.factor", "*= 0"))

    assert run_model(directory, {"IN": ONES})["OUT"].tolist() == [[0, 0, 0, 0]]
    assert run_model(directory, {"IN": ONES}, version=1)["OUT"].tolist() == [[3, 3, 3, 3]]
    with pytest.raises(FileNotFoundError):
        PythonModelHarness(repository.path / "absent")


def test_a_class_of_the_test_is_a_model_too():
    install_backend_utils()
    import triton_python_backend_utils as pb_utils

    class Half:
        def execute(self, requests):
            return [
                pb_utils.InferenceResponse([pb_utils.Tensor("OUT", request.inputs()[0].as_numpy() / 2)])
                for request in requests
            ]

    config = {
        "name": "half",
        "input": [{"name": "IN", "data_type": "TYPE_FP32", "dims": [4]}],
        "output": [{"name": "OUT", "data_type": "TYPE_FP32", "dims": [4]}],
    }
    assert run_model(Half, {"IN": ONES[0]}, config)["OUT"].tolist() == [0.5] * 4


def test_a_model_s_file_can_be_imported_by_the_test(repository, monkeypatch):
    directory = add_model(repository, LIFE, FACTOR)
    install_backend_utils(directory)
    monkeypatch.syspath_prepend(directory / "1")
    import model

    with PythonModelHarness(model.TritonPythonModel, directory / "config.pbtxt") as harness:
        assert harness.execute({"IN": ONES})["OUT"].tolist() == [[3, 3, 3, 3]]


REPEAT = """\
import threading

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            count = int(request.inputs()[0].as_numpy()[0])
            threading.Thread(target=self.send, args=(request.get_response_sender(), count)).start()
        return None

    def send(self, sender, count):
        for number in range(count):
            array = np.full(4, number, np.float32)
            sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", array)]))
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""
DECOUPLED = "model_transaction_policy { decoupled: true }"


@pytest.mark.parametrize("count", [0, 1, 3])
def test_all_responses_of_a_decoupled_model_are_collected(repository, count):
    directory = add_model(repository, REPEAT, DECOUPLED, max_batch_size=0)
    with PythonModelHarness(directory) as model:
        responses = model.stream({"IN": np.full(4, count, np.float32)})

    assert [response.outputs["OUT"][0] for response in responses if not response.is_empty] == list(range(count))
    assert [response.is_final for response in responses] == [False] * (len(responses) - 1) + [True]


def test_a_request_that_is_never_over_is_noticed(repository):
    source = REPEAT.replace(
        "        sender.send(flags", "        self.kept = sender\n        return\n        sender.send(flags"
    )
    directory = add_model(repository, source, DECOUPLED, max_batch_size=0)
    with PythonModelHarness(directory, timeout_seconds=0.2) as model, pytest.raises(TimeoutError, match="is not over"):
        model.stream({"IN": np.zeros(4, np.float32)})


CALLING = """\
import asyncio

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    async def execute(self, requests):
        responses = []
        for request in requests:
            calls = [
                pb_utils.InferenceRequest(
                    model_name=name, requested_output_names=["Y"], inputs=[pb_utils.Tensor("X", each.as_numpy())]
                )
                for name in ("double", "square")
                for each in request.inputs()
            ]
            answers = await asyncio.gather(*[call.async_exec() for call in calls])
            for answer in answers:
                if answer.has_error():
                    raise pb_utils.TritonModelException(answer.error().message())
            total = sum(pb_utils.get_output_tensor_by_name(answer, "Y").as_numpy() for answer in answers)
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", total)]))
        return responses
"""


def test_models_that_it_calls_are_functions_of_the_test(repository):
    directory = add_model(repository, CALLING)
    models = {
        "double": lambda request: {"Y": request.inputs["X"] * 2},
        "square": lambda request: ModelResponse({"Y": request.inputs["X"] ** 2, "Z": request.inputs["X"]}),
    }
    with PythonModelHarness(directory, models=models) as model:
        assert model.execute({"IN": ONES * 3})["OUT"].tolist() == [[15, 15, 15, 15]]
        assert sorted(name for name, _ in model.calls) == ["double", "square"]
        assert model.calls[0][1].requested_outputs == ("Y",)


def test_errors_of_models_that_it_calls_reach_it(repository):
    directory = add_model(repository, CALLING)

    def refuse(request):
        raise UnavailableError("not today")

    models = {"double": refuse, "square": refuse}
    with PythonModelHarness(directory, models=models) as model, pytest.raises(InternalError, match="not today"):
        model.execute({"IN": ONES})
    with PythonModelHarness(directory) as model, pytest.raises(InternalError, match="the test has no model 'double'"):
        model.execute({"IN": ONES})


CALLING_DECOUPLED = """\
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            call = pb_utils.InferenceRequest(
                model_name="count", requested_output_names=["Y"], inputs=[pb_utils.Tensor("X", np.ones(1, np.float32))]
            )
            total = np.zeros(4, np.float32)
            for answer in call.exec(decoupled=True):
                if len(answer.output_tensors()):
                    total += pb_utils.get_output_tensor_by_name(answer, "Y").as_numpy()
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", total)]))
        return responses
"""


def test_a_generator_stands_for_a_decoupled_model(repository):
    def count(request):
        for number in range(4):
            yield {"Y": np.full(1, number, np.float32)}

    directory = add_model(repository, CALLING_DECOUPLED, max_batch_size=0)
    with PythonModelHarness(directory, models={"count": count}) as model:
        assert model.execute({"IN": ONES[0]})["OUT"].tolist() == [6, 6, 6, 6]


ASKING = """\
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        family = pb_utils.MetricFamily(name="requests", description="so many", kind=pb_utils.MetricFamily.COUNTER)
        self.counter = family.Metric(labels={"model": args["model_name"]})

    def execute(self, requests):
        self.counter.increment(len(requests))
        if not pb_utils.is_model_ready("other"):
            pb_utils.load_model("other")
        text = np.array([str(self.counter.value()).encode()], dtype=object)
        return [pb_utils.InferenceResponse([pb_utils.Tensor("TEXT", text)]) for _ in requests]
"""


def test_metrics_and_loads_can_be_looked_at(repository):
    directory = add_model(repository, ASKING, max_batch_size=0)
    with PythonModelHarness(directory) as model:
        assert model.execute({"IN": ONES[0]})["TEXT"].tolist() == [b"1.0"]
        assert [(metric.name, metric.labels, metric.value) for metric in model.metrics] == [
            ("requests", {"model": "m"}, 1.0)
        ]
        assert [each.name for each in model.loaded] == ["other"]


def test_a_cancelled_request_is_seen_as_such(repository):
    source = LIFE.replace("array *= self.factor", "array *= request.is_cancelled()")
    with PythonModelHarness(add_model(repository, source, FACTOR)) as model:
        assert model.execute({"IN": ONES}, is_cancelled=True)["OUT"].tolist() == [[1, 1, 1, 1]]
        assert model.execute({"IN": ONES})["OUT"].tolist() == [[0, 0, 0, 0]]


def test_what_is_not_used_right_says_so(repository):
    directory = add_model(repository, LIFE, FACTOR)
    with pytest.raises(AssertionError, match="by entering the harness"):
        PythonModelHarness(directory).execute({"IN": ONES})
