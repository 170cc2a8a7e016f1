"""The package onnxruntime: opening sessions with the options that a model asks for, and its values and errors.

This module alone imports it. What is completed and what is refused is decided in `signature`, without a session.

Source: Triton, onnxruntime_backend, README.md and onnxruntime.cc.
"""

import contextlib
import ctypes
import os
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from merrow.backends.base import InstanceDescription, ModelContext
from merrow.backends.onnx.signature import ModelSignature, TensorSignature
from merrow.backends.onnx.threads import INTER_OP, INTRA_OP, integer, thread_count
from merrow.core.errors import (
    InternalError,
    InvalidArgumentError,
    ServerError,
    UnavailableError,
    UnsupportedError,
)
from merrow.core.model_config import ModelConfig, ModelOptimizationPolicyExecutionAcceleratorsAccelerator

try:
    import onnxruntime
except ImportError:
    onnxruntime = None

Array = np.ndarray[Any, np.dtype[Any]]

# Of the backend's settings: whether all sessions of the process use one pool of threads.
GLOBAL_POOL = "enable-global-threadpool"

# What the runtime calls an element type, without `tensor(...)` around it.
_DATATYPES: dict[str, str] = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "float": "FP32",
    "double": "FP64",
    "bfloat16": "BF16",
    "string": "BYTES",
}

_ONNX_BFLOAT16 = 16

# The threads of a session wait actively for their next piece of work while a run lasts, and sleep between runs.
_FORCE_SPINNING_STOP = "session.force_spinning_stop"

_OTHER_ONNX_TYPES: dict[str, str] = {
    "seq": "ONNX_TYPE_SEQUENCE",
    "map": "ONNX_TYPE_MAP",
    "sparse_tensor": "ONNX_TYPE_SPARSETENSOR",
    "optional": "ONNX_TYPE_OPTIONAL",
}

# `[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Got invalid dimensions ...`
_RUNTIME_ERROR = re.compile(r"\[ONNXRuntimeError\] : (\d+) : \w+ : (.*)", re.DOTALL)

_UNKNOWN_RUNTIME_ERROR = 1

_CUDA = "CUDAExecutionProvider"
CPU_PROVIDERS: Sequence[str | tuple[str, dict[str, str]]] = ("CPUExecutionProvider",)

# Execution accelerators by name: the runtime's provider, and the package that has it.
_CPU_ACCELERATORS = {"openvino": ("OpenVINOExecutionProvider", "onnxruntime-openvino")}
_GPU_ACCELERATORS = {"cuda": (_CUDA, "onnxruntime-gpu"), "tensorrt": ("TensorrtExecutionProvider", "onnxruntime-gpu")}

# Parameters of the model that are options of the CUDA provider.
_CUDA_PARAMETERS = ("cudnn_conv_algo_search", "gpu_mem_limit", "arena_extend_strategy", "do_copy_in_default_stream")


def require_package() -> None:
    """Raises:
    UnavailableError: it is not installed.
    """
    if onnxruntime is None:
        raise UnavailableError(
            "the onnxruntime backend needs the package onnxruntime, which is not installed; it comes with "
            "pip install 'merrow[onnx]'"
        )


def runs_on_gpus() -> bool:
    """Whether the installed package is the one that does."""
    return _CUDA in onnxruntime.get_available_providers()


def signature_of(session: Any) -> ModelSignature:
    """The signature of an open session.

    Raises:
        InvalidArgumentError: an input or output is not a tensor.
    """
    return ModelSignature(
        {tensor.name: _tensor_signature(tensor) for tensor in session.get_inputs()},
        {tensor.name: _tensor_signature(tensor) for tensor in session.get_overridable_initializers()},
        {tensor.name: _tensor_signature(tensor) for tensor in session.get_outputs()},
    )


def _tensor_signature(tensor: Any) -> TensorSignature:
    kind, _, rest = tensor.type.partition("(")
    if kind != "tensor":
        raise InvalidArgumentError(
            f"Unsupported ONNX Type '{_OTHER_ONNX_TYPES.get(kind, kind)}' for I/O '{tensor.name}', expected "
            "'ONNX_TYPE_TENSOR'."
        )
    shape = tuple(dim if isinstance(dim, int) else -1 for dim in tensor.shape)
    return TensorSignature(tensor.name, _DATATYPES.get(rest.removesuffix(")")), shape)


def providers_of(config: ModelConfig, instance: InstanceDescription) -> Sequence[str | tuple[str, dict[str, str]]]:
    """The execution providers of an instance, in order of preference; the CPU's own comes last."""
    optimization = config.optimization
    accelerators = None if optimization is None else optimization.execution_accelerators
    is_gpu = instance.kind == "KIND_GPU"
    known = _GPU_ACCELERATORS if is_gpu else _CPU_ACCELERATORS
    wanted: Sequence[ModelOptimizationPolicyExecutionAcceleratorsAccelerator] = ()
    if accelerators is not None:
        wanted = accelerators.gpu_execution_accelerator if is_gpu else accelerators.cpu_execution_accelerator
    device = {"device_id": str(instance.device_id)} if is_gpu else {}
    providers: dict[str, dict[str, str]] = {}
    for accelerator in wanted:
        if accelerator.name not in known:
            raise InvalidArgumentError(f"unknown Execution Accelerator '{accelerator.name}' is requested")
        provider, package = known[accelerator.name]
        if provider not in onnxruntime.get_available_providers():
            raise UnavailableError(
                f"the execution accelerator '{accelerator.name}' needs the package {package} in place of onnxruntime"
            )
        providers[provider] = {**accelerator.parameters, **device}
    if is_gpu:
        options = {key: config.parameters[key].string_value for key in _CUDA_PARAMETERS if key in config.parameters}
        providers[_CUDA] = {**options, **providers.get(_CUDA, device)}
    return (*providers.items(), *CPU_PROVIDERS)


