"""Whether a configuration makes sense: Triton's checks, in Triton's order, with Triton's texts. Pure.

`validate_config` runs when a repository is read; a failure there is only seen in the log. `validate_instance_groups`
and `validate_tensors` run when a version is created, after the backend has completed the configuration; clients read
what they say in the answer to a load request. Every failure is an InvalidArgumentError, and the first one wins.

Source: Triton, core/src/model_config_utils.cc: ValidateModelConfig, ValidateInstanceGroup, ValidateModelIOConfig;
core/src/ensemble_scheduler utilities: ValidateEnsembleSchedulingConfig.
"""

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

from merrow.core.errors import InvalidArgumentError
from merrow.core.model_config import (
    ModelConfig,
    ModelDynamicBatching,
    ModelInput,
    ModelOutput,
    ModelQueuePolicy,
    ModelSequenceBatching,
    ModelSequenceBatchingControl,
    ModelTensorReshape,
)

WILDCARD_DIM = -1
ENSEMBLE_PLATFORM = "ensemble"
TENSORRT_PLATFORM = "tensorrt_plan"
MIN_COMPUTE_CAPABILITY = 6.0

# Backends whose platform must be one of theirs.
_PLATFORMS_OF_BACKEND = {
    "tensorflow": ("tensorflow_graphdef", "tensorflow_savedmodel"),
    "tensorrt": (TENSORRT_PLATFORM,),
    "onnxruntime": ("onnxruntime_onnx",),
    "pytorch": ("pytorch_libtorch", "torch_aoti"),
}

_CORRELATION_ID_TYPES = ("TYPE_UINT64", "TYPE_INT64", "TYPE_UINT32", "TYPE_INT32", "TYPE_STRING")
_BATCH_INPUT_TYPES = ("TYPE_INT32", "TYPE_FP32")


def validate_config(config: ModelConfig) -> None:
    """Check a normalised configuration before anything is loaded.

    Raises:
        InvalidArgumentError
    """
    if not config.name:
        raise InvalidArgumentError("model configuration must specify 'name'")
    _check_backend(config)
    if config.max_batch_size < 0:
        raise InvalidArgumentError(f"'max_batch_size' must be non-negative value for {config.name}")
    if config.dynamic_batching is not None:
        _check_dynamic_batching(config, config.dynamic_batching)
    check_response_cache(config)
    if config.sequence_batching is not None:
        _check_sequence_batching(config, config.sequence_batching)
    if config.ensemble_scheduling is not None:
        _check_ensemble(config)
    elif config.platform == ENSEMBLE_PLATFORM:
        raise InvalidArgumentError(
            f"ensemble scheduling must be set for ensemble {config.name} whose platform is {ENSEMBLE_PLATFORM}"
        )
    _check_metrics(config)


def validate_instance_groups(config: ModelConfig, gpu_ids: Collection[int] = ()) -> None:
    """Check normalised instance groups against the GPUs there are.

    Raises:
        InvalidArgumentError
    """
    if config.ensemble_scheduling is not None:
        return
    if not config.instance_group:
        raise InvalidArgumentError(f"must specify one or more 'instance group's for {config.name}")
    for group in config.instance_group:
        subject = f"instance group {group.name} of model {config.name}"
        if group.kind in ("KIND_MODEL", "KIND_CPU") and group.gpus:
            raise InvalidArgumentError(f"{subject} has kind {group.kind} but specifies one or more GPUs")
        if group.kind == "KIND_GPU":
            if not group.gpus:
                problem = "specifies no GPUs" if gpu_ids else "no GPUs are available"
                raise InvalidArgumentError(f"{subject} has kind KIND_GPU but {problem}")
            for gpu in group.gpus:
                if gpu not in gpu_ids:
                    known = ", ".join(str(known_gpu) for known_gpu in sorted(gpu_ids))
                    raise InvalidArgumentError(
                        f"{subject} specifies invalid or unsupported gpu id {gpu}. GPUs with at least the minimum "
                        f"required CUDA compute compatibility of {MIN_COMPUTE_CAPABILITY:.6f} are: {known}"
                    )
        if group.profile and config.platform != TENSORRT_PLATFORM:
            # The missing blank is Triton's.
            raise InvalidArgumentError(
                f"{subject} and platform {config.platform}specifies profile field which is only supported for "
                "TensorRT models"
            )


