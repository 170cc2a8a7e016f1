"""The `sequence` backend: an accumulator for each row of its batches. It tests sequence batching, strategy DIRECT.

READY with START sets the row's accumulator to the sum of INPUT, READY alone adds to it; OUTPUT, of INPUT's shape, is
filled with it. A row that is not ready gets a response without outputs. The parameter `execute_delay_ms` delays each
execution.

Source: Triton, backend `sequence` of its test suites.
"""

import itertools
import time
from collections.abc import Sequence

import numpy as np

from merrow.backends.base import (
    Backend,
    Execution,
    Instance,
    InstanceDescription,
    InstanceHost,
    ModelContext,
    Place,
)
from merrow.backends.probes.execution import execute_each
from merrow.backends.probes.signature import (
    check_vector_in_and_out,
    filled_output,
    integer_correlation_id,
    integer_parameter,
    is_true,
    refuse_optional_inputs,
    require_cpu,
    required_input,
    sequence_batching_of,
    wrapped_int32,
)
from merrow.core.errors import InvalidArgumentError, UnsupportedError
from merrow.core.request import Request
from merrow.core.response import Response


class SequenceBackend(Backend):
    """See the module."""

    name = "sequence"
    default_place = Place.THREAD

    def validate(self, context: ModelContext) -> None:
        refuse_optional_inputs(context.config)
        names = [control.name for control in sequence_batching_of(context).control_input]
        if sorted(names) != ["READY", "START"]:
            raise InvalidArgumentError("'START' and 'READY' must be configured as the control inputs")
        check_vector_in_and_out(context.config)
        integer_parameter(context.config, "execute_delay_ms")

    def create_instance(self, context: ModelContext, instance: InstanceDescription, host: InstanceHost) -> Instance:
        require_cpu(self.name, instance)
        return SequenceInstance(context, integer_parameter(context.config, "execute_delay_ms") / 1000)


class SequenceInstance(Instance):
    """See the module."""

    def __init__(self, context: ModelContext, delay_seconds: float) -> None:
        self._model_name = context.name
        self._model_version = context.version
        self._has_batch_dim = context.config.has_batch_dim
        self._delay_seconds = delay_seconds
        self._accumulators = [0] * max(1, context.config.max_batch_size)

    def execute(self, requests: Sequence[Request]) -> Execution:
        if self._delay_seconds > 0:
            time.sleep(self._delay_seconds)
        if len(requests) > len(self._accumulators):
            raise UnsupportedError("unable to execute batch larger than max-batch-size")
        rows = itertools.count()
        return execute_each(lambda request: self._execute_row(next(rows), request), requests)

    def _execute_row(self, row: int, request: Request) -> Response:
        integer_correlation_id(request)
        tensor = required_input(request, "INPUT")
        start, ready = required_input(request, "START"), required_input(request, "READY")
        if self._has_batch_dim and tensor.shape[0] != 1:
            raise UnsupportedError("unable to execute more than one timestep at a time")
        response = Response(self._model_name, self._model_version)
        if is_true(ready):
            total = int(tensor.as_numpy().sum(dtype=np.int64))
            if not is_true(start):
                total += self._accumulators[row]
            self._accumulators[row] = total = wrapped_int32(total)
            response.outputs = [filled_output(tensor, total)]
        return response
