"""Ensembles: which step of a request's ensemble runs next, with which tensors, and what the client is answered.

An ensemble is a graph of steps that hand tensors to each other by name. A step runs as soon as all its inputs exist.
Nothing here is copied: a tensor of a step is a tensor of the ensemble under another name, over the same bytes.

    events: start, a response of a running step, its refusal, the client leaves
    decisions: StartStep, CancelStep, HoldStep, ResumeStep, Answer

A decoupled step answers any number of times, and each answer opens an *iteration*: the steps after it run once for
each, and a client's response is made of the outputs of one iteration, in the order in which the iterations were opened.
A step, and an ensemble's outputs, take tensors of one origin only (`repository.ensemble` sees to it), so an iteration
is a number. A tensor that its step did not make, or that the client left out, exists as None, and is then no input.
With `max_inflight_requests`, so many runs of a step are under way at once; others wait, and as long as they do the
decoupled step that they come from is asked to make no more.

States of a request: running; over (its final answer is decided; what still runs is told to stop, and ignored).

Source: Triton, core/src/ensemble_scheduler/ensemble_scheduler.cc; ensemble_models.md.
"""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from merrow.core.errors import CancelledError, InvalidArgumentError, ServerError, error_of_code
from merrow.core.model_config import ModelConfig, ModelEnsemblingStep
from merrow.core.request import SEQUENCE_END, SEQUENCE_START, ParameterValue, Request
from merrow.core.response import Response
from merrow.core.tensor import Tensor

Dims = tuple[int, ...]

# For so many choices of outputs an ensemble remembers which steps they need.
_MAX_ROUTES = 256


@dataclass(frozen=True, slots=True)
class StepModel:
    """What must be known of the model of a step: whether its tensors have a batch dimension, and its inputs' dims."""

    has_batch_dim: bool
    is_decoupled: bool
    input_dims: Mapping[str, Dims]

    @classmethod
    def from_config(cls, config: ModelConfig) -> "StepModel":
        return cls(config.has_batch_dim, config.is_decoupled, {tensor.name: tensor.dims for tensor in config.input})


class StepRun:
    """One request to the model of a step. `inputs` are the tensors by the names of that model."""

    __slots__ = (
        "batch_size",
        "correlation_id",
        "flags",
        "inputs",
        "is_held",
        "is_over",
        "iteration",
        "outputs",
        "step",
    )

    def __init__(
        self,
        step: int,
        iteration: int,
        inputs: dict[str, Tensor],
        outputs: tuple[str, ...],
        batch_size: int,
        correlation_id: int | str,
        flags: int,
    ) -> None:
        self.step = step
        self.iteration = iteration
        self.inputs = inputs
        self.outputs = outputs
        # 0 when the model does not batch.
        self.batch_size = batch_size
        self.correlation_id = correlation_id
        self.flags = flags
        self.is_held = False
        self.is_over = False


@dataclass(frozen=True, slots=True)
class StartStep:
    """Decision: send a request to the model of `run.step`; what becomes of it are further events."""

    run: StepRun


@dataclass(frozen=True, slots=True)
class CancelStep:
    """Decision: nobody waits for this running step any more."""

    run: StepRun


@dataclass(frozen=True, slots=True)
class HoldStep:
    """Decision: this running step is ahead of those after it, and shall wait before it answers again."""

    run: StepRun


@dataclass(frozen=True, slots=True)
class ResumeStep:
    """Decision: a step that was held may go on."""

    run: StepRun


@dataclass(frozen=True, slots=True)
class Answer:
    """Decision: a response for the client. After one with `is_final`, nothing but CancelStep is decided."""

    outputs: tuple[Tensor, ...] = ()
    parameters: dict[str, ParameterValue] | None = None
    error: ServerError | None = None
    is_final: bool = True
    is_empty: bool = False


Decision = StartStep | CancelStep | HoldStep | ResumeStep | Answer


