"""The `onnxruntime` backend: models that are ONNX files, through the package of the same name.

Loading looks at the file twice. `auto_complete` opens it unoptimised to learn the tensors' names, types and shapes,
when the configuration leaves its inputs or outputs out; `create_instance` opens it for good, and checks the
configuration against it. What is completed and what is refused is decided in `signature`, without a session.

Requests of a batch are concatenated along the first dimension, run once, and the outputs cut up again. A tensor is a
view of the request's bytes all the way into the runtime where a single request runs, and outputs are views of what the
runtime returns. BF16 has no numpy type; such tensors travel as 16-bit integers through `OrtValue`. Ragged batches are
put together and taken apart by `ragged`.

An instance of kind KIND_GPU runs on its device, if the installed package can (onnxruntime-gpu); others run on the CPU.

The cores are shared out among the instances of a model, and a session's threads sleep between runs instead of spinning,
because the server and other models want the cores too: both can be set (`intra_op_thread_count`,
`session.force_spinning_stop`). The figures are in docs/decisions/0008-onnx-threads.md.

Source: Triton, onnxruntime_backend, README.md and onnxruntime.cc.
"""

import ctypes
import logging
import os
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from merrow.backends.base import (
    Backend,
    Execution,
    Instance,
    InstanceDescription,
    InstanceHost,
    ModelContext,
    Outcome,
    Place,
)
from merrow.backends.onnx.ragged import RaggedPlan, concatenate
from merrow.backends.onnx.signature import (
    ModelSignature,
    TensorSignature,
    check_config,
    complete_config,
    format_shape,
)
from merrow.core.datatypes import BYTES, DATATYPES_OF_CONFIG, NUMPY_DTYPES
from merrow.core.errors import (
    InternalError,
    InvalidArgumentError,
    ServerError,
    UnavailableError,
    UnsupportedError,
)
from merrow.core.model_config import ModelConfig, ModelOptimizationPolicyExecutionAcceleratorsAccelerator
from merrow.core.request import Request
from merrow.core.response import Response
from merrow.core.tensor import Tensor, encode_bytes_elements

try:
    import onnxruntime
except ImportError:
    onnxruntime = None

_LOG = logging.getLogger("merrow.backends")

# Settings of Triton's pool of threads for all sessions, which is not here.
_GLOBAL_POOL_SETTINGS = ("enable-global-threadpool", "intra_op_thread_count", "inter_op_thread_count")

Array = np.ndarray[Any, np.dtype[Any]]

DEFAULT_MAX_BATCH_SIZE = 4

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

# Of the datatypes whose elements have a size. BF16 has no numpy type.
_ARRAY_DTYPES: dict[str, np.dtype[Any]] = {
    **{datatype: dtype for datatype, dtype in NUMPY_DTYPES.items() if datatype != BYTES},
    "BF16": np.dtype(np.uint16),
}

# The threads of a session wait actively for their next piece of work while a run lasts, and sleep between runs.
_FORCE_SPINNING_STOP = "session.force_spinning_stop"

_INTRA_OP = "intra_op_thread_count"

_OTHER_ONNX_TYPES: dict[str, str] = {
    "seq": "ONNX_TYPE_SEQUENCE",
    "map": "ONNX_TYPE_MAP",
    "sparse_tensor": "ONNX_TYPE_SPARSETENSOR",
    "optional": "ONNX_TYPE_OPTIONAL",
}

# `[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Got invalid dimensions ...`
_RUNTIME_ERROR = re.compile(r"\[ONNXRuntimeError\] : (\d+) : \w+ : (.*)", re.DOTALL)
_UNKNOWN_RUNTIME_ERROR = 1


