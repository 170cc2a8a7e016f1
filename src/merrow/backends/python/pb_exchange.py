"""Requests, responses and response senders, as models see them.

A request that a model builds itself can be looked at, but not yet executed (business logic scripting).

A response may be returned by `execute` or sent by the request's response sender, from any thread and also after
`execute` returned. `ResponseSlot` is where such a response arrives. The request and its senders own the slot's key;
when the model has dropped them all without sending the final flag, nothing can arrive any more, and the slot says so.

Source: Triton, python_backend/src/infer_request.cc, infer_response.cc, response_sender.cc.
"""

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from merrow.backends.python.pb_errors import (
    C_MODULE,
    PybindEnum,
    TritonError,
    TritonModelException,
    bind_arguments,
    incompatible_arguments,
)
from merrow.backends.python.pb_tensor import Tensor, encode_output, tensor_of_input
from merrow.core.errors import error_of_code
from merrow.core.request import Request
from merrow.core.response import Response

TRITONSERVER_REQUEST_FLAG_SEQUENCE_START = 1
TRITONSERVER_REQUEST_FLAG_SEQUENCE_END = 2
TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1
TRITONSERVER_REQUEST_RELEASE_ALL = 1
TRITONSERVER_REQUEST_RELEASE_RESCHEDULE = 2


class MemoryType(PybindEnum):
    """Where a tensor is."""

    __module__ = C_MODULE

    TRITONSERVER_MEMORY_GPU = 0
    TRITONSERVER_MEMORY_CPU = 1


_RESPONSE_SIGNATURE = (
    f"{C_MODULE}.InferenceResponse(output_tensors: List[{C_MODULE}.Tensor] = [], "
    f"error: {C_MODULE}.TritonError = None, parameters: object = None)"
)
_REQUEST_SIGNATURE = (
    f"{C_MODULE}.InferenceRequest(request_id: str = '', correlation_id: object = 0, "
    f"inputs: List[{C_MODULE}.Tensor], requested_output_names: List[str], model_name: str, model_version: int = -1, "
    f"flags: int = 0, timeout: int = 0, preferred_memory: {C_MODULE}.PreferredMemory, "
    f"trace: {C_MODULE}.InferenceTrace, parameters: object = None)"
)
_MEMORY_SIGNATURE = (
    f"{C_MODULE}.PreferredMemory(preferred_memory_type: {C_MODULE}.MemoryType, preferred_device_id: int = 0)"
)


class InferenceResponse:
    """The answer to one request: tensors, or an error."""

    __module__ = C_MODULE
    __slots__ = ("_error", "_output_tensors", "_parameters")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if len(args) == 1 and not kwargs and type(args[0]) is list:
            # How most models call it.
            tensors = args[0]
            error = parameters = None
        else:
            tensors, error, parameters = bind_arguments(
                ("output_tensors", "error", "parameters"), ((), None, None), args, kwargs, _RESPONSE_SIGNATURE
            )
            if (error is not None and not isinstance(error, TritonError)) or not isinstance(tensors, (list, tuple)):
                raise incompatible_arguments(_RESPONSE_SIGNATURE, args, kwargs)
        for tensor in tensors:
            if not isinstance(tensor, Tensor):
                if tensor is None:
                    raise TritonModelException("Output tensor for inference response should not be empty.")
                raise incompatible_arguments(_RESPONSE_SIGNATURE, args, kwargs)
        self._output_tensors = list(tensors)
        self._error: TritonError | None = error
        self._parameters = None if parameters is None else _check_parameters(parameters)

    def output_tensors(self) -> list[Tensor]:
        return self._output_tensors

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError | None:
        return self._error

    def parameters(self) -> str:
        """A JSON object."""
        return json.dumps(self._parameters or {})


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
    """The trace of a request; there is no context to give."""

    __module__ = C_MODULE
    __slots__ = ()

    def get_context(self) -> str | None:
        return None


class ResponseSlot:
    """Where the response of a sender arrives. The instance waits on it."""

    def __init__(self) -> None:
        self.response: InferenceResponse | None = None
        self.is_final = False
        # Set when `is_final` is, or when nobody can send any more.
        self.settled = threading.Event()


class _SlotKey:
    """The right to send to a slot; shared by a request and its senders."""

    def __init__(self, slot: ResponseSlot) -> None:
        self.slot = slot
        self.is_closed = False
        self.lock = threading.Lock()

    def __del__(self) -> None:
        self.slot.settled.set()


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
    """One request of a batch, or one that a model builds."""

    __module__ = C_MODULE
    __slots__ = ("_all_outputs", "_inputs", "_key", "_own", "_request")

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
            None if parameters is None else _check_parameters(parameters),
            timeout_us=timeout,
            correlation_id=correlation_id,
            flags=flags,
        )
        self._inputs: list[Tensor] = list(inputs)
        self._all_outputs: Sequence[str] = ()
        self._key: _SlotKey | None = None
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
        return InferenceTrace() if self._own is None else self._own.trace

    def is_cancelled(self) -> bool:
        """Whether the client has gone; never for a request that the model built."""
        return self._request.is_cancelled

    def get_response_sender(self) -> "InferenceResponseSender":
        return InferenceResponseSender(self)

    def set_release_flags(self, *args: Any) -> None:
        (flags,) = _integers("set_release_flags", self, args)
        if flags == TRITONSERVER_REQUEST_RELEASE_RESCHEDULE:
            raise TritonModelException(
                "Rescheduling requests (set_release_flags with TRITONSERVER_REQUEST_RELEASE_RESCHEDULE) "
                "is not available yet."
            )

    def exec(self, decoupled: bool = False) -> Any:
        raise TritonModelException("Business logic scripting (InferenceRequest.exec) is not available yet.")

    async def async_exec(self, decoupled: bool = False) -> Any:
        raise TritonModelException("Business logic scripting (InferenceRequest.async_exec) is not available yet.")


