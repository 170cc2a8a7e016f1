"""Whether an ensemble fits the models that it is made of: Triton's checks, with Triton's texts. Pure.

What a configuration says by itself is checked when it is read (`validation`). Here its steps meet the configurations of
the composing models, once those are loaded: batch sizes, names, datatypes and shapes of every tensor that two of them
share, and which of them are decoupled.

Source: Triton, core/src/ensemble_scheduler/ensemble_utils.cc: ValidateEnsembleConfig, ValidateTensorMapping.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from merrow.core.errors import InvalidArgumentError
from merrow.core.model_config import ModelConfig, ModelEnsemblingStep, ModelInput, ModelOutput

LATEST = -1
"""The `model_version` of a step that takes whichever version is the largest."""

ModelKey = tuple[str, int]
"""A model's name, and the version that a step asks for."""


@dataclass(frozen=True, slots=True)
class _TensorFacts:
    """What one model says of a tensor of the ensemble."""

    model_name: str
    data_type: str
    dims: tuple[int, ...]
    full_dims: tuple[int, ...]

    @classmethod
    def of(cls, config: ModelConfig, tensor: ModelInput | ModelOutput) -> "_TensorFacts":
        batch = (-1,) if config.has_batch_dim else ()
        return cls(config.name, tensor.data_type, tuple(tensor.dims), batch + tuple(tensor.dims))


def steps_of(config: ModelConfig) -> tuple[ModelEnsemblingStep, ...]:
    """The steps of an ensemble; none for another model."""
    return () if config.ensemble_scheduling is None else config.ensemble_scheduling.step


def composing_models(config: ModelConfig) -> tuple[ModelKey, ...]:
    """The models that an ensemble's steps name, each once, with the version asked for (-1 is the latest)."""
    return tuple(dict.fromkeys((step.model_name, step.model_version) for step in steps_of(config)))


def check_cycles(config: ModelConfig, config_of: Callable[[str], ModelConfig | None]) -> None:
    """Refuse an ensemble that contains itself.

    Args:
        config_of: the configuration of a model of the repository as written; None if it has none.

    Raises:
        InvalidArgumentError
    """
    finished: set[str] = set()

    def visit(ensemble: ModelConfig, path: tuple[str, ...]) -> None:
        for name, _ in composing_models(ensemble):
            if name in path:
                raise InvalidArgumentError(
                    f"circular dependency between ensembles: {name} -> ... -> {ensemble.name} -> {name}"
                )
            inner = None if name in finished else config_of(name)
            if inner is not None:
                visit(inner, (*path, name))
        finished.add(ensemble.name)

    visit(config, (config.name,))


def missing_models_error(ensemble_name: str, model_names: Sequence[str]) -> InvalidArgumentError:
    """No repository, or more than one, has these composing models."""
    names = ", ".join(sorted(model_names))
    return InvalidArgumentError(
        f"ensemble {ensemble_name} contains models that are not available or ambiguous: {names}"
    )


def not_loaded_error(ensemble_name: str, model_name: str, failure: str) -> InvalidArgumentError:
    """A composing model has no version in service, because its load failed with this text."""
    return InvalidArgumentError(
        f"ensemble '{ensemble_name}' depends on '{model_name}' which has no loaded version. "
        f"Model '{model_name}' loading failed with error: {failure}"
    )


def not_valid_error(ensemble_name: str, model_name: str, failure: str) -> InvalidArgumentError:
    """A composing model is an ensemble that is itself impossible."""
    return InvalidArgumentError(
        f"ensemble '{ensemble_name}' depends on '{model_name}' which is not valid. "
        f"Model '{model_name}' failed with error: {failure}"
    )


def version_not_loaded_error(ensemble_name: str, model_name: str, version: int) -> InvalidArgumentError:
    """A composing model is in service, but not in the version asked for."""
    return InvalidArgumentError(
        f"ensemble '{ensemble_name}' depends on '{model_name}' whose required version {version} is not loaded."
    )


def is_decoupled(config: ModelConfig, configs: Mapping[ModelKey, ModelConfig]) -> bool:
    """Whether a step of the ensemble answers with any number of responses; then the ensemble does, too."""
    return any(configs[key].is_decoupled for key in composing_models(config))


def check_ensemble(config: ModelConfig, configs: Mapping[ModelKey, ModelConfig]) -> None:
    """Check an ensemble against the completed configurations of its composing models.

    Raises:
        InvalidArgumentError: the first contradiction; the text says which tensor.
    """
    own_tensors: tuple[ModelInput | ModelOutput, ...] = (*config.input, *config.output)
    tensors = {tensor.name: _TensorFacts.of(config, tensor) for tensor in own_tensors}
    for step in steps_of(config):
        model = configs[(step.model_name, step.model_version)]
        if model.max_batch_size and model.max_batch_size < config.max_batch_size:
            raise InvalidArgumentError(
                f"ensemble {config.name} allows maximum batch size {config.max_batch_size}, but it contains model "
                f"{step.model_name} which only allows maximum batch size to be {model.max_batch_size}"
            )
        _check_inputs(config.name, step, model, tensors)
        _check_outputs(config.name, step, model, tensors)
    _check_origins(config, configs)


