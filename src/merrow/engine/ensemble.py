"""The driver of an ensemble: sends the requests that `schedule.ensemble` decides on to the composing models.

It stands where another model has its `engine.driver.ModelDriver`, with the same interface, and has no instances of its
own. A step goes through the same door as a client's request, so that validation, queues, batching, response cache and
statistics of the composing model see no difference. A request of the ensemble holds its composing models, and those of
ensembles among them, from its start to its answer: one that is reloaded or unloaded meanwhile goes on serving until
then.

Times of the steps are summed up for the ensemble's own statistics, as Triton does.

Source: Triton, core/src/ensemble_scheduler/ensemble_scheduler.cc: EnsembleContext, RequestTracker.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from merrow.core.clock import Clock
from merrow.core.errors import CancelledError, ServerError, UnavailableError
from merrow.core.model_config import ModelConfig
from merrow.core.request import Request, RequestTrace
from merrow.core.response import Response
from merrow.engine.model import Model
from merrow.engine.validation import ResponseShaper
from merrow.observe.statistics import FailureReason, StatisticsRecorder
from merrow.places.base import PlacedInstance
from merrow.schedule.ensemble import (
    Answer,
    CancelStep,
    Decision,
    EnsemblePlan,
    EnsembleRun,
    HoldStep,
    ResumeStep,
    StartStep,
    StepModel,
    StepRun,
)

FindModel = Callable[[str, int], Model]
"""The model version in service; -1 is the largest. Raises a ServerError where there is none."""

Submit = Callable[[Model, Request], None]
"""Accept a request for a model. Raises a ServerError where it is refused."""


class EnsembleDriver:
    """See the module. Runs on the loop's thread only."""

    def __init__(
        self,
        config: ModelConfig,
        version: int,
        find_model: FindModel,
        submit: Submit,
        recorder: StatisticsRecorder,
        clock: Clock,
    ) -> None:
        self.name = config.name
        self.version = version
        self.plan = EnsemblePlan(config)
        self.submit = submit
        self._find_model = find_model
        self._shaper = ResponseShaper(config)
        self._recorder = recorder
        self._clock = clock
        self._step_models: dict[Model, StepModel] = {}
        # The models of the steps that requests of ensembles above this one hold, and how many of them do.
        self._kept: dict[tuple[Model, ...], int] = {}
        self._executions: dict[Request, _Execution] = {}
        self._is_stopping = False
        self._drained: asyncio.Event | None = None

    @property
    def in_flight_count(self) -> int:
        """Requests accepted and not yet answered."""
        return len(self._executions)

    @property
    def pending_count(self) -> int:
        """An ensemble's request begins at once; what waits, waits at the composing models."""
        return 0

    @property
    def instances(self) -> list[PlacedInstance]:
        return []

    @property
    def is_healthy(self) -> bool:
        """Whether every composing model is in service and can take requests."""
        try:
            return all(model.driver.is_healthy for model in self.find_models())
        except ServerError:
            return False

    def run_on(self, instance: PlacedInstance, requests: Sequence[Request], now_ns: int) -> None:
        raise AssertionError(f"ensemble '{self.name}' has no instances")

    async def close_instance(self, instance: PlacedInstance) -> None:
        raise AssertionError(f"ensemble '{self.name}' has no instances")

    def answer_at_once(self, request: Request, response: Response, now_ns: int) -> None:
        """Answer a request whose response was found in the response cache."""
        response.model_name = self.name
        response.model_version = self.version
        if request.trace is not None:
            request.trace.record_response(response, now_ns)
        request.sink.on_response(response)

    def enqueue(self, request: Request, now_ns: int) -> None:
        """Accept a validated request.

        Raises:
            UnavailableError: the ensemble is being unloaded.
        """
        if self._is_stopping:
            raise UnavailableError(
                "Server is stopping, scheduler for model has stopped accepting new inference requests"
            )
        request.queue_ns = now_ns
        request.owner = self
        if request.trace is not None:
            request.trace.record_queued(now_ns)
        execution = self._executions[request] = _Execution(self, request)
        execution.start(self._clock())

    def cancel(self, request: Request) -> None:
        """The client has left: running steps are told, no other is started."""
        request.is_cancelled = True
        execution = self._executions.get(request)
        if execution is not None:
            execution.cancel()

    def resume(self, request: Request) -> None:
        """The client takes responses again."""
        execution = self._executions.get(request)
        if execution is not None:
            execution.resume()

    async def drain(self) -> None:
        """Refuse new requests from now on, and wait until those accepted are answered."""
        self._is_stopping = True
        if self._executions:
            self._drained = asyncio.Event()
            await self._drained.wait()

    # For the executions.

    def find_models(self) -> list[Model]:
        """The model of each step.

        Raises:
            ServerError: one is not in service.
        """
        return [self._find_model(step.model_name, step.model_version) for step in self.plan.steps]

    def models_of_request(self) -> list[Model]:
        """The model of each step, for a request that begins: once unloaded, those kept for requests from above.

        Raises:
            ServerError: one is not in service.
        """
        try:
            return self.find_models()
        except ServerError:
            if not self._kept:
                raise
            return list(next(reversed(self._kept)))

    def keep(self, models: Sequence[Model]) -> None:
        """A request of an ensemble above this one, which may come here later, holds these models of the steps."""
        self._kept[tuple(models)] = self._kept.get(tuple(models), 0) + 1

    def let_go(self, models: Sequence[Model]) -> None:
        """Undo one `keep`."""
        self._kept[tuple(models)] -= 1
        if not self._kept[tuple(models)]:
            del self._kept[tuple(models)]

    def step_model(self, model: Model) -> StepModel:
        known = self._step_models.get(model)
        if known is None:
            if len(self._step_models) >= 2 * len(self.plan.steps):
                # Reloads left the models of another day in it.
                self._step_models.clear()
            known = self._step_models[model] = StepModel.from_config(model.config)
        return known

    def answer(self, request: Request, answer: Answer, times: "_StepTimes") -> None:
        """Send a response to the client; with the final one, count the request."""
        now_ns = self._clock()
        response = Response(
            self.name,
            self.version,
            request.id,
            answer.outputs,
            answer.parameters,
            answer.error,
            answer.is_final,
            answer.is_empty,
        )
        if answer.error is None:
            self._shaper.shape(request, response)
        if not times.has_answered and not answer.is_empty:
            times.has_answered = True
            self._recorder.record_first_response(request.arrival_ns, now_ns)
        if answer.is_final:
            request.owner = None
            del self._executions[request]
            if answer.error is None:
                times.record_success(self._recorder, request, now_ns)
            else:
                reason = FailureReason.CANCELED if request.is_cancelled else FailureReason.OTHER
                self._recorder.record_failure(reason, request.arrival_ns, now_ns)
        if request.trace is not None:
            request.trace.record_response(response, now_ns)
        request.sink.on_response(response)
        if self._drained is not None and not self._executions:
            self._drained.set()


