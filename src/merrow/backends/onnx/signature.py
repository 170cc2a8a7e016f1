"""What an ONNX model's graph takes and gives, and what that means for the model's configuration.

Two decisions, both pure: `complete_config` fills in what a configuration leaves out, `check_config` refuses one that
does not fit the graph. The texts are Triton's.

Source: Triton, onnxruntime_backend, onnxruntime.cc (AutoCompleteConfig, ValidateInputs, ValidateOutputs) and
onnx_utils.cc (CompareDimsSupported).
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from merrow.core.datatypes import CONFIG_TYPES, DATATYPES_OF_CONFIG
from merrow.core.errors import InvalidArgumentError
from merrow.core.model_config import (
    ModelConfig,
    ModelDynamicBatching,
    ModelInput,
    ModelOutput,
    ModelTensorReshape,
)

_LOG = logging.getLogger("merrow.backends")


@dataclass(frozen=True, slots=True)
class TensorSignature:
    """A tensor of the model's graph. `shape` has -1 for a dimension that varies; `datatype` is None where the protocol
    has none for it."""

    name: str
    datatype: str | None
    shape: tuple[int, ...]

    @property
    def config_type(self) -> str:
        return "TYPE_INVALID" if self.datatype is None else CONFIG_TYPES[self.datatype]


@dataclass(frozen=True, slots=True)
class ModelSignature:
    """The tensors of a model's graph, by name, in the order of the graph.

    `defaults` are inputs that the graph has values for, so that they may be left out.
    """

    inputs: Mapping[str, TensorSignature]
    defaults: Mapping[str, TensorSignature]
    outputs: Mapping[str, TensorSignature]

    @property
    def supports_batching(self) -> bool:
        """Every input and output has a first dimension of any size."""
        tensors = (*self.inputs.values(), *self.outputs.values())
        return all(tensor.shape[:1] == (-1,) for tensor in tensors)


def complete_config(
    model_name: str, config: ModelConfig, signature: ModelSignature, default_max_batch_size: int
) -> ModelConfig:
    """Fill in the inputs or outputs that the configuration leaves out, the batch size and dynamic batching.

    Whole lists are filled in, in the order of the graph; an entry that is there is not touched. A `max_batch_size` of 0
    cannot be told from none, so a model that can batch gets the default.

    Raises:
        InvalidArgumentError: the configuration wants batching, and the model cannot batch.
    """
    max_batch_size = config.max_batch_size
    scheduler = config.dynamic_batching
    if signature.supports_batching:
        if max_batch_size == 0:
            max_batch_size = default_max_batch_size
            _LOG.warning(
                "autofilled max_batch_size to %d for model '%s' since batching is supporrted but no max_batch_size is "
                "specified in model configuration. Must specify max_batch_size to utilize autofill with a larger max "
                "batch size",
                max_batch_size,
                model_name,
            )
        if max_batch_size > 1 and scheduler is None and config.sequence_batching is None:
            scheduler = ModelDynamicBatching()
    elif max_batch_size:
        raise InvalidArgumentError(
            f"autofill failed for model '{model_name}': model does not support batching while non-zero max_batch_size "
            "is specified"
        )
    return replace(
        config,
        max_batch_size=max_batch_size,
        dynamic_batching=scheduler,
        input=config.input
        or tuple(
            ModelInput(
                name=tensor.name,
                data_type=tensor.config_type,
                dims=tensor.shape[int(max_batch_size > 0) :] or (1,),
                reshape=_scalar_reshape(tensor, max_batch_size),
            )
            for tensor in signature.inputs.values()
        ),
        output=config.output
        or tuple(
            ModelOutput(
                name=tensor.name,
                data_type=tensor.config_type,
                dims=tensor.shape[int(max_batch_size > 0) :] or (1,),
                reshape=_scalar_reshape(tensor, max_batch_size),
            )
            for tensor in signature.outputs.values()
        ),
    )


def check_config(model_name: str, config: ModelConfig, signature: ModelSignature) -> None:
    """Whether a complete configuration fits the model.

    An input's varying dimension may be a fixed one in the configuration; an output's dimensions are compared exactly.

    Raises:
        InvalidArgumentError: it does not; the first reason, in Triton's words.
    """
    controls: list[str] = []
    states: list[str] = []
    if config.sequence_batching is not None:
        controls = [control.name for control in config.sequence_batching.control_input]
        states = [state.input_name for state in config.sequence_batching.state]
    batch_inputs = [(target, entry.data_type) for entry in config.batch_input for target in entry.target_name]
    required = [entry for entry in config.input if not (entry.optional and entry.name in signature.defaults)]
    expected_count = len(required) + len(controls) + len(states) + len(batch_inputs)
    if expected_count != len(signature.inputs):
        raise InvalidArgumentError(
            f"unable to load model '{model_name}', configuration expects {expected_count} inputs, model provides "
            f"{len(signature.inputs)}"
        )
    for name in controls:
        if name not in signature.inputs:
            raise InvalidArgumentError(
                f"configuration specified sequence control '{name}', but model does not provide that input"
            )
    for name, data_type in batch_inputs:
        _check_datatype(model_name, "input", name, data_type, _find_input(name, signature))
    for model_input in config.input:
        _check_input(model_name, config.max_batch_size, model_input, signature)
    scattered = {target for entry in config.batch_output for target in entry.target_name}
    for output in config.output:
        tensor = signature.outputs.get(output.name)
        if tensor is None:
            raise InvalidArgumentError(
                f"unexpected inference output '{output.name}', allowed outputs are: "
                f"{', '.join(sorted(signature.outputs))}"
            )
        _check_datatype(model_name, "output", output.name, output.data_type, tensor)
        # What is cut up by elements may come as one row of them.
        if output.name not in scattered or tensor.shape != (-1,):
            _check_shape(model_name, config.max_batch_size, output, tensor, is_exact=True)


def _check_input(model_name: str, max_batch_size: int, model_input: ModelInput, signature: ModelSignature) -> None:
    tensor = _find_input(model_input.name, signature)
    if model_input.optional and max_batch_size:
        raise InvalidArgumentError(
            f"unable to load model '{model_name}', optional input '{model_input.name}' is not supported for models "
            "that support batching"
        )
    _check_datatype(model_name, "input", model_input.name, model_input.data_type, tensor)
    if not model_input.allow_ragged_batch:
        _check_shape(model_name, max_batch_size, model_input, tensor, is_exact=False)
    elif tensor.shape != (-1,):
        raise InvalidArgumentError(
            # The two blanks are Triton's.
            f"unable to load model '{model_name}', configuration expects model provides input with shape [-1]  for "
            f"ragged input '{model_input.name}', model provides {format_shape(tensor.shape)}"
        )


def _find_input(name: str, signature: ModelSignature) -> TensorSignature:
    tensor = signature.inputs.get(name) or signature.defaults.get(name)
    if tensor is None:
        raise InvalidArgumentError(
            f"unexpected inference input '{name}', allowed inputs are: "
            f"{', '.join(sorted((*signature.inputs, *signature.defaults)))}"
        )
    return tensor


def _check_datatype(model_name: str, direction: str, name: str, data_type: str, tensor: TensorSignature) -> None:
    if data_type not in DATATYPES_OF_CONFIG:
        raise InvalidArgumentError(
            f"unsupported datatype {data_type} for {direction} '{name}' for model '{model_name}'"
        )
    if data_type != tensor.config_type:
        raise InvalidArgumentError(
            f"unable to load model '{model_name}', configuration expects datatype {data_type} for {direction} "
            f"'{name}', model provides {tensor.config_type}"
        )


def _check_shape(
    model_name: str, max_batch_size: int, entry: ModelInput | ModelOutput, tensor: TensorSignature, is_exact: bool
) -> None:
    dims = entry.dims if entry.reshape is None else entry.reshape.shape
    where = f"model '{model_name}', tensor '{entry.name}': "
    shape = tensor.shape
    if not max_batch_size:
        if not shape:
            if tuple(dims) != (1,):
                raise InvalidArgumentError(
                    f"unable to load model '{model_name}', scalar tensor '{entry.name}', should only provide 1 in the "
                    "model configuration when the model doesn't support batching. Model configuration provided: "
                    f"{format_shape(dims)}."
                )
        elif not _fits(shape, dims, is_exact):
            raise InvalidArgumentError(
                f"{where}the model expects {len(shape)} dimensions (shape {format_shape(shape)}) but the model "
                f"configuration specifies {len(dims)} dimensions (shape {format_shape(dims)})"
            )
        return
    if shape[:1] != (-1,):
        raise InvalidArgumentError(
            f"{where}for the model to support batching the shape should have at least 1 dimension and the first "
            f"dimension must be -1; but shape expected by the model is {format_shape(shape)}"
        )
    complete = (-1, *dims)
    if not _fits(shape, complete, is_exact):
        raise InvalidArgumentError(
            f"{where}the model expects {len(shape)} dimensions (shape {format_shape(shape)}) but the model "
            f"configuration specifies {len(complete)} dimensions (an initial batch dimension because max_batch_size > "
            f"0 followed by the explicit tensor shape, making complete shape {format_shape(complete)})"
        )


def _fits(shape: Sequence[int], dims: Sequence[int], is_exact: bool) -> bool:
    if len(shape) != len(dims):
        return False
    return all(dim == expected or (expected == -1 and not is_exact) for expected, dim in zip(shape, dims, strict=True))


def _scalar_reshape(tensor: TensorSignature, max_batch_size: int) -> ModelTensorReshape | None:
    return ModelTensorReshape() if max_batch_size and len(tensor.shape) == 1 else None


def format_shape(shape: Sequence[int]) -> str:
    return "[" + ",".join(map(str, shape)) + "]"
