"""Runs a place with instances in real processes, and lets a test wait for what they report."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from merrow.backends.base import Execution, InstanceDescription, ModelContext
from merrow.core.errors import ServerError
from merrow.core.model_config import ModelConfig
from merrow.core.request import Request
from merrow.core.response import Response
from merrow.core.tensor import Tensor
from merrow.places.base import PlacedInstance, ServerServices
from merrow.places.process.host import ProcessInstance, ProcessPlace
from merrow.settings import ProcessSettings
from tests.places.recording_services import RecordingServices

FAKE_BACKENDS = "tests.places.process.fake_backends:backend_of"
SETTINGS = ProcessSettings(restart_delay_min_ms=10, restart_delay_max_ms=200, close_timeout_seconds=5)


class Sink:
    """Answers go to the engine, which here is the test."""

    def on_response(self, response: Response) -> None:
        raise AssertionError("nobody answers a sink here")


def make_request(
    inputs: "Mapping[str, np.ndarray[Any, np.dtype[Any]]] | None" = None, do: str = "echo", **fields: Any
) -> Request:
    parameters = {"do": do, **fields.pop("parameters", {})}
    tensors = {name: Tensor.from_numpy(name, array) for name, array in (inputs or {}).items()}
    return Request("m", 1, Sink(), tensors, parameters=parameters, **fields)


def outputs_of(outcome: Response | ServerError) -> "dict[str, np.ndarray[Any, np.dtype[Any]]]":
    assert isinstance(outcome, Response), outcome
    assert outcome.error is None, outcome.error
    return {tensor.name: tensor.as_numpy() for tensor in outcome.outputs}


def text_of(outcome: Response | ServerError) -> str:
    (text,) = outputs_of(outcome)["TEXT"]
    return str(text.decode())


class Reports:
    """What instances report. Each batch must be reported exactly once."""

    def __init__(self) -> None:
        self.health: list[bool] = []
        self.reported: list[Sequence[Request]] = []
        self._waiting: dict[int, asyncio.Future[Execution | ServerError]] = {}
        self._health_changed = asyncio.Event()
        # Of deferred requests, in the order of coming.
        self.responses: list[tuple[Request, Response]] = []
        self._response_came = asyncio.Event()

    def on_response(self, instance: PlacedInstance, request: Request, response: Response) -> None:
        self.responses.append((request, response))
        self._response_came.set()

    async def wait_for_responses(self, request: Request, count: int) -> list[Response]:
        """So many responses to the request."""
        while len(responses := [response for other, response in self.responses if other is request]) < count:
            self._response_came.clear()
            await asyncio.wait_for(self._response_came.wait(), 10)
        assert len(responses) == count
        return responses

    async def wait_for_end(self, request: Request) -> list[Response]:
        """All responses to the request."""
        while not (responses := [each for other, each in self.responses if other is request]) or (
            not responses[-1].is_final
        ):
            self._response_came.clear()
            await asyncio.wait_for(self._response_came.wait(), 10)
        assert not any(response.is_final for response in responses[:-1])
        return responses

    def on_execution(self, instance: PlacedInstance, requests: Sequence[Request], execution: Execution) -> None:
        self.reported.append(requests)
        self._waiting.pop(id(requests)).set_result(execution)

    def on_failure(self, instance: PlacedInstance, requests: Sequence[Request], error: ServerError) -> None:
        self.reported.append(requests)
        self._waiting.pop(id(requests)).set_result(error)

    def on_health_change(self, instance: PlacedInstance, is_healthy: bool) -> None:
        assert instance.is_healthy == is_healthy
        self.health.append(is_healthy)
        self._health_changed.set()

    def submit(self, instance: PlacedInstance, *requests: Request) -> "asyncio.Future[Execution | ServerError]":
        future: asyncio.Future[Execution | ServerError] = asyncio.get_running_loop().create_future()
        self._waiting[id(requests)] = future
        instance.submit(requests)
        return future

    async def execute(self, instance: PlacedInstance, *requests: Request) -> Execution:
        result = await self.submit(instance, *requests)
        assert isinstance(result, Execution), result
        return result

    async def ask(self, instance: PlacedInstance, request: Request) -> Response | ServerError:
        (outcome,) = (await self.execute(instance, request)).outcomes
        return outcome

    async def wait_for_health(self, *health: bool) -> None:
        while self.health != list(health):
            self._health_changed.clear()
            await asyncio.wait_for(self._health_changed.wait(), 10)


def make_context(name: str = "m", directory: str = "/nowhere", config: ModelConfig | None = None) -> ModelContext:
    if config is None:
        config = ModelConfig(name=name)
    return ModelContext(name, 1, replace(config, name=name), "{}", directory, f"{directory}/1")


def describe_instance(name: str = "m_0_0") -> InstanceDescription:
    return InstanceDescription(name, "KIND_CPU", 0)


@asynccontextmanager
async def running_place(
    settings: ProcessSettings = SETTINGS,
    backend_factory: str = FAKE_BACKENDS,
    services: ServerServices | None = None,
) -> AsyncIterator[ProcessPlace]:
    place = ProcessPlace(settings, services or RecordingServices(), backend_factory)
    try:
        yield place
    finally:
        await place.close()


async def start(
    place: ProcessPlace,
    reports: Reports,
    context: ModelContext | None = None,
    name: str = "m_0_0",
    backend: str = "fake",
) -> ProcessInstance:
    return await asyncio.to_thread(
        place.start, context or make_context(), backend, describe_instance(name), reports, asyncio.get_running_loop()
    )


@asynccontextmanager
async def running_instance(
    place: ProcessPlace, context: ModelContext | None = None
) -> AsyncIterator[tuple[ProcessInstance, Reports]]:
    reports = Reports()
    instance = await start(place, reports, context)
    try:
        yield instance, reports
    finally:
        await instance.close()


def is_alive(process_id: int) -> bool:
    """Whether there is such a process, and it is more than a zombie."""
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what nothing announces."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.005)


def wait_until(condition: Callable[[], bool]) -> None:
    """As `until`, without a loop."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)
