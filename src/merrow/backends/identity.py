"""The `identity` backend: each output mirrors an input. Triton's own test and benchmark backend.

OUTPUT<number> mirrors INPUT<number>; where other names are used, which Triton's does not take, an output mirrors the
input in its position of the configuration. Each pair has one datatype and shape. An optional input that a request
leaves out is zeros in its output. The parameters `creation_delay_sec`, `execute_delay_ms` and
`instance_wise_delay_multiplier` (instance k waits max(1, k times that) as long) delay loading and executing. Each
response carries the sample parameters that Triton's backend attaches.

Source: Triton, identity_backend, README.md.
"""

import re
import time
from collections.abc import Mapping, Sequence

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
from merrow.core.datatypes import DATATYPES_OF_CONFIG, ELEMENT_BYTE_SIZES
from merrow.core.errors import InvalidArgumentError
from merrow.core.model_config import ModelConfig, ModelInput, ModelOutput
from merrow.core.request import Request
from merrow.core.response import Response
from merrow.core.tensor import Tensor, element_count

_RESPONSE_PARAMETERS: dict[str, bool | int | float | str] = {
    "param0": "an example string parameter",
    "param1": 42,
    "param2": False,
    "param3": 123.123,
}

_INPUT_NAME = re.compile(r"INPUT(\d.*)")
_OUTPUT_NAME = re.compile(r"OUTPUT(\d.*)")


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
        for model_input, model_output in _pairs(config):
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

    def create_instance(self, context: ModelContext, instance: InstanceDescription, host: InstanceHost) -> Instance:
        creation_delay = _number(context.config, "creation_delay_sec")
        if creation_delay:
            time.sleep(creation_delay)
        delay_ms = _number(context.config, "execute_delay_ms")
        multiplier = _number(context.config, "instance_wise_delay_multiplier")
        if multiplier:
            delay_ms *= max(1, multiplier * int(instance.name.rpartition("_")[2]))
        config = context.config
        pairs = _pairs(config)
        return IdentityInstance(
            context.name,
            context.version,
            [(model_input.name, model_output.name) for model_input, model_output in pairs],
            delay_ms / 1000,
            {model_input.name: model_input for model_input, _ in pairs},
            config.has_batch_dim,
        )


class IdentityInstance(Instance):
    """See the module."""

    def __init__(
        self,
        model_name: str,
        model_version: int,
        pairs: Sequence[tuple[str, str]],
        delay_seconds: float,
        inputs: Mapping[str, ModelInput] | None = None,
        has_batch_dim: bool = False,
    ) -> None:
        self._model_name = model_name
        self._model_version = model_version
        self._pairs = tuple(pairs)
        self._delay_seconds = delay_seconds
        self._inputs = inputs or {}
        self._has_batch_dim = has_batch_dim

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
                elif input_name in self._inputs:
                    outputs.append(self._zeros(request, self._inputs[input_name], output_name))
            outcomes.append(Response(self._model_name, self._model_version, request.id, outputs, _RESPONSE_PARAMETERS))
        end_ns = time.monotonic_ns()
        return Execution(outcomes, start_ns, start_ns, end_ns, end_ns)

    def _zeros(self, request: Request, model_input: ModelInput, output_name: str) -> Tensor:
        """What the output of an input that was left out holds: as many rows as the inputs that are there."""
        shape = tuple(1 if dim == -1 else dim for dim in model_input.dims)
        if self._has_batch_dim:
            shape = (request.batch_size, *shape)
        datatype = DATATYPES_OF_CONFIG[model_input.data_type]
        return Tensor(output_name, datatype, shape, bytes(element_count(shape) * (ELEMENT_BYTE_SIZES[datatype] or 4)))


def _pairs(config: ModelConfig) -> list[tuple[ModelInput, ModelOutput]]:
    inputs, outputs = config.input, config.output
    suffixes = [
        [match[1] for name in names if (match := pattern.fullmatch(name))]
        for pattern, names in (
            (_INPUT_NAME, [model_input.name for model_input in inputs]),
            (_OUTPUT_NAME, [model_output.name for model_output in outputs]),
        )
    ]
    if len(suffixes[0]) != len(inputs) or len(suffixes[1]) != len(outputs):
        return list(zip(inputs, outputs, strict=True))
    if sorted(suffixes[0]) != sorted(suffixes[1]):
        raise InvalidArgumentError("expected input and output indices to match")
    by_suffix = dict(zip(suffixes[0], inputs, strict=True))
    return [(by_suffix[suffix], model_output) for suffix, model_output in zip(suffixes[1], outputs, strict=True)]


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
