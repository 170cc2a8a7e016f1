"""The `python` backend: a model is a class `TritonPythonModel` in a file of its version's directory.

Its life is `auto_complete_config` (in a process that is thrown away), `initialize`, any number of `execute`, and
`finalize`. What it raises, or returns wrongly, fails the batch with Triton's text; nothing it does ends the server.

A request for which `execute` returns no response is deferred: its responses come through its sender, and the instance
takes the next batch meanwhile. A decoupled model answers all its requests so.

Source: Triton, python_backend/src/pb_stub.cc; texts recorded from Triton 2.51.
"""

import asyncio
import dataclasses
import inspect
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from merrow.backends.base import (
    Backend,
    Deferral,
    Execution,
    Instance,
    InstanceDescription,
    InstanceHost,
    ModelContext,
    Outcome,
    Place,
)
from merrow.backends.python.model_module import find_model, import_model, model_path
from merrow.backends.python.pb_config import ModelConfig as PbModelConfig
from merrow.backends.python.pb_errors import describe_exception
from merrow.backends.python.pb_exchange import (
    InferenceRequest,
    answering_of,
    existing_answering,
    has_answering,
    request_of_core,
)
from merrow.backends.python.pb_response import InferenceResponse, encode_response
from merrow.backends.python.pb_sender import Answering
from merrow.backends.python.runtime import ModelRuntime
from merrow.core.errors import InternalError, UnsupportedError
from merrow.core.model_config import ModelConfig
from merrow.core.plain_values import decode_plain
from merrow.core.request import Request

_LOG = logging.getLogger("merrow.python")


class PythonBackend(Backend):
    """See the module."""

    name = "python"
    default_place = Place.PROCESS
    takes_gpus = True

    def auto_complete(self, context: ModelContext) -> ModelConfig:
        """Runs the model's file in this process: meant for a process that is thrown away."""
        _check_settings(context)
        path = find_model(context)
        try:
            model_class, _ = self.import_class(path, context, None)
            if not hasattr(model_class, "auto_complete_config"):
                return context.config
            completed = model_class.auto_complete_config(PbModelConfig(context.config_json))
        except BaseException as error:
            raise InternalError(describe_exception(error)) from None
        if not isinstance(completed, PbModelConfig):
            raise InternalError(
                f"auto_complete_config function in model '{context.name}' must return a valid pb.ModelConfig object."
            )
        return _merge(context.config, completed.as_dict())

    def import_class(
        self, path: str, context: ModelContext, runtime: ModelRuntime | None
    ) -> tuple[Any, type[InferenceRequest]]:
        """The model's class, and that of its requests; raises whatever the file does.

        The test helpers put another class in its place.
        """
        module, request_class = import_model(path, context, runtime)
        return module.TritonPythonModel, request_class

    def validate(self, context: ModelContext) -> None:
        _check_settings(context)
        model_path(context)

    def create_instance(self, context: ModelContext, instance: InstanceDescription, host: InstanceHost) -> Instance:
        self.validate(context)
        path = find_model(context)
        arguments = {
            "model_config": context.config_json,
            "model_instance_kind": instance.kind.removeprefix("KIND_"),
            "model_instance_name": instance.name,
            "model_instance_device_id": str(instance.device_id),
            "model_repository": context.model_directory,
            "model_version": str(context.version),
            "model_name": context.name,
        }
        config = context.config
        output_names = tuple([output.name for output in config.output])
        runtime = ModelRuntime(host, instance.name, context.version_directory, config.is_decoupled, output_names)
        try:
            model_class, request_class = self.import_class(path, context, runtime)
            model = model_class()
            if hasattr(model, "initialize"):
                model.initialize(arguments)
        except BaseException as error:
            raise InternalError(describe_exception(error)) from None
        runtime.accepts_calls = True
        return PythonInstance(model, path, runtime, request_class)