class EnsemblePlan:
    """The graph of one ensemble, as its configuration describes it."""

    def __init__(self, config: ModelConfig) -> None:
        ensembling = config.ensemble_scheduling
        assert ensembling is not None
        self.name = config.name
        self.has_batch_dim = config.has_batch_dim
        self.is_decoupled = config.is_decoupled
        self.steps: tuple[ModelEnsemblingStep, ...] = ensembling.step
        self.max_inflight_requests = ensembling.max_inflight_requests
        self.inputs = tuple(tensor.name for tensor in config.input)
        self.optional_inputs = frozenset(tensor.name for tensor in config.input if tensor.optional)
        self.output_dims: dict[str, Dims] = {tensor.name: tensor.dims for tensor in config.output}
        self._producers = {
            tensor: index for index, step in enumerate(self.steps) for tensor in step.output_map.values()
        }
        self._routes: dict[frozenset[str], Route] = {}

    def origin(self, step: int, models: Sequence[StepModel]) -> int | None:
        """The last decoupled step before a step, whose responses it runs for; None if it runs once."""
        for name in self.steps[step].input_map.values():
            producer = self._producers.get(name)
            if producer is not None:
                return producer if models[producer].is_decoupled else self.origin(producer, models)
        return None

    def route(self, requested_outputs: Iterable[str]) -> "Route":
        """The part of the graph that these outputs need; all of it where none is named."""
        wanted = frozenset(requested_outputs) or frozenset(self.output_dims)
        route = self._routes.get(wanted)
        if route is None:
            if len(self._routes) == _MAX_ROUTES:
                # Clients choose, and there are as many choices as sets of outputs.
                self._routes.clear()
            route = self._routes[wanted] = self._find_route(wanted)
        return route

    def _find_route(self, wanted: frozenset[str]) -> "Route":
        needed: set[int] = set()
        pending = list(wanted)
        while pending:
            producer = self._producers.get(pending.pop())
            if producer is not None and producer not in needed:
                needed.add(producer)
                pending.extend(self.steps[producer].input_map.values())
        readers: dict[str, list[int]] = {}
        for index in sorted(needed):
            for tensor in dict.fromkeys(self.steps[index].input_map.values()):
                readers.setdefault(tensor, []).append(index)
        return Route(
            tuple(name for name in self.output_dims if name in wanted),
            {tensor: tuple(steps) for tensor, steps in readers.items()},
        )


@dataclass(frozen=True, slots=True)
class Route:
    """What one choice of outputs needs: the outputs, and which steps read each tensor."""

    outputs: tuple[str, ...]
    readers: Mapping[str, tuple[int, ...]]


class _Value:
    """A tensor of one iteration, None if it was left out. It is let go after the last use.

    `batch_size` is that of the request which made it, 0 where its model does not batch. `sequence` is set where the
    model's response changed correlation id and flags.
    """

    __slots__ = ("batch_size", "sequence", "tensor", "uses")

    def __init__(
        self, tensor: Tensor | None, batch_size: int, uses: int, sequence: tuple[int | str, int] | None = None
    ) -> None:
        self.tensor = tensor
        self.batch_size = batch_size
        self.uses = uses
        self.sequence = sequence


