"""The `implicit_state` backend: tests what the server does with implicit state. TEST_CASE says what is tested:

    0    a state that is not configured: always refused
    1    OUTPUT = INPUT + INPUT_STATE, and the state is never updated
    2    with `use_same_buffer_for_input_output` the state's memory is the same at every request
    3    with `use_growable_memory` the state grows by a MiB at every request, and keeps what it held

Triton's own runs cases 1 and 3 only where the state is in GPU memory; here it is where the model is.

Source: Triton, backend `implicit_state` of its test suites.
"""

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
from merrow.backends.probes.signature import refuse_optional_inputs, required_input, sequence_batching_of
from merrow.core.errors import InvalidArgumentError, UnsupportedError
from merrow.core.request import Request
from merrow.core.response import Response
from merrow.core.tensor import Buffer, Tensor

_CONTROLS = frozenset({"START", "END", "READY"})
_UNDEFINED = "undefined_state"
_MIB = 1024 * 1024


class ImplicitStateBackend(Backend):
    """See the module."""

    name = "implicit_state"
    default_place = Place.INLINE

    def validate(self, context: ModelContext) -> None:
        refuse_optional_inputs(context.config)
        names = [control.name for control in sequence_batching_of(context).control_input]
        if len(names) != 3 or not _CONTROLS & set(names):
            raise InvalidArgumentError("'START', 'END, and 'READY' must be configured as the control inputs")

    def create_instance(self, context: ModelContext, instance: InstanceDescription, host: InstanceHost) -> Instance:
        return ImplicitStateInstance(context)


class ImplicitStateInstance(Instance):
    """See the module. What it knows is of the instance, not of a sequence: tests use one at a time."""

    def __init__(self, context: ModelContext) -> None:
        self._model_name = context.name
        self._model_version = context.version
        states = sequence_batching_of(context).state
        self._has_state = bool(states)
        self._shares_buffer = bool(states) and states[0].use_same_buffer_for_input_output
        self._index = 0
        # What the former request was given to write its state to.
        self._last_buffer: Buffer | None = None

    def execute(self, requests: Sequence[Request]) -> Execution:
        return execute_each(self._execute_request, requests)

    def _execute_request(self, request: Request) -> Response:
        if _is_one(required_input(request, "START")):
            self._index = 0
            self._last_buffer = None
        required_input(request, "READY")
        is_end = _is_one(required_input(request, "END"))
        value = int(required_input(request, "INPUT").as_numpy().reshape(-1)[0])
        test_case = int(required_input(request, "TEST_CASE").as_numpy().reshape(-1)[0])
        response = Response(self._model_name, self._model_version)
        response.outputs = self._run(request, test_case, value)
        self._index = 0 if is_end else self._index + 1
        return response

    def _run(self, request: Request, test_case: int, value: int) -> list[Tensor]:
        if test_case == 0:
            if not self._has_state:
                raise InvalidArgumentError(
                    f"unable to add state '{_UNDEFINED}'. State configuration is missing for model "
                    f"'{self._model_name}'."
                )
            raise InvalidArgumentError(f"state '{_UNDEFINED}' is not a valid state name.")
        state = required_input(request, "INPUT_STATE")
        if test_case == 1:
            total = np.int32(value) + state.as_numpy().reshape(-1)[0]
            return [Tensor.from_numpy("OUTPUT", np.array([total], np.int32))]
        if test_case == 2:
            self._check_buffer(state.data is self._last_buffer)
            self._last_buffer = state.data if self._shares_buffer else bytearray(len(state.data))
        elif test_case == 3:
            self._check_buffer(len(state.data) == self._index * _MIB)
            self._last_buffer = state.data
            grown = bytes(state.data[: self._index * _MIB]) + bytes([self._index & 0x7F]) * _MIB
            return [Tensor("OUTPUT_STATE", "INT8", (len(grown),), grown)]
        return []

    def _check_buffer(self, is_same: bool) -> None:
        if self._index and not is_same:
            raise UnsupportedError("Input and output state are using different buffers.")


def _is_one(control: Tensor) -> bool:
    return control.datatype == "FP32" and float(control.as_numpy().reshape(-1)[0]) == 1.0
