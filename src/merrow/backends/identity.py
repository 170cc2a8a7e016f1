"""The `identity` backend: each output mirrors an input. Triton's own test and benchmark backend.

OUTPUT<number> mirrors INPUT<number>. Where no name is of that kind, which Triton refuses, an output mirrors the input
in its position of the configuration. Each pair has one datatype and shape. An optional input that a request leaves out
is zeros in its output. Each response carries the sample parameters that Triton's backend attaches.

The parameters `creation_delay_sec`, `execute_delay_ms` and `instance_wise_delay_multiplier` (instance k waits
max(1, k times that) as long) delay loading and executing. With `enable_custom_tracing` a request that is traced takes
100 ms for each of the activities that it records: one, then `nested_span_count` in one another.

The metric `input_byte_size_counter` counts the bytes of inputs that were mirrored. They are counted in the instance,
where the server reads them when someone looks; only an instance in a process of its own tells the server each time.

Source: Triton, identity_backend, README.md and src/identity.cc.
"""

import logging
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

from merrow.backends.base import (
    Answer,
    Backend,
    ChangeMetric,
    Execution,
    Instance,
    InstanceDescription,
    InstanceHost,
    ModelContext,
    NewMetric,
    NewMetricFamily,
    Outcome,
    Place,
    Question,
    ShareCounter,
)
from merrow.core.datatypes import DATATYPES_OF_CONFIG, ELEMENT_BYTE_SIZES
from merrow.core.errors import InvalidArgumentError, UnsupportedError
from merrow.core.model_config import ModelConfig, ModelInput, ModelOutput
from merrow.core.request import Request, RequestTrace
from merrow.core.response import Response
from merrow.core.tensor import Tensor, element_count

_LOG = logging.getLogger("merrow.backends")

_RESPONSE_PARAMETERS: dict[str, bool | int | float | str] = {
    "param0": "an example string parameter",
    "param1": 42,
    "param2": False,
    "param3": 123.123,
}

_INPUT_NAME = re.compile(r"INPUT(\d.*)", re.DOTALL)
_OUTPUT_NAME = re.compile(r"OUTPUT(\d.*)", re.DOTALL)
_INTEGER = re.compile(r"\s*[+-]?\d+")
_MAX_INT32 = 2**31 - 1

_METRIC = "input_byte_size_counter"
_METRIC_HELP = "Cumulative input byte size of all requests received by the model"
_COUNTER = 0

_ACTIVITY_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class _Activities:
    """What a traced request records besides its one activity."""

    nested_count: int
    single_frequency: int


class IdentityBackend(Backend):
    """Copies nothing: an output is a view of its input."""

    name = "identity"
    default_place = Place.INLINE

    def validate(self, context: ModelContext) -> None:
        config = context.config
        for model_input, model_output in _pairs(config):
            if model_input.data_type != model_output.data_type:
                raise InvalidArgumentError(
                    f"expected input and output datatype to match, got {model_input.data_type} "
                    f"and {model_output.data_type}"
                )
            input_shape, output_shape = _shape_of(model_input), _shape_of(model_output)
            if input_shape != output_shape:
                raise InvalidArgumentError(
                    f"expected input and output shape to match, got {_shape_text(input_shape)} "
                    f"and {_shape_text(output_shape)}"
                )
        for key in ("execute_delay_ms", "instance_wise_delay_multiplier"):
            _number(config, key)
        _activities_of(config)
        creation_delay = _number(config, "creation_delay_sec")
        if creation_delay > 0:
            _LOG.info("Creation delay is set to: %d", creation_delay)
            time.sleep(creation_delay)

    def create_instance(self, context: ModelContext, instance: InstanceDescription, host: InstanceHost) -> Instance:
        config = context.config
        delay_ms = _number(config, "execute_delay_ms")
        multiplier = _number(config, "instance_wise_delay_multiplier")
        if multiplier:
            delay_ms *= max(1, multiplier * _instance_index(config, instance.name))
        identity = IdentityInstance(
            context.name,
            context.version,
            _pairs(config),
            max(0, delay_ms) / 1000,
            _activities_of(config),
            config.has_batch_dim,
        )
        metric = _new_metric(context, host)
        try:
            host.ask(ShareCounter(metric, identity.byte_count))
        except UnsupportedError:
            if _activities_of(config) is not None:
                raise InvalidArgumentError(
                    f"parameter 'enable_custom_tracing' of model '{context.name}' works in the server's process only: "
                    "set parameter EXECUTION_PLACE to 'inline' or 'thread'"
                ) from None
            return _TellingInstance(identity, host, metric)
        return identity