class EnsembleRun:
    """One request of an ensemble, from `start` to its final Answer.

    Args:
        request: validated; its inputs have the ensemble's names.
        models: the model of each step of the plan.
    """

    def __init__(self, plan: EnsemblePlan, request: Request, models: Sequence[StepModel]) -> None:
        self._plan = plan
        self._request = request
        self._models = models
        self._route = plan.route(request.requested_outputs)
        # Ensemble tensor -> iteration -> its value.
        self._values: dict[str, dict[int, _Value]] = {}
        # Of each step: runs in flight, and those that wait for max_inflight_requests.
        self._running: list[list[StepRun]] = [[] for _ in plan.steps]
        self._waiting: list[deque[StepRun]] = [deque() for _ in plan.steps]
        # Of each decoupled step: how many iterations it opened.
        self._opened = [0] * len(plan.steps)
        self._in_flight_count = 0
        self._next_answer = 0
        self.is_over = False

    def start(self) -> list[Decision]:
        """Begin with the client's tensors; optional ones that it left out exist as None."""
        request, plan = self._request, self._plan
        batch_size = request.batch_size if plan.has_batch_dim else 0
        for name in plan.inputs:
            tensor = request.inputs.get(name)
            if tensor is not None or name in plan.optional_inputs:
                self._set(name, 0, tensor, batch_size, None)
        decisions = self._advance(plan.inputs, 0)
        # Validation counts inputs: a required one can be missing where an optional one is there.
        return decisions or self._answers()

    def on_response(self, run: StepRun, response: Response) -> list[Decision]:
        """A response of a running step."""
        assert not run.is_over, "a step's model answered after its final response"
        if response.is_final:
            self._note_end(run)
        if self.is_over:
            return []
        if response.error is not None:
            return self._fail(response.error)
        if self._request.is_cancelled:
            return self._fail(CancelledError(""))
        step = self._plan.steps[run.step]
        is_decoupled = self._models[run.step].is_decoupled
        decisions = self._start_waiting(run.step)
        if not (is_decoupled and response.is_empty):
            try:
                sequence = _sequence_of(response.parameters)
            except ServerError as error:
                return self._fail(error)
            iteration = run.iteration
            if is_decoupled:
                iteration = self._opened[run.step]
                self._opened[run.step] += 1
            made = {tensor.name: tensor for tensor in response.outputs}
            for output_name, name in step.output_map.items():
                self._set(name, iteration, made.get(output_name), run.batch_size, sequence)
            decisions += self._advance(step.output_map.values(), iteration)
        return [*decisions, *self._answers()]

    def on_refusal(self, run: StepRun, error: ServerError) -> list[Decision]:
        """The model of a step did not accept its request; no response will come."""
        self._note_end(run)
        return [] if self.is_over else self._fail(error)

    def fail(self, error: ServerError) -> list[Decision]:
        """The request cannot go on, for a reason that no step gave."""
        return [] if self.is_over else self._fail(error)

    def cancel(self) -> list[Decision]:
        """The client has left: what runs is told, nothing more is started; the first to end ends the request."""
        return [] if self.is_over else [CancelStep(run) for runs in self._running for run in runs]

    def check_invariants(self) -> None:
        """For tests: counts agree with what they count, and nothing is kept that nobody will use."""
        limit = self._plan.max_inflight_requests
        assert self._in_flight_count == sum(map(len, self._running)) + sum(map(len, self._waiting))
        for running, waiting in zip(self._running, self._waiting, strict=True):
            assert not limit or len(running) <= limit
            assert not waiting or (limit and len(running) == limit) or self.is_over
        assert all(value.uses > 0 for values in self._values.values() for value in values.values())
        assert self.is_over or self._in_flight_count

    # The graph.

    def _set(
        self, name: str, iteration: int, tensor: Tensor | None, batch_size: int, sequence: tuple[int | str, int] | None
    ) -> None:
        uses = len(self._route.readers.get(name, ())) + (name in self._route.outputs)
        if uses:
            self._values.setdefault(name, {})[iteration] = _Value(tensor, batch_size, uses, sequence)

    def _advance(self, names: Iterable[str], iteration: int) -> list[Decision]:
        """Start the steps that only waited for these tensors."""
        ready: dict[int, None] = {}
        for name in names:
            for step in self._route.readers.get(name, ()):
                tensors = self._plan.steps[step].input_map.values()
                if all(iteration in self._values.get(tensor, ()) for tensor in tensors):
                    ready[step] = None
        decisions: list[Decision] = []
        for step in ready:
            run = self._make_run(step, iteration)
            self._in_flight_count += 1
            limit = self._plan.max_inflight_requests
            if limit and len(self._running[step]) >= limit:
                self._waiting[step].append(run)
                decisions += self._hold_origin(step)
            else:
                decisions.append(self._start_run(run))
        return decisions

    def _start_run(self, run: StepRun) -> StartStep:
        self._running[run.step].append(run)
        run.is_held = self._is_ahead(run.step)
        return StartStep(run)

    def _is_ahead(self, origin: int) -> bool:
        """Whether runs wait that responses of this step made."""
        return any(
            waiting and self._plan.origin(step, self._models) == origin for step, waiting in enumerate(self._waiting)
        )

    def _hold_origin(self, step: int) -> list[Decision]:
        origin = self._plan.origin(step, self._models)
        decisions: list[Decision] = []
        for run in () if origin is None else self._running[origin]:
            if not run.is_held:
                run.is_held = True
                decisions.append(HoldStep(run))
        return decisions

    def _make_run(self, step: int, iteration: int) -> StepRun:
        request, model, plan = self._request, self._models[step], self._plan.steps[step]
        inputs: dict[str, Tensor] = {}
        batch_size = 0
        correlation_id, flags = request.correlation_id, request.flags
        for input_name, name in plan.input_map.items():
            value = self._values[name][iteration]
            if value.sequence is not None:
                correlation_id, flags = value.sequence
            tensor = value.tensor
            if tensor is None:
                continue
            shape = _fit_shape(
                tuple(tensor.shape), value.batch_size, model.has_batch_dim, model.input_dims.get(input_name, ())
            )
            if model.has_batch_dim and shape:
                batch_size = shape[0]
            inputs[input_name] = Tensor(input_name, tensor.datatype, shape, tensor.data)
        for name in dict.fromkeys(plan.input_map.values()):
            self._use(name, iteration)
        return StepRun(step, iteration, inputs, tuple(plan.output_map), batch_size, correlation_id, flags)

    def _use(self, name: str, iteration: int) -> None:
        values = self._values[name]
        value = values[iteration]
        value.uses -= 1
        if not value.uses:
            del values[iteration]

    def _note_end(self, run: StepRun) -> None:
        run.is_over = True
        self._in_flight_count -= 1
        self._running[run.step].remove(run)

    def _start_waiting(self, step: int) -> list[Decision]:
        """Start what waited for max_inflight_requests, as far as there is room."""
        running, waiting = self._running[step], self._waiting[step]
        if not waiting:
            return []
        decisions: list[Decision] = []
        while waiting and len(running) < self._plan.max_inflight_requests:
            decisions.append(self._start_run(waiting.popleft()))
        origin = self._plan.origin(step, self._models)
        if origin is not None and not self._is_ahead(origin):
            for run in self._running[origin]:
                if run.is_held:
                    run.is_held = False
                    decisions.append(ResumeStep(run))
        return decisions

    # Answering.

    def _answers(self) -> list[Decision]:
        """The responses that are complete, in order, and the end."""
        decisions: list[Decision] = []
        outputs = self._route.outputs
        while all(self._next_answer in self._values.get(name, ()) for name in outputs):
            is_last = not self._in_flight_count and not any(
                self._next_answer + 1 in self._values.get(name, ()) for name in outputs
            )
            decisions.append(self._make_answer(self._next_answer, is_last))
            self._next_answer += 1
            if is_last:
                self.is_over = True
                return decisions
        if self._in_flight_count:
            return decisions
        if self._plan.is_decoupled:
            self.is_over = True
            return [*decisions, Answer(is_empty=True)]
        return self._fail(
            InvalidArgumentError(
                f"{self._request.log_prefix}unexpected deadlock, at least one output is not set while no more ensemble "
                "steps can be made"
            )
        )

    def _make_answer(self, iteration: int, is_final: bool) -> Answer:
        request, plan = self._request, self._plan
        correlation_id, flags = request.correlation_id, request.flags
        tensors: list[Tensor] = []
        for name in self._route.outputs:
            value = self._values[name][iteration]
            if value.sequence is not None:
                correlation_id, flags = value.sequence
            tensor = value.tensor
            if tensor is not None:
                shape = _fit_shape(tuple(tensor.shape), value.batch_size, plan.has_batch_dim, plan.output_dims[name])
                tensors.append(Tensor(name, tensor.datatype, shape, tensor.data))
            self._use(name, iteration)
        parameters: dict[str, ParameterValue] | None = None
        if any(tensor.byte_size for tensor in tensors):
            parameters = {
                "sequence_id": correlation_id,
                "sequence_start": bool(flags & SEQUENCE_START),
                "sequence_end": bool(flags & SEQUENCE_END),
            }
        return Answer(tuple(tensors), parameters, is_final=is_final)

    def _fail(self, error: ServerError) -> list[Decision]:
        self.is_over = True
        self._values.clear()
        for waiting in self._waiting:
            self._in_flight_count -= len(waiting)
            waiting.clear()
        answer = Answer(error=error_of_code(error.code, f"in ensemble '{self._plan.name}', {error.message}"))
        return [answer, *(CancelStep(run) for runs in self._running for run in runs)]


