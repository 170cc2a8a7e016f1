"""Completing a configuration: what Triton fills in so that a short config.pbtxt (or none) is enough. Pure.

In the order in which it happens: the backend is deduced from the model's file (`fill_backend`), defaults are filled in
(`normalize`), the backend completes the rest from the model itself (`merge_completed`), and the instance groups are
spelled out (`normalize_instance_groups`). What comes out is what the config endpoint prints.

Source: Triton, core/src/model_config_utils.cc: AutoCompleteBackendFields, NormalizeModelConfig, NormalizeInstanceGroup;
core/src/backend_model.cc: UpdateModelConfig.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from merrow.core.errors import InternalError, InvalidArgumentError
from merrow.core.model_config import (
    ModelConfig,
    ModelDynamicBatching,
    ModelInstanceGroup,
    ModelOptimizationPolicy,
    ModelOptimizationPolicyPinnedMemoryBuffer,
    ModelSequenceBatching,
    ModelTransactionPolicy,
    ModelVersionPolicy,
    ModelVersionPolicyLatest,
)

DEFAULT_SEQUENCE_IDLE_MICROSECONDS = 1_000_000

# Two instances on the CPU when nobody says how many: these runtimes gain from it.
_TWO_INSTANCE_BACKENDS = frozenset({"onnxruntime", "tensorflow"})

# Numbers of the members of the oneof `scheduling_choice`, as an error text names them.
_SCHEDULING_CHOICES = {"dynamic_batching": 11, "sequence_batching": 13, "ensemble_scheduling": 15}

_NONE: Mapping[str, str] = MappingProxyType({})

_PINNED_MEMORY = ModelOptimizationPolicyPinnedMemoryBuffer(enable=True)


@dataclass(frozen=True, slots=True)
class _FileFormat:
    """A kind of model file, and the backend and platform it stands for.

    `is_directory` says whether the file's name must be a directory's; None takes either.
    """

    file_name: str
    backend: str
    platform: str
    is_directory: bool | None = False


# TensorFlow's backend cannot run without the platform, which is therefore deduced first.
_TENSORFLOW_FORMATS = (
    _FileFormat("model.graphdef", "tensorflow", "tensorflow_graphdef"),
    _FileFormat("model.savedmodel", "tensorflow", "tensorflow_savedmodel", is_directory=True),
)
_TORCH_AOTI = _FileFormat("model.pt2", "pytorch", "torch_aoti")

# The others, in the order in which they are tried.
_FILE_FORMATS = (
    _FileFormat("model.plan", "tensorrt", "tensorrt_plan"),
    _FileFormat("model.onnx", "onnxruntime", "onnxruntime_onnx", is_directory=None),
    _FileFormat("model.xml", "openvino", "", is_directory=None),
    _FileFormat("model.pt", "pytorch", "pytorch_libtorch"),
    _TORCH_AOTI,
    _FileFormat("model.py", "python", "", is_directory=None),
)


def fill_backend(config: ModelConfig, name: str, entries: Mapping[str, bool]) -> ModelConfig:
    """Fill in `name`, `platform`, `backend` and `default_model_filename` where they are empty.

    Args:
        name: the model's directory.
        entries: what the first of the model's subdirectories holds, each with whether it is a directory.

    Raises:
        InvalidArgumentError: nothing tells the backend, not even the name.
    """
    config = config if config.name else replace(config, name=name)
    for file_format in _TENSORFLOW_FORMATS:
        is_possible = config.backend in ("", file_format.backend) and config.platform in ("", file_format.platform)
        if is_possible and _is_deduced(config, file_format, entries):
            return _with_format(config, file_format)
    # Of PyTorch's two formats, a configuration with a backend means the first unless something says the second.
    if (
        config.backend == _TORCH_AOTI.backend
        and "model.pt" not in entries
        and _is_deduced(config, _TORCH_AOTI, entries)
    ):
        return _with_format(config, _TORCH_AOTI)
    for file_format in _FILE_FORMATS:
        if config.backend == file_format.backend or (not config.backend and _is_deduced(config, file_format, entries)):
            return _with_format(config, file_format)
    if config.backend or config.platform or config.default_model_filename:
        return config
    _, dot, backend = name.partition(".")
    if not dot:
        raise InvalidArgumentError(
            f"Invalid model name: Could not determine backend for model '{name}' with no backend in model "
            "configuration. Expected model name of the form 'model.<backend_name>'."
        )
    return replace(config, backend=backend, default_model_filename=f"model.{backend}")


def normalize(config: ModelConfig) -> ModelConfig:
    """Fill in the defaults that depend on nothing but the configuration itself. Doing it twice changes nothing more."""
    changes: dict[str, object] = {}
    if config.version_policy is None:
        changes["version_policy"] = ModelVersionPolicy(latest=ModelVersionPolicyLatest(1))
    if config.dynamic_batching is not None:
        changes["dynamic_batching"] = _normalize_dynamic_batching(config.dynamic_batching, config.max_batch_size)
    if config.sequence_batching is not None:
        changes["sequence_batching"] = _normalize_sequence_batching(config.sequence_batching, config.max_batch_size)
    if config.ensemble_scheduling is None:
        optimization = config.optimization or ModelOptimizationPolicy()
        changes["optimization"] = replace(
            optimization,
            input_pinned_memory=optimization.input_pinned_memory or _PINNED_MEMORY,
            output_pinned_memory=optimization.output_pinned_memory or _PINNED_MEMORY,
        )
    return _replace(config, changes)


def merge_completed(config: ModelConfig, completed: ModelConfig) -> ModelConfig:
    """Take over what a backend may complete: batch size, inputs, outputs, decoupled, and scheduling if none was chosen.

    Raises:
        InternalError: the backend chose another scheduling than the configuration.
    """
    changes: dict[str, object] = {
        "max_batch_size": completed.max_batch_size,
        "input": completed.input,
        "output": completed.output,
    }
    chosen = _scheduling_choice(config)
    if chosen is None:
        changes["dynamic_batching"] = completed.dynamic_batching
        changes["sequence_batching"] = completed.sequence_batching
        changes["ensemble_scheduling"] = completed.ensemble_scheduling
    elif chosen != _scheduling_choice(completed):
        number = _SCHEDULING_CHOICES[chosen]
        # Triton prints the old number twice.
        raise InternalError(f"Cannot update scheduling choice from {number} to {number} when auto-completing.")
    if completed.model_transaction_policy is not None:
        changes["model_transaction_policy"] = completed.model_transaction_policy
    return normalize(_replace(config, changes))


def normalize_instance_groups(
    config: ModelConfig,
    gpu_ids: Collection[int] = (),
    preferred_cpu_instance_count: int = 0,
    takes_gpus: bool = True,
) -> ModelConfig:
    """Spell out the instance groups: at least one, each with name, kind and count.

    Args:
        gpu_ids: the GPUs that the server may use.
        preferred_cpu_instance_count: how many instances the backend wants on a CPU; 0 leaves it to Triton's default.
        takes_gpus: whether a group of no particular kind goes to the GPUs.
    """
    if config.ensemble_scheduling is not None:
        return config
    groups = config.instance_group or (ModelInstanceGroup(name=config.name),)
    return replace(
        config,
        instance_group=tuple(
            _normalize_group(group, index, config, gpu_ids, preferred_cpu_instance_count, takes_gpus)
            for index, group in enumerate(groups)
        ),
    )


def complete_ensemble(config: ModelConfig, is_decoupled: bool, namespaces: Mapping[str, str] = _NONE) -> ModelConfig:
    """What an ensemble gets from its steps, whatever was written: its transaction policy, and their namespaces.

    Args:
        is_decoupled: whether one of the steps' models is.
        namespaces: of the steps' models, by name; "" for one that is not in it.
    """
    assert config.ensemble_scheduling is not None
    steps = tuple(
        replace(step, model_namespace=namespaces.get(step.model_name, "")) for step in config.ensemble_scheduling.step
    )
    return replace(
        config,
        ensemble_scheduling=replace(config.ensemble_scheduling, step=steps),
        model_transaction_policy=ModelTransactionPolicy(is_decoupled),
    )


def _is_deduced(config: ModelConfig, file_format: _FileFormat, entries: Mapping[str, bool]) -> bool:
    """Whether platform or file name say this format, or, where both are empty, the file itself."""
    if config.platform or config.default_model_filename:
        return (config.platform != "" and config.platform == file_format.platform) or (
            config.default_model_filename == file_format.file_name
        )
    is_directory = entries.get(file_format.file_name)
    return is_directory is not None and file_format.is_directory in (None, is_directory)


def _with_format(config: ModelConfig, file_format: _FileFormat) -> ModelConfig:
    return replace(
        config,
        backend=config.backend or file_format.backend,
        platform=config.platform or file_format.platform,
        default_model_filename=config.default_model_filename or file_format.file_name,
    )


def _normalize_dynamic_batching(batching: ModelDynamicBatching, max_batch_size: int) -> ModelDynamicBatching:
    if batching.preferred_batch_size or max_batch_size <= 0:
        return batching
    return replace(batching, preferred_batch_size=(max_batch_size,))


def _normalize_sequence_batching(batching: ModelSequenceBatching, max_batch_size: int) -> ModelSequenceBatching:
    oldest = batching.oldest
    if oldest is not None and not oldest.preferred_batch_size and max_batch_size > 0:
        oldest = replace(oldest, preferred_batch_size=(max_batch_size,))
    return replace(
        batching,
        oldest=oldest,
        max_sequence_idle_microseconds=batching.max_sequence_idle_microseconds or DEFAULT_SEQUENCE_IDLE_MICROSECONDS,
    )


def _scheduling_choice(config: ModelConfig) -> str | None:
    return next((choice for choice in _SCHEDULING_CHOICES if getattr(config, choice) is not None), None)


def _normalize_group(
    group: ModelInstanceGroup,
    index: int,
    config: ModelConfig,
    gpu_ids: Collection[int],
    preferred_cpu_instance_count: int,
    takes_gpus: bool,
) -> ModelInstanceGroup:
    kind = group.kind
    if kind == "KIND_AUTO":
        # Triton asks only whether there are GPUs; whoever installed a runtime without them would be refused.
        is_gpu = takes_gpus and gpu_ids and all(gpu in gpu_ids for gpu in group.gpus)
        kind = "KIND_GPU" if is_gpu else "KIND_CPU"
    count = group.count
    if count < 1:
        count = 2 if kind == "KIND_CPU" and config.backend in _TWO_INSTANCE_BACKENDS else 1
        if kind == "KIND_CPU" and preferred_cpu_instance_count > 0:
            count = preferred_cpu_instance_count
    return replace(
        group,
        name=group.name or f"{config.name}_{index}",
        kind=kind,
        count=count,
        gpus=tuple(sorted(gpu_ids)) if kind == "KIND_GPU" and not group.gpus else group.gpus,
    )


def _replace(config: ModelConfig, changes: dict[str, object]) -> ModelConfig:
    return replace(config, **changes)  # type: ignore[arg-type]  # field by field, each of its own type
