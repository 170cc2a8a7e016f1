"""The example models, without a server: what they answer, against another way to the same answer."""

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
from magika import Magika

from examples.wheels import CACHE

EXAMPLES = Path(__file__).parents[2] / "examples"
MODELS = EXAMPLES / "models"
LARGEST_FILE_BYTE_SIZE = 5 * 1024 * 1024


class Tensor:
    """As much of pb_utils.Tensor as the models use."""

    def __init__(self, name, array):
        self.name = name
        self.array = array

    def as_numpy(self):
        return self.array


class CompletedConfig:
    """Records what a model declares of itself."""

    def __init__(self):
        self.inputs = []
        self.outputs = []

    def add_input(self, entry):
        self.inputs.append(entry)

    def add_output(self, entry):
        self.outputs.append(entry)


@pytest.fixture
def load_model(monkeypatch):
    """Imports a model's file with a stand-in for the module that Python models import."""
    utilities = SimpleNamespace(
        Tensor=Tensor,
        InferenceResponse=lambda output_tensors: {tensor.name: tensor.array for tensor in output_tensors},
        get_input_tensor_by_name=lambda request, name: Tensor(name, request[name]),
        get_output_config_by_name=lambda config, name: next(
            output for output in config["output"] if output["name"] == name
        ),
        triton_string_to_numpy={"TYPE_FP32": np.float32}.__getitem__,
    )
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", utilities)

    def load(name):
        spec = importlib.util.spec_from_file_location(f"example_{name}", MODELS / name / "1" / "model.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.TritonPythonModel

    return load


class TestAddSub:
    def test_it_adds_and_subtracts_each_request_on_its_own(self, load_model):
        outputs = [{"name": name, "data_type": "TYPE_FP32"} for name in ("OUTPUT0", "OUTPUT1")]
        model = load_model("add_sub")()
        model.initialize({"model_config": json.dumps({"output": outputs})})
        left, right = np.array([1, 2, 3, 4], np.float32), np.array([4, 3, 2, 1], np.float32)

        first, second = model.execute([{"INPUT0": left, "INPUT1": right}, {"INPUT0": right, "INPUT1": right}])

        assert first["OUTPUT0"].tolist() == [5, 5, 5, 5]
        assert first["OUTPUT1"].tolist() == [-3, -1, 1, 3]
        assert second["OUTPUT1"].tolist() == [0, 0, 0, 0]
        assert first["OUTPUT0"].dtype == np.float32


class TestDigits:
    labels = (MODELS / "digits" / "labels.txt").read_text().split()
    samples = json.loads((EXAMPLES / "digits" / "samples.json").read_text())

    def test_there_is_a_sample_of_each_digit(self):
        assert [sample["label"] for sample in self.samples] == self.labels

    def test_the_model_knows_the_samples(self):
        session = onnxruntime.InferenceSession(MODELS / "digits" / "1" / "model.onnx")
        images = np.array([sample["image"] for sample in self.samples], np.float32)

        (probabilities,) = session.run(["probabilities"], {"image": images})

        assert probabilities.shape == (10, 10)
        assert probabilities.argmax(axis=1).tolist() == list(range(10))
        assert np.allclose(probabilities.sum(axis=1), 1)

    def test_the_configuration_names_the_tensors_of_the_file(self):
        text = (MODELS / "digits" / "config.pbtxt").read_text()
        session = onnxruntime.InferenceSession(MODELS / "digits" / "1" / "model.onnx")

        names = [tensor.name for tensor in (*session.get_inputs(), *session.get_outputs())]

        assert re.findall(r'name: "(\w+)"', text) == ["digits", *names]

    @pytest.mark.slow
    def test_the_script_trains_as_good_a_model_again(self, tmp_path, monkeypatch, capsys):
        from examples.digits import train

        samples = tmp_path / "samples.json"
        monkeypatch.setattr(sys, "argv", ["train", "--repository", str(tmp_path), "--samples", str(samples)])

        train.main()

        accuracy = float(re.search(r"right on ([\d.]+)%", capsys.readouterr().out)[1])
        assert accuracy > 97
        assert [sample["label"] for sample in json.loads(samples.read_text())] == self.labels
        assert (tmp_path / "digits" / "labels.txt").read_text().split() == self.labels
        session = onnxruntime.InferenceSession(tmp_path / "digits" / "1" / "model.onnx")
        assert session.get_inputs()[0].shape == ["batch", 8, 8]


FILE_CONTENTS = (
    b"",
    b"abc",
    b"\xff\xfe\x00\x01",
    b"  \n  hi  \n ",
    b" " * 5000 + b"x" * 10,
    b" " * 4096 + b"import os\n" * 10,
    *(
        path.read_bytes()
        for path in (
            EXAMPLES / "demo.py",
            EXAMPLES / "README.md",
            EXAMPLES.parent / "pyproject.toml",
            MODELS / "digits" / "1" / "model.onnx",
            Path(sys.executable),
        )
    ),
    b"<html><body>hello</body></html>" * 3,
    b"SELECT a, b FROM t WHERE c = 1;\n" * 4,
)


class TestFileType:
    @pytest.fixture
    def model(self, load_model):
        model = load_model("file_type")()
        model.initialize({})
        return model

    def test_it_answers_as_the_package_does(self, model):
        peer = Magika()

        answers = model.identify(FILE_CONTENTS)

        for content, (label, score) in zip(FILE_CONTENTS, answers, strict=True):
            expected = peer.identify_bytes(content)
            assert (label, score) == (expected.output.label, pytest.approx(expected.score, abs=1e-3)), content[:40]

    def test_requests_of_a_batch_get_their_own_rows(self, model):
        one = np.array([[b"abc"]], np.object_)
        two = np.array([[b""], [b"#!/usr/bin/env python3\nimport sys\nprint(sys.argv)\n"]], np.object_)

        first, second = model.execute([{"content": one}, {"content": two}])

        assert first["label"].tolist() == [[b"txt"]]
        assert second["label"].tolist() == [[b"empty"], [b"python"]]
        assert first["score"].tolist() == [[1]]
        assert second["score"].shape == (2, 1)
        assert second["score"].dtype == np.float32

    def test_it_declares_its_inputs_and_outputs(self, load_model):
        config = CompletedConfig()

        assert load_model("file_type").auto_complete_config(config) is config

        assert config.inputs == [{"name": "content", "data_type": "TYPE_STRING", "dims": [1]}]
        assert config.outputs == [
            {"name": "label", "data_type": "TYPE_STRING", "dims": [1]},
            {"name": "score", "data_type": "TYPE_FP32", "dims": [1]},
        ]


def test_no_file_of_the_examples_is_large():
    files = [path for path in EXAMPLES.rglob("*") if path.is_file() and CACHE not in path.parents]
    large = [path for path in files if path.stat().st_size > LARGEST_FILE_BYTE_SIZE]

    assert large == []