class InferenceResponseSender:
    """Sends the response of one request; got from the request. A model that is not decoupled sends exactly one."""

    __module__ = C_MODULE
    __slots__ = ("_key", "_request")

    def __init__(self, request: InferenceRequest) -> None:
        self._request = request._request
        self._key = None if request._own is not None else _key_of(request)

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        """Send the response, the final flag, or both at once. Thread-safe."""
        if (response is not None and not isinstance(response, InferenceResponse)) or not isinstance(flags, int):
            raise incompatible_arguments(_SEND_SIGNATURE, (self, response), {"flags": flags}, "send")
        if flags not in (0, TRITONSERVER_RESPONSE_COMPLETE_FINAL):
            raise TritonModelException("Unable to send response. Unsupported flag provided.")
        if response is None and not flags:
            raise TritonModelException(
                "Inference Response object must be provided when the response flags is set to zero."
            )
        key = self._key
        if key is None:
            raise TritonModelException(
                "Unable to send response. Response sender has no reference to the decoupled state of the model."
            )
        with key.lock:
            slot = key.slot
            if response is not None and slot.response is not None:
                raise TritonModelException(
                    "Unable to send response. Non-decoupled model cannot send more than one response."
                )
            if response is None and slot.response is None:
                raise TritonModelException(
                    "Unable to send response. Non-decoupled model cannot send complete final before sending a response."
                )
            if key.is_closed:
                raise TritonModelException("Unable to send response. Response sender has been closed.")
            if response is not None:
                slot.response = response
            if flags:
                key.is_closed = True
                slot.is_final = True
                slot.settled.set()

    def is_cancelled(self) -> bool:
        """Whether the client has gone."""
        return self._request.is_cancelled


_SEND_SIGNATURE = (
    f"(self: {C_MODULE}.InferenceResponseSender, response: {C_MODULE}.InferenceResponse = None, flags: int = 0) -> None"
)


def request_of_core(request: Request, all_outputs: Sequence[str]) -> InferenceRequest:
    """A request of a batch. `all_outputs` are what a client that names no outputs asks for."""
    # A loop: before Python 3.12 a comprehension costs a call, here and in `encode_response` for every request.
    inputs = []
    for tensor in request.inputs.values():
        inputs.append(tensor_of_input(tensor))
    made: InferenceRequest = object.__new__(InferenceRequest)
    made._request = request
    made._inputs = inputs
    made._all_outputs = all_outputs
    made._key = None
    made._own = None
    return made


def encode_response(response: InferenceResponse, request: Request, all_outputs: Sequence[str]) -> Response:
    """The response as the server knows it, without outputs that were not asked for."""
    error = response._error
    if error is not None:
        return Response("", 0, error=error_of_code(int(error.code()), error.message()))
    requested = request.requested_outputs or all_outputs
    outputs = []
    for tensor in response._output_tensors:
        if tensor.name() in requested:
            outputs.append(encode_output(tensor))
    return Response("", 0, "", outputs, response._parameters)


def slot_of(request: InferenceRequest) -> ResponseSlot:
    """Where the response that `execute` did not return will arrive."""
    return _key_of(request).slot


def has_senders(requests: Sequence[InferenceRequest]) -> bool:
    """Whether a response sender was ever asked for."""
    for request in requests:
        if request._key is not None:
            return True
    return False


def sent_slot_of(request: InferenceRequest) -> ResponseSlot | None:
    """The slot, if a response sender was ever asked for."""
    return None if request._key is None else request._key.slot


def close_senders(request: InferenceRequest) -> None:
    """Refuse responses from now on: the request is answered."""
    if request._key is not None:
        with request._key.lock:
            request._key.is_closed = True


def _key_of(request: InferenceRequest) -> _SlotKey:
    if request._key is None:
        request._key = _SlotKey(ResponseSlot())
    return request._key


def _check_parameters(parameters: Any) -> dict[str, Any]:
    if not isinstance(parameters, dict):
        raise TritonModelException(f"Expect N8pybind114dictE, got {type(parameters)}")
    for key, value in parameters.items():
        if not isinstance(key, str):
            raise TritonModelException(f"Expect parameters keys to have type str, found type {type(key)}")
        if not isinstance(value, (bool, int, str)):
            raise TritonModelException(f"Expect parameters values to have type bool/int/str, found type {type(value)}")
    return dict(parameters)


def _integers(function: str, request: InferenceRequest, args: tuple[Any, ...]) -> tuple[int]:
    if len(args) != 1 or not isinstance(args[0], int):
        signature = f"(self: {C_MODULE}.InferenceRequest, arg0: int) -> None"
        raise incompatible_arguments(signature, (request, *args), None, function)
    return (args[0],)
