"""The driver of ensembles, over models whose drivers answer when the test says so."""

import asyncio
import dataclasses
from collections.abc import Callable
from typing import TypeVar

import pytest

from merrow.core.errors import CancelledError, NotFoundError, ServerError, UnavailableError
from merrow.core.model_config import (
    ModelConfig,
    ModelEnsembling,
    ModelEnsemblingStep,
    ModelInput,
    ModelOutput,
    ModelTransactionPolicy,
)
from merrow.core.request import Request
from merrow.core.response import Response
from merrow.core.tensor import Tensor
from merrow.engine.ensemble import EnsembleDriver
from merrow.engine.model import Driver, Model
from merrow.engine.validation import RequestValidator
from merrow.observe.statistics import FailureReason, StatisticsRecorder
from merrow.places.base import PlacedInstance
from merrow.repository.plan import ModelPlan
from merrow.testing.manual_clock import ManualClock

DATA = bytes(range(8))

AnyDriver = TypeVar("AnyDriver", bound=Driver)


class FakeDriver:
    """Keeps what it is given; `function` answers at once, for models that run inline."""

    def __init__(self, function: Callable[[Request], Response] | None = None) -> None:
        self.function = function
        self.requests: list[Request] = []
        self.cancelled: list[Request] = []
        self.resumed: list[Request] = []
        self.is_healthy = True
        self.pending_count = 0
        self.instances: list[PlacedInstance] = []
        self.refusal: ServerError | None = None

    @property
    def in_flight_count(self) -> int:
        return len(self.requests)

    def enqueue(self, request: Request, now_ns: int) -> None:
        if self.refusal is not None:
            raise self.refusal
        request.owner = self
        self.requests.append(request)
        if self.function is not None:
            self.answer(self.function(request))

    def answer(self, response: Response, position: int = 0, times: tuple[int, int, int, int] | None = None) -> None:
        request = self.requests[position]
        if response.is_final:
            del self.requests[position]
        if times is not None:
            assert request.trace is not None
            request.trace.record_execution(*times)
        request.sink.on_response(response)

    def cancel(self, request: Request) -> None:
        self.cancelled.append(request)

    def resume(self, request: Request) -> None:
        self.resumed.append(request)

    def run_on(self, instance: PlacedInstance, requests: object, now_ns: int) -> None:
        raise AssertionError

    async def drain(self) -> None:
        raise AssertionError


class Sink:
    def __init__(self) -> None:
        self.responses: list[Response] = []

    def on_response(self, response: Response) -> None:
        assert not (self.responses and self.responses[-1].is_final)
        self.responses.append(response)


def model_config(name: str, is_decoupled: bool = False) -> ModelConfig:
    return ModelConfig(
        name=name,
        input=(ModelInput(name="IN", data_type="TYPE_FP32", dims=(-1,)),),
        output=(ModelOutput(name="OUT", data_type="TYPE_FP32", dims=(-1,)),),
        model_transaction_policy=ModelTransactionPolicy(is_decoupled),
    )


def chain(*names: str, max_inflight_requests: int = 0, is_decoupled: bool = False) -> ModelConfig:
    tensors = ["X", *(f"T{number}" for number in range(1, len(names))), "Z"]
    return ModelConfig(
        name="E",
        platform="ensemble",
        input=(ModelInput(name="X", data_type="TYPE_FP32", dims=(-1,)),),
        output=(ModelOutput(name="Z", data_type="TYPE_FP32", dims=(-1,)),),
        ensemble_scheduling=ModelEnsembling(
            tuple(
                ModelEnsemblingStep(name, -1, {"IN": read}, {"OUT": made})
                for name, read, made in zip(names, tensors, tensors[1:], strict=False)
            ),
            max_inflight_requests,
        ),
        model_transaction_policy=ModelTransactionPolicy(is_decoupled),
    )