class _StepTimes:
    """What the steps of one request took, summed up."""

    __slots__ = ("has_answered", "infer_ns", "input_ns", "output_ns", "start_ns")

    def __init__(self, start_ns: int) -> None:
        self.start_ns = start_ns
        self.input_ns = 0
        self.infer_ns = 0
        self.output_ns = 0
        # Whether a response went to the client.
        self.has_answered = False

    def record_success(self, recorder: StatisticsRecorder, request: Request, now_ns: int) -> None:
        input_end_ns = self.start_ns + self.input_ns
        output_start_ns = input_end_ns + self.infer_ns
        spans = (self.start_ns, input_end_ns, output_start_ns, output_start_ns + self.output_ns, now_ns)
        recorder.record_execution(request.batch_size, *spans)
        recorder.record_successes([(request.batch_size, request.arrival_ns, request.queue_ns)], *spans)


class _StepTrace:
    """Listens to the times of one step: for the ensemble's statistics, and for the step's own trace if there is one."""

    __slots__ = ("_times", "_trace")

    def __init__(self, times: _StepTimes, trace: RequestTrace | None) -> None:
        self._times = times
        self._trace = trace

    def begin(self, request: Request) -> None:
        if self._trace is not None:
            self._trace.begin(request)

    def record_queued(self, queue_ns: int) -> None:
        if self._trace is not None:
            self._trace.record_queued(queue_ns)

    def record_batch(self, cut: str, now_ns: int) -> None:
        if self._trace is not None:
            self._trace.record_batch(cut, now_ns)

    def record_activity(self, name: str, now_ns: int) -> None:
        if self._trace is not None:
            self._trace.record_activity(name, now_ns)

    def record_execution(self, start_ns: int, input_end_ns: int, output_start_ns: int, end_ns: int) -> None:
        times = self._times
        times.input_ns += input_end_ns - start_ns
        times.infer_ns += output_start_ns - input_end_ns
        times.output_ns += end_ns - output_start_ns
        if self._trace is not None:
            self._trace.record_execution(start_ns, input_end_ns, output_start_ns, end_ns)

    def record_response(self, response: Response, now_ns: int) -> None:
        if self._trace is not None:
            self._trace.record_response(response, now_ns)

    def child(self, model_name: str, model_version: int) -> RequestTrace | None:
        return None if self._trace is None else self._trace.child(model_name, model_version)

    def context_text(self) -> str:
        return "" if self._trace is None else self._trace.context_text()


