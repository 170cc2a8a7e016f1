"""The `square` backend: answers IN = N with N responses that each hold N. It tests decoupled models' statistics.

Of the N responses the last CUSTOM_EMPTY_COUNT are not sent, and the CUSTOM_FAIL_COUNT before them are errors. All of
them are measured one by one; requests and batches are not counted. CUSTOM_INFER_DELAY_NS passes before each response,
CUSTOM_OUTPUT_DELAY_NS after its output was made; once the request is cancelled, CUSTOM_CANCEL_DELAY_NS passes and
nothing more is sent but the empty final response. Each request is answered by a thread of its own.

Source: Triton, square_backend.
"""

import logging
import re
import threading
import time
from collections.abc import Sequence

import numpy as np

from merrow.backends.base import (
    Backend,
    Deferral,
    Execution,
    Instance,
    InstanceDescription,
    InstanceHost,
    ModelContext,
    Outcome,
    Place,
    UncountedExecution,
)
from merrow.backends.probes.signature import required_input
from merrow.core.errors import CancelledError, InvalidArgumentError, ServerError, UnknownError
from merrow.core.model_config import ModelConfig
from merrow.core.request import Request
from merrow.core.response import Response, ResponseTimes, TimedResponse
from merrow.core.tensor import Tensor

_LOG = logging.getLogger("merrow.model")

_DIGITS = re.compile(r"\d+")
_MAX_INT32 = 2**31 - 1


class SquareBackend(Backend):
    """See the module."""

    name = "square"
    default_place = Place.THREAD

    def validate(self, context: ModelContext) -> None:
        config = context.config
        for direction, tensors in (("input", config.input), ("output", config.output)):
            if len(tensors) != 1:
                raise InvalidArgumentError(f"expected 1 {direction}, got {len(tensors)}")
        pairs = (("input", config.input[0], "IN"), ("output", config.output[0], "OUT"))
        for direction, tensor, name in pairs:
            if tensor.name != name:
                raise InvalidArgumentError(f"expected first {direction} tensor name to be {name}, got {tensor.name}")
        for _, tensor, name in pairs:
            if tensor.dims != (1,):
                dims = ",".join(map(str, tensor.dims))
                raise InvalidArgumentError(f"expected {name} shape to be [1], got [{dims}]")
        for _, tensor, name in pairs:
            if tensor.data_type != "TYPE_INT32":
                raise InvalidArgumentError(f"expected {name} datatype to be INT32, got {tensor.data_type}")

    def create_instance(self, context: ModelContext, instance: InstanceDescription, host: InstanceHost) -> Instance:
        return SquareInstance(context, host)


class SquareInstance(Instance):
    """See the module."""

    def __init__(self, context: ModelContext, host: InstanceHost) -> None:
        config = context.config
        self._model_name = context.name
        self._model_version = context.version
        self._has_batch_dim = config.has_batch_dim
        self._host = host
        self._infer_delay_ns = _parameter(config, "CUSTOM_INFER_DELAY_NS")
        self._output_delay_ns = _parameter(config, "CUSTOM_OUTPUT_DELAY_NS")
        self._cancel_delay_ns = _parameter(config, "CUSTOM_CANCEL_DELAY_NS")
        self._fail_count = _parameter(config, "CUSTOM_FAIL_COUNT")
        self._empty_count = _parameter(config, "CUSTOM_EMPTY_COUNT")
        self._threads: set[threading.Thread] = set()

    def execute(self, requests: Sequence[Request]) -> Execution:
        now_ns = time.monotonic_ns()
        outcomes: list[Outcome] = []
        self._threads = {thread for thread in self._threads if thread.is_alive()}
        for request in requests:
            thread = threading.Thread(target=self._answer, args=(request,), name=f"square {self._model_name}")
            self._threads.add(thread)
            thread.start()
            outcomes.append(Deferral.DEFERRED)
        return UncountedExecution(outcomes, now_ns, now_ns, now_ns, now_ns)

    def close(self) -> None:
        for thread in self._threads:
            thread.join()

    def _answer(self, request: Request) -> None:
        try:
            tensor = required_input(request, "IN")
            if len(tensor.shape) == 2 and tensor.shape[0] != 1:
                raise InvalidArgumentError("unexpected shape for IN input")
        except ServerError as error:
            self._host.send(request, Response(self._model_name, self._model_version, error=error))
            return
        count = int(tensor.as_numpy().reshape(-1)[0])
        output = Tensor.from_numpy("OUT", np.full((1,) * len(tensor.shape), count, np.int32))
        for index in range(count):
            if not self._answer_one(request, index, count, output):
                break
        self._host.send(request, Response(self._model_name, self._model_version, is_empty=True))

    def _answer_one(self, request: Request, index: int, count: int, output: Tensor) -> bool:
        """One of the responses; False when the client has left."""
        start_ns = time.monotonic_ns()
        response = TimedResponse(self._model_name, self._model_version, is_final=False)
        is_cancelled = request.is_cancelled
        _pause(self._cancel_delay_ns if is_cancelled else self._infer_delay_ns)
        output_start_ns = time.monotonic_ns()
        if is_cancelled:
            response.is_empty = True
            response.error = CancelledError("cancelled")
        elif index >= count - self._empty_count:
            response.is_empty = True
        else:
            response.outputs = [output]
            _pause(self._output_delay_ns)
            if index >= count - self._fail_count - self._empty_count:
                response.error = UnknownError("simulated failure")
        response.times = ResponseTimes(index, start_ns, output_start_ns, time.monotonic_ns())
        self._host.send(request, response)
        return not is_cancelled


def _pause(delay_ns: int) -> None:
    if delay_ns:
        time.sleep(delay_ns / 1e9)


def _parameter(config: ModelConfig, key: str) -> int:
    """A number; one that is malformed is logged, and counts as not given."""
    parameter = config.parameters.get(key)
    if parameter is None:
        return 0
    text = parameter.string_value
    if _DIGITS.fullmatch(text) is None or int(text) > _MAX_INT32:
        _LOG.error("model '%s': parameter %s must be a number up to %d, got '%s'", config.name, key, _MAX_INT32, text)
        return 0
    return int(text)