class IdentityInstance(Instance):
    """See the module."""

    def __init__(
        self,
        model_name: str,
        model_version: int,
        pairs: Sequence[tuple[ModelInput, ModelOutput]],
        delay_seconds: float,
        activities: _Activities | None,
        has_batch_dim: bool,
    ) -> None:
        self._model_name = model_name
        self._model_version = model_version
        self._pairs = [(model_input.name, model_output.name) for model_input, model_output in pairs]
        self._inputs = {model_input.name: model_input for model_input, _ in pairs}
        self._delay_seconds = delay_seconds
        self._activities = activities
        self._has_batch_dim = has_batch_dim
        self._byte_count = 0

    def byte_count(self) -> int:
        """How many bytes were mirrored so far; for any thread."""
        return self._byte_count

    def execute(self, requests: Sequence[Request]) -> Execution:
        start_ns = time.monotonic_ns()
        if self._delay_seconds:
            time.sleep(self._delay_seconds)
        if _LOG.isEnabledFor(logging.DEBUG):
            self._log(requests)
        pairs = self._pairs
        outcomes: list[Outcome] = []
        for request in requests:
            inputs, requested = request.inputs, request.requested_outputs
            if isinstance(request.correlation_id, str) or (not inputs and self._has_batch_dim):
                outcomes.append(_refuse(request))
                continue
            outputs = []
            for input_name, output_name in pairs:
                if requested and output_name not in requested:
                    continue
                tensor = inputs.get(input_name)
                if tensor is None:
                    outputs.append(self._zeros(request, self._inputs[input_name], output_name))
                else:
                    data = tensor.data
                    self._byte_count += len(data)
                    outputs.append(Tensor(output_name, tensor.datatype, tensor.shape, data))
            if self._activities is not None and request.trace is not None:
                _record(request.trace, self._activities)
            outcomes.append(Response(self._model_name, self._model_version, request.id, outputs, _RESPONSE_PARAMETERS))
        end_ns = time.monotonic_ns()
        return Execution(outcomes, start_ns, start_ns, end_ns, end_ns)

    def _zeros(self, request: Request, model_input: ModelInput, output_name: str) -> Tensor:
        """What the output of an input that was left out holds: as many rows as the inputs that are there."""
        shape = tuple(1 if dim == -1 else dim for dim in _shape_of(model_input))
        if self._has_batch_dim:
            shape = (request.batch_size, *shape)
        datatype = DATATYPES_OF_CONFIG[model_input.data_type]
        return Tensor(output_name, datatype, shape, bytes(element_count(shape) * (ELEMENT_BYTE_SIZES[datatype] or 4)))

    def _log(self, requests: Sequence[Request]) -> None:
        for request in requests:
            for input_name, output_name in self._pairs:
                if request.requested_outputs and output_name not in request.requested_outputs:
                    continue
                tensor = request.inputs.get(input_name)
                if tensor is not None:
                    _LOG.debug(
                        "\tinput %s: datatype = %s, shape = %s, byte_size = %d, buffer_count = 1",
                        input_name,
                        tensor.datatype,
                        _shape_text(tensor.shape),
                        tensor.byte_size,
                    )
                _LOG.debug("\trequested_output %s", output_name)


class _TellingInstance(Instance):
    """An instance in a process of its own: the server cannot look what it counted, and is told after each batch."""

    def __init__(self, inner: IdentityInstance, host: InstanceHost, metric: int) -> None:
        self._inner = inner
        self._host = host
        self._metric = metric
        self._told_byte_count = 0

    def execute(self, requests: Sequence[Request]) -> Execution:
        execution = self._inner.execute(requests)
        byte_count = self._inner.byte_count()
        self._host.ask(ChangeMetric(self._metric, "increment", byte_count - self._told_byte_count))
        self._told_byte_count = byte_count
        return execution


