"""Requests, as models see them: those of a batch, and those that a model makes to run another model.

Source: Triton, python_backend/src/infer_request.cc.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from merrow.backends.python import pb_call
from merrow.backends.python.pb_errors import (
    C_MODULE,
    PybindEnum,
    TritonModelException,
    bind_arguments,
    incompatible_arguments,
)
from merrow.backends.python.pb_response import check_parameters
from merrow.backends.python.pb_sender import Answering, InferenceResponseSender, make_sender
from merrow.backends.python.pb_tensor import Tensor, copy_output, encode_output, tensor_of_input
from merrow.backends.python.runtime import ModelRuntime
from merrow.core.request import Request, ResponseSink
from merrow.core.response import Response

TRITONSERVER_REQUEST_FLAG_SEQUENCE_START = 1
TRITONSERVER_REQUEST_FLAG_SEQUENCE_END = 2
TRITONSERVER_REQUEST_RELEASE_ALL = 1
TRITONSERVER_REQUEST_RELEASE_RESCHEDULE = 2


class MemoryType(PybindEnum):
    """Where a tensor is."""

    __module__ = C_MODULE

    TRITONSERVER_MEMORY_GPU = 0
    TRITONSERVER_MEMORY_CPU = 1


_REQUEST_SIGNATURE = (
    f"{C_MODULE}.InferenceRequest(request_id: str = '', correlation_id: object = 0, "
    f"inputs: List[{C_MODULE}.Tensor], requested_output_names: List[str], model_name: str, model_version: int = -1, "
    f"flags: int = 0, timeout: int = 0, preferred_memory: {C_MODULE}.PreferredMemory, "
    f"trace: {C_MODULE}.InferenceTrace, parameters: object = None)"
)
_MEMORY_SIGNATURE = (
    f"{C_MODULE}.PreferredMemory(preferred_memory_type: {C_MODULE}.MemoryType, preferred_device_id: int = 0)"
)


class PreferredMemory:
    """Where a model wants the outputs of a request that it builds."""

    __module__ = C_MODULE
    __slots__ = ("_device_id", "_memory_type")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        memory_type, device_id = bind_arguments(
            ("preferred_memory_type", "preferred_device_id"), (None, 0), args, kwargs, _MEMORY_SIGNATURE
        )
        if not isinstance(memory_type, MemoryType) or not isinstance(device_id, int):
            raise incompatible_arguments(_MEMORY_SIGNATURE, args, kwargs)
        self._memory_type = memory_type
        self._device_id = device_id


class InferenceTrace:
    """The trace of a request: it can be given to a request that the model makes, which then belongs to it."""

    __module__ = C_MODULE
    __slots__ = ("_request",)

    def __init__(self) -> None:
        self._request: Request | None = None

    def get_context(self) -> str | None:
        """W3C headers as a JSON object, for other services to go on with; None without OpenTelemetry."""
        if self._request is None or self._request.trace is None:
            return None
        return self._request.trace.context_text() or None


class _NoSink:
    """A request that a model builds is not on its way through the server."""

    def on_response(self, response: Response) -> None:
        raise AssertionError("a request that a model built has no sink")


_NO_SINK = _NoSink()


@dataclass(frozen=True, slots=True)
class _OwnRequest:
    preferred_memory: PreferredMemory | None
    trace: InferenceTrace


class InferenceRequest:
    """One request of a batch, or one that a model builds. The class that a model imports is bound to it."""

    __module__ = C_MODULE
    __slots__ = ("_all_outputs", "_answering", "_inputs", "_own", "_request")
    _runtime: ModelRuntime | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        names = (
            "request_id",
            "correlation_id",
            "inputs",
            "requested_output_names",
            "model_name",
            "model_version",
            "flags",
            "timeout",
            "preferred_memory",
            "trace",
            "parameters",
        )
        defaults = ("", 0, None, None, None, -1, 0, 0, None, None, None)
        values = bind_arguments(names, defaults, args, kwargs, _REQUEST_SIGNATURE)
        request_id, correlation_id, inputs, output_names, model_name, version, flags, timeout, memory, trace, _ = values
        expected = (
            (request_id, str),
            (inputs, (list, tuple)),
            (output_names, (list, tuple)),
            (model_name, str),
            (version, int),
            (flags, int),
            (timeout, int),
            (memory, (PreferredMemory, type(None))),
            (trace, (InferenceTrace, type(None))),
        )
        if not all(isinstance(value, kind) for value, kind in expected):
            raise incompatible_arguments(_REQUEST_SIGNATURE, args, kwargs)
        of_request = f"for request with id '{request_id}' and model name '{model_name}' should not be empty."
        if any(tensor is not None and not isinstance(tensor, Tensor) for tensor in inputs) or not all(
            isinstance(name, str) for name in output_names
        ):
            raise incompatible_arguments(_REQUEST_SIGNATURE, args, kwargs)
        if any(tensor is None for tensor in inputs):
            raise TritonModelException(f"Input tensor {of_request}")
        if not all(output_names):
            raise TritonModelException(f"Requested output name {of_request}")
        if not isinstance(correlation_id, (int, str)):
            raise TritonModelException("Correlation ID must be integer or string")
        parameters = values[-1]
        self._request = Request(
            model_name,
            version,
            _NO_SINK,
            {},
            tuple(dict.fromkeys(output_names)),
            request_id,
            None if parameters is None else check_parameters(parameters),
            timeout_us=timeout,
            correlation_id=correlation_id,
            flags=flags,
        )
        self._inputs: list[Tensor] = list(inputs)
        self._all_outputs: Sequence[str] = ()
        self._answering: Answering | None = None
        # What only a request of the model's own has.
        self._own: _OwnRequest | None = _OwnRequest(memory, trace or InferenceTrace())

    def inputs(self) -> list[Tensor]:
        return self._inputs

    def request_id(self) -> str:
        return self._request.id

    def correlation_id(self) -> int | str:
        return self._request.correlation_id

    def flags(self) -> int:
        return self._request.flags

    def set_flags(self, *args: Any) -> None:
        (self._request.flags,) = _integers("set_flags", self, args)

    def timeout(self) -> int:
        """Microseconds; 0 is none."""
        return self._request.timeout_us

    def parameters(self) -> str:
        """A JSON object; compact if it came from a client."""
        parameters = self._request.parameters or {}
        if self._own is not None:
            return json.dumps(parameters)
        return json.dumps(parameters, separators=(",", ":"), ensure_ascii=False)

    def requested_output_names(self) -> set[str]:
        return set(self._request.requested_outputs or self._all_outputs)

    def trace(self) -> InferenceTrace:
        if self._own is not None:
            return self._own.trace
        trace = InferenceTrace()
        trace._request = self._request
        return trace

    def is_cancelled(self) -> bool:
        """Whether the client has gone; never for a request that the model built."""
        return self._request.is_cancelled

    def get_response_sender(self) -> InferenceResponseSender:
        return make_sender(self._request, None if self._own is not None else answering_of(self))

    def set_release_flags(self, *args: Any) -> None:
        (flags,) = _integers("set_release_flags", self, args)
        if self._own is not None:
            raise TritonModelException("Only a request of a batch can be released with flags.")
        if flags == TRITONSERVER_REQUEST_RELEASE_RESCHEDULE:
            answering_of(self).is_rescheduled = True
        elif self._answering is not None:
            self._answering.is_rescheduled = False

    def exec(self, decoupled: bool = False) -> Any:
        """Run the model; an InferenceResponse, or an iterator over any number of them."""
        return pb_call.run(self._calling_runtime(), self._make_call, decoupled, self.trace()._request)

    async def async_exec(self, decoupled: bool = False) -> Any:
        """As `exec`, leaving the event loop to others until the (first) response is there."""
        return await pb_call.run_async(self._calling_runtime(), self._make_call, decoupled, self.trace()._request)

    def _calling_runtime(self) -> ModelRuntime:
        if self._runtime is None:
            raise TritonModelException("BLS is only supported during the 'execute' function.")
        return self._runtime

    def _make_call(self, sink: ResponseSink) -> Request:
        """What goes to the other model: a new request each time."""
        request = self._request
        tensors = [encode_output(tensor) for tensor in self._inputs]
        if self._calling_runtime().must_copy:
            tensors = [copy_output(tensor) for tensor in tensors]
        return Request(
            request.model_name,
            request.model_version,
            sink,
            {tensor.name: tensor for tensor in tensors},
            request.requested_outputs,
            request.id,
            request.parameters,
            timeout_us=request.timeout_us,
            correlation_id=request.correlation_id,
            flags=request.flags,
        )


def request_of_core(request: Request, runtime: ModelRuntime, request_class: type[InferenceRequest]) -> InferenceRequest:
    """A request of a batch."""
    # A loop: before Python 3.12 a comprehension costs a call, here and in `encode_response` for every request.
    inputs = []
    for tensor in request.inputs.values():
        inputs.append(tensor_of_input(tensor))
    made: InferenceRequest = object.__new__(request_class)
    made._request = request
    made._inputs = inputs
    made._all_outputs = runtime.output_names
    made._answering = None
    made._own = None
    return made


def answering_of(request: InferenceRequest) -> Answering:
    """The right to answer the request, which its senders share."""
    if request._answering is None:
        runtime = request._runtime
        assert runtime is not None
        request._answering = Answering(runtime, request._request)
    return request._answering


def has_answering(requests: Sequence[InferenceRequest]) -> bool:
    """Whether a response sender was ever asked for, or a request is to be executed again."""
    for request in requests:
        if request._answering is not None:
            return True
    return False


def existing_answering(request: InferenceRequest) -> Answering | None:
    """As `answering_of`, if that was ever asked for."""
    return request._answering


def _integers(function: str, request: InferenceRequest, args: tuple[Any, ...]) -> tuple[int]:
    if len(args) != 1 or not isinstance(args[0], int):
        signature = f"(self: {C_MODULE}.InferenceRequest, arg0: int) -> None"
        raise incompatible_arguments(signature, (request, *args), None, function)
    return (args[0],)
