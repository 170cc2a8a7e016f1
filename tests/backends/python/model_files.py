"""Python models written to a directory, loaded and executed in this process or in a place."""

import json
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from merrow.backends.base import InstanceDescription, ModelContext, PrivateTensor
from merrow.backends.python.backend import PythonBackend
from merrow.core.model_config import ModelConfig, ModelInput, ModelOutput
from merrow.core.plain_values import encode_plain
from merrow.core.request import Request
from merrow.core.response import Response
from merrow.core.tensor import Tensor
from merrow.testing.recording_host import RecordingHost

CONFIG = ModelConfig(
    name="m",
    backend="python",
    input=(ModelInput("IN", "TYPE_FP32", dims=(-1,)),),
    output=(ModelOutput("OUT", "TYPE_FP32", dims=(-1,)), ModelOutput("TEXT", "TYPE_STRING", dims=(-1,))),
)


class Sink:
    """A model answers by what `execute` returns."""

    def on_response(self, response: Response) -> None:
        raise AssertionError("nobody answers a sink here")


def write_model(directory: Path, source: str, filename: str = "model.py") -> None:
    version = directory / "1"
    version.mkdir(exist_ok=True)
    (version / filename).write_text(textwrap.dedent(source))


def make_context(directory: Path, config: ModelConfig = CONFIG) -> ModelContext:
    json_form = {"max_batch_size": 0, "input": [], "output": [], **encode_plain(config)}
    return ModelContext("m", 1, config, json.dumps(json_form), str(directory), str(directory / "1"))


def load(directory: Path, source: str, config: ModelConfig = CONFIG) -> Any:
    """An instance of the model, in this process."""
    write_model(directory, source)
    return PythonBackend().create_instance(
        make_context(directory, config), InstanceDescription("m_0_0", "KIND_CPU", 0), RecordingHost()
    )


def make_request(inputs: "Mapping[str, np.ndarray[Any, np.dtype[Any]]] | None" = None, **fields: Any) -> Request:
    tensors = {}
    for name, array in (inputs or {}).items():
        tensor = Tensor.from_numpy(name, array)
        tensors[name] = PrivateTensor(name, tensor.datatype, tensor.shape, bytearray(tensor.data))
    return Request("m", 1, Sink(), tensors, **fields)


def outputs_of(outcome: Any) -> dict[str, Any]:
    assert isinstance(outcome, Response), outcome
    assert outcome.error is None, outcome.error
    return {tensor.name: tensor.as_numpy().tolist() for tensor in outcome.outputs}