class _StepSink:
    """Where the responses of one step go."""

    __slots__ = ("_execution", "_run")

    def __init__(self, execution: "_Execution", run: StepRun) -> None:
        self._execution = execution
        self._run = run

    def on_response(self, response: Response) -> None:
        self._execution.on_response(self._run, response)


class _Execution:
    """One request of an ensemble: feeds events to its `EnsembleRun` and acts on what that decides.

    A step may be answered before `submit` returns. Its decisions then wait for the loop in `_act` that is under way, so
    that the depth of the stack does not depend on the number of steps.
    """

    def __init__(self, driver: EnsembleDriver, request: Request) -> None:
        self._driver = driver
        self._request = request
        self._models: list[Model] = []
        self._run: EnsembleRun | None = None
        self._requests: dict[StepRun, Request] = {}
        self._held: dict[Model, None] = {}
        # Ensembles below this one, and what is held of each.
        self._kept: list[tuple[EnsembleDriver, list[Model]]] = []
        self._decisions: deque[Decision] = deque()
        self._is_acting = False
        self._times = _StepTimes(0)

    def start(self, now_ns: int) -> None:
        driver = self._driver
        self._times.start_ns = now_ns
        try:
            self._models = driver.models_of_request()
        except ServerError as error:
            self._run = EnsembleRun(driver.plan, self._request, ())
            self._act(self._run.fail(error))
            return
        self._hold(self._models)
        self._run = EnsembleRun(driver.plan, self._request, [driver.step_model(model) for model in self._models])
        self._act(self._run.start())

    def on_response(self, run: StepRun, response: Response) -> None:
        assert self._run is not None
        if response.is_final:
            del self._requests[run]
        self._act(self._run.on_response(run, response))

    def cancel(self) -> None:
        assert self._run is not None
        self._act(self._run.cancel())

    def resume(self) -> None:
        for run, request in list(self._requests.items()):
            if request.is_congested and not run.is_held:
                self._resume(request)

    def _hold(self, models: Sequence[Model]) -> None:
        for model in models:
            if model in self._held:
                continue
            self._held[model] = None
            model.hold()
            below = model.driver
            if isinstance(below, EnsembleDriver):
                try:
                    kept = below.models_of_request()
                except ServerError:
                    # Its own request will say so, if it comes to that.
                    continue
                below.keep(kept)
                self._kept.append((below, kept))
                self._hold(kept)

    def _act(self, decisions: Iterable[Decision]) -> None:
        self._decisions.extend(decisions)
        if self._is_acting:
            return
        self._is_acting = True
        while self._decisions:
            decision = self._decisions.popleft()
            if isinstance(decision, StartStep):
                self._submit(decision.run)
            elif isinstance(decision, Answer):
                self._answer(decision)
            elif isinstance(decision, CancelStep):
                request = self._requests.get(decision.run)
                if request is not None and request.owner is not None:
                    request.owner.cancel(request)
            elif isinstance(decision, HoldStep):
                request = self._requests.get(decision.run)
                if request is not None:
                    request.is_congested = True
            else:
                assert isinstance(decision, ResumeStep)
                request = self._requests.get(decision.run)
                if request is not None and not self._request.is_congested:
                    self._resume(request)
        self._is_acting = False

    def _submit(self, run: StepRun) -> None:
        assert self._run is not None
        request = self._request
        if self._run.is_over:
            return
        if request.is_cancelled:
            self._decisions.extend(self._run.on_refusal(run, CancelledError("")))
            return
        step = self._driver.plan.steps[run.step]
        model = self._models[run.step]
        step_request = Request(
            step.model_name,
            step.model_version,
            _StepSink(self, run),
            run.inputs,
            run.outputs,
            request.id,
            request.parameters,
            request.priority,
            request.timeout_us,
            run.correlation_id,
            run.flags,
        )
        step_request.is_congested = request.is_congested or run.is_held
        trace = None if request.trace is None else request.trace.child(model.name, model.version)
        step_request.trace = _StepTrace(self._times, trace)
        self._requests[run] = step_request
        try:
            self._driver.submit(model, step_request)
        except ServerError as error:
            del self._requests[run]
            self._decisions.extend(self._run.on_refusal(run, error))

    def _answer(self, answer: Answer) -> None:
        request = self._request
        self._driver.answer(request, answer, self._times)
        if answer.is_final:
            for below, kept in self._kept:
                below.let_go(kept)
            self._kept.clear()
            for model in self._held:
                model.release()
            self._held.clear()
        elif request.is_congested:
            # The client is slow: so are the steps that answer more than once.
            for step_request in self._requests.values():
                step_request.is_congested = True

    def _resume(self, request: Request) -> None:
        request.is_congested = False
        if request.owner is not None:
            request.owner.resume(request)