def validate_tensors(config: ModelConfig) -> None:
    """Check inputs, outputs, and the batch inputs and outputs of a completed configuration.

    Raises:
        InvalidArgumentError
    """
    try:
        for tensor in config.input:
            _check_input(tensor, config)
        for output in config.output:
            _check_output(output, config)
        _check_batch_tensors(config)
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"{error.message} for {config.name}") from None


def _check_backend(config: ModelConfig) -> None:
    if not config.backend:
        if config.platform != ENSEMBLE_PLATFORM:
            raise InvalidArgumentError(f"unexpected platform type '{config.platform}' for {config.name}")
        return
    if config.platform == ENSEMBLE_PLATFORM:
        raise InvalidArgumentError(
            f"Ensemble model '{config.name}' must have platform type '{ENSEMBLE_PLATFORM}' and empty backend type"
        )
    platforms = _PLATFORMS_OF_BACKEND.get(config.backend)
    if platforms is not None and config.platform not in platforms:
        raise InvalidArgumentError(f"unexpected 'platform' and 'backend' pair, got:{config.platform}, {config.backend}")


def _check_dynamic_batching(config: ModelConfig, batching: ModelDynamicBatching) -> None:
    name = config.name
    for size in batching.preferred_batch_size:
        if size <= 0:
            raise InvalidArgumentError(f"dynamic batching preferred size must be positive for {name}")
        if size > config.max_batch_size:
            raise InvalidArgumentError(f"dynamic batching preferred size must be <= max batch size for {name}")
    levels = batching.priority_levels
    if levels != 0:
        if not 1 <= batching.default_priority_level <= levels:
            raise InvalidArgumentError(f"default priority level must be in range [1, {levels}] for {name}")
        for level in batching.priority_queue_policy:
            if not 1 <= level <= levels:
                raise InvalidArgumentError(
                    f"priority queue policy must have priority level in range [1, {levels}] for {name}"
                )
    if batching.preserve_ordering:
        if levels > 1:
            raise InvalidArgumentError(
                f"Only one priority level is allowed when 'preserve_ordering' is true for {name}"
            )
        policies = [batching.default_queue_policy or ModelQueuePolicy(), *batching.priority_queue_policy.values()]
        for policy in policies:
            if policy.timeout_action == "DELAY" and policy.default_timeout_microseconds != 0:
                raise InvalidArgumentError(
                    f"Queue policy can not have DELAY as timeout action when 'preserve_ordering' is true for {name}"
                )


def check_response_cache(config: ModelConfig) -> None:
    """Refuse the response cache where it cannot work; once more when the model, or its steps, completed the rest.

    Raises:
        InvalidArgumentError
    """
    if not config.has_response_cache:
        return
    subject = f"Response Cache does not currently support model {config.name} with"
    if config.sequence_batching is not None:
        raise InvalidArgumentError(f"{subject} sequence batching scheduler. Please disable the response cache.")
    if config.is_decoupled:
        raise InvalidArgumentError(f"{subject} 'decoupled' transaction policy. Please disable the response cache.")


