"""The model repositories of the scenarios."""

import pathlib

PYTHON_IDENTITY = "python_identity"
INLINE_IDENTITY = "inline_identity"
LARGE_IDENTITY = "large_identity"

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


def _add_python_model(folder: pathlib.Path, name: str, max_batch_size: int, dims: int) -> None:
    version = _add_model(folder, name, "python", max_batch_size, dims)
    (version / "model.py").write_text(IDENTITY_CODE)


def _add_model(folder: pathlib.Path, name: str, backend: str, max_batch_size: int, dims: int) -> pathlib.Path:
    version = folder / name / "1"
    version.mkdir(parents=True)
    config = CONFIG.format(backend=backend, max_batch_size=max_batch_size, dims=dims)
    (folder / name / "config.pbtxt").write_text(config)
    return version