def reply(data: bytes = DATA, **fields: object) -> Response:
    outputs = () if fields.get("error") or fields.get("is_empty") else (Tensor("OUT", "FP32", (len(data) // 4,), data),)
    return Response("m", 1, outputs=outputs, **fields)  # type: ignore[arg-type]


def echo(request: Request) -> Response:
    tensor = request.inputs["IN"]
    return Response("m", 1, outputs=(Tensor("OUT", tensor.datatype, tensor.shape, tensor.data),))


class Server:
    """An ensemble, the models below it, and the door that steps go through."""

    def __init__(self, config: ModelConfig, decoupled: tuple[str, ...] = ()) -> None:
        self.clock = ManualClock()
        self.recorder = StatisticsRecorder()
        self.models: dict[str, Model] = {}
        self.driver = EnsembleDriver(config, 3, self.find_model, self.submit, self.recorder, self.clock)
        assert config.ensemble_scheduling is not None
        for step in config.ensemble_scheduling.step:
            self.add(step.model_name, FakeDriver(), step.model_name in decoupled)

    def add(self, name: str, driver: AnyDriver, is_decoupled: bool = False) -> AnyDriver:
        config = model_config(name, is_decoupled)
        self.models[name] = Model(
            name=name,
            version=1,
            config=config,
            config_json="",
            labels={},
            is_decoupled=is_decoupled,
            has_batch_dim=False,
            place=None,
            load_duration_ns=0,
            validator=RequestValidator(config),
            driver=driver,
            recorder=StatisticsRecorder(),
            warmup_samples=(),
            plan=ModelPlan(name, "", config, (1,)),
        )
        return driver

    def fake(self, name: str) -> FakeDriver:
        driver = self.models[name].driver
        assert isinstance(driver, FakeDriver)
        return driver

    def find_model(self, name: str, version: int) -> Model:
        assert version == -1
        if name not in self.models:
            raise NotFoundError(f"Request for unknown model: '{name}' is not found")
        return self.models[name]

    def submit(self, model: Model, request: Request) -> None:
        now_ns = self.clock()
        request.arrival_ns = now_ns
        model.validator.validate(request)
        model.driver.enqueue(request, now_ns)

    def send(self, data: bytes = DATA, **fields: object) -> tuple[Request, Sink]:
        sink = Sink()
        tensor = Tensor("X", "FP32", (len(data) // 4,), data)
        request = Request("E", 3, sink, {"X": tensor}, **fields)  # type: ignore[arg-type]
        request.arrival_ns = self.clock()
        self.driver.enqueue(request, self.clock())
        return request, sink


def test_a_request_passes_through_the_steps_and_is_answered_as_the_ensembles():
    server = Server(chain("a", "b"))
    _, sink = server.send(id="r1", parameters={"k": 1}, priority=2, timeout_us=3)

    (step,) = server.fake("a").requests
    assert (step.id, step.parameters, step.priority, step.timeout_us) == ("r1", {"k": 1}, 2, 3)
    assert step.requested_outputs == ("OUT",)
    server.fake("a").answer(reply(b"1234"))
    assert server.fake("b").requests[0].inputs["IN"].data == b"1234"
    server.fake("b").answer(reply(b"5678"))

    (response,) = sink.responses
    assert (response.model_name, response.model_version, response.id) == ("E", 3, "r1")
    assert [(output.name, output.data) for output in response.outputs] == [("Z", b"5678")]
    assert server.driver.in_flight_count == 0


def test_tensors_are_handed_on_without_copies():
    server = Server(chain("a", "b"))
    for name in ("a", "b"):
        server.add(name, FakeDriver(echo))
    data = bytearray(DATA)
    sink = Sink()
    request = Request("E", 3, sink, {"X": Tensor("X", "FP32", (2,), data)})
    server.driver.enqueue(request, 0)

    assert sink.responses[0].outputs[0].data is data


def test_a_chain_of_many_inline_models_needs_no_deep_stack():
    names = [f"m{number}" for number in range(2000)]
    server = Server(chain(*names))
    for name in names:
        server.add(name, FakeDriver(echo))
    _, sink = server.send()

    assert sink.responses[0].outputs[0].data == DATA


def test_an_error_of_a_step_keeps_its_code():
    server = Server(chain("a", "b"))
    _, sink = server.send()
    server.fake("a").answer(reply(error=UnavailableError("boom")))

    error = sink.responses[0].error
    assert isinstance(error, UnavailableError)
    assert error.message == "in ensemble 'E', boom"
    statistics = server.recorder.snapshot("E", 3, 0, 0)
    assert (statistics.fail.count, statistics.success.count) == (1, 0)
    assert statistics.failures[FailureReason.OTHER] == 1


def test_what_validation_or_a_queue_of_a_step_refuses_fails_the_request():
    server = Server(chain("a"))
    server.fake("a").refusal = UnavailableError("[request id: <id_unknown>] Exceeds maximum queue size")
    _, sink = server.send()

    assert sink.responses[0].error is not None
    assert sink.responses[0].error.message == "in ensemble 'E', [request id: <id_unknown>] Exceeds maximum queue size"


def test_a_missing_model_fails_the_request():
    server = Server(chain("a", "b"))
    del server.models["b"]
    _, sink = server.send()

    error = sink.responses[0].error
    assert isinstance(error, NotFoundError)
    assert error.message == "in ensemble 'E', Request for unknown model: 'b' is not found"
    assert not server.driver.is_healthy


def test_the_ensemble_is_as_healthy_as_its_models():
    server = Server(chain("a", "b"))
    assert server.driver.is_healthy
    server.fake("b").is_healthy = False
    assert not server.driver.is_healthy
    assert server.driver.instances == []
    assert server.driver.pending_count == 0


def test_statistics_sum_up_the_times_of_the_steps():
    server = Server(chain("a", "b"))
    server.clock.advance(1000)
    server.send()
    server.fake("a").answer(reply(), times=(1000, 1001, 1011, 1111))
    server.clock.advance(500)
    server.fake("b").answer(reply(), times=(1200, 1202, 1222, 1422))

    statistics = server.recorder.snapshot("E", 3, 1500, 0)
    assert (statistics.success.count, statistics.success.ns) == (1, 500)
    assert (statistics.inference_count, statistics.execution_count) == (1, 1)
    assert [
        statistics.queue.ns,
        statistics.compute_input.ns,
        statistics.compute_infer.ns,
        statistics.compute_output.ns,
    ] == [0, 3, 30, 300]
    assert [batch.batch_size for batch in statistics.batch_stats] == [1]


class Trace:
    def __init__(self, name: str, log: list[str]) -> None:
        self.name = name
        self.log = log

    def record_queued(self, queue_ns: int) -> None:
        self.log.append(f"{self.name} queued")

    def record_execution(self, start_ns: int, input_end_ns: int, output_start_ns: int, end_ns: int) -> None:
        self.log.append(f"{self.name} executed")

    def record_response(self, response: Response, now_ns: int) -> None:
        self.log.append(f"{self.name} answered")

    def child(self, model_name: str, model_version: int) -> "Trace":
        return Trace(f"{self.name}/{model_name}:{model_version}", self.log)


def test_each_step_has_a_trace_below_the_requests():
    server = Server(chain("a"))
    log: list[str] = []
    request = Request("E", 3, Sink(), {"X": Tensor("X", "FP32", (2,), DATA)})
    request.trace = Trace("E", log)
    server.driver.enqueue(request, 0)
    step = server.fake("a").requests[0]
    assert step.trace is not None
    step.trace.record_queued(0)
    inner = step.trace.child("deeper", 2)
    assert isinstance(inner, Trace)
    assert inner.name == "E/a:1/deeper:2"
    response = reply()
    step.trace.record_execution(0, 0, 0, 0)
    step.trace.record_response(response, 0)
    server.fake("a").answer(response)

    assert log == ["E queued", "E/a:1 queued", "E/a:1 executed", "E/a:1 answered", "E answered"]


def test_a_client_that_leaves_cancels_the_running_step():
    server = Server(chain("a", "b"))
    request, sink = server.send()
    (step,) = server.fake("a").requests
    server.driver.cancel(request)
    assert server.fake("a").cancelled == [step]

    server.fake("a").answer(reply())
    assert server.fake("b").requests == []
    assert isinstance(sink.responses[0].error, CancelledError)
    assert server.recorder.snapshot("E", 3, 0, 0).failures[FailureReason.CANCELED] == 1
    server.driver.cancel(request)


def test_responses_of_a_decoupled_step_come_one_by_one():
    server = Server(chain("a", "b", is_decoupled=True), decoupled=("a",))
    server.add("b", FakeDriver(echo))
    _, sink = server.send()
    for data in (b"0000", b"1111"):
        server.fake("a").answer(reply(data, is_final=False))
    server.fake("a").answer(reply(is_empty=True))

    assert [[output.data for output in response.outputs] for response in sink.responses] == [[b"0000"], [b"1111"], []]
    assert [response.is_final for response in sink.responses] == [False, False, True]
    assert sink.responses[-1].is_empty


def test_a_step_that_runs_ahead_is_held_until_those_after_it_follow():
    server = Server(chain("a", "b", is_decoupled=True, max_inflight_requests=1), decoupled=("a",))
    server.send()
    (step,) = server.fake("a").requests
    server.fake("a").answer(reply(is_final=False))
    assert not step.is_congested
    server.fake("a").answer(reply(is_final=False))
    assert step.is_congested

    server.fake("b").answer(reply())
    assert not step.is_congested
    assert server.fake("a").resumed == [step]


def test_a_slow_client_slows_the_steps():
    server = Server(chain("a", is_decoupled=True), decoupled=("a",))
    request, _ = server.send()
    (step,) = server.fake("a").requests
    request.is_congested = True
    server.fake("a").answer(reply(is_final=False))
    assert step.is_congested

    request.is_congested = False
    server.driver.resume(request)
    assert not step.is_congested
    assert server.fake("a").resumed == [step]


def test_models_are_held_from_the_start_to_the_answer():
    async def scenario() -> None:
        server = Server(chain("a", "b"))
        _, sink = server.send()
        old = server.models["b"]
        leaving = asyncio.ensure_future(old.wait_until_unheld())
        new = server.add("b", FakeDriver(echo))
        await asyncio.sleep(0)
        assert not leaving.done()

        server.fake("a").answer(reply())
        assert new.requests == []
        assert isinstance(old.driver, FakeDriver)
        old.driver.answer(reply())
        await leaving
        assert sink.responses[0].error is None

    asyncio.run(scenario())


def test_models_below_an_inner_ensemble_are_held_as_well():
    async def scenario() -> None:
        server = Server(chain("a", "inner"))
        inner = Server(chain("leaf"))
        config = dataclasses.replace(
            chain("leaf"),
            name="inner",
            input=(ModelInput(name="IN", data_type="TYPE_FP32", dims=(-1,)),),
            output=(ModelOutput(name="OUT", data_type="TYPE_FP32", dims=(-1,)),),
            ensemble_scheduling=ModelEnsembling((ModelEnsemblingStep("leaf", -1, {"IN": "IN"}, {"OUT": "OUT"}),)),
        )
        driver = EnsembleDriver(config, 1, inner.find_model, inner.submit, inner.recorder, inner.clock)
        server.add("inner", driver)
        _, sink = server.send()
        leaf = inner.models.pop("leaf")
        leaving = asyncio.ensure_future(leaf.wait_until_unheld())
        await asyncio.sleep(0)
        assert not leaving.done()

        server.fake("a").answer(reply())
        assert isinstance(leaf.driver, FakeDriver)
        leaf.driver.answer(reply())
        await leaving
        assert sink.responses[0].error is None

        _, sink = server.send()
        server.fake("a").answer(reply())
        error = sink.responses[0].error
        assert isinstance(error, NotFoundError)
        assert error.message == "in ensemble 'E', in ensemble 'inner', Request for unknown model: 'leaf' is not found"

    asyncio.run(scenario())


def test_draining_waits_for_what_was_accepted_and_refuses_the_rest():
    async def scenario() -> None:
        server = Server(chain("a"))
        server.send()
        draining = asyncio.ensure_future(server.driver.drain())
        await asyncio.sleep(0)
        assert not draining.done()
        with pytest.raises(UnavailableError, match="Server is stopping, scheduler for model has stopped accepting"):
            server.send()
        server.fake("a").answer(reply())
        await draining
        await server.driver.drain()

    asyncio.run(scenario())


def test_models_of_former_days_are_forgotten():
    server = Server(chain("a"))
    for _ in range(10):
        server.add("a", FakeDriver(echo))
        _, sink = server.send()
        assert sink.responses[0].error is None
    assert len(server.driver._step_models) <= 2