def _check_sequence_batching(config: ModelConfig, batching: ModelSequenceBatching) -> None:
    name = config.name
    for kind in ("CONTROL_SEQUENCE_START", "CONTROL_SEQUENCE_END", "CONTROL_SEQUENCE_READY"):
        for control in _controls_of_kind(config, batching, kind):
            _check_boolean_control(control, name)
    for control in _controls_of_kind(config, batching, "CONTROL_SEQUENCE_CORRID"):
        if control.int32_false_true or control.fp32_false_true or control.bool_false_true:
            raise InvalidArgumentError(
                "sequence batching must not specify either 'int32_false_true', 'fp32_false_true' or "
                f"'bool_false_true' for {control.kind} for {name}"
            )
        if control.data_type not in _CORRELATION_ID_TYPES:
            raise InvalidArgumentError(
                f"unexpected data type for control {control.kind} for {name}. Allowed data types are TYPE_UINT64, "
                "TYPE_INT64, TYPE_UINT32, TYPE_INT32 and TYPE_STRING"
            )
    if batching.oldest is not None:
        for size in batching.oldest.preferred_batch_size:
            if size <= 0:
                raise InvalidArgumentError(f"sequence batching preferred batch size must be positive for {name}")
            if size > config.max_batch_size:
                raise InvalidArgumentError(
                    f"sequence batching preferred batch size must be <= max batch size for {name}"
                )
    if batching.direct is not None and not 0.0 <= batching.direct.minimum_slot_utilization <= 1.0:
        raise InvalidArgumentError(f"sequence batching minimum slot utilization must be in range (0.0, 1.0] for {name}")


def _controls_of_kind(
    config: ModelConfig, batching: ModelSequenceBatching, kind: str
) -> Iterator[ModelSequenceBatchingControl]:
    """The controls of one kind, of which there must be at most one; the tensors' names are checked on the way."""
    names: set[str] = set()
    is_found = False
    for control_input in batching.control_input:
        if not control_input.name:
            raise InvalidArgumentError(f"sequence batching control tensor must have a name for {config.name}")
        if control_input.name in names:
            raise InvalidArgumentError(
                f"sequence batching control tensor '{control_input.name}' is specified for multiple control kinds "
                f"for {config.name}"
            )
        names.add(control_input.name)
        for control in control_input.control:
            if control.kind != kind:
                continue
            if is_found:
                raise InvalidArgumentError(f"sequence batching specifies multiple {kind} tensors for {config.name}")
            is_found = True
            yield control


def _check_boolean_control(control: ModelSequenceBatchingControl, name: str) -> None:
    value_lists: dict[str, Sequence[object]] = {
        "int32_false_true": control.int32_false_true,
        "fp32_false_true": control.fp32_false_true,
        "bool_false_true": control.bool_false_true,
    }
    filled = [list_name for list_name, values in value_lists.items() if values]
    if not filled:
        raise InvalidArgumentError(
            "sequence batching must specify either 'int32_false_true', 'fp32_false_true' or 'bool_false_true' for "
            f"{control.kind} for {name}"
        )
    if len(filled) > 1:
        raise InvalidArgumentError(
            "sequence batching specifies more than one from 'int32_false_true', 'fp32_false_true' and "
            f"'bool_false_true' for {control.kind} for {name}"
        )
    if len(value_lists[filled[0]]) != 2:
        raise InvalidArgumentError(
            f"sequence batching control '{filled[0]}' must have exactly 2 entries for {control.kind} for {name}"
        )


def _check_metrics(config: ModelConfig) -> None:
    for control in config.model_metrics.metric_control if config.model_metrics is not None else ():
        if control.metric_identifier is None:
            raise InvalidArgumentError("metric control must specify 'metric_identifier'")
        if not control.metric_identifier.family:
            raise InvalidArgumentError("metric identifier must specify non-empty 'family'")
        if control.histogram_options is None:
            raise InvalidArgumentError("metric control must specify 'histogram_options'")
        if not control.histogram_options.buckets:
            raise InvalidArgumentError("histogram options must specify non-empty 'buckets'")


@dataclass(slots=True, eq=False)
class _EnsembleTensor:
    """A tensor of an ensemble: the tensors that the step which makes it reads, and those made from it."""

    is_output: bool
    is_ready: bool = False
    sources: list[str] = field(default_factory=list)
    targets: list[str] = field(default_factory=list)