class PythonInstance(Instance):
    """One initialised `TritonPythonModel`."""

    makes_calls = True

    def __init__(self, model: Any, path: str, runtime: ModelRuntime, request_class: type[InferenceRequest]) -> None:
        self._model = model
        self._path = path
        self._runtime = runtime
        self._request_class = request_class
        self._has_execute = hasattr(model, "execute")
        self._coroutines: _CoroutineRunner | None = None
        self.has_readiness_check = hasattr(model, "is_ready")

    def execute(self, requests: Sequence[Request]) -> Execution:
        start_ns = time.monotonic_ns()
        runtime, request_class = self._runtime, self._request_class
        output_names, must_copy = runtime.output_names, runtime.must_copy
        runtime.executing = requests
        if not runtime.execute_thread_id:
            runtime.execute_thread_id = threading.get_ident()
        model_requests = []
        for request in requests:
            model_requests.append(request_of_core(request, runtime, request_class))
        input_end_ns = time.monotonic_ns()
        outcomes: list[Outcome] = []
        try:
            if not self._has_execute:
                raise _ContractError(f"Python model {self._path} does not implement `execute` method.")
            responses = self._model.execute(model_requests)
            if type(responses) is not list and inspect.isawaitable(responses):
                responses = self._run(responses, requests, model_requests)
            output_start_ns = time.monotonic_ns()
            # Straight code: this runs for every request, and calls into other modules only where there are senders.
            if type(responses) is not list or len(responses) != len(requests) or runtime.is_decoupled:
                responses = self._check_list(responses, len(requests))
            is_plain = not has_answering(model_requests)
            for index, response in enumerate(responses):
                if type(response) is InferenceResponse:
                    outcomes.append(encode_response(response, requests[index], output_names, must_copy))
                elif response is None:
                    is_plain = False
                    outcomes.append(Deferral.DEFERRED)
                else:
                    raise _ContractError(
                        "Expected an 'InferenceResponse' object in the execute function return list, found type "
                        f"'{type(response)}'."
                    )
            if not is_plain:
                _settle(model_requests, responses, outcomes)
        except BaseException as error:
            message = str(error) if isinstance(error, _ContractError) else describe_exception(error)
            outcomes = self._fail(model_requests, message)
            output_start_ns = time.monotonic_ns()
        runtime.executing = ()
        return Execution(outcomes, start_ns, input_end_ns, output_start_ns, time.monotonic_ns())

    def is_ready(self) -> bool:
        """What the model's `is_ready` says.

        Raises:
            InternalError: it raises, or says neither True nor False.
        """
        try:
            answer = self._model.is_ready()
            if inspect.isawaitable(answer):
                answer = asyncio.run(_await(answer))
        except BaseException as error:
            raise InternalError(describe_exception(error)) from None
        if not isinstance(answer, bool):
            raise InternalError("is_ready() must return a boolean value")
        return answer

    def close(self) -> None:
        self._runtime.accepts_calls = False
        if hasattr(self._model, "finalize"):
            try:
                self._model.finalize()
            except BaseException as error:
                _LOG.info(describe_exception(error))
        if self._coroutines is not None:
            self._coroutines.stop()
        self._runtime.close()

    def _run(self, awaitable: Any, requests: Sequence[Request], model_requests: Sequence[InferenceRequest]) -> Any:
        """What an `async def execute` returns; None for a decoupled model, whose coroutine goes on by itself."""
        runtime = self._runtime
        if self._coroutines is None:
            self._coroutines = _CoroutineRunner(runtime.instance_name)
        if runtime.is_decoupled:
            answerings = [answering_of(model_request) for model_request in model_requests]
            self._coroutines.start(_in_batch(awaitable, runtime, requests), _Ending(runtime, answerings))
            return None
        if not runtime.host.can_wait():
            # Its calls of the server would wait for the thread that waits for it.
            raise _ContractError(
                f"Python model {self._path} has an 'async def execute', which cannot run inline: set the parameter "
                "EXECUTION_PLACE to 'thread' or 'process'."
            )
        result, error = self._coroutines.run(_in_batch(awaitable, runtime, requests))
        if error is not None:
            raise error
        return result

    def _check_list(self, responses: Any, count: int) -> Sequence[Any]:
        """What `execute` returned, where it is not a list of the right length; None says that senders do it all.

        Raises:
            _ContractError: it is nothing that may be returned.

        Source: Triton, python_backend/src/pb_stub.cc, ProcessReturnedResponses.
        """
        if responses is None:
            return [None] * count
        if self._runtime.is_decoupled:
            raise _ContractError(
                f"Python model '{self._runtime.instance_name}' is using the decoupled mode and the execute function "
                "must return None."
            )
        if type(responses) is not list:
            raise _ContractError(f"Expected a list in the execute return, found type '{type(responses)}'.")
        raise _ContractError(
            "Number of InferenceResponse objects do not match the number of InferenceRequest objects. "
            f"InferenceRequest(s) size is:{count}, and InferenceResponse(s) size is:{len(responses)}\n"
        )

    def _fail(self, model_requests: Sequence[InferenceRequest], message: str) -> list[Outcome]:
        """The batch failed as a whole; a request whose sender had sent the last response is over."""
        text = self._runtime.describe_failure(message)
        _LOG.error(text)
        failure = InternalError(text)
        outcomes: list[Outcome] = []
        for model_request in model_requests:
            answering = existing_answering(model_request)
            if answering is not None and answering.is_final:
                outcomes.append(Deferral.DEFERRED)
                continue
            if answering is not None:
                answering.close()
            outcomes.append(failure)
        return outcomes


