"""What a Python model imports as `triton_python_backend_utils`.

Everything that Triton's module has is here under its name. Each running model imports a copy of its own, whose classes
and functions are bound to it: they know which instance calls the server.

Source: Triton, python_backend/README.md.
"""

import json
import struct
import sys
import types
from typing import Any

import numpy as np

from merrow.backends.python.pb_call import ResponseIterator
from merrow.backends.python.pb_config import (
    TRITON_STRING_TO_NUMPY,
    ModelConfig,
    deserialize_bytes_tensor,
    get_input_config_by_name,
    get_output_config_by_name,
    numpy_to_triton_type,
    serialize_byte_tensor,
    triton_string_to_numpy,
    triton_to_numpy_type,
    using_decoupled_model_transaction_policy,
)
from merrow.backends.python.pb_control import ModelControl
from merrow.backends.python.pb_errors import C_MODULE, TritonError, TritonModelException
from merrow.backends.python.pb_exchange import (
    TRITONSERVER_REQUEST_FLAG_SEQUENCE_END,
    TRITONSERVER_REQUEST_FLAG_SEQUENCE_START,
    TRITONSERVER_REQUEST_RELEASE_ALL,
    TRITONSERVER_REQUEST_RELEASE_RESCHEDULE,
    InferenceRequest,
    InferenceTrace,
    MemoryType,
    PreferredMemory,
)
from merrow.backends.python.pb_log import Logger
from merrow.backends.python.pb_metrics import Metric, MetricFamily, MetricKind
from merrow.backends.python.pb_response import InferenceResponse
from merrow.backends.python.pb_sender import TRITONSERVER_RESPONSE_COMPLETE_FINAL, InferenceResponseSender
from merrow.backends.python.pb_tensor import Tensor
from merrow.backends.python.runtime import ModelRuntime

MODULE_NAME = "triton_python_backend_utils"

TRITONSERVER_MEMORY_GPU = MemoryType.TRITONSERVER_MEMORY_GPU
TRITONSERVER_MEMORY_CPU = MemoryType.TRITONSERVER_MEMORY_CPU

__all__ = [
    "TRITONSERVER_MEMORY_CPU",
    "TRITONSERVER_MEMORY_GPU",
    "TRITONSERVER_REQUEST_FLAG_SEQUENCE_END",
    "TRITONSERVER_REQUEST_FLAG_SEQUENCE_START",
    "TRITONSERVER_REQUEST_RELEASE_ALL",
    "TRITONSERVER_REQUEST_RELEASE_RESCHEDULE",
    "TRITONSERVER_RESPONSE_COMPLETE_FINAL",
    "TRITON_STRING_TO_NUMPY",
    "InferenceRequest",
    "InferenceResponse",
    "Logger",
    "MetricFamily",
    "ModelConfig",
    "PreferredMemory",
    "Tensor",
    "TritonError",
    "TritonModelException",
    "deserialize_bytes_tensor",
    "get_input_config_by_name",
    "get_input_tensor_by_name",
    "get_model_dir",
    "get_output_config_by_name",
    "get_output_tensor_by_name",
    "is_model_ready",
    "json",
    "load_model",
    "np",
    "numpy_to_triton_type",
    "serialize_byte_tensor",
    "struct",
    "triton_string_to_numpy",
    "triton_to_numpy_type",
    "unload_model",
    "using_decoupled_model_transaction_policy",
]


def get_input_tensor_by_name(inference_request: InferenceRequest, name: str) -> Tensor | None:
    """The input of this name, or None."""
    for tensor in inference_request.inputs():
        if tensor.name() == name:
            return tensor
    return None


def get_output_tensor_by_name(inference_response: InferenceResponse, name: str) -> Tensor | None:
    """The output of this name, or None."""
    for tensor in inference_response.output_tensors():
        if tensor.name() == name:
            return tensor
    return None


def get_model_dir() -> str:
    """The version's directory; each model's own copy of this module knows it."""
    raise TritonModelException("get_model_dir is only available in a model.")


def load_model(model_name: str, config: str = "", files: dict[str, bytes] | None = None) -> None:
    """See `pb_control`; each model's own copy of this module can do it."""
    raise TritonModelException("load_model is only available in a model's instance.")


def unload_model(model_name: str, unload_dependents: bool = False) -> None:
    """See `pb_control`; each model's own copy of this module can do it."""
    raise TritonModelException("unload_model is only available in a model's instance.")


def is_model_ready(model_name: str, model_version: str = "") -> bool:
    """See `pb_control`; each model's own copy of this module can do it."""
    raise TritonModelException("is_model_ready is only available in a model's instance.")


def install(version_directory: str, runtime: ModelRuntime | None = None) -> type[InferenceRequest]:
    """Make the module importable under the names that models use, as of this model.

    Args:
        runtime: of the instance; None where a model only completes its configuration.

    Returns:
        The class of the model's requests.
    """
    module = types.ModuleType(MODULE_NAME, __doc__)
    module.__file__ = __file__
    sys.modules[MODULE_NAME] = module
    sys.modules[C_MODULE] = types.ModuleType(C_MODULE)
    return bind_installed(version_directory, runtime)


def bind_installed(version_directory: str, runtime: ModelRuntime | None) -> type[InferenceRequest]:
    """As `install`, of the module that is there: whoever has imported it calls the server as of this instance now."""
    values: dict[str, Any] = {name: globals()[name] for name in __all__}
    values["get_model_dir"] = lambda: version_directory
    request_class = InferenceRequest
    if runtime is not None:
        control = ModelControl(runtime)
        values["load_model"] = control.load_model
        values["unload_model"] = control.unload_model
        values["is_model_ready"] = control.is_model_ready
        values["InferenceRequest"] = request_class = _bind(InferenceRequest, runtime)
        values["MetricFamily"] = _bind(MetricFamily, runtime)
        values["Logger"] = _bind(Logger, runtime)
    sys.modules[MODULE_NAME].__dict__.update(values)
    natives = (
        InferenceRequest,
        InferenceResponse,
        InferenceResponseSender,
        InferenceTrace,
        Logger,
        MemoryType,
        Metric,
        MetricFamily,
        MetricKind,
        PreferredMemory,
        ResponseIterator,
        Tensor,
        TritonError,
        TritonModelException,
    )
    contents: dict[str, Any] = {each.__name__: values.get(each.__name__, each) for each in natives}
    contents.update({name: values[name] for name in ("load_model", "unload_model", "is_model_ready")})
    for kind in (MemoryType, MetricKind):
        # As pybind11 exports the members of these.
        contents.update(kind.__members__)
    sys.modules[C_MODULE].__dict__.update(contents)
    return request_class


def _bind(base: Any, runtime: ModelRuntime) -> Any:
    """The class, as of one running model."""
    return type(base.__name__, (base,), {"__slots__": (), "__module__": C_MODULE, "_runtime": runtime})