def _check_ensemble(config: ModelConfig) -> None:
    name = config.name
    if config.platform != ENSEMBLE_PLATFORM:
        raise InvalidArgumentError(
            f"ensemble scheduling cannot be set for model '{name}' whose platform is not {ENSEMBLE_PLATFORM}"
        )
    if config.instance_group:
        raise InvalidArgumentError(f"instance group should not be specified for ensemble '{name}'")
    if config.optimization is not None:
        raise InvalidArgumentError(f"optimization should not be specified for ensemble '{name}'")
    if config.model_warmup:
        raise InvalidArgumentError(f"model_warmup can not be specified for ensemble '{name}'")
    tensors = _build_ensemble_graph(config)
    _flow_from_inputs(config, tensors)
    outputs = _check_ensemble_outputs(config, tensors)
    for tensor_name, tensor in tensors.items():
        if tensor_name not in outputs and (not tensor.is_ready or not tensor.targets):
            raise InvalidArgumentError(f"ensemble tensor '{tensor_name}' is unused in ensemble '{name}'")


def _build_ensemble_graph(config: ModelConfig) -> dict[str, _EnsembleTensor]:
    assert config.ensemble_scheduling is not None
    if not config.ensemble_scheduling.step:
        raise InvalidArgumentError(f"must specify 'step' for ensemble '{config.name}'")
    tensors: dict[str, _EnsembleTensor] = {}
    for index, step in enumerate(config.ensemble_scheduling.step):
        for field_name in ("model_name", "input_map", "output_map"):
            if not getattr(step, field_name):
                raise InvalidArgumentError(f"must specify '{field_name}' in step {index} of ensemble '{config.name}'")
        for output in step.output_map.values():
            tensor = tensors.setdefault(output, _EnsembleTensor(is_output=False))
            if tensor.is_output:
                raise InvalidArgumentError(
                    f"ensemble tensor '{output}' can appear in an output map only once for ensemble "
                    f"'{config.name}' step {index}"
                )
            tensor.is_output = True
        for source in step.input_map.values():
            tensors.setdefault(source, _EnsembleTensor(is_output=False)).targets.extend(step.output_map.values())
            for output in step.output_map.values():
                tensors[output].sources.append(source)
    return tensors


def _flow_from_inputs(config: ModelConfig, tensors: dict[str, _EnsembleTensor]) -> None:
    """Mark every tensor that can be made from the ensemble's inputs."""
    pending: deque[_EnsembleTensor] = deque()
    for tensor_input in config.input:
        tensor = tensors.get(tensor_input.name)
        if tensor is None:
            # The unbalanced quote is Triton's.
            raise InvalidArgumentError(f"ensemble input '{tensor_input.name}' for ensemble {config.name}' is not used")
        tensor.is_ready = True
        pending.append(tensor)
    while pending:
        for target in pending.popleft().targets:
            tensor = tensors[target]
            if not tensor.is_ready and all(tensors[source].is_ready for source in tensor.sources):
                tensor.is_ready = True
                pending.append(tensor)


def _check_ensemble_outputs(config: ModelConfig, tensors: dict[str, _EnsembleTensor]) -> set[str]:
    outputs: set[str] = set()
    for output in config.output:
        tensor = tensors.get(output.name)
        if tensor is None:
            raise InvalidArgumentError(f"ensemble output '{output.name}' for ensemble {config.name}' is not used")
        if not tensor.is_ready:
            message = f"output '{output.name}' for ensemble '{config.name}' is not written"
            missing = [source for source in tensor.sources if not tensors[source].is_ready]
            if missing:
                message += f": at least one of its depending tensors, '{missing[0]}', is not connected"
            raise InvalidArgumentError(message)
        outputs.add(output.name)
    return outputs


def _check_input(tensor: ModelInput, config: ModelConfig) -> None:
    _check_shape("model input", tensor, config.max_batch_size)
    if tensor.format in ("FORMAT_NHWC", "FORMAT_NCHW") and len(tensor.dims) != 3:
        raise InvalidArgumentError("model input NHWC/NCHW require 3 dims")
    _check_tensorrt_only(tensor, config)


def _check_output(tensor: ModelOutput, config: ModelConfig) -> None:
    _check_shape("model output", tensor, config.max_batch_size)
    _check_tensorrt_only(tensor, config)


