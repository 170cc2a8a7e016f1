"""The `python` backend: a model is a class `TritonPythonModel` in a file of its version's directory.

Its life is `auto_complete_config` (in a process that is thrown away), `initialize`, any number of `execute`, and
`finalize`. What it raises, or returns wrongly, fails the batch with Triton's text; nothing it does ends the server.

Source: Triton, python_backend/src/pb_stub.cc; texts recorded from Triton 2.51.
"""

import asyncio
import dataclasses
import gc
import inspect
import logging
import threading
import time
from collections.abc import Sequence
from typing import Any

from merrow.backends.base import Backend, Execution, Instance, InstanceDescription, ModelContext, Outcome, Place
from merrow.backends.python.model_module import find_model, import_model, model_path
from merrow.backends.python.pb_config import ModelConfig as PbModelConfig
from merrow.backends.python.pb_errors import describe_exception
from merrow.backends.python.pb_exchange import (
    InferenceRequest,
    InferenceResponse,
    ResponseSlot,
    close_senders,
    encode_response,
    has_senders,
    request_of_core,
    sent_slot_of,
    slot_of,
)
from merrow.core.errors import InternalError, UnsupportedError
from merrow.core.model_config import ModelConfig
from merrow.core.plain_values import decode_plain
from merrow.core.request import Request

_LOG = logging.getLogger("merrow.python")

# While a response is awaited that a sender may yet send, lost senders are looked for this often.
_FIRST_PATIENCE_SECONDS = 0.05
_PATIENCE_SECONDS = 5.0


class PythonBackend(Backend):
    """See the module."""

    name = "python"
    default_place = Place.PROCESS

    def auto_complete(self, context: ModelContext) -> ModelConfig:
        """Runs the model's file in this process: meant for a process that is thrown away."""
        _check_settings(context)
        path = find_model(context)
        try:
            model_class = import_model(path, context).TritonPythonModel
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

    def validate(self, context: ModelContext) -> None:
        _check_settings(context)
        model_path(context)
        if context.config.is_decoupled:
            raise UnsupportedError(
                f"model '{context.name}' uses the decoupled transaction policy, which is not available for Python "
                "models yet"
            )

    def create_instance(self, context: ModelContext, instance: InstanceDescription) -> Instance:
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
        try:
            model = import_model(path, context).TritonPythonModel()
            if hasattr(model, "initialize"):
                model.initialize(arguments)
        except BaseException as error:
            raise InternalError(describe_exception(error)) from None
        if hasattr(model, "is_ready"):
            _LOG.warning("model '%s' has is_ready(), which is not asked yet", context.name)
        return PythonInstance(model, path, instance.name, tuple([output.name for output in context.config.output]))


