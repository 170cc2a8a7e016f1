"""The `identity` backend: output i mirrors input i. Triton's own test and benchmark backend.

Inputs and outputs are paired by their position in the configuration, and each pair has one datatype and shape.
The parameters `creation_delay_sec`, `execute_delay_ms` and `instance_wise_delay_multiplier` delay loading and
executing. Each response carries the three sample parameters that Triton's backend attaches.

Source: Triton, identity_backend, README.md.
"""

import time
from collections.abc import Sequence

from merrow.backends.base import Backend, Execution, Instance, InstanceDescription, ModelContext, Outcome, Place
from merrow.core.errors import InvalidArgumentError
from merrow.core.model_config import ModelConfig
from merrow.core.request import Request
from merrow.core.response import Response
from merrow.core.tensor import Tensor

_RESPONSE_PARAMETERS: dict[str, bool | int | float | str] = {
    "param0": "an example string parameter",
    "param1": 42,
    "param2": False,
}


class IdentityBackend(Backend):
    """Copies nothing: an output is a view of its input."""

    name = "identity"
    default_place = Place.INLINE

    def validate(self, context: ModelContext) -> None:
        config = context.config
        if len(config.input) != len(config.output):
            raise InvalidArgumentError(
                f"model configuration must have equal input/output pairs, got {len(config.input)} inputs "
                f"and {len(config.output)} outputs"
            )
        for model_input, model_output in zip(config.input, config.output, strict=True):
            if model_input.data_type != model_output.data_type:
                raise InvalidArgumentError(
                    f"expected input and output datatype to match, got {model_input.data_type} "
                    f"and {model_output.data_type}"
                )
            if model_input.dims != model_output.dims:
                raise InvalidArgumentError(
                    f"expected input and output shape to match, got {list(model_input.dims)} "
                    f"and {list(model_output.dims)}"
                )
        for key in ("creation_delay_sec", "execute_delay_ms", "instance_wise_delay_multiplier"):
            _number(config, key)

    def create_instance(self, context: ModelContext, instance: InstanceDescription) -> Instance:
        creation_delay = _number(context.config, "creation_delay_sec")
        if creation_delay:
            time.sleep(creation_delay)
        delay_ms = _number(context.config, "execute_delay_ms")
        multiplier = _number(context.config, "instance_wise_delay_multiplier")
        if multiplier:
            delay_ms *= multiplier * int(instance.name.rpartition("_")[2])
        pairs = [
            (model_input.name, model_output.name)
            for model_input, model_output in zip(context.config.input, context.config.output, strict=True)
        ]
        return IdentityInstance(context.name, context.version, pairs, delay_ms / 1000)


class IdentityInstance(Instance):
    """See the module."""

    def __init__(
        self, model_name: str, model_version: int, pairs: Sequence[tuple[str, str]], delay_seconds: float
    ) -> None:
        self._model_name = model_name
        self._model_version = model_version
        self._pairs = tuple(pairs)
        self._delay_seconds = delay_seconds

    def execute(self, requests: Sequence[Request]) -> Execution:
        start_ns = time.monotonic_ns()
        if self._delay_seconds:
            time.sleep(self._delay_seconds)
        pairs = self._pairs
        outcomes: list[Outcome] = []
        for request in requests:
            inputs = request.inputs
            outputs = []
            for input_name, output_name in pairs:
                tensor = inputs.get(input_name)
                if tensor is not None:
                    outputs.append(Tensor(output_name, tensor.datatype, tensor.shape, tensor.data))
            outcomes.append(Response(self._model_name, self._model_version, request.id, outputs, _RESPONSE_PARAMETERS))
        end_ns = time.monotonic_ns()
        return Execution(outcomes, start_ns, start_ns, end_ns, end_ns)


def _number(config: ModelConfig, key: str) -> float:
    parameter = config.parameters.get(key)
    if parameter is None:
        return 0.0
    try:
        return float(parameter.string_value)
    except ValueError:
        raise InvalidArgumentError(
            f"failed to convert {key} '{parameter.string_value}' to a number for model '{config.name}'"
        ) from None
