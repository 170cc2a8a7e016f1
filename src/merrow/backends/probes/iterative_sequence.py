"""The `iterative_sequence` backend: counts INPUT down, one response and one execution for each step.

It tests iterative sequences: until the count is zero or less, each request is given back to be scheduled again. An
execution takes half a second for each of its requests, after the time that its statistics say.

Source: Triton, backend `iterative_sequence` of its test suites.
"""

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
    integer_correlation_id,
    refuse_optional_inputs,
    require_cpu,
    required_input,
    wrapped_int32,
)
from merrow.core.request import Request
from merrow.core.response import Response
from merrow.core.tensor import Tensor

DELAY_SECONDS = 0.5


class IterativeSequenceBackend(Backend):
    """See the module."""

    name = "iterative_sequence"
    default_place = Place.THREAD

    def validate(self, context: ModelContext) -> None:
        refuse_optional_inputs(context.config)

    def create_instance(self, context: ModelContext, instance: InstanceDescription, host: InstanceHost) -> Instance:
        require_cpu(self.name, instance)
        return IterativeSequenceInstance(context, DELAY_SECONDS)


class IterativeSequenceInstance(Instance):
    """See the module."""

    def __init__(self, context: ModelContext, delay_seconds: float) -> None:
        self._model_name = context.name
        self._model_version = context.version
        self._shape = (1, 1) if context.config.has_batch_dim else (1,)
        self._delay_seconds = delay_seconds
        self._remaining: dict[int, int] = {}

    def execute(self, requests: Sequence[Request]) -> Execution:
        execution = execute_each(self._execute_request, requests)
        time.sleep(self._delay_seconds * len(requests))
        return execution

    def _execute_request(self, request: Request) -> Response:
        key = integer_correlation_id(request)
        remaining = self._remaining.get(key)
        if remaining is None:
            remaining = int(required_input(request, "INPUT").as_numpy().reshape(-1)[0])
        remaining -= 1
        if remaining > 0:
            self._remaining[key] = remaining
        else:
            self._remaining.pop(key, None)
        value = np.full(self._shape, wrapped_int32(remaining), np.int32)
        response = Response(self._model_name, self._model_version, outputs=[Tensor.from_numpy("OUTPUT", value)])
        response.is_final = remaining <= 0
        return response
