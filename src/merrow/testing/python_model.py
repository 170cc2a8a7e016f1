"""Runs a `TritonPythonModel` in a unit test: numpy in, numpy out, no server, no process, no port.

    from merrow.testing.python_model import PythonModelHarness

    def test_it_adds():
        with PythonModelHarness("models/add_sub") as model:
            outputs = model.execute({"INPUT0": np.ones((1, 4), np.float32), "INPUT1": np.ones((1, 4), np.float32)})
        assert outputs["OUTPUT0"].tolist() == [[2, 2, 2, 2]]

The model is loaded by merrow's own Python backend, and each request checked as the server would check it, so a test
sees the errors that a client would see. Entering completes the configuration, imports the file and calls `initialize`;
leaving calls `finalize`. Models that the model calls (business logic scripting) are answered by functions of the test:

        with PythonModelHarness("models/pipeline", models={"embed": lambda request: {"VECTOR": vector}}) as model:

A test that itself imports a model's file needs `triton_python_backend_utils`; `install_backend_utils` makes it
importable.
"""

import inspect
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from merrow.backends.base import (
    Answer,
    ChangeMetric,
    Deferral,
    DropMetric,
    DropMetricFamily,
    Instance,
    InstanceDescription,
    IsModelReady,
    LoadModel,
    ModelContext,
    NewMetric,
    NewMetricFamily,
    Question,
    ReadMetric,
    UnloadModel,
)
from merrow.backends.python.backend import PythonBackend
from merrow.backends.python.pb_exchange import InferenceRequest
from merrow.backends.python.pb_utils import bind_installed, install
from merrow.backends.python.runtime import ModelRuntime
from merrow.core.errors import InternalError, InvalidArgumentError, NotFoundError, ServerError
from merrow.core.model_config import ModelConfig
from merrow.core.request import ParameterValue, Request
from merrow.core.response import Response
from merrow.core.tensor import Tensor
from merrow.engine.validation import RequestValidator
from merrow.repository import autofill, plan, validation
from merrow.wire.model_config_text import ConfigTextError, decode_config_json, decode_config_text

Array = np.ndarray[Any, np.dtype[Any]]

CONFIG_FILE = "config.pbtxt"


@dataclass(slots=True)
class ModelRequest:
    """One request. `inputs` have the shapes that a client would send, the batch dimension included.

    BYTES tensors are object arrays of `bytes`. `flags` are the sequence flags; `is_cancelled` says that the client has
    left.
    """

    inputs: Mapping[str, Array]
    id: str = ""
    requested_outputs: Sequence[str] = ()
    parameters: Mapping[str, ParameterValue] = field(default_factory=dict)
    correlation_id: int | str = 0
    flags: int = 0
    priority: int = 0
    timeout_us: int = 0
    is_cancelled: bool = False


@dataclass(slots=True)
class ModelResponse:
    """One response: outputs by name, or an error. The last of a request is final; it may be empty."""

    outputs: Mapping[str, Array] = field(default_factory=dict)
    parameters: Mapping[str, ParameterValue] = field(default_factory=dict)
    error: ServerError | None = None
    is_final: bool = True
    is_empty: bool = False


FakeAnswer = Mapping[str, Array] | ModelResponse
FakeModel = Callable[[ModelRequest], FakeAnswer | Iterator[FakeAnswer]]
"""Stands for another model: returns outputs or a response, or, as a decoupled model, yields any number of them. What it
raises reaches the model as an error, a `merrow.core.errors.ServerError` with its code."""


@dataclass(slots=True)
class FakeMetric:
    """A metric that the model made: its labels, its value, and what a histogram observed."""

    name: str
    labels: Mapping[str, Any]
    value: float = 0.0
    observed: list[float] = field(default_factory=list)


