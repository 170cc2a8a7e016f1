"""What the probes check of a model's configuration and read of a request. Texts and codes are those of Triton's own."""

import re

import numpy as np

from merrow.backends.base import InstanceDescription, ModelContext
from merrow.core.errors import InternalError, InvalidArgumentError
from merrow.core.model_config import ModelConfig, ModelSequenceBatching
from merrow.core.request import Request
from merrow.core.tensor import Tensor

_INTEGER = re.compile(r"\s*[+-]?\d+")
_MAX_INT32 = 2**31 - 1


def refuse_optional_inputs(config: ModelConfig) -> None:
    """Most probes need every input."""
    for model_input in config.input:
        if model_input.optional:
            raise InvalidArgumentError(
                f"'optional' is set to true for input '{model_input.name}' while the backend model doesn't support "
                "optional input"
            )


def require_cpu(backend_name: str, instance: InstanceDescription) -> None:
    """Some probes are for CPU instances only."""
    if instance.kind != "KIND_CPU":
        raise InvalidArgumentError(f"'{backend_name}' backend only supports CPU instances")


def sequence_batching_of(context: ModelContext) -> ModelSequenceBatching:
    """The part that a probe of sequences needs."""
    batching = context.config.sequence_batching
    if batching is None:
        raise InternalError("attempt to access non-existing object member 'sequence_batching'")
    return batching


def check_vector_in_and_out(config: ModelConfig) -> None:
    """INPUT and OUTPUT, INT32 vectors of one length."""
    if len(config.input) != 1:
        raise InvalidArgumentError("model must have input 'INPUT' with vector shape, any length")
    (model_input,) = config.input
    if len(model_input.dims) != 1:
        raise InvalidArgumentError("model must have one input 'INPUT' with vector shape, any length")
    if model_input.data_type != "TYPE_INT32":
        raise InvalidArgumentError("model input must have TYPE_INT32 data-type")
    if model_input.name != "INPUT":
        raise InvalidArgumentError("model input must be named 'INPUT'")
    if len(config.output) != 1:
        raise InvalidArgumentError("model must have one output 'OUTPUT' with vector shape, any length")
    (model_output,) = config.output
    if model_output.dims != model_input.dims:
        raise InvalidArgumentError("model must have output 'OUTPUT' with shape matching 'INPUT'")
    if model_output.data_type != "TYPE_INT32":
        raise InvalidArgumentError("model output must have TYPE_INT32 data-type")
    if model_output.name != "OUTPUT":
        raise InvalidArgumentError("model output must be named 'OUTPUT'")


def integer_parameter(config: ModelConfig, key: str) -> int:
    """An integer parameter, 0 if absent. As C reads it: what follows the digits is ignored.

    Raises:
        InvalidArgumentError: there are none, or it is more than 32 bits hold.
    """
    parameter = config.parameters.get(key)
    if parameter is None:
        return 0
    try:
        return leading_integer(parameter.string_value)
    except ValueError:
        raise InvalidArgumentError(f"failed to convert {key} '{parameter.string_value}' to integral number") from None


def leading_integer(text: str) -> int:
    """The integer that a text starts with.

    Raises:
        ValueError: it starts with none, or with one of more than 32 bits.
    """
    match = _INTEGER.match(text)
    if match is None or not -_MAX_INT32 - 1 <= int(match[0]) <= _MAX_INT32:
        raise ValueError(text)
    return int(match[0])


def required_input(request: Request, name: str) -> Tensor:
    """An input of a request.

    Raises:
        InvalidArgumentError: it is not there.
    """
    tensor = request.inputs.get(name)
    if tensor is None:
        raise InvalidArgumentError(f"{request.log_prefix}unknown request input name {name}")
    return tensor


def integer_correlation_id(request: Request) -> int:
    """The correlation id of a request to a probe that knows integers only."""
    correlation_id = request.correlation_id
    if isinstance(correlation_id, str):
        raise InvalidArgumentError(f"{request.log_prefix}correlation ID in request is not an unsigned int")
    return correlation_id


def is_true(control: Tensor) -> bool:
    """Whether a control holds anything but zero in its first four bytes."""
    return any(control.data[:4])


def wrapped_int32(value: int) -> int:
    """An integer as 32 bits hold it."""
    return (value + 2**31) % 2**32 - 2**31


def filled_output(tensor: Tensor, value: int) -> Tensor:
    """OUTPUT of INPUT's shape, every element the same."""
    return Tensor.from_numpy("OUTPUT", np.full(tensor.shape, value, np.int32))
