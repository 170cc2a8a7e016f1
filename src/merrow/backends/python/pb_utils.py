"""What a Python model imports as `triton_python_backend_utils`.

Everything that Triton's module has is here under its name. What is not available yet (models that call models, control
of other models, metrics of a model's own) raises `TritonModelException` and says so.

Source: Triton, python_backend/README.md.
"""

import json
import struct
import sys
import types
from typing import Any

import numpy as np

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
from merrow.backends.python.pb_errors import C_MODULE, TritonError, TritonModelException
from merrow.backends.python.pb_exchange import (
    TRITONSERVER_REQUEST_FLAG_SEQUENCE_END,
    TRITONSERVER_REQUEST_FLAG_SEQUENCE_START,
    TRITONSERVER_REQUEST_RELEASE_ALL,
    TRITONSERVER_REQUEST_RELEASE_RESCHEDULE,
    TRITONSERVER_RESPONSE_COMPLETE_FINAL,
    InferenceRequest,
    InferenceResponse,
    InferenceResponseSender,
    InferenceTrace,
    MemoryType,
    PreferredMemory,
)
from merrow.backends.python.pb_log import Logger
from merrow.backends.python.pb_tensor import Tensor

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


class MetricFamily:
    """Metrics of a model's own."""

    __module__ = C_MODULE

    COUNTER = 0
    GAUGE = 1
    HISTOGRAM = 2

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        raise TritonModelException("Custom metrics (MetricFamily) are not available yet.")


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
    raise TritonModelException("Controlling models from a model (load_model) is not available yet.")


def unload_model(model_name: str, unload_dependents: bool = False) -> None:
    raise TritonModelException("Controlling models from a model (unload_model) is not available yet.")


def is_model_ready(model_name: str, model_version: str = "") -> bool:
    raise TritonModelException("Asking for other models from a model (is_model_ready) is not available yet.")


def install(version_directory: str) -> None:
    """Make the module importable under the names that models use, as of this model."""
    module = types.ModuleType(MODULE_NAME, __doc__)
    for name in __all__:
        setattr(module, name, globals()[name])
    module.__file__ = __file__
    setattr(module, "get_model_dir", lambda: version_directory)  # noqa: B010  # a module has no such attribute
    native = types.ModuleType(C_MODULE)
    for each in (
        InferenceRequest,
        InferenceResponse,
        InferenceResponseSender,
        InferenceTrace,
        Logger,
        MemoryType,
        MetricFamily,
        PreferredMemory,
        Tensor,
        TritonError,
        TritonModelException,
    ):
        setattr(native, each.__name__, each)
    sys.modules[MODULE_NAME] = module
    sys.modules[C_MODULE] = native
