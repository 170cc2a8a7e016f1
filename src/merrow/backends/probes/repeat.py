"""The `repeat` backend: answers each element of IN on its own, after its DELAY. It tests decoupled models.

For element i of IN a response with OUT = [IN[i]] and IDX = [i] is sent DELAY[i] milliseconds after the one before, and
an empty final one after the last. The instance is free for its next request WAIT milliseconds after it began, whatever
has been sent by then: each request is answered by a thread of its own.

Source: Triton, repeat_backend.
"""

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
    Place,
)
from merrow.backends.probes.signature import required_input
from merrow.core.errors import InvalidArgumentError
from merrow.core.request import Request
from merrow.core.response import Response
from merrow.core.tensor import Tensor


class RepeatBackend(Backend):
    """See the module."""

    name = "repeat"
    default_place = Place.THREAD

    def validate(self, context: ModelContext) -> None:
        config = context.config
        if config.max_batch_size != 0:
            raise InvalidArgumentError("repeat backend only supports models with max_batch_size == 0")
        for direction, tensors, count in (("inputs", config.input, 3), ("outputs", config.output, 2)):
            if len(tensors) != count:
                raise InvalidArgumentError(f"expected {count} {direction}, got {len(tensors)}")
        (values, delays, wait), (out, index) = config.input, config.output
        for place, tensor, name in (
            ("first input", values, "IN"),
            ("second input", delays, "DELAY"),
            ("third input", wait, "WAIT"),
            ("first output", out, "OUT"),
            ("second output", index, "IDX"),
        ):
            if tensor.name != name:
                raise InvalidArgumentError(f"expected {place} tensor name to be {name}, got {tensor.name}")
        if len(values.dims) != 1:
            raise InvalidArgumentError(f"expected IN shape to have one dimension, got {_format_dims(values.dims)}")
        if values.dims != delays.dims:
            raise InvalidArgumentError(
                f"expected IN and DELAY shape to match, got {_format_dims(values.dims)} and {_format_dims(delays.dims)}"
            )
        for single in (wait, out, index):
            if single.dims != (1,):
                raise InvalidArgumentError(f"expected {single.name} shape to be [1], got {_format_dims(single.dims)}")
        for typed, datatype in (
            (values, "INT32"),
            (delays, "UINT32"),
            (wait, "UINT32"),
            (out, "INT32"),
            (index, "UINT32"),
        ):
            if typed.data_type != f"TYPE_{datatype}":
                raise InvalidArgumentError(f"expected {typed.name} datatype to be {datatype}, got {typed.data_type}")

    def create_instance(self, context: ModelContext, instance: InstanceDescription, host: InstanceHost) -> Instance:
        return RepeatInstance(context, host)


class RepeatInstance(Instance):
    """See the module."""

    def __init__(self, context: ModelContext, host: InstanceHost) -> None:
        self._model_name = context.name
        self._model_version = context.version
        self._host = host
        self._threads: set[threading.Thread] = set()

    def execute(self, requests: Sequence[Request]) -> Execution:
        if len(requests) > 1:
            raise InvalidArgumentError("repeat backend does not support batched request execution")
        start_ns = time.monotonic_ns()
        (request,) = requests
        wait_ms = int(required_input(request, "WAIT").as_numpy()[0])
        values, delays = required_input(request, "IN"), required_input(request, "DELAY")
        if tuple(values.shape) != tuple(delays.shape):
            error = InvalidArgumentError(
                f"expected IN and DELAY shape to match, got {_format_dims(values.shape)} and "
                f"{_format_dims(delays.shape)}"
            )
            # The client knows at once; the instance is busy all the same.
            self._host.send(request, Response(self._model_name, self._model_version, error=error))
        else:
            steps = list(zip(values.as_numpy().tolist(), delays.as_numpy().tolist(), strict=True))
            thread = threading.Thread(target=self._answer, args=(request, steps), name=f"repeat {self._model_name}")
            self._threads = {thread for thread in self._threads if thread.is_alive()} | {thread}
            thread.start()
        if wait_ms:
            time.sleep(wait_ms / 1000)
        end_ns = time.monotonic_ns()
        return Execution([Deferral.DEFERRED], start_ns, start_ns, end_ns, end_ns)

    def close(self) -> None:
        for thread in self._threads:
            thread.join()

    def _answer(self, request: Request, steps: Sequence[tuple[int, int]]) -> None:
        for index, (value, delay_ms) in enumerate(steps):
            if delay_ms:
                time.sleep(delay_ms / 1000)
            outputs = [
                Tensor.from_numpy("OUT", np.array([value], np.int32)),
                Tensor.from_numpy("IDX", np.array([index], np.uint32)),
            ]
            response = Response(self._model_name, self._model_version, outputs=outputs, is_final=False)
            self._host.send(request, response)
        self._host.send(request, Response(self._model_name, self._model_version, is_empty=True))


def _format_dims(dims: Sequence[int]) -> str:
    return f"[{','.join(map(str, dims))}]"
