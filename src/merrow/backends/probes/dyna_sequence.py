"""The `dyna_sequence` backend: an accumulator for each correlation id. It tests sequence batching, strategy OLDEST.

READY with START sets the accumulator to the sum of INPUT, READY alone adds to it; with END, CORRID is added, too, and
the accumulator is forgotten after it was answered. Otherwise as `sequence`.

Source: Triton, backend `dyna_sequence` of its test suites.
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
    check_vector_in_and_out,
    filled_output,
    integer_correlation_id,
    integer_parameter,
    is_true,
    leading_integer,
    refuse_optional_inputs,
    require_cpu,
    required_input,
    sequence_batching_of,
    wrapped_int32,
)
from merrow.core.datatypes import BYTES
from merrow.core.errors import InternalError, InvalidArgumentError, UnsupportedError
from merrow.core.request import Request
from merrow.core.response import Response
from merrow.core.tensor import Tensor, split_bytes_elements

_CONTROLS = frozenset({"START", "END", "READY", "CORRID"})
_CONTROLS_ERROR = "'START', 'END, 'READY' and 'CORRID' must be configured as the control inputs"


class DynaSequenceBackend(Backend):
    """See the module."""

    name = "dyna_sequence"
    default_place = Place.THREAD

    def validate(self, context: ModelContext) -> None:
        refuse_optional_inputs(context.config)
        controls = {control.name: control for control in sequence_batching_of(context).control_input}
        if len(controls) != 4 or not _CONTROLS & set(controls):
            raise InvalidArgumentError(_CONTROLS_ERROR)
        if "CORRID" not in controls:
            raise InternalError("attempt to access non-existing array index '4'")
        kinds = controls["CORRID"].control
        if not kinds or kinds[0].data_type not in ("TYPE_UINT64", "TYPE_STRING"):
            raise InvalidArgumentError("model CORRID control input must have TYPE_UINT64 or TYPE_STRING data-type")
        check_vector_in_and_out(context.config)
        integer_parameter(context.config, "execute_delay_ms")

    def create_instance(self, context: ModelContext, instance: InstanceDescription, host: InstanceHost) -> Instance:
        require_cpu(self.name, instance)
        return DynaSequenceInstance(context, integer_parameter(context.config, "execute_delay_ms") / 1000)


class DynaSequenceInstance(Instance):
    """See the module."""

    def __init__(self, context: ModelContext, delay_seconds: float) -> None:
        self._model_name = context.name
        self._model_version = context.version
        self._max_requests = max(1, context.config.max_batch_size)
        self._delay_seconds = delay_seconds
        self._accumulators: dict[int, int] = {}

    def execute(self, requests: Sequence[Request]) -> Execution:
        if self._delay_seconds > 0:
            time.sleep(self._delay_seconds)
        if len(requests) > self._max_requests:
            raise UnsupportedError("unable to execute batch larger than max-batch-size")
        return execute_each(self._execute_request, requests)

    def _execute_request(self, request: Request) -> Response:
        control = required_input(request, "CORRID")
        key = _correlation_id(request, control)
        tensor = required_input(request, "INPUT")
        start, end, ready = (required_input(request, name) for name in ("START", "END", "READY"))
        response = Response(self._model_name, self._model_version)
        if is_true(ready):
            total = int(tensor.as_numpy().sum(dtype=np.int64))
            if not is_true(start):
                total += self._accumulators.get(key, 0)
            if is_true(end):
                total += key
                self._accumulators.pop(key, None)
            else:
                self._accumulators[key] = wrapped_int32(total)
            response.outputs = [filled_output(tensor, wrapped_int32(total))]
        return response


def _correlation_id(request: Request, control: Tensor) -> int:
    """The number that the control carries; the request's own id must be of the same kind."""
    if control.datatype != BYTES:
        integer_correlation_id(request)
        return int(control.as_numpy().reshape(-1)[0])
    if not isinstance(request.correlation_id, str):
        raise InvalidArgumentError(f"{request.log_prefix}correlation ID in request is not a string")
    try:
        leading_integer(request.correlation_id)
        return leading_integer(split_bytes_elements(control.data)[0].decode()) % 2**64
    except ValueError:
        raise InvalidArgumentError(
            "dyna sequence backend expects correlation ID to be decodable into an integer"
        ) from None