def _check_tensorrt_only(tensor: ModelInput | ModelOutput, config: ModelConfig) -> None:
    if tensor.is_shape_tensor and config.platform != TENSORRT_PLATFORM:
        raise InvalidArgumentError("shape tensors are only supported for TensorRT platform")
    if tensor.is_non_linear_format_io:
        if config.platform != TENSORRT_PLATFORM:
            raise InvalidArgumentError("Non-linear IO format is only supported for the TensorRT platform")
        if len(tensor.dims) != 3:
            raise InvalidArgumentError("Non-linear IO format input requires 3 dims")


def _check_shape(kind: str, tensor: ModelInput | ModelOutput, max_batch_size: int) -> None:
    if not tensor.name:
        raise InvalidArgumentError(f"{kind} must specify 'name'")
    subject = f"{kind} '{tensor.name}'"
    if tensor.data_type == "TYPE_INVALID":
        raise InvalidArgumentError(f"{subject} must specify 'data_type'")
    if not tensor.dims:
        raise InvalidArgumentError(f"{subject} must specify 'dims'")
    if tensor.reshape is not None and not tensor.reshape.shape and max_batch_size == 0:
        raise InvalidArgumentError(
            f"{subject} cannot have empty reshape for non-batching model as scalar tensors are not supported"
        )
    if not all(dim >= 1 or dim == WILDCARD_DIM for dim in tensor.dims):
        raise InvalidArgumentError(
            f"{subject} dimension must be integer >= 1, or -1 to indicate a variable-size dimension"
        )
    if tensor.reshape is not None:
        _check_reshape(subject, tensor.dims, tensor.reshape)


def _check_reshape(subject: str, dims: Sequence[int], reshape: ModelTensorReshape) -> None:
    """Between variable dimensions, which must correspond, both sides must hold equally many elements."""
    if not all(dim >= 1 or dim == WILDCARD_DIM for dim in reshape.shape):
        raise InvalidArgumentError(
            f"{subject} reshape dimensions must be integer >= 1, or -1 to indicate a variable-size dimension"
        )
    counts, reshape_counts = _counts_between_wildcards(dims), _counts_between_wildcards(reshape.shape)
    if (len(counts) == 1) != (len(reshape_counts) == 1):
        raise InvalidArgumentError(f"{subject} has different size for dims and reshape")
    if len(counts) != len(reshape_counts):
        raise InvalidArgumentError(f"{subject} has different number of variable-size dimensions for dims and reshape")
    if counts != reshape_counts:
        raise InvalidArgumentError(f"{subject} has different size for dims and reshape")


def _counts_between_wildcards(dims: Sequence[int]) -> list[int]:
    """`[2, 4, -1, 6]` -> `[8, 6]`. No dimensions at all hold one element."""
    counts = [1]
    for dim in dims:
        if dim == WILDCARD_DIM:
            counts.append(1)
        else:
            counts[-1] *= dim
    return counts


def _check_batch_tensors(config: ModelConfig) -> None:
    input_names = {tensor.name for tensor in config.input}
    output_names = {tensor.name for tensor in config.output}
    for batch_input in config.batch_input:
        _check_source_count("input", batch_input.kind, batch_input.source_input)
        if batch_input.data_type not in _BATCH_INPUT_TYPES:
            raise InvalidArgumentError("batch input data type must be TYPE_INT32 or TYPE_FP32")
        _check_sources(batch_input.source_input, input_names)
    for batch_output in config.batch_output:
        _check_source_count("output", batch_output.kind, batch_output.source_input)
        _check_sources(batch_output.source_input, input_names)
        targets: set[str] = set()
        for target in batch_output.target_name:
            if target not in output_names:
                raise InvalidArgumentError(f"unknown target output name '{target}'")
            if target in targets:
                raise InvalidArgumentError(f"target output name '{target}' can only be specified once")
            targets.add(target)


def _check_source_count(direction: str, kind: str, sources: Sequence[str]) -> None:
    if len(sources) != 1:
        raise InvalidArgumentError(f"batch {direction} kind '{kind}' expects 1 source input, got {len(sources)}")


def _check_sources(sources: Sequence[str], input_names: Collection[str]) -> None:
    for source in sources:
        if source not in input_names:
            raise InvalidArgumentError(f"unknown source input name '{source}'")
