"""The model repositories of the scenarios."""

import pathlib

PYTHON_IDENTITY = "python_identity"
INLINE_IDENTITY = "inline_identity"
LARGE_IDENTITY = "large_identity"

CONV_BATCHED = "conv_batched"
CONV_SINGLE = "conv_single"

# The ONNX file from a Python model, batches put together by hand: what the real server's wheel can do with one.
ONNX_CODE = """\
import os

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = max(1, os.cpu_count() // 2)
        options.add_session_config_entry("session.force_spinning_stop", "1")
        path = os.path.join(args["model_repository"], args["model_version"], "model.onnx")
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def execute(self, requests):
        arrays = [pb_utils.get_input_tensor_by_name(request, "INPUT0").as_numpy() for request in requests]
        output = self.session.run(["OUTPUT0"], {"INPUT0": np.concatenate(arrays)})[0]
        responses, start = [], 0
        for array in arrays:
            rows = output[start : start + len(array)]
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT0", rows)]))
            start += len(array)
        return responses
"""
CONV_CONFIG = """\
{backend}
max_batch_size: 16
input {{ name: "INPUT0" data_type: TYPE_FP32 dims: [ 16 ] }}
output {{ name: "OUTPUT0" data_type: TYPE_FP32 dims: [ 16 ] }}
instance_group {{ count: {count} kind: KIND_CPU }}
{batching}
"""

IDENTITY_CODE = """\
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            tensor = pb_utils.get_input_tensor_by_name(request, "INPUT0")
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT0", tensor.as_numpy())]))
        return responses
"""
CONFIG = """\
backend: "{backend}"
max_batch_size: {max_batch_size}
input {{ name: "INPUT0" data_type: TYPE_FP32 dims: [ {dims} ] }}
output {{ name: "OUTPUT0" data_type: TYPE_FP32 dims: [ {dims} ] }}
instance_group {{ count: 1 kind: KIND_CPU }}
"""


def build_python(folder: pathlib.Path) -> pathlib.Path:
    """One identity model in Python, FP32 [16], one instance."""
    _add_python_model(folder, PYTHON_IDENTITY, max_batch_size=64, dims=16)
    return folder


def build_inline(folder: pathlib.Path) -> pathlib.Path:
    """The `identity` backend, FP32 [16]: no Python and no process of its own."""
    _add_model(folder, INLINE_IDENTITY, "identity", max_batch_size=64, dims=16)
    return folder


def build_large(folder: pathlib.Path) -> pathlib.Path:
    """One identity model in Python for a tensor of any length."""
    _add_python_model(folder, LARGE_IDENTITY, max_batch_size=0, dims=-1)
    return folder


def build_many(folder: pathlib.Path, count: int) -> pathlib.Path:
    for index in range(count):
        _add_python_model(folder, f"model_{index:02}", max_batch_size=64, dims=16)
    return folder


def build_onnx(folder: pathlib.Path) -> pathlib.Path:
    """One small ONNX model: a matrix product."""
    import onnx  # Only this scenario needs it.

    weights = onnx.helper.make_tensor("weights", onnx.TensorProto.FLOAT, [16, 16], [1.0] * 256)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["INPUT0", "weights"], ["OUTPUT0"])],
        "product",
        [onnx.helper.make_tensor_value_info("INPUT0", onnx.TensorProto.FLOAT, [None, 16])],
        [onnx.helper.make_tensor_value_info("OUTPUT0", onnx.TensorProto.FLOAT, [None, 16])],
        [weights],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)
    version = folder / "product" / "1"
    version.mkdir(parents=True)
    onnx.save(model, version / "model.onnx")
    return folder


def build_conv(folder: pathlib.Path, in_python: bool, instance_count: int = 2, suffix: str = "") -> pathlib.Path:
    """A small conv net, with dynamic batching and without; by the backend for ONNX, or from a Python model."""
    content = conv_net()
    for model, batching in ((CONV_BATCHED, "dynamic_batching { }"), (CONV_SINGLE, "")):
        name = model + suffix
        version = folder / name / "1"
        version.mkdir(parents=True)
        (version / "model.onnx").write_bytes(content)
        if in_python:
            (version / "model.py").write_text(ONNX_CODE)
        backend = 'backend: "python"' if in_python else 'platform: "onnxruntime_onnx"'
        (folder / name / "config.pbtxt").write_text(
            CONV_CONFIG.format(backend=backend, batching=batching, count=instance_count)
        )
    return folder


def conv_net() -> bytes:
    """Two convolutions and two dense layers over 16 floats, 1.1 million weights; its output is its input.

    The network's own output is multiplied by zero before it is added, because the load generator wants back what it
    sent.
    """
    import numpy as np
    import onnx  # Only this scenario needs it.
    from onnx import helper, numpy_helper

    random = np.random.default_rng(1)
    shapes = {"c1": (32, 1, 3, 3), "c2": (64, 32, 3, 3), "d1": (1024, 1024), "d2": (1024, 16)}
    weights = [
        numpy_helper.from_array((random.standard_normal(shape) / 32).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    weights.append(numpy_helper.from_array(np.zeros(1, np.float32), "zero"))
    weights.append(numpy_helper.from_array(np.array([-1, 1, 4, 4], np.int64), "picture"))
    nodes = [
        helper.make_node("Reshape", ["INPUT0", "picture"], ["x0"]),
        helper.make_node("Conv", ["x0", "c1"], ["x1"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["x1"], ["x2"]),
        helper.make_node("Conv", ["x2", "c2"], ["x3"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["x3"], ["x4"]),
        helper.make_node("Flatten", ["x4"], ["x5"]),
        helper.make_node("MatMul", ["x5", "d1"], ["x6"]),
        helper.make_node("Relu", ["x6"], ["x7"]),
        helper.make_node("MatMul", ["x7", "d2"], ["x8"]),
        helper.make_node("Mul", ["x8", "zero"], ["x9"]),
        helper.make_node("Add", ["INPUT0", "x9"], ["OUTPUT0"]),
    ]
    graph = helper.make_graph(
        nodes,
        "conv",
        [helper.make_tensor_value_info("INPUT0", onnx.TensorProto.FLOAT, [None, 16])],
        [helper.make_tensor_value_info("OUTPUT0", onnx.TensorProto.FLOAT, [None, 16])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    content: bytes = model.SerializeToString()
    return content


def _add_python_model(folder: pathlib.Path, name: str, max_batch_size: int, dims: int) -> None:
    version = _add_model(folder, name, "python", max_batch_size, dims)
    (version / "model.py").write_text(IDENTITY_CODE)


def _add_model(folder: pathlib.Path, name: str, backend: str, max_batch_size: int, dims: int) -> pathlib.Path:
    version = folder / name / "1"
    version.mkdir(parents=True)
    config = CONFIG.format(backend=backend, max_batch_size=max_batch_size, dims=dims)
    (folder / name / "config.pbtxt").write_text(config)
    return version