def _check_inputs(
    ensemble_name: str, step: ModelEnsemblingStep, model: ModelConfig, tensors: dict[str, _TensorFacts]
) -> None:
    inputs = {tensor.name: tensor for tensor in model.input}
    for input_name, tensor_name in step.input_map.items():
        if input_name not in inputs:
            raise InvalidArgumentError(
                f"in ensemble {ensemble_name}, ensemble tensor {tensor_name} is mapping to non-existing input "
                f"{input_name} in model {step.model_name}"
            )
    for tensor in model.input:
        mapped = step.input_map.get(tensor.name)
        if mapped is not None:
            _check_consistency(ensemble_name, mapped, tensors, _TensorFacts.of(model, tensor))
        elif not tensor.optional:
            raise InvalidArgumentError(
                f"in ensemble {ensemble_name}, input {tensor.name} in model {model.name} is not mapped to any "
                "ensemble tensors"
            )


def _check_outputs(
    ensemble_name: str, step: ModelEnsemblingStep, model: ModelConfig, tensors: dict[str, _TensorFacts]
) -> None:
    outputs = {tensor.name: tensor for tensor in model.output}
    for output_name, tensor_name in step.output_map.items():
        if output_name not in outputs:
            raise InvalidArgumentError(
                f"in ensemble {ensemble_name}, ensemble tensor {tensor_name} is mapped from non-existing output "
                f"{output_name} in model {step.model_name}"
            )
    for output_name, tensor_name in step.output_map.items():
        _check_consistency(ensemble_name, tensor_name, tensors, _TensorFacts.of(model, outputs[output_name]))


def _check_consistency(
    ensemble_name: str, tensor_name: str, tensors: dict[str, _TensorFacts], facts: _TensorFacts
) -> None:
    known = tensors.setdefault(tensor_name, facts)
    subject = f"in ensemble {ensemble_name}, ensemble tensor {tensor_name}: "
    if known.data_type != facts.data_type:
        raise InvalidArgumentError(
            f"{subject}inconsistent data type: {known.data_type} is inferred from model {known.model_name} while "
            f"{facts.data_type} is inferred from model {facts.model_name}"
        )
    # A model that does not batch may take, or make, the whole batch as its own first dimension.
    if not dims_match(known.dims, facts.dims) and not dims_match(known.full_dims, facts.full_dims):
        raise InvalidArgumentError(
            f"{subject}inconsistent shape: {_shape_text(known.full_dims)} is inferred from model {known.model_name} "
            f"while {_shape_text(facts.full_dims)} is inferred from model {facts.model_name}"
        )


def _check_origins(config: ModelConfig, configs: Mapping[ModelKey, ModelConfig]) -> None:
    """Refuse what mixes tensors of different origin: the inputs of a step, and the ensemble's outputs.

    The origin of a tensor is the last decoupled step on its way, or the request itself. Tensors of two origins exist in
    different numbers, so that nothing says which belong together.
    """
    request_origin = -1
    origins = {tensor.name: request_origin for tensor in config.input}
    pending = list(enumerate(steps_of(config)))
    while pending:
        ready = [entry for entry in pending if all(name in origins for name in entry[1].input_map.values())]
        assert ready, "validation found every tensor to be made from the inputs"
        for index, step in ready:
            origin = _common_origin(config.name, step.input_map.values(), origins)
            if configs[(step.model_name, step.model_version)].is_decoupled:
                origin = index
            origins.update(dict.fromkeys(step.output_map.values(), origin))
            pending.remove((index, step))
    _common_origin(config.name, [tensor.name for tensor in config.output], origins)


def _common_origin(ensemble_name: str, tensor_names: Iterable[str], origins: Mapping[str, int]) -> int:
    found = {origins[name] for name in tensor_names}
    if len(found) > 1:
        # Triton names the ensemble where it means the step.
        raise InvalidArgumentError(
            f"in ensemble {ensemble_name}, step of model '{ensemble_name}' receives inputs originated from different "
            "decoupled models"
        )
    return found.pop()


def dims_match(left: Sequence[int], right: Sequence[int]) -> bool:
    """Whether two shapes can be the same, -1 being any size."""
    return len(left) == len(right) and all(
        one == other or -1 in (one, other) for one, other in zip(left, right, strict=True)
    )


def _shape_text(dims: Sequence[int]) -> str:
    return "[" + ",".join(map(str, dims)) + "]"
