"""Makes model repositories in a directory of a test's own.

    repository = RepositoryBuilder(tmp_path)
    repository.add_add_sub()
    repository.add_identity("identity", max_batch_size=8)
    repository.add("m", config_text, {"1/model.py": source})

Each call writes at once and returns the model's directory.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

ADD_SUB_SOURCE = """\
import numpy as np

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            left = pb_utils.get_input_tensor_by_name(request, "INPUT0").as_numpy()
            right = pb_utils.get_input_tensor_by_name(request, "INPUT1").as_numpy()
            outputs = [pb_utils.Tensor("OUTPUT0", left + right), pb_utils.Tensor("OUTPUT1", left - right)]
            responses.append(pb_utils.InferenceResponse(outputs))
        return responses
"""

PYTHON_IDENTITY_SOURCE = """\
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [
            pb_utils.InferenceResponse(
                [
                    pb_utils.Tensor(tensor.name().replace("INPUT", "OUTPUT"), tensor.as_numpy())
                    for tensor in request.inputs()
                ]
            )
            for request in requests
        ]
"""


class RepositoryBuilder:
    """A model repository at `path`, made when first added to."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, name: str, config: str | None, files: Mapping[str, str | bytes] | None = None) -> Path:
        """Add a model; returns its directory.

        Args:
            config: the text of config.pbtxt; None leaves it out.
            files: content by path below the model's directory, `1/model.py`. Version 1 is there in any case.
        """
        directory = self.path / name
        (directory / "1").mkdir(parents=True, exist_ok=True)
        if config is not None:
            (directory / "config.pbtxt").write_text(config)
        for relative_path, content in (files or {}).items():
            path = directory / relative_path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        return directory

    def add_add_sub(
        self, name: str = "add_sub", datatype: str = "FP32", dims: Sequence[int] = (4,), max_batch_size: int = 8
    ) -> Path:
        """Triton's classic in Python: OUTPUT0 is the sum of INPUT0 and INPUT1, OUTPUT1 the difference."""
        config = python_config(
            name,
            inputs=[("INPUT0", datatype, dims), ("INPUT1", datatype, dims)],
            outputs=[("OUTPUT0", datatype, dims), ("OUTPUT1", datatype, dims)],
            max_batch_size=max_batch_size,
        )
        return self.add(name, config, {"1/model.py": ADD_SUB_SOURCE})

    def add_python_identity(
        self,
        name: str = "python_identity",
        datatype: str = "FP32",
        dims: Sequence[int] = (16,),
        max_batch_size: int = 0,
        extra_config: str = "",
    ) -> Path:
        """OUTPUT0 is INPUT0, by way of a Python model."""
        config = python_config(
            name, [("INPUT0", datatype, dims)], [("OUTPUT0", datatype, dims)], max_batch_size, extra_config
        )
        return self.add(name, config, {"1/model.py": PYTHON_IDENTITY_SOURCE})

    def add_identity(
        self,
        name: str = "identity",
        datatype: str = "FP32",
        dims: Sequence[int] = (16,),
        max_batch_size: int = 0,
        extra_config: str = "",
    ) -> Path:
        """OUTPUT0 is INPUT0, by way of the identity backend."""
        config = model_config(
            name,
            "identity",
            [("INPUT0", datatype, dims)],
            [("OUTPUT0", datatype, dims)],
            max_batch_size,
            extra_config,
        )
        return self.add(name, config)


TensorDescription = tuple[str, str, Sequence[int]]
"""Name, datatype as the protocol names it, and dims without the batch dimension."""


def python_config(
    name: str,
    inputs: Sequence[TensorDescription],
    outputs: Sequence[TensorDescription],
    max_batch_size: int = 0,
    extra_config: str = "",
) -> str:
    """The text of a Python model's configuration."""
    return model_config(name, "python", inputs, outputs, max_batch_size, extra_config)


def model_config(
    name: str,
    backend: str,
    inputs: Sequence[TensorDescription],
    outputs: Sequence[TensorDescription],
    max_batch_size: int = 0,
    extra_config: str = "",
) -> str:
    """The text of a configuration; `extra_config` is added as it is."""
    lines = [f'name: "{name}"', f'backend: "{backend}"', f"max_batch_size: {max_batch_size}"]
    lines += [f"input {_tensor_text(*tensor)}" for tensor in inputs]
    lines += [f"output {_tensor_text(*tensor)}" for tensor in outputs]
    return "\n".join([*lines, extra_config]) + "\n"


def _tensor_text(name: str, datatype: str, dims: Sequence[int]) -> str:
    data_type = "TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}"
    return f'{{ name: "{name}" data_type: {data_type} dims: [ {", ".join(map(str, dims))} ] }}'
