"""Implicit state: tensors that the server carries from each request of a sequence to its next.

A state has an input and an output name. At the start of a sequence the input holds the initial state: zeros, a file,
or, where the configuration has none, zeros too (Triton leaves them undefined). After each request the input becomes
what the model answered as the output; a model that did not answer it keeps it. A state may change its shape, where its
dims are variable, at every step; requests whose states differ in shape do not share a batch.

Source: Triton, model_configuration.md, "Implicit State Management"; sequence_state.cc.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass

from merrow.core.datatypes import BYTES, DATATYPES_OF_CONFIG, ELEMENT_BYTE_SIZES
from merrow.core.errors import InvalidArgumentError
from merrow.core.model_config import ModelConfig, ModelSequenceBatchingInitialState, ModelSequenceBatchingState
from merrow.core.request import Request
from merrow.core.response import Response
from merrow.core.tensor import Tensor, element_count


@dataclass(frozen=True, slots=True)
class StateRule:
    """One state: its names, and what it is at the start of a sequence (`shape` includes the batch dimension).

    With `is_in_place` a value of unchanged size is written over the former one, so that the model finds its state in
    one and the same memory.
    """

    input_name: str
    output_name: str
    datatype: str
    shape: tuple[int, ...]
    initial: bytes
    is_in_place: bool

    def initial_tensor(self) -> Tensor:
        """A state as a sequence starts with it."""
        if self.is_in_place:
            return Tensor(self.input_name, self.datatype, self.shape, memoryview(bytearray(self.initial)))
        return Tensor(self.input_name, self.datatype, self.shape, self.initial)


def state_rules(config: ModelConfig, read_file: Callable[[str], bytes]) -> tuple[StateRule, ...]:
    """The states that a configuration asks for.

    Args:
        read_file: the content of a file in the model's `initial_state` directory.

    Raises:
        InvalidArgumentError: a setting contradicts itself, or a file is too short.
    """
    batching = config.sequence_batching
    assert batching is not None
    rows = (1,) if config.max_batch_size else ()
    rules: dict[str, StateRule] = {}
    for state in batching.state:
        name = state.input_name
        if len(state.initial_state) > 1:
            raise InvalidArgumentError(
                f"initial_state field for state input '{name}' must contain exactly one or zero element. Found "
                f"'{len(state.initial_state)}' elements."
            )
        datatype = DATATYPES_OF_CONFIG.get(state.data_type)
        if datatype is None:
            raise InvalidArgumentError(
                f"state '{name}' of model '{config.name}' must specify 'data_type', got {state.data_type}"
            )
        if name in rules:
            raise InvalidArgumentError(f"State input name '{name}' specified more than once.")
        if state.initial_state:
            initial = state.initial_state[0]
            _check_initial_state(state, initial)
            dims = initial.dims
            data = _initial_data(name, initial, datatype, read_file)
        else:
            dims = tuple(1 if dim == -1 else dim for dim in state.dims)
            data = _zeros(datatype, dims)
        rules[name] = StateRule(
            name, state.output_name, datatype, rows + dims, data, state.use_same_buffer_for_input_output
        )
    return tuple(rules.values())


def batch_key_with_states(
    batch_key: Callable[[Request], Hashable] | None, rules: tuple[StateRule, ...]
) -> Callable[[Request], Hashable] | None:
    """The same key, if any, for requests that have their states: rows of a batch must have states of equal shapes."""
    names = [rule.input_name for rule in rules]
    if not names:
        return batch_key

    def key(request: Request) -> Hashable:
        shapes = tuple([tuple(request.inputs[name].shape) for name in names])
        return shapes if batch_key is None else (shapes, batch_key(request))

    return key


class SequenceStates:
    """The states of one sequence."""

    __slots__ = ("_rules", "_tensors")

    def __init__(self, rules: tuple[StateRule, ...]) -> None:
        self._rules = rules
        self._tensors: list[Tensor] = []
        self.reset()

    def reset(self) -> None:
        """The sequence starts."""
        self._tensors = [rule.initial_tensor() for rule in self._rules]

    def inputs(self) -> dict[str, Tensor]:
        """What the next request is given."""
        return {tensor.name: tensor for tensor in self._tensors}

    def update(self, response: Response) -> None:
        """Take the new states from a response, if it has them."""
        for output in response.outputs:
            for position, rule in enumerate(self._rules):
                if output.name == rule.output_name:
                    self._tensors[position] = self._next(rule, self._tensors[position], output)

    def _next(self, rule: StateRule, former: Tensor, output: Tensor) -> Tensor:
        if rule.is_in_place and len(output.data) == len(former.data):
            assert isinstance(former.data, memoryview)
            former.data[:] = output.data
            return Tensor(rule.input_name, output.datatype, output.shape, former.data)
        # The output may be a view of memory that is used again once the response has left.
        data = memoryview(bytearray(output.data)) if rule.is_in_place else bytes(output.data)
        return Tensor(rule.input_name, output.datatype, output.shape, data)


def _check_initial_state(state: ModelSequenceBatchingState, initial: ModelSequenceBatchingInitialState) -> None:
    name = state.input_name
    if initial.data_type != state.data_type:
        raise InvalidArgumentError(
            f"The data type used for 'initial_state' field of state '{name}' does not match the state data type."
        )
    if not initial.name:
        raise InvalidArgumentError(f"Field 'name' must be set when using initial_state for state input '{name}'.")
    if len(initial.dims) != len(state.dims):
        raise InvalidArgumentError(
            "Number of dimensions in 'initial_state' doesn't match the size of 'state' dimensions for state input "
            f"'{name}'. {len(initial.dims)} != {len(state.dims)}"
        )
    for given, expected in zip(initial.dims, state.dims, strict=True):
        if given == -1:
            raise InvalidArgumentError(
                f"'initial_state' field for state input name '{name}' contains variable dimensions."
            )
        if expected not in (-1, given):
            raise InvalidArgumentError(
                f"'initial_state' dim for input name '{name}' doesn't match 'state' dim description. "
                f"{given} != {expected}"
            )


def _initial_data(
    name: str, initial: ModelSequenceBatchingInitialState, datatype: str, read_file: Callable[[str], bytes]
) -> bytes:
    if initial.data_file is not None:
        data = read_file(initial.data_file)
        if datatype == BYTES:
            return data
        byte_size = element_count(initial.dims) * ELEMENT_BYTE_SIZES[datatype]
        if len(data) < byte_size:
            raise InvalidArgumentError(
                f"initial_state setting expects {byte_size} bytes, but the data provided from {initial.data_file}only "
                f"has {len(data)} bytes."
            )
        return data[:byte_size]
    if initial.zero_data is None:
        raise InvalidArgumentError(f"initial_state setting expects state'{name}' to have state_data set")
    return _zeros(datatype, initial.dims)


def _zeros(datatype: str, dims: tuple[int, ...]) -> bytes:
    """Zeros; of BYTES, empty elements."""
    return bytes(element_count(dims) * (ELEMENT_BYTE_SIZES[datatype] or 4))