class _ContractError(Exception):
    """What the model has or returns is not what it must; the text is the whole message."""


class _Ending:
    """What becomes of the requests of a coroutine that raised: those not over fail. It holds them no longer than it."""

    def __init__(self, runtime: ModelRuntime, answerings: list[Answering]) -> None:
        self._runtime = runtime
        self._answerings = answerings

    def __call__(self, error: BaseException | None) -> None:
        if error is not None:
            message = describe_exception(error)
            _LOG.error(self._runtime.describe_failure(message))
            for answering in self._answerings:
                answering.fail(message)
        self._answerings.clear()


class _CoroutineRunner:
    """Runs what an `async def execute` returns, on an event loop that lives as long as the instance."""

    def __init__(self, instance_name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name=f"coroutines of {instance_name}", daemon=True
        )
        self._thread.start()

    def run(self, awaitable: Any) -> tuple[Any, BaseException | None]:
        """Wait for the result, or for what was raised: even SystemExit, which would end the loop."""
        return asyncio.run_coroutine_threadsafe(_guard(awaitable), self._loop).result()

    def start(self, awaitable: Any, on_end: Callable[[BaseException | None], None]) -> None:
        """Let it run by itself; `on_end` gets what was raised."""

        async def run() -> None:
            _, error = await _guard(awaitable)
            on_end(error)

        asyncio.run_coroutine_threadsafe(run(), self._loop)

    def stop(self) -> None:
        """Cancel what still runs."""
        asyncio.run_coroutine_threadsafe(_cancel_others(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _guard(awaitable: Any) -> tuple[Any, BaseException | None]:
    try:
        return await awaitable, None
    except BaseException as error:
        return None, error


async def _in_batch(awaitable: Any, runtime: ModelRuntime, requests: Sequence[Request]) -> Any:
    """Await a model's coroutine on behalf of its batch."""

    # The name is `COROUTINE_ROOT`, by which tracebacks end.
    async def await_model() -> Any:
        return await awaitable

    runtime.batch.set(requests)
    return await await_model()


async def _await(awaitable: Any) -> Any:
    return await awaitable


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def _settle(model_requests: Sequence[InferenceRequest], responses: Sequence[Any], outcomes: list[Outcome]) -> None:
    """Requests that are not answered by a response in the list, and those that have senders.

    Raises:
        _ContractError: a request is answered twice, or answered and to be executed again.
    """
    for index, (model_request, response) in enumerate(zip(model_requests, responses, strict=True)):
        if response is None:
            answering = answering_of(model_request)
            if answering.is_rescheduled:
                outcomes[index] = Deferral.RESCHEDULED
                answering.close()
            else:
                answering.watch()
            continue
        existing = existing_answering(model_request)
        if existing is None:
            continue
        if existing.is_rescheduled:
            # The slip of the pen is Triton's.
            raise _ContractError(
                "Expected a None object in the execute function return list for reschduled request, found type "
                f"'{type(response)}'."
            )
        if existing.has_sent:
            raise _ContractError("Unable to send response. Non-decoupled model cannot send more than one response.")
        existing.close()


def _check_settings(context: ModelContext) -> None:
    parameters = context.config.parameters
    forced = parameters.get("FORCE_CPU_ONLY_INPUT_TENSORS")
    if forced is not None and forced.string_value not in ("yes", "no"):
        # The lone quote is Triton's.
        raise UnsupportedError(f"Incorrect value for FORCE_CPU_ONLY_INPUT_TENSORS: {forced.string_value}'")


def _merge(config: ModelConfig, completed: dict[str, Any]) -> ModelConfig:
    """The configuration with what a model may complete.

    Raises:
        InternalError: the model put something into the dict that is no configuration.
    """
    names = (
        "max_batch_size",
        "input",
        "output",
        "dynamic_batching",
        "sequence_batching",
        "ensemble_scheduling",
        "model_transaction_policy",
    )
    try:
        values = decode_plain(ModelConfig, {name: completed[name] for name in names if name in completed})
    except ValueError as error:
        raise InternalError(
            f"auto_complete_config function in model '{config.name}' made an invalid configuration: {error}"
        ) from None
    return dataclasses.replace(config, **{name: getattr(values, name) for name in names})