def _pairs(config: ModelConfig) -> list[tuple[ModelInput, ModelOutput]]:
    """Each output's input and itself, in the order of the outputs' names.

    Raises:
        InvalidArgumentError: the configuration has no such pairs.
    """
    inputs, outputs = config.input, config.output
    if len(inputs) != len(outputs):
        raise InvalidArgumentError("model configuration must have equal input/output pairs")
    in_position = list(zip(inputs, outputs, strict=True))
    if not any(_INPUT_NAME.fullmatch(each.name) or _OUTPUT_NAME.fullmatch(other.name) for each, other in in_position):
        return in_position
    by_suffix = {}
    pairs = []
    for model_input, model_output in in_position:
        input_match, output_match = _INPUT_NAME.fullmatch(model_input.name), _OUTPUT_NAME.fullmatch(model_output.name)
        if input_match is None:
            raise InvalidArgumentError(f"expected input name to follow INPUT<index> pattern, got '{model_input.name}'")
        if output_match is None:
            raise InvalidArgumentError(
                f"expected output name to follow OUTPUT<index> pattern, got '{model_output.name}'"
            )
        by_suffix[input_match[1]] = model_input
        pairs.append((output_match[1], model_output))
    if any(suffix not in by_suffix for suffix, _ in pairs):
        raise InvalidArgumentError("expected input and output indices to match")
    return [(by_suffix[suffix], model_output) for suffix, model_output in sorted(pairs, key=lambda pair: pair[0])]


def _shape_of(tensor: ModelInput | ModelOutput) -> Sequence[int]:
    """As the backend sees it, without the batch dimension."""
    return tensor.dims if tensor.reshape is None else tensor.reshape.shape


def _shape_text(shape: Sequence[int]) -> str:
    return f"[{','.join(map(str, shape))}]"


def _instance_index(config: ModelConfig, instance_name: str) -> int:
    """Which of the model's instances it is, from 0, whatever its group."""
    group_name, _, index = instance_name.rpartition("_")
    before = 0
    for group in config.instance_group:
        if group.name == group_name:
            break
        before += group.count * max(1, len(group.gpus))
    else:
        before = 0
    return before + int(index)


def _new_metric(context: ModelContext, host: InstanceHost) -> int:
    """The number of the model's series, which all of its instances share."""
    family = _ask_number(host, NewMetricFamily(_METRIC, _METRIC_HELP, _COUNTER))
    return _ask_number(host, NewMetric(family, {"model": context.name, "version": str(context.version)}))


def _ask_number(host: InstanceHost, question: Question) -> int:
    number: Answer = host.ask(question)
    assert isinstance(number, int)
    return number


def _refuse(request: Request) -> InvalidArgumentError:
    if isinstance(request.correlation_id, str):
        return InvalidArgumentError(f"{request.log_prefix}correlation ID in request is not an unsigned int")
    return InvalidArgumentError(f"{request.log_prefix}out of bounds index 0: request has 0 inputs")


def _record(trace: RequestTrace, activities: _Activities) -> None:
    """Triton's example of a model that traces itself."""
    trace.record_activity("CUSTOM_ACTIVITY_START", time.monotonic_ns())
    time.sleep(_ACTIVITY_SECONDS)
    trace.record_activity("CUSTOM_ACTIVITY_END", time.monotonic_ns())
    trace.record_activity("CUSTOM_SINGLE_ACTIVITY", time.monotonic_ns())
    for number in range(activities.nested_count):
        trace.record_activity(f"CUSTOM_ACTIVITY{number}_START", time.monotonic_ns())
        time.sleep(_ACTIVITY_SECONDS)
        if number % activities.single_frequency == 0:
            trace.record_activity("CUSTOM_SINGLE_ACTIVITY", time.monotonic_ns())
    for number in reversed(range(activities.nested_count)):
        trace.record_activity(f"CUSTOM_ACTIVITY{number}_END", time.monotonic_ns())


def _activities_of(config: ModelConfig) -> _Activities | None:
    """What traced requests record; None if nothing.

    Raises:
        InvalidArgumentError: a parameter cannot be.
    """
    enabled = config.parameters.get("enable_custom_tracing")
    if enabled is None or enabled.string_value != "true":
        return None
    frequency = 1
    if "nested_span_count" in config.parameters and "single_activity_frequency" in config.parameters:
        frequency = _number(config, "single_activity_frequency")
        if frequency < 1:
            raise InvalidArgumentError(f"single_activity_frequency of model '{config.name}' must be at least 1")
    return _Activities(_number(config, "nested_span_count"), frequency)


def _number(config: ModelConfig, key: str) -> int:
    """An integer parameter, 0 if absent. As C reads it: what follows the digits is ignored.

    Raises:
        InvalidArgumentError: there are none, or it is more than 32 bits hold.
    """
    parameter = config.parameters.get(key)
    if parameter is None:
        return 0
    match = _INTEGER.match(parameter.string_value)
    if match is None or not -_MAX_INT32 - 1 <= int(match[0]) <= _MAX_INT32:
        raise InvalidArgumentError(
            f"failed to convert {key} '{parameter.string_value}' to a number for model '{config.name}'"
        )
    return int(match[0])