def _fit_shape(shape: Dims, batch_size: int, wants_batch_dim: bool, dims: Dims) -> Dims:
    """The shape that a tensor has on the other side, where only one side has a batch dimension.

    Args:
        batch_size: rows of the request that made the tensor; 0 where it has no batch dimension.
        dims: what the other side's configuration says, without batch dimension.
    """
    if wants_batch_dim == (batch_size > 0):
        return shape
    matches = len(shape) == len(dims) and all(
        -1 in (one, dim) or one == dim for one, dim in zip(shape, dims, strict=True)
    )
    if wants_batch_dim:
        # Else its own first dimension is taken for the batch.
        return (1, *shape) if matches else shape
    return shape[1:] if not matches and batch_size == 1 else shape


def _sequence_of(parameters: Mapping[str, ParameterValue] | None) -> tuple[int | str, int] | None:
    """Correlation id and flags, where the parameters of a step's response set any of them.

    Raises:
        InvalidArgumentError: one has the wrong type.
    """
    if not parameters or parameters.keys().isdisjoint(("sequence_id", "sequence_start", "sequence_end")):
        return None
    correlation_id = parameters.get("sequence_id", 0)
    if isinstance(correlation_id, (bool, float)):
        raise InvalidArgumentError(
            "expected parameter 'sequence_id' to be TRITONSERVER_PARAMETER_INT or TRITONSERVER_PARAMETER_STRING"
        )
    flags = 0
    for name, flag in (("sequence_start", SEQUENCE_START), ("sequence_end", SEQUENCE_END)):
        value = parameters.get(name, False)
        if not isinstance(value, bool):
            raise InvalidArgumentError(f"expect parameter '{name}' to be TRITONSERVER_PARAMETER_BOOL")
        flags |= flag * value
    return correlation_id, flags
