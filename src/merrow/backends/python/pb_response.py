"""`pb_utils.InferenceResponse`: what a model answers, and what the models it calls answer.

Source: Triton, python_backend/src/infer_response.cc.
"""

import json
from collections.abc import Sequence
from typing import Any

from merrow.backends.python.pb_errors import (
    C_MODULE,
    TritonError,
    TritonErrorCode,
    TritonModelException,
    bind_arguments,
    incompatible_arguments,
)
from merrow.backends.python.pb_tensor import Tensor, copy_output, encode_output, tensor_of_input
from merrow.core.errors import error_of_code
from merrow.core.request import Request
from merrow.core.response import Response

_SIGNATURE = (
    f"{C_MODULE}.InferenceResponse(output_tensors: List[{C_MODULE}.Tensor] = [], "
    f"error: {C_MODULE}.TritonError = None, parameters: object = None)"
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
                ("output_tensors", "error", "parameters"), ((), None, None), args, kwargs, _SIGNATURE
            )
            if (error is not None and not isinstance(error, TritonError)) or not isinstance(tensors, (list, tuple)):
                raise incompatible_arguments(_SIGNATURE, args, kwargs)
        for tensor in tensors:
            if not isinstance(tensor, Tensor):
                if tensor is None:
                    raise TritonModelException("Output tensor for inference response should not be empty.")
                raise incompatible_arguments(_SIGNATURE, args, kwargs)
        self._output_tensors = list(tensors)
        self._error: TritonError | None = error
        self._parameters = None if parameters is None else check_parameters(parameters)

    def output_tensors(self) -> list[Tensor]:
        return self._output_tensors

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError | None:
        return self._error

    def parameters(self) -> str:
        """A JSON object."""
        return json.dumps(self._parameters or {})


def encode_response(
    response: InferenceResponse, request: Request, all_outputs: Sequence[str], must_copy: bool
) -> Response:
    """The response as the server knows it, without outputs that were not asked for."""
    error = response._error
    if error is not None:
        return Response("", 0, error=error_of_code(int(error.code()), error.message()))
    requested = request.requested_outputs or all_outputs
    outputs = []
    for tensor in response._output_tensors:
        if tensor.name() in requested:
            outputs.append(encode_output(tensor))
    if must_copy:
        outputs = [copy_output(output) for output in outputs]
    return Response("", 0, "", outputs, response._parameters)


def decode_response(response: Response) -> InferenceResponse:
    """The response of a model that was called, as the caller sees it."""
    made: InferenceResponse = object.__new__(InferenceResponse)
    made._output_tensors = [tensor_of_input(tensor) for tensor in response.outputs]
    made._parameters = response.parameters
    error = response.error
    made._error = None if error is None else TritonError(error.message, TritonErrorCode(int(error.code)))
    return made


def check_parameters(parameters: Any) -> dict[str, Any]:
    """The parameters of a request or response, as a dict of the model's own.

    Raises:
        TritonModelException: they are not what they may be.
    """
    if not isinstance(parameters, dict):
        raise TritonModelException(f"Expect N8pybind114dictE, got {type(parameters)}")
    for key, value in parameters.items():
        if not isinstance(key, str):
            raise TritonModelException(f"Expect parameters keys to have type str, found type {type(key)}")
        if not isinstance(value, (bool, int, str)):
            raise TritonModelException(f"Expect parameters values to have type bool/int/str, found type {type(value)}")
    return dict(parameters)