class OnnxBackend(Backend):
    """See the module."""

    name = "onnxruntime"
    default_place = Place.THREAD
    preferred_cpu_instance_count = 2

    def __init__(self) -> None:
        if onnxruntime is None:
            raise UnavailableError(
                "the onnxruntime backend needs the package onnxruntime, which is not installed; it comes with "
                "pip install 'merrow[onnx]'"
            )

    @property
    def takes_gpus(self) -> bool:
        return _CUDA in onnxruntime.get_available_providers()

    def batch_limit(self, config: ModelConfig) -> int | None:
        """One batch for each share of the cores, where there are more instances than cores to share out."""
        if any(group.kind == "KIND_GPU" for group in config.instance_group) or _INTRA_OP in config.parameters:
            return None
        limit = max(1, _core_count() // _cores_per_instance(config))
        return limit if limit < _instance_count(config) else None

    def auto_complete(self, context: ModelContext) -> ModelConfig:
        config = context.config
        if (config.input or config.batch_input) and config.output:
            _LOG.info(
                "skipping model configuration auto-complete for '%s': inputs and outputs already specified",
                context.name,
            )
            return config
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        _register_operators(options, context)
        session = _open_session(_model_path(context, f"{context.name}_{context.version}"), options, _CPU_PROVIDERS)
        default_max_batch_size = _integer(
            "default-max-batch-size", context.backend_config.get("default-max-batch-size"), DEFAULT_MAX_BATCH_SIZE
        )
        return complete_config(context.name, config, signature_of(session), default_max_batch_size)

    def validate(self, context: ModelContext) -> None:
        for setting in _GLOBAL_POOL_SETTINGS:
            if setting in context.backend_config:
                _LOG.warning(
                    "--backend-config=onnxruntime,%s is not obeyed: each instance of model '%s' has its own threads; "
                    "set their number with the model's parameters intra_op_thread_count and inter_op_thread_count",
                    setting,
                    context.name,
                )

    def create_instance(self, context: ModelContext, instance: InstanceDescription, host: InstanceHost) -> Instance:
        config = context.config
        if instance.kind == "KIND_GPU" and not self.takes_gpus:
            raise UnsupportedError(
                f"instance '{instance.name}' of model '{context.name}' has kind KIND_GPU, but the onnxruntime that is "
                "installed runs on the CPU only; onnxruntime-gpu runs on NVIDIA GPUs"
            )
        providers = _providers(config, instance)
        session = _open_session(_model_path(context, instance.name), _session_options(context), providers)
        signature = signature_of(session)
        check_config(context.name, config, signature)
        return OnnxInstance(context, instance.name, session, signature)


class OnnxInstance(Instance):
    """One session of the runtime."""

    def __init__(self, context: ModelContext, name: str, session: Any, signature: ModelSignature) -> None:
        config = context.config
        self._name = name
        self._model_name = context.name
        self._model_version = context.version
        self._session = session
        self._max_batch_size = config.max_batch_size
        self._outputs = _outputs_of(config)
        self._output_names = [name for name, _ in self._outputs]
        # Inputs that the graph wants without any dimension; a model that does not batch declares them as [1].
        self._scalar_inputs = frozenset(
            tensor.name for tensor in (*signature.inputs.values(), *signature.defaults.values()) if not tensor.shape
        )
        self._bfloat16_inputs = frozenset(
            tensor.name
            for tensor in (*signature.inputs.values(), *signature.defaults.values())
            if tensor.datatype == "BF16"
        )
        self._uses_bfloat16 = bool(self._bfloat16_inputs) or any(datatype == "BF16" for _, datatype in self._outputs)
        self._run_options = _run_options(config)
        self._ragged = RaggedPlan.from_config(config)
        datatypes = [datatype for _, datatype in self._outputs]
        datatypes += [tensor.datatype or "" for tensor in signature.inputs.values()]
        # Whether batches can be joined and cut as bytes.
        self._has_fixed_sizes = self._max_batch_size > 0 and all(datatype in _ARRAY_DTYPES for datatype in datatypes)

    def execute(self, requests: Sequence[Request]) -> Execution:
        if self._ragged is None:
            if len(requests) == 1:
                return self._execute_one(requests[0])
            if self._has_fixed_sizes:
                return self._execute_rows(requests)
        return self._execute_batch(requests)

    def _execute_one(self, request: Request) -> Execution:
        # Apart from `_execute_batch`, whose lists cost half as much as the runtime's own call.
        start_ns = input_end_ns = output_start_ns = time.monotonic_ns()
        outcome: Outcome
        try:
            feed = self._feed(request)
            input_end_ns = output_start_ns = time.monotonic_ns()
            rows = self._rows(feed) if self._max_batch_size else 0
            arrays = self._run(feed)
            output_start_ns = time.monotonic_ns()
            outputs = []
            for (name, datatype), array in zip(self._outputs, arrays, strict=True):
                if self._max_batch_size:
                    self._check_rows(name, array, rows)
                elif not array.shape:
                    array = array.reshape(1)
                outputs.append(_tensor_of(name, datatype, array))
            outcome = Response(self._model_name, self._model_version, request.id, outputs)
        except ServerError as error:
            outcome = error
        return Execution((outcome,), start_ns, input_end_ns, output_start_ns, time.monotonic_ns())

    def _execute_rows(self, requests: Sequence[Request]) -> Execution:
        """A batch of tensors whose elements have a size: put together and cut up as bytes.

        What `_execute_batch` does with an array for each request takes three times as long, and holds up the loop.
        """
        start_ns = time.monotonic_ns()
        try:
            feed, row_counts = self._join_rows(requests)
        except (ServerError, ValueError, KeyError):
            # One of them is at fault, and shall fail alone.
            return self._execute_batch(requests)
        input_end_ns = output_start_ns = time.monotonic_ns()
        outcomes: Sequence[Outcome]
        try:
            total = sum(row_counts)
            self._check_limit(total)
            arrays = self._run(feed)
            output_start_ns = time.monotonic_ns()
            outputs: list[list[Tensor]] = [[] for _ in requests]
            for (name, datatype), array in zip(self._outputs, arrays, strict=True):
                self._check_rows(name, array, total)
                view = array.reshape(-1).view(np.uint8).data
                row_byte_size, dims = len(view) // total, array.shape[1:]
                start = 0
                for tensors, rows in zip(outputs, row_counts, strict=True):
                    end = start + rows * row_byte_size
                    tensors.append(Tensor(name, datatype, (rows, *dims), view[start:end]))
                    start = end
            outcomes = [
                Response(self._model_name, self._model_version, request.id, tensors)
                for request, tensors in zip(requests, outputs, strict=True)
            ]
        except ServerError as error:
            outcomes = [error] * len(requests)
        return Execution(outcomes, start_ns, input_end_ns, output_start_ns, time.monotonic_ns())

    def _join_rows(self, requests: Sequence[Request]) -> tuple[dict[str, Array], list[int]]:
        """The inputs of a batch as arrays, and the rows of each request.

        Raises:
            ServerError, ValueError, KeyError: a request does not fit in.
        """
        first = requests[0].inputs
        leading = next(iter(first))
        row_counts = [request.inputs[leading].shape[0] for request in requests]
        total = sum(row_counts)
        if not total:
            raise ValueError("a batch without rows")
        feed: dict[str, Array] = {}
        for name, tensor in first.items():
            data = b"".join([request.inputs[name].data for request in requests])
            feed[name] = np.frombuffer(data, _ARRAY_DTYPES[tensor.datatype]).reshape(total, *tensor.shape[1:])
        return feed, row_counts

    def _execute_batch(self, requests: Sequence[Request]) -> Execution:
        assert self._max_batch_size or len(requests) == 1, "a model without batching is given one request at a time"
        start_ns = time.monotonic_ns()
        outcomes: dict[int, Outcome] = {}
        feeds: dict[int, dict[str, Array]] = {}
        for position, request in enumerate(requests):
            try:
                feeds[position] = self._feed(request)
            except ServerError as error:
                outcomes[position] = error
        input_end_ns = output_start_ns = time.monotonic_ns()
        if feeds:
            try:
                feed, shapes = self._join(list(feeds.values()))
                row_counts = [self._rows(each) if self._max_batch_size else 1 for each in feeds.values()]
                if self._max_batch_size:
                    self._check_limit(sum(row_counts))
                input_end_ns = output_start_ns = time.monotonic_ns()
                arrays = self._run(feed)
                output_start_ns = time.monotonic_ns()
                pieces = [
                    self._cut(name, array, row_counts, shapes)
                    for name, array in zip(self._output_names, arrays, strict=True)
                ]
                for position, outputs in zip(feeds, zip(*pieces, strict=True), strict=True):
                    tensors = [
                        _tensor_of(name, datatype, array)
                        for (name, datatype), array in zip(self._outputs, outputs, strict=True)
                    ]
                    outcomes[position] = Response(self._model_name, self._model_version, requests[position].id, tensors)
            except ServerError as error:
                outcomes.update(dict.fromkeys(feeds, error))
        return Execution(
            [outcomes[position] for position in range(len(requests))],
            start_ns,
            input_end_ns,
            output_start_ns,
            time.monotonic_ns(),
        )

    def close(self) -> None:
        self._session = None

    def _feed(self, request: Request) -> dict[str, Array]:
        """The inputs of one request as arrays: views of its bytes, except for strings and data that is not aligned."""
        feed: dict[str, Array] = {}
        for name, tensor in request.inputs.items():
            try:
                array = _array_of(tensor)
            except ValueError as error:
                raise InvalidArgumentError(f"{request.log_prefix}input '{name}': {error}") from None
            if name in self._scalar_inputs and not self._max_batch_size:
                array = array.reshape(())
            feed[name] = array
        return feed

    def _join(self, feeds: Sequence[Mapping[str, Array]]) -> tuple[dict[str, Array], dict[str, list[tuple[int, ...]]]]:
        """The feeds of a batch as one, and the shapes that tell how to take it apart again, if it is ragged."""
        ragged = self._ragged
        if ragged is None:
            return {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}, {}
        shapes = {name: [feed[name].shape for feed in feeds] for name in ragged.sources}
        joined = {}
        for name in feeds[0]:
            arrays = [feed[name] for feed in feeds]
            if name in ragged.inputs:
                joined[name] = concatenate(arrays)
            else:
                joined[name] = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
        joined.update(ragged.batch_tensors(shapes))
        return joined, shapes

    def _cut(
        self, name: str, array: Array, row_counts: Sequence[int], shapes: Mapping[str, list[tuple[int, ...]]]
    ) -> Sequence[Array]:
        """What an output holds for each request; views."""
        if self._ragged is not None and name in self._ragged.scatters:
            return self._ragged.scatter(name, array, shapes)
        if not self._max_batch_size:
            return [array if array.shape else array.reshape(1)]
        self._check_rows(name, array, sum(row_counts))
        pieces = []
        start = 0
        for rows in row_counts:
            end = start + rows
            pieces.append(array[start:end])
            start = end
        return pieces

    def _rows(self, feed: Mapping[str, Array]) -> int:
        """The rows of a batch, checked against the limit."""
        rows: int = feed[next(iter(feed))].shape[0]
        self._check_limit(rows)
        return rows

    def _check_limit(self, rows: int) -> None:
        if rows > self._max_batch_size:
            raise InvalidArgumentError(f"batch size {rows} for '{self._name}', max allowed is {self._max_batch_size}")

    def _check_rows(self, name: str, array: Array, rows: int) -> None:
        if not array.shape or array.shape[0] != rows:
            raise InternalError(
                f"output '{name}' of model '{self._model_name}' has shape {format_shape(array.shape)}, but the "
                f"batch has {rows} rows"
            )

    def _run(self, feed: Mapping[str, Array]) -> Sequence[Array]:
        """The configured outputs. An array of BF16 has the dtype uint16.

        Raises:
            InternalError: the runtime refused; its code and text.
        """
        try:
            if self._uses_bfloat16:
                values = {name: _ort_value(array, name in self._bfloat16_inputs) for name, array in feed.items()}
                outputs = self._session.run_with_ort_values(self._output_names, values, self._run_options)
                return [_array_of_ort_value(output) for output in outputs]
            arrays: Sequence[Array] = self._session.run(self._output_names, feed, self._run_options)
            return arrays
        except Exception as error:
            raise _runtime_error(error) from None


def _outputs_of(config: ModelConfig) -> list[tuple[str, str]]:
    """Names and datatypes of what is run for: the outputs, and the states that the server keeps for a sequence."""
    outputs = {output.name: DATATYPES_OF_CONFIG[output.data_type] for output in config.output}
    if config.sequence_batching is not None:
        for state in config.sequence_batching.state:
            outputs.setdefault(state.output_name, DATATYPES_OF_CONFIG[state.data_type])
    return list(outputs.items())


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


_CUDA = "CUDAExecutionProvider"
_CPU_PROVIDERS: Sequence[str | tuple[str, dict[str, str]]] = ("CPUExecutionProvider",)

# Execution accelerators by name: the runtime's provider, and the package that has it.
_CPU_ACCELERATORS = {"openvino": ("OpenVINOExecutionProvider", "onnxruntime-openvino")}
_GPU_ACCELERATORS = {"cuda": (_CUDA, "onnxruntime-gpu"), "tensorrt": ("TensorrtExecutionProvider", "onnxruntime-gpu")}

# Parameters of the model that are options of the CUDA provider.
_CUDA_PARAMETERS = ("cudnn_conv_algo_search", "gpu_mem_limit", "arena_extend_strategy", "do_copy_in_default_stream")


def _providers(config: ModelConfig, instance: InstanceDescription) -> Sequence[str | tuple[str, dict[str, str]]]:
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
    return (*providers.items(), *_CPU_PROVIDERS)


def _session_options(context: ModelContext) -> Any:
    """The runtime's options, from the configuration's parameters and `optimization.graph.level`."""
    config = context.config
    parameters = {key: parameter.string_value for key, parameter in config.parameters.items()}
    options = onnxruntime.SessionOptions()
    # Errors only; what it says of a model's graph is no news to an operator.
    options.log_severity_level = 3
    options.intra_op_num_threads = _thread_count(parameters, _INTRA_OP) or _cores_per_instance(config)
    options.inter_op_num_threads = _thread_count(parameters, "inter_op_thread_count")
    execution_mode = _integer("execution_mode", parameters.get("execution_mode"), 0)
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


def _register_operators(options: Any, context: ModelContext) -> None:
    operations = context.config.model_operations
    for filename in () if operations is None else operations.op_library_filename:
        try:
            options.register_custom_ops_library(os.path.join(context.model_directory, filename))
        except Exception as error:
            raise _runtime_error(error) from None


def _run_options(config: ModelConfig) -> Any:
    """Options of each run; None for the runtime's own."""
    shrinkage = config.parameters.get("memory.enable_memory_arena_shrinkage")
    if shrinkage is None:
        return None
    options = onnxruntime.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", shrinkage.string_value)
    return options


def _cores_per_instance(config: ModelConfig) -> int:
    return max(1, _core_count() // max(1, _instance_count(config)))


def _core_count() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _instance_count(config: ModelConfig) -> int:
    """The instances that share the cores."""
    return sum(group.count for group in config.instance_group if group.kind != "KIND_GPU" and not group.passive)


def _thread_count(parameters: Mapping[str, str], key: str) -> int:
    """A number of threads; 0 (the default) where there is none, or a negative one."""
    return max(0, _integer(key, parameters.get(key), 0))


def _integer(key: str, text: str | None, default: int) -> int:
    if text is None or not text.strip():
        return default
    try:
        return int(text)
    except ValueError:
        raise InvalidArgumentError(f"failed to convert {key} '{text}' to integral number") from None


def _model_path(context: ModelContext, instance_name: str) -> str:
    """The model's file. `model.onnx` may be a folder with the file of that name, beside its external data.

    Raises:
        UnavailableError: there is none.
    """
    path = os.path.join(context.version_directory, context.config.default_model_filename or "model.onnx")
    if os.path.isdir(path):
        path = os.path.join(path, "model.onnx")
    if not os.path.isfile(path):
        raise UnavailableError(f"unable to find '{path}' for model instance '{instance_name}'")
    return path


def _open_session(path: str, options: Any, providers: Sequence[str | tuple[str, dict[str, str]]]) -> Any:
    try:
        return onnxruntime.InferenceSession(path, options, providers=list(providers))
    except Exception as error:
        raise _runtime_error(error) from None


def _runtime_error(error: Exception) -> ServerError:
    """An exception of the runtime, as Triton words it: `onnx runtime error 2: Got invalid dimensions ...`."""
    match = _RUNTIME_ERROR.match(str(error))
    if match is None:
        return InternalError(f"onnx runtime error {_UNKNOWN_RUNTIME_ERROR}: {error}")
    return InternalError(f"onnx runtime error {match[1]}: {match[2]}")


def _array_of(tensor: Tensor) -> Array:
    """A tensor as the runtime takes it: BF16 as uint16, strings as `str`, which must be UTF-8.

    Raises:
        ValueError: the data does not hold what datatype and shape promise.
    """
    if tensor.datatype == "BF16":
        array: Array = np.frombuffer(tensor.data, np.uint16).reshape(tensor.shape)
    else:
        array = tensor.as_numpy()
        if tensor.datatype == "BYTES":
            elements = [element.decode() for element in array.reshape(-1).tolist()]
            array = np.empty(len(elements), np.object_)
            array[:] = elements
            return array.reshape(tensor.shape)
    return array if array.flags.aligned else array.copy()


def _tensor_of(name: str, datatype: str, array: Array) -> Tensor:
    """An output; a view of the array, except for strings."""
    if datatype == "BYTES":
        return Tensor(name, datatype, array.shape, encode_bytes_elements(array))
    # reshape(-1) first: a memoryview of a zero-dimensional or empty array cannot be cast.
    return Tensor(name, datatype, array.shape, array.reshape(-1).view(np.uint8).data)


def _ort_value(array: Array, is_bfloat16: bool) -> Any:
    if is_bfloat16:
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(array, _ONNX_BFLOAT16)
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)


def _array_of_ort_value(value: Any) -> Array:
    if value.element_type() != _ONNX_BFLOAT16:
        array: Array = value.numpy()
        return array
    shape = tuple(value.shape())
    data = ctypes.string_at(value.data_ptr(), int(np.prod(shape)) * 2)
    return np.frombuffer(data, np.uint16).reshape(shape)
