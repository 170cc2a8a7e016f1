"""What running models may ask of the server: to run other models, to load and unload them, and metrics of their own.

A call of another model (business logic scripting) is a request like a client's: validation, queues, response cache,
statistics and traces see no difference. Whatever is wrong with it comes back as an error in a response. Chains of calls
are bounded, and a call that would wait for itself is refused (`call_graph`).

Runs on the loop's thread only. Loads run as tasks that `stop` awaits.

Source: Triton, python_backend/src/request_executor.cc, python_be.cc; texts recorded from Triton 2.51.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from merrow.backends.base import (
    Answer,
    ChangeMetric,
    DropMetric,
    DropMetricFamily,
    IsModelReady,
    LoadModel,
    NewMetric,
    NewMetricFamily,
    Question,
    ReadMetric,
    ShareCounter,
    UnloadModel,
)
from merrow.core.errors import InternalError, InvalidArgumentError, NotFoundError, ServerError, UnavailableError
from merrow.core.request import Request
from merrow.core.response import Response
from merrow.engine.call_graph import Call, CallGraph, DeadlockError, TooDeepError
from merrow.engine.model import Model
from merrow.observe.custom_metrics import FAMILY_DELETED, CustomMetrics
from merrow.places.base import Caller, ModelCall

_LOG = logging.getLogger("merrow.engine")

_FILE_PREFIX = "file:"

ImmediateQuestion = (
    IsModelReady
    | NewMetricFamily
    | NewMetric
    | ChangeMetric
    | ShareCounter
    | ReadMetric
    | DropMetric
    | DropMetricFamily
)


class ServingEngine(Protocol):
    """What of the engine the services need; see `engine.engine.Engine`."""

    def find_model(self, name: str, version: int = -1) -> Model: ...
    def is_model_ready(self, name: str, version: int = -1) -> bool: ...
    def submit(self, model: Model, request: Request) -> None: ...
    def cancel(self, request: Request) -> None: ...
    async def load_model(
        self, name: str, config: str | None = None, files: Mapping[str, bytes] | None = None
    ) -> None: ...
    async def unload_model(self, name: str, unload_dependents: bool = False) -> None: ...


class ModelServices:
    """See the module. Implements `places.base.ServerServices`."""

    def __init__(
        self,
        find_engine: Callable[[], ServingEngine],
        metrics: CustomMetrics,
        max_call_depth: int,
        load_thread_count: int,
    ) -> None:
        """
        Args:
            find_engine: called for each thing that is asked; the engine need not be there before.
            load_thread_count: how many models can be loaded at once.
        """
        self._find_engine = find_engine
        self._metrics = metrics
        self._load_thread_count = load_thread_count
        self._graph: CallGraph[Caller, Request] = CallGraph(max_call_depth, _key_of_caller, self._instance_count)
        self._calls: dict[Request, ModelCall] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        # Models that are being loaded, and those whose loads their `initialize` waits for.
        self._waiting_loads: dict[str, set[str]] = {}

    async def stop(self, timeout_seconds: float) -> bool:
        """Wait for the loads that models asked for; the engine refuses others by now. False if the time ran out."""
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=timeout_seconds)
            for task in late:
                task.cancel()
            return not late
        return True

    # Calls.

    def infer(self, call: ModelCall) -> None:
        request = call.request
        sink = _CallSink(self, call)
        request.sink = sink
        engine = self._find_engine()
        try:
            model = self._ready_model(engine, request)
            if model.is_decoupled and not call.is_decoupled:
                # The lone quote is Triton's.
                raise InternalError(
                    f"Model {request.model_name} is using the decoupled. The current BLS request call doesn't support "
                    "models using the decoupled transaction policy. Please use 'decoupled=True' argument to the "
                    "'exec' or 'async_exec' calls for decoupled models.'"
                )
            request.model_version = model.version
            self._enter(call, model)
            trace = None if call.trace is None else call.trace.trace
            if trace is not None:
                request.trace = trace.child(model.name, model.version)
            engine.submit(model, request)
        except ServerError as error:
            text = f"Model {request.model_name} - Error when running inference: {error.message}"
            sink.on_response(Response(request.model_name, request.model_version, error=InternalError(text)))

    def release(self, call: ModelCall) -> None:
        self._graph.release(call.request)

    def cancel(self, call: ModelCall) -> None:
        if call.request in self._calls:
            self._find_engine().cancel(call.request)

    def resume(self, call: ModelCall) -> None:
        request = call.request
        if request in self._calls and request.owner is not None:
            request.owner.resume(request)

    def end_call(self, call: ModelCall) -> None:
        """A call was answered for good."""
        self._calls.pop(call.request, None)
        self._graph.close(call.request)

    def _enter(self, call: ModelCall, model: Model) -> None:
        """Take a call among the open ones.

        Raises:
            ServerError: it must not be made.
        """
        parents = (*call.parents, *call.executing)
        try:
            self._graph.open(
                Call(
                    call.request,
                    model.name,
                    call.caller if call.executing else None,
                    frozenset(self._models_behind(model)),
                    parents,
                )
            )
        except TooDeepError as error:
            raise InvalidArgumentError(
                f"too many models call one another in a row (--backend-config=python,max-call-depth): {error}"
            ) from None
        except DeadlockError as error:
            raise UnavailableError(
                f"the call would never end, because every instance of model '{model.name}' waits for it: {error}"
            ) from None
        self._calls[call.request] = call

    def _ready_model(self, engine: ServingEngine, request: Request) -> Model:
        try:
            model = engine.find_model(request.model_name, request.model_version)
            is_ready = model.driver.is_healthy
        except ServerError:
            is_ready = False
        if not is_ready:
            raise InternalError(f"Failed for execute the inference request. Model '{request.model_name}' is not ready.")
        return model

    def _models_behind(self, model: Model) -> Iterable[str]:
        """The models whose instances a request needs."""
        ensemble = model.config.ensemble_scheduling
        if ensemble is None:
            yield _key(model.name, model.version)
            return
        engine = self._find_engine()
        for step in ensemble.step:
            try:
                yield from self._models_behind(engine.find_model(step.model_name, step.model_version))
            except ServerError:
                # The step fails, and does not wait.
                continue

    def _instance_count(self, key: str) -> int:
        name, _, version = key.rpartition("/")
        try:
            return len(self._find_engine().find_model(name, int(version)).driver.instances)
        except ServerError:
            # It is being unloaded, and answers what it accepted.
            return 1

    # Questions.

    def ask(self, caller: Caller, question: Question, reply: Callable[[Answer | ServerError], None]) -> None:
        if isinstance(question, (LoadModel, UnloadModel)):
            task = asyncio.ensure_future(self._control(caller, question, reply))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            return
        answer: Answer | ServerError
        try:
            answer = self._answer(caller, question)
        except ServerError as error:
            answer = error
        reply(answer)

    def close(self, caller: Caller) -> None:
        for call in [each for each in self._calls.values() if each.caller is caller]:
            self.cancel(call)
        # Series before their families.
        while caller.metrics:
            self._metrics.drop_metric(caller.metrics.pop())
        while caller.families:
            self._metrics.drop_family(caller.families.pop())

    def _answer(self, caller: Caller, question: ImmediateQuestion) -> Answer:
        metrics = self._metrics
        if isinstance(question, IsModelReady):
            return self._is_model_ready(question)
        if isinstance(question, NewMetricFamily):
            number = metrics.add_family(question.name, question.description, question.kind)
            caller.families.add(number)
            return number
        if isinstance(question, NewMetric):
            _check_held(question.family, caller.families)
            number = metrics.add_metric(question.family, question.labels, question.buckets)
            caller.metrics.add(number)
            return number
        if isinstance(question, DropMetric):
            _check_held(question.metric, caller.metrics)
            caller.metrics.discard(question.metric)
            metrics.drop_metric(question.metric)
            return None
        if isinstance(question, DropMetricFamily):
            _check_held(question.family, caller.families)
            caller.families.discard(question.family)
            metrics.drop_family(question.family)
            return None
        _check_held(question.metric, caller.metrics)
        if isinstance(question, ReadMetric):
            return metrics.value(question.metric)
        if isinstance(question, ShareCounter):
            metrics.share(question.metric, question.read)
            return None
        _OPERATIONS[question.operation](metrics, question.metric, question.value)
        return None

    def _is_model_ready(self, question: IsModelReady) -> bool:
        version = _parse_version(question.version)
        try:
            return self._find_engine().is_model_ready(question.name, version)
        except (NotFoundError, UnavailableError):
            return False

    async def _control(
        self, caller: Caller, question: LoadModel | UnloadModel, reply: Callable[[Answer | ServerError], None]
    ) -> None:
        answer: Answer | ServerError = None
        engine = self._find_engine()
        waiting = self._waiting_loads.setdefault(caller.model_name, set()) if caller.is_loading else set()
        try:
            self._check_control(caller, question)
            waiting.add(question.name)
            if isinstance(question, LoadModel):
                files = {path.removeprefix(_FILE_PREFIX): bytes(data) for path, data in question.files.items()}
                await engine.load_model(question.name, question.config or None, files or None)
            else:
                await engine.unload_model(question.name, question.unload_dependents)
        except ServerError as error:
            answer = error
        except Exception as error:
            # This is the front door of models: whatever happens, who asked gets an answer, and only one.
            _LOG.exception("what instance '%s' asked for failed", caller.instance_name)
            answer = InternalError(f"{type(error).__name__}: {error}")
        finally:
            waiting.discard(question.name)
            if caller.is_loading and not waiting:
                self._waiting_loads.pop(caller.model_name, None)
        reply(answer)

    def _check_control(self, caller: Caller, question: LoadModel | UnloadModel) -> None:
        """Refuse what would wait for the very load that asks for it.

        Raises:
            UnavailableError: it would.
        """
        if not caller.is_loading:
            return
        seen: set[str] = set()
        ahead = [question.name]
        while ahead:
            name = ahead.pop()
            if name == caller.model_name:
                raise UnavailableError(
                    f"the load of model '{caller.model_name}' would wait for itself, by way of '{question.name}'"
                )
            if name not in seen:
                seen.add(name)
                ahead.extend(self._waiting_loads.get(name, ()))
        busy = sum(1 for names in self._waiting_loads.values() if names)
        if isinstance(question, LoadModel) and busy + 1 >= self._load_thread_count:
            raise UnavailableError(
                f"'{question.name}' cannot be loaded now: {busy} models that are being loaded wait for others, and no "
                "more than --model-load-thread-count load at once"
            )


_OPERATIONS: dict[str, Callable[[CustomMetrics, int, float], None]] = {
    "increment": CustomMetrics.increment,
    "set": CustomMetrics.set,
    "observe": CustomMetrics.observe,
}


class _CallSink:
    """Where the responses to a call go: through the services, to whoever made it."""

    __slots__ = ("_call", "_services", "_sink")

    def __init__(self, services: ModelServices, call: ModelCall) -> None:
        self._services = services
        self._call = call
        self._sink = call.request.sink

    def on_response(self, response: Response) -> None:
        if response.is_final:
            self._services.end_call(self._call)
        self._sink.on_response(response)


def _check_held(number: int, held: set[int]) -> None:
    """Raises InternalError: a model may use what it was given, and nothing else."""
    if number not in held:
        raise InternalError(FAMILY_DELETED)


def _key(name: str, version: int) -> str:
    return f"{name}/{version}"


def _key_of_caller(caller: Caller) -> str:
    return _key(caller.model_name, caller.model_version)


def _parse_version(text: str) -> int:
    """The version that a text names; -1 for none.

    Raises:
        InvalidArgumentError: it names none.

    Source: Triton, model_repository_manager... GetModelVersionFromString.
    """
    if not text:
        return -1
    failure = f"failed to get model version from specified version string '{text}'"
    digits = text.strip()
    try:
        version = int(digits)
    except ValueError:
        raise InvalidArgumentError(f"{failure} (details: stol), version should be an integral value > 0") from None
    if version < 0:
        raise InvalidArgumentError(f"{failure}, version should be an integral value > 0")
    return version