class PythonInstance(Instance):
    """One initialised `TritonPythonModel`."""

    def __init__(self, model: Any, path: str, instance_name: str, output_names: tuple[str, ...]) -> None:
        self._model = model
        self._path = path
        self._instance_name = instance_name
        self._output_names = output_names
        self._has_execute = hasattr(model, "execute")
        self._coroutines: _CoroutineRunner | None = None

    def execute(self, requests: Sequence[Request]) -> Execution:
        start_ns = time.monotonic_ns()
        output_names = self._output_names
        model_requests = []
        for request in requests:
            model_requests.append(request_of_core(request, output_names))
        input_end_ns = time.monotonic_ns()
        slots: list[ResponseSlot] = []
        outcomes: list[Outcome] = []
        try:
            if not self._has_execute:
                raise _ContractError(f"Python model {self._path} does not implement `execute` method.")
            responses = self._model.execute(model_requests)
            if type(responses) is not list and inspect.isawaitable(responses):
                responses = self._run(responses)
            output_start_ns = time.monotonic_ns()
            # Straight code: this runs for every request, and calls into pb_exchange only where there are senders.
            if type(responses) is not list or len(responses) != len(requests):
                responses = _check_list(responses, len(requests))
            for index, response in enumerate(responses):
                if type(response) is InferenceResponse:
                    outcomes.append(encode_response(response, requests[index], output_names))
                elif response is None:
                    slots.append(slot_of(model_requests[index]))
                    outcomes.append(_UNANSWERED)
                else:
                    raise _ContractError(
                        "Expected an 'InferenceResponse' object in the execute function return list, found type "
                        f"'{type(response)}'."
                    )
            if has_senders(model_requests):
                _check_senders(model_requests, responses)
        except BaseException as error:
            message = str(error) if isinstance(error, _ContractError) else describe_exception(error)
            outcomes = self._fail(model_requests, requests, message)
            end_ns = time.monotonic_ns()
            return Execution(outcomes, start_ns, input_end_ns, end_ns, end_ns)
        if slots:
            # From here on, requests live as long as the model needs them for their senders.
            del model_requests
            outcomes = self._wait(slots, outcomes, requests)
            output_start_ns = time.monotonic_ns()
        return Execution(outcomes, start_ns, input_end_ns, output_start_ns, time.monotonic_ns())

    def close(self) -> None:
        if hasattr(self._model, "finalize"):
            try:
                self._model.finalize()
            except BaseException as error:
                _LOG.info(describe_exception(error))
        if self._coroutines is not None:
            self._coroutines.stop()

    def _run(self, awaitable: Any) -> Any:
        if self._coroutines is None:
            self._coroutines = _CoroutineRunner(self._instance_name)
        result, error = self._coroutines.run(awaitable)
        if error is not None:
            raise error
        return result

    def _fail(
        self, model_requests: Sequence[InferenceRequest], requests: Sequence[Request], message: str
    ) -> list[Outcome]:
        """The batch failed as a whole; what a sender had sent for good stays sent."""
        failure = self._failure(message)
        outcomes: list[Outcome] = []
        for model_request, request in zip(model_requests, requests, strict=True):
            slot = sent_slot_of(model_request)
            close_senders(model_request)
            if slot is not None and slot.is_final and slot.response is not None:
                outcomes.append(encode_response(slot.response, request, self._output_names))
            else:
                outcomes.append(failure)
        return outcomes

    def _wait(
        self, slots: Sequence[ResponseSlot], outcomes: Sequence[Outcome], requests: Sequence[Request]
    ) -> list[Outcome]:
        """Fill in the responses that come through senders, however late."""
        settled: list[Outcome] = []
        waiting = iter(slots)
        for outcome, request in zip(outcomes, requests, strict=True):
            if outcome is not _UNANSWERED:
                settled.append(outcome)
                continue
            slot = next(waiting)
            patience = _FIRST_PATIENCE_SECONDS
            while not slot.settled.wait(patience):
                # A sender that the model has dropped may sit in a cycle, where only the collector finds it.
                gc.collect()
                patience = _PATIENCE_SECONDS
            if slot.response is not None:
                try:
                    settled.append(encode_response(slot.response, request, self._output_names))
                except Exception as error:
                    settled.append(self._failure(describe_exception(error)))
            else:
                settled.append(
                    self._failure(
                        "The model returned None for a request and dropped its response sender without sending "
                        "a response."
                    )
                )
        return settled

    def _failure(self, message: str) -> InternalError:
        text = f"Failed to process the request(s) for model '{self._instance_name}', message: {message}"
        _LOG.error(text)
        return InternalError(text)


class _ContractError(Exception):
    """What the model has or returns is not what it must; the text is the whole message."""


# Stands for the outcome of a request whose response comes through a sender.
_UNANSWERED = InternalError()


class _CoroutineRunner:
    """Runs what an `async def execute` returns, on an event loop that lives as long as the instance."""

    def __init__(self, instance_name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name=f"coroutines of {instance_name}", daemon=True
        )
        self._thread.start()

    def run(self, awaitable: Any) -> tuple[Any, BaseException | None]:
        """Wait for the result, or for what was raised: even SystemExit, which would end the loop.

        The name of the coroutine is `COROUTINE_ROOT`, by which tracebacks end.
        """

        async def await_model() -> tuple[Any, BaseException | None]:
            try:
                return await awaitable, None
            except BaseException as error:
                return None, error

        return asyncio.run_coroutine_threadsafe(await_model(), self._loop).result()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def _check_list(responses: Any, count: int) -> Sequence[Any]:
    """What `execute` returned where it is not a list of the right length; None says that senders do it all.

    Raises:
        _ContractError: it is nothing that may be returned.

    Source: Triton, python_backend/src/pb_stub.cc, ProcessReturnedResponses.
    """
    if responses is None:
        return [None] * count
    if type(responses) is not list:
        raise _ContractError(f"Expected a list in the execute return, found type '{type(responses)}'.")
    raise _ContractError(
        "Number of InferenceResponse objects do not match the number of InferenceRequest objects. "
        f"InferenceRequest(s) size is:{count}, and InferenceResponse(s) size is:{len(responses)}\n"
    )


def _check_senders(model_requests: Sequence[InferenceRequest], responses: Sequence[Any]) -> None:
    """A request is answered by its sender or by a response in the list, not by both."""
    for model_request, response in zip(model_requests, responses, strict=True):
        slot = sent_slot_of(model_request)
        if response is not None and slot is not None and slot.response is not None:
            raise _ContractError("Unable to send response. Non-decoupled model cannot send more than one response.")


def _check_settings(context: ModelContext) -> None:
    parameters = context.config.parameters
    environment = parameters.get("EXECUTION_ENV_PATH")
    if environment is not None and environment.string_value:
        raise UnsupportedError(
            f"model '{context.name}' sets EXECUTION_ENV_PATH: execution environments of their own are not available "
            "for Python models yet"
        )
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