def open_session(path: str, options: Any, providers: Sequence[str | tuple[str, dict[str, str]]]) -> Any:
    try:
        return onnxruntime.InferenceSession(path, options, providers=list(providers))
    except Exception as error:
        raise runtime_error(error) from None


def session_options(context: ModelContext, intra_op_count: int) -> Any:
    """The runtime's options, from the configuration's parameters and `optimization.graph.level`."""
    config = context.config
    parameters = {key: parameter.string_value for key, parameter in config.parameters.items()}
    options = _new_options(context, intra_op_count, thread_count(parameters, INTER_OP))
    execution_mode = integer("execution_mode", parameters.get("execution_mode"), 0)
    if execution_mode not in (0, 1):
        raise InvalidArgumentError(
            f"Invalid configuration value provided. Expected values for  execution_mode are 0 or 1 but got "
            f"{execution_mode} ."
        )
    modes = onnxruntime.ExecutionMode
    options.execution_mode = modes.ORT_PARALLEL if execution_mode else modes.ORT_SEQUENTIAL
    graph = None if config.optimization is None else config.optimization.graph
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = {
        -1: levels.ORT_ENABLE_BASIC,
        1: levels.ORT_ENABLE_EXTENDED,
        2: levels.ORT_DISABLE_ALL,
    }.get(0 if graph is None else graph.level, levels.ORT_ENABLE_ALL)
    if "enable_mem_arena" in parameters:
        options.enable_cpu_mem_arena = parameters["enable_mem_arena"] != "0"
    if "enable_mem_pattern" in parameters:
        options.enable_mem_pattern = parameters["enable_mem_pattern"] != "0"
    entries = {_FORCE_SPINNING_STOP: "1"}
    entries.update((key, value) for key, value in parameters.items() if key.startswith("session."))
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    _register_operators(options, context)
    return options


def signature_options(context: ModelContext) -> Any:
    """Options of a session that only tells its signature.

    Raises:
        ServerError: as `session_options`.
    """
    options = _new_options(context, 1, 1)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    _register_operators(options, context)
    return options


def _new_options(context: ModelContext, intra_op_count: int, inter_op_count: int) -> Any:
    """Options of a session, so far only what all of them need: threads of its own, or the process's pool.

    Raises:
        UnsupportedError: the installed package has no pool of threads for all sessions, but the backend's settings
            ask for it.
    """
    options = onnxruntime.SessionOptions()
    # Errors only; what it says of a model's graph is no news to an operator.
    options.log_severity_level = 3
    if uses_global_pool(context):
        if not hasattr(onnxruntime, "set_global_thread_pool_sizes"):
            raise UnsupportedError(
                f"--backend-config=onnxruntime,{GLOBAL_POOL}=1 needs a newer onnxruntime than {onnxruntime.__version__}"
            )
        sizes = [thread_count(context.backend_config, setting) for setting in (INTRA_OP, INTER_OP)]
        # The runtime makes its pools once for the process, and refuses to make them again.
        with contextlib.suppress(Exception):
            onnxruntime.set_global_thread_pool_sizes(*sizes)
        options.use_per_session_threads = False
    else:
        options.intra_op_num_threads = intra_op_count
        options.inter_op_num_threads = inter_op_count
    return options


def uses_global_pool(context: ModelContext) -> bool:
    return context.backend_config.get(GLOBAL_POOL) == "1"


def _register_operators(options: Any, context: ModelContext) -> None:
    operations = context.config.model_operations
    for filename in () if operations is None else operations.op_library_filename:
        try:
            options.register_custom_ops_library(os.path.join(context.model_directory, filename))
        except Exception as error:
            raise runtime_error(error) from None


def run_options(config: ModelConfig) -> Any:
    """Options of each run; None for the runtime's own."""
    shrinkage = config.parameters.get("memory.enable_memory_arena_shrinkage")
    if shrinkage is None:
        return None
    options = onnxruntime.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", shrinkage.string_value)
    return options


def runtime_error(error: Exception) -> ServerError:
    """An exception of the runtime, as Triton words it: `onnx runtime error 2: Got invalid dimensions ...`."""
    match = _RUNTIME_ERROR.match(str(error))
    if match is None:
        return InternalError(f"onnx runtime error {_UNKNOWN_RUNTIME_ERROR}: {error}")
    return InternalError(f"onnx runtime error {match[1]}: {match[2]}")


def ort_value(array: Array, is_bfloat16: bool) -> Any:
    if is_bfloat16:
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(array, _ONNX_BFLOAT16)
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)


def array_of_ort_value(value: Any) -> Array:
    if value.element_type() != _ONNX_BFLOAT16:
        array: Array = value.numpy()
        return array
    shape = tuple(value.shape())
    data = ctypes.string_at(value.data_ptr(), int(np.prod(shape)) * 2)
    return np.frombuffer(data, np.uint16).reshape(shape)