class PythonModelHarness:
    """One instance of a model. See the module.

    Args:
        model: the model's directory in a repository (with config.pbtxt and versions), its Python file alone, or its
            class.
        config: in place of config.pbtxt: the text of one, a dict of the same, or a path to a file. What it leaves out
            is completed by the model's `auto_complete_config`; its name is by default that of the directory or file.
        version: which version of a directory; the largest by default.
        models: what stands for the models that this one calls, by name.
        instance_kind: KIND_CPU, KIND_GPU or KIND_MODEL.
        timeout_seconds: how long to wait for responses that come after `execute` has returned.

    Attributes:
        config: the completed configuration, once entered.
        calls: each request that the model made of another, with that one's name, in order.
        loaded, unloaded: what it asked to load (`backends.base.LoadModel`) and to unload.
        metrics: what it measures, in the order in which it made them.
    """

    def __init__(
        self,
        model: str | Path | type,
        config: str | Path | Mapping[str, Any] | None = None,
        *,
        version: int | None = None,
        models: Mapping[str, FakeModel] | None = None,
        instance_kind: str = "KIND_CPU",
        instance_name: str | None = None,
        timeout_seconds: float = 30.0,
    ) -> None:
        self._model_class = model if isinstance(model, type) else None
        self._source = _find_source(model, config, version)
        self._kind = instance_kind
        self._instance_name = instance_name or f"{self._source.config.name}_0_0"
        self._timeout_seconds = timeout_seconds
        self._host = _FakeServer(dict(models or {}))
        self._instance: Instance | None = None
        self._validator: RequestValidator | None = None
        self.config = self._source.config

    @property
    def calls(self) -> list[tuple[str, ModelRequest]]:
        return self._host.calls

    @property
    def loaded(self) -> list[LoadModel]:
        return self._host.loaded

    @property
    def unloaded(self) -> list[UnloadModel]:
        return self._host.unloaded

    @property
    def metrics(self) -> list[FakeMetric]:
        return self._host.metrics

    def __enter__(self) -> "PythonModelHarness":
        """Load the model.

        Raises:
            ServerError: it cannot be loaded; the text is that of the server.
        """
        backend = PythonBackend() if self._model_class is None else _ClassBackend(self._model_class)
        source = self._source
        config = autofill.normalize(source.config)
        validation.validate_config(config)
        completed = backend.auto_complete(source.context(config))
        self.config = plan.finish_config(config, completed)
        context = source.context(self.config)
        backend.validate(context)
        description = InstanceDescription(self._instance_name, self._kind, 0)
        self._instance = backend.create_instance(context, description, self._host)
        self._validator = RequestValidator(self.config)
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Finalize the model."""
        if self._instance is not None:
            self._instance.close()
            self._instance = None
        self._host.close(self._timeout_seconds)

    def execute(self, inputs: Mapping[str, Array], **fields: Any) -> dict[str, Array]:
        """Execute one request and return its outputs.

        Args:
            fields: of `ModelRequest`.

        Raises:
            ServerError: the request was refused, or failed, or was answered with an error.
            AssertionError: the model sent no or several responses with outputs; `stream` is for those.
        """
        responses = [each for each in self.stream(inputs, **fields) if not each.is_empty]
        for response in responses:
            if response.error is not None:
                raise response.error
        assert len(responses) == 1, f"expected one response, got {len(responses)}"
        return dict(responses[0].outputs)

    def stream(self, inputs: Mapping[str, Array], **fields: Any) -> list[ModelResponse]:
        """Execute one request and return all its responses: any number where the model is decoupled."""
        return self.execute_batch([ModelRequest(inputs, **fields)])[0]

    def execute_batch(self, requests: Sequence[ModelRequest]) -> list[list[ModelResponse]]:
        """Execute requests as one batch.

        Returns:
            The responses of each request. Errors are in them, not raised.

        Raises:
            InvalidArgumentError: a request is not what the configuration asks for.
            TimeoutError: a request was not over in time.
        """
        assert self._instance is not None, "the model is loaded by entering the harness"
        assert self._validator is not None
        core_requests = [self._core_request(request) for request in requests]
        for core_request in core_requests:
            self._validator.validate(core_request)
            self._host.open(core_request)
        try:
            # The instance may see a request several times, if it is rescheduled.
            waiting = core_requests
            while waiting:
                waiting = self._execute_once(waiting)
            return [self._host.wait(each, self._timeout_seconds) for each in core_requests]
        finally:
            for core_request in core_requests:
                self._host.forget(core_request)

    def _execute_once(self, requests: list[Request]) -> list[Request]:
        """Returns those that are to be executed again."""
        assert self._instance is not None
        rescheduled: list[Request] = []
        outcomes = self._instance.execute(requests).outcomes
        for request, outcome in zip(requests, outcomes, strict=True):
            if isinstance(outcome, ServerError):
                self._host.send(request, Response("", 0, error=outcome))
            elif isinstance(outcome, Response):
                self._host.send(request, outcome)
                if not outcome.is_final:
                    rescheduled.append(request)
            elif outcome is Deferral.RESCHEDULED:
                rescheduled.append(request)
        return rescheduled

    def _core_request(self, request: ModelRequest) -> Request:
        # Copies: a model may write to its inputs, and a test may use its arrays again.
        tensors = {name: _tensor_of(name, array) for name, array in request.inputs.items()}
        core_request = Request(
            self.config.name,
            self._source.version,
            _NO_SINK,
            tensors,
            requested_outputs=tuple(request.requested_outputs),
            id=request.id,
            parameters=dict(request.parameters) or None,
            priority=request.priority,
            timeout_us=request.timeout_us,
            correlation_id=request.correlation_id,
            flags=request.flags,
        )
        core_request.is_cancelled = request.is_cancelled
        return core_request


def run_model(
    model: str | Path | type,
    inputs: Mapping[str, Array],
    config: str | Path | Mapping[str, Any] | None = None,
    **options: Any,
) -> dict[str, Array]:
    """Load a model, execute one request, finalize the model; returns the outputs.

    Args:
        options: of `PythonModelHarness`.

    Raises:
        ServerError: as `PythonModelHarness` and its `execute`.
    """
    with PythonModelHarness(model, config, **options) as harness:
        return harness.execute(inputs)


def install_backend_utils(model_directory: str | Path = ".") -> None:
    """Make `triton_python_backend_utils` importable in this process; for the head of a test or a conftest.py.

    Args:
        model_directory: what `get_model_dir()` says, until a harness loads a model.
    """
    install(str(model_directory))


class _ClassBackend(PythonBackend):
    """Runs a class that the test has at hand, whose file need not be one of a repository."""

    def __init__(self, model_class: type) -> None:
        self._model_class = model_class

    def import_class(
        self, path: str, context: ModelContext, runtime: ModelRuntime | None
    ) -> tuple[Any, type[InferenceRequest]]:
        return self._model_class, bind_installed(context.version_directory, runtime)


@dataclass(frozen=True, slots=True)
class _Source:
    """Where a model comes from."""

    config: ModelConfig
    model_directory: str
    version_directory: str
    version: int

    def context(self, config: ModelConfig) -> ModelContext:
        """Of the model with this configuration."""
        return ModelContext(
            config.name, self.version, config, plan.config_json(config), self.model_directory, self.version_directory
        )


def _find_source(
    model: str | Path | type, config: str | Path | Mapping[str, Any] | None, version: int | None
) -> _Source:
    filename = ""
    if isinstance(model, type):
        file = Path(inspect.getfile(model))
        name, directory, version_directory, filename = file.stem, file.parent, file.parent, file.name
    else:
        path = Path(model).resolve()
        if path.is_dir():
            name, directory = path.name, path
            versions = sorted(int(entry.name) for entry in path.iterdir() if entry.is_dir() and entry.name.isdecimal())
            if version is None:
                if not versions:
                    raise FileNotFoundError(f"there is no version in {path}")
                version = versions[-1]
            version_directory = path / str(version)
        elif path.is_file():
            name, directory, version_directory, filename = path.stem, path.parent, path.parent, path.name
        else:
            raise FileNotFoundError(f"there is no model {path}")
    if config is None and (directory / CONFIG_FILE).is_file() and not isinstance(model, type):
        config = directory / CONFIG_FILE
    decoded = _decode_config(config)
    changes: dict[str, Any] = {"backend": decoded.backend or "python", "name": decoded.name or name}
    if filename:
        changes["default_model_filename"] = filename
    return _Source(replace(decoded, **changes), str(directory), str(version_directory), version or 1)


def _decode_config(config: str | Path | Mapping[str, Any] | None) -> ModelConfig:
    if config is None:
        return ModelConfig()
    try:
        if isinstance(config, Mapping):
            return decode_config_json(json.dumps(config))
        return decode_config_text(config.read_text() if isinstance(config, Path) else config)
    except ConfigTextError as error:
        raise InvalidArgumentError(f"the configuration cannot be read: {error}\n{error.excerpt}") from None


class _NoSink:
    """Requests of the harness are answered by what `execute` returns and what the host is sent."""

    def on_response(self, response: Response) -> None:
        raise AssertionError("a request of the harness has no sink")


_NO_SINK = _NoSink()


class _FakeServer:
    """The `InstanceHost` of the model under test."""

    copies_tensors = False

    def __init__(self, models: dict[str, FakeModel]) -> None:
        self._models = models
        self._news = threading.Condition()
        self._responses: dict[Request, list[ModelResponse]] = {}
        self._threads: list[threading.Thread] = []
        self._families: list[NewMetricFamily] = []
        self.calls: list[tuple[str, ModelRequest]] = []
        self.loaded: list[LoadModel] = []
        self.unloaded: list[UnloadModel] = []
        self.metrics: list[FakeMetric] = []

    # What the harness does.

    def open(self, request: Request) -> None:
        self._responses[request] = []

    def wait(self, request: Request, timeout_seconds: float) -> list[ModelResponse]:
        responses = self._responses[request]
        with self._news:
            if not self._news.wait_for(lambda: bool(responses) and responses[-1].is_final, timeout_seconds):
                raise TimeoutError(
                    f"request '{request.id}' is not over after {timeout_seconds:g} s; so far: {responses}"
                )
        return responses

    def forget(self, request: Request) -> None:
        self._responses.pop(request, None)

    def close(self, timeout_seconds: float) -> None:
        for thread in self._threads:
            thread.join(timeout_seconds)

    # What the model does: see `backends.base.InstanceHost`.

    def can_wait(self) -> bool:
        return True

    def send(self, request: Request, response: Response) -> None:
        received = _response_of(response)
        with self._news:
            responses = self._responses.get(request)
            if responses is None or (responses and responses[-1].is_final):
                # The request is over: the server drops it, too.
                return
            responses.append(received)
            self._news.notify_all()

    def infer(self, request: Request, is_decoupled: bool, parents: Sequence[Request], trace: Request | None) -> None:
        call = ModelRequest(
            {name: tensor.as_numpy() for name, tensor in request.inputs.items()},
            id=request.id,
            requested_outputs=request.requested_outputs,
            parameters=dict(request.parameters or {}),
            correlation_id=request.correlation_id,
            flags=request.flags,
            priority=request.priority,
            timeout_us=request.timeout_us,
        )
        self.calls.append((request.model_name, call))
        thread = threading.Thread(target=self._answer, args=(request, call, is_decoupled), daemon=True)
        self._threads.append(thread)
        thread.start()

    def cancel(self, request: Request) -> None:
        request.is_cancelled = True

    def consume(self, request: Request, byte_size: int) -> None:
        """Fakes never wait for a slow model."""

    def ask(self, question: Question) -> Answer:
        if isinstance(question, IsModelReady):
            return question.name in self._models
        if isinstance(question, LoadModel):
            self.loaded.append(question)
        elif isinstance(question, UnloadModel):
            self.unloaded.append(question)
        elif isinstance(question, NewMetricFamily):
            self._families.append(question)
            return len(self._families) - 1
        elif isinstance(question, NewMetric):
            self.metrics.append(FakeMetric(self._families[question.family].name, question.labels))
            return len(self.metrics) - 1
        elif isinstance(question, ReadMetric):
            return self.metrics[question.metric].value
        elif isinstance(question, ChangeMetric):
            _change(self.metrics[question.metric], question)
        return None

    def drop(self, question: DropMetric | DropMetricFamily) -> None:
        """What was measured stays, for the test to look at."""

    def _answer(self, request: Request, call: ModelRequest, is_decoupled: bool) -> None:
        """On a thread of its own, as answers of a server come."""
        try:
            fake = self._models.get(request.model_name)
            if fake is None:
                raise NotFoundError(
                    f"the test has no model '{request.model_name}'; PythonModelHarness(models=...) gives it one"
                )
            answer = fake(call)
            if isinstance(answer, (Mapping, ModelResponse)):
                request.sink.on_response(_core_response(answer, request, True))
                return
            if not is_decoupled:
                raise InvalidArgumentError(
                    f"'{request.model_name}' yields responses, but was not called with decoupled=True"
                )
            for each in answer:
                if request.is_cancelled:
                    break
                request.sink.on_response(_core_response(each, request, False))
            request.sink.on_response(Response(request.model_name, 1, is_final=True, is_empty=True))
        except ServerError as error:
            request.sink.on_response(Response(request.model_name, 1, error=error))
        except Exception as error:
            failure = InternalError(f"{type(error).__name__}: {error}")
            request.sink.on_response(Response(request.model_name, 1, error=failure))


def _response_of(response: Response) -> ModelResponse:
    # Copies: the model may use its arrays again.
    outputs = {tensor.name: np.array(tensor.as_numpy()) for tensor in response.outputs}
    return ModelResponse(outputs, dict(response.parameters or {}), response.error, response.is_final, response.is_empty)


def _core_response(answer: FakeAnswer, request: Request, is_final: bool) -> Response:
    response = answer if isinstance(answer, ModelResponse) else ModelResponse(answer)
    wanted = request.requested_outputs
    outputs = [_tensor_of(name, array) for name, array in response.outputs.items() if not wanted or name in wanted]
    return Response(
        request.model_name,
        1,
        request.id,
        outputs,
        dict(response.parameters) or None,
        response.error,
        is_final=is_final,
    )


def _tensor_of(name: str, array: Array) -> Tensor:
    tensor = Tensor.from_numpy(name, np.asarray(array))
    return Tensor(name, tensor.datatype, tensor.shape, memoryview(bytearray(tensor.data)))


def _change(metric: FakeMetric, change: ChangeMetric) -> None:
    if change.operation == "increment":
        metric.value += change.value
    elif change.operation == "set":
        metric.value = change.value
    else:
        metric.observed.append(change.value)
