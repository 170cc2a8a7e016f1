import asyncio
from types import SimpleNamespace

import pytest

from merrow.backends.base import (
    ChangeMetric,
    DropMetric,
    DropMetricFamily,
    IsModelReady,
    LoadModel,
    NewMetric,
    NewMetricFamily,
    ReadMetric,
    ShareCounter,
    UnloadModel,
)
from merrow.core.errors import (
    CancelledError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    ServerError,
    UnavailableError,
)
from merrow.core.request import Request
from merrow.core.response import Response
from merrow.engine.services import ModelServices
from merrow.observe.custom_metrics import FAMILY_DELETED, CustomMetrics
from merrow.places.base import Caller, ModelCall


class FakeModel:
    def __init__(self, name, instance_count=1, is_decoupled=False, steps=(), is_healthy=True):
        self.name = name
        self.version = 1
        self.is_decoupled = is_decoupled
        self.driver = SimpleNamespace(instances=[None] * instance_count, is_healthy=is_healthy)
        ensemble = None
        if steps:
            ensemble = SimpleNamespace(step=[SimpleNamespace(model_name=step, model_version=-1) for step in steps])
        self.config = SimpleNamespace(ensemble_scheduling=ensemble)


class FakeEngine:
    """Keeps what is submitted for the test to answer; loads when the test says so."""

    def __init__(self, *models):
        self.models = {model.name: model for model in models}
        self.submitted = []
        self.cancelled = []
        self.controls = []
        self.refusal = None
        self.may_load = asyncio.Event()

    def find_model(self, name, version=-1):
        model = self.models.get(name)
        if model is None or version not in (-1, model.version):
            raise NotFoundError(f"no {name}")
        return model

    def is_model_ready(self, name, version=-1):
        return self.find_model(name, version).driver.is_healthy

    def submit(self, model, request):
        if self.refusal is not None:
            raise self.refusal
        self.submitted.append((model.name, request))

    def cancel(self, request):
        self.cancelled.append(request)

    async def load_model(self, name, config=None, files=None):
        await self.may_load.wait()
        self.controls.append((name, config, files))
        if self.refusal is not None:
            raise self.refusal

    async def unload_model(self, name, unload_dependents=False):
        self.controls.append((name, unload_dependents))


class Sink:
    def __init__(self):
        self.responses = []

    def on_response(self, response):
        self.responses.append(response)


def make_services(*models, max_depth=16, threads=4):
    engine = FakeEngine(*models)
    return ModelServices(lambda: engine, CustomMetrics({}), max_depth, threads), engine


def make_caller(model="A", number=0, **fields):
    return Caller(model, 1, f"{model}_{number}", **{"is_loading": False, **fields})


def make_call(caller, target, parents=(), executing=None, is_decoupled=False, **fields):
    request = Request(target, fields.pop("version", -1), Sink(), {}, **fields)
    executing = parents if executing is None else executing
    return ModelCall(caller, request, is_decoupled, parents, executing, None)


def outcome_of(call, sink):
    (response,) = sink.responses
    assert response.is_final
    return response.error


def infer(services, call):
    sink = call.request.sink
    services.infer(call)
    return sink


CLIENT = Request("A", 1, Sink(), {})


def test_a_call_is_submitted_like_any_request():
    services, engine = make_services(FakeModel("B"))
    call = make_call(make_caller(), "B", [CLIENT])
    sink = infer(services, call)
    ((name, request),) = engine.submitted
    assert name == "B"
    assert request is call.request
    assert request.model_version == 1
    request.sink.on_response(Response("B", 1, is_final=False))
    request.sink.on_response(Response("B", 1))

    assert len(sink.responses) == 2
    services.cancel(call)
    assert engine.cancelled == []


@pytest.mark.parametrize(
    ("target", "fields", "text"),
    [
        ("X", {}, "Failed for execute the inference request. Model 'X' is not ready."),
        ("B", {"version": 7}, "Failed for execute the inference request. Model 'B' is not ready."),
        ("ill", {}, "Failed for execute the inference request. Model 'ill' is not ready."),
        (
            "D",
            {},
            "Model D is using the decoupled. The current BLS request call doesn't support models using the decoupled "
            "transaction policy. Please use 'decoupled=True' argument to the 'exec' or 'async_exec' calls for "
            "decoupled models.'",
        ),
    ],
)
def test_what_cannot_be_called_is_said_in_a_response(target, fields, text):
    services, engine = make_services(
        FakeModel("B"), FakeModel("D", is_decoupled=True), FakeModel("ill", is_healthy=False)
    )
    call = make_call(make_caller(), target, [CLIENT], **fields)
    error = outcome_of(call, infer(services, call))

    assert isinstance(error, InternalError)
    assert error.message == f"Model {target} - Error when running inference: {text}"
    assert engine.submitted == []


def test_a_decoupled_call_may_go_to_any_model():
    services, engine = make_services(FakeModel("B"), FakeModel("D", is_decoupled=True))
    for target in ("B", "D"):
        infer(services, make_call(make_caller(), target, [CLIENT], is_decoupled=True))

    assert [name for name, _ in engine.submitted] == ["B", "D"]


def test_a_request_that_is_refused_is_no_open_call():
    services, engine = make_services(FakeModel("B"))
    engine.refusal = InvalidArgumentError("bad shape")
    call = make_call(make_caller(), "B", [CLIENT])
    error = outcome_of(call, infer(services, call))

    assert error.message == "Model B - Error when running inference: bad shape"
    services.cancel(call)
    assert engine.cancelled == []


def test_a_ring_of_calls_gets_a_clear_error():
    services, _engine = make_services(FakeModel("A"), FakeModel("B"))
    first = make_call(make_caller("A"), "B", [CLIENT])
    infer(services, first)
    second = make_call(make_caller("B"), "A", [first.request])
    error = outcome_of(second, infer(services, second))

    assert error.message == (
        "Model A - Error when running inference: the call would never end, because every instance of model 'A' waits "
        "for it: A -> B -> A"
    )
    first.request.sink.on_response(Response("B", 1))
    infer(services, make_call(make_caller("B"), "A", [CLIENT]))


def test_a_call_that_outlives_its_batch_keeps_no_instance():
    services, engine = make_services(FakeModel("A"), FakeModel("B"))
    first = make_call(make_caller("A"), "B", [CLIENT])
    infer(services, first)
    services.release(first)
    infer(services, make_call(make_caller("B"), "A", [first.request]))

    assert [name for name, _ in engine.submitted] == ["B", "A"]


def test_an_ensemble_counts_for_each_of_its_models():
    services, _engine = make_services(FakeModel("A"), FakeModel("B"), FakeModel("E", 0, steps=("B", "gone", "A")))
    call = make_call(make_caller("A"), "E", [CLIENT])

    assert "waits for it: A -> E" in outcome_of(call, infer(services, call)).message


def test_chains_of_calls_are_bounded():
    services, _engine = make_services(FakeModel("A", 100), max_depth=2)
    parents = [CLIENT]
    for number in range(2):
        call = make_call(make_caller("A", number), "A", parents)
        infer(services, call)
        parents = [call.request]
    call = make_call(make_caller("A", 2), "A", parents)
    error = outcome_of(call, infer(services, call))

    assert error.message == (
        "Model A - Error when running inference: too many models call one another in a row "
        "(--backend-config=python,max-call-depth): A -> A -> A -> A"
    )


def test_the_calls_of_an_instance_that_is_gone_are_cancelled():
    services, engine = make_services(FakeModel("B"))
    gone, other = make_caller(), make_caller(number=1)
    theirs, others = make_call(gone, "B", [CLIENT]), make_call(other, "B", [CLIENT])
    infer(services, theirs)
    infer(services, others)
    services.close(gone)
    assert engine.cancelled == [theirs.request]
    theirs.request.sink.on_response(Response("B", 1, error=CancelledError("")))
    services.close(gone)
    assert engine.cancelled == [theirs.request]


def test_a_caller_that_takes_responses_again_lets_the_called_go_on():
    services, _engine = make_services(FakeModel("B"))
    call = make_call(make_caller(), "B", [CLIENT])
    infer(services, call)
    resumed = []
    call.request.owner = SimpleNamespace(resume=resumed.append)
    services.resume(call)
    call.request.sink.on_response(Response("B", 1))
    services.resume(call)

    assert resumed == [call.request]


def test_a_call_belongs_to_the_trace_that_it_was_given():
    services, _engine = make_services(FakeModel("B"))
    call = make_call(make_caller(), "B", [CLIENT])
    traced = Request("A", 1, Sink(), {})
    traced.trace = SimpleNamespace(child=lambda name, version: ("child", name, version))
    call.trace = traced
    infer(services, call)

    assert call.request.trace == ("child", "B", 1)


def ask(services, question, caller=None):
    """The answer, or the error, of a question that is answered at once."""
    answers = []
    services.ask(caller or make_caller(), question, answers.append)
    (answer,) = answers
    return answer


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        (IsModelReady("B"), True),
        (IsModelReady("B", "1"), True),
        (IsModelReady("B", "2"), False),
        (IsModelReady("X"), False),
        (IsModelReady("ill"), False),
        (
            IsModelReady("B", "x"),
            "failed to get model version from specified version string 'x' (details: stol), version should be an "
            "integral value > 0",
        ),
        (
            IsModelReady("B", "-1"),
            "failed to get model version from specified version string '-1', version should be an integral value > 0",
        ),
    ],
)
def test_whether_a_model_is_ready(question, answer):
    services, _ = make_services(FakeModel("B"), FakeModel("ill", is_healthy=False))
    told = ask(services, question)

    assert (told.message if isinstance(told, ServerError) else told) == answer


def test_metrics_are_given_changed_read_and_dropped():
    services, _ = make_services()
    caller = make_caller()
    family = ask(services, NewMetricFamily("f", "d", 1), caller)
    metric = ask(services, NewMetric(family, {"a": "b"}), caller)
    assert ask(services, ChangeMetric(metric, "set", 2.5), caller) is None
    assert ask(services, ChangeMetric(metric, "increment", -1), caller) is None
    assert ask(services, ReadMetric(metric), caller) == 1.5
    assert "does not support Observe" in ask(services, ChangeMetric(metric, "observe", 1), caller).message
    assert ask(services, DropMetric(metric), caller) is None
    assert ask(services, DropMetricFamily(family), caller) is None
    for question in (ReadMetric(metric), DropMetric(metric), DropMetricFamily(family), NewMetric(family)):
        assert ask(services, question, caller).message == FAMILY_DELETED
    assert "Invalid metric name" in ask(services, NewMetricFamily("bad name", "d", 1), caller).message


def test_a_counter_can_be_shared():
    services, _ = make_services()
    caller = make_caller()
    metric = ask(services, NewMetric(ask(services, NewMetricFamily("f", "d", 0), caller)), caller)

    assert ask(services, ShareCounter(metric, lambda: 3), caller) is None
    assert ask(services, ReadMetric(metric), caller) == 3
    assert ask(services, ShareCounter(metric, lambda: 3)).message == FAMILY_DELETED


def test_metrics_of_another_instance_are_none_of_its_business():
    services, _ = make_services()
    family = ask(services, NewMetricFamily("f", "d", 0), make_caller())

    assert ask(services, DropMetricFamily(family), make_caller(number=1)).message == FAMILY_DELETED


def test_metrics_go_with_the_last_instance_that_holds_them():
    services, _ = make_services()
    callers = [make_caller(number=number) for number in range(2)]
    for caller in callers:
        family = ask(services, NewMetricFamily("f", "d", 0), caller)
        metric = ask(services, NewMetric(family), caller)
        ask(services, ChangeMetric(metric, "increment", 1), caller)
    services.close(callers[0])
    assert ask(services, ReadMetric(metric), callers[1]) == 2
    services.close(callers[1])
    assert list(services._metrics.families()) == []


def run_control(scenario, *models, **options):
    async def main():
        services, engine = make_services(*models, **options)
        await scenario(services, engine)

    asyncio.run(main())


async def settle():
    """Let tasks that can go on do so."""
    for _ in range(3):
        await asyncio.sleep(0)


def test_models_are_loaded_and_unloaded():
    async def scenario(services, engine):
        answers = []
        services.ask(make_caller(), LoadModel("B", "{}", {"file:1/model.py": memoryview(b"x")}), answers.append)
        await settle()
        assert answers == []
        engine.may_load.set()
        services.ask(make_caller(), LoadModel("C"), answers.append)
        services.ask(make_caller(), UnloadModel("B", True), answers.append)
        assert await services.stop(5)
        assert answers == [None] * 3
        assert sorted(engine.controls, key=repr) == [
            ("B", "{}", {"1/model.py": b"x"}),
            ("B", True),
            ("C", None, None),
        ]

    run_control(scenario)


def test_a_load_that_fails_says_why():
    async def scenario(services, engine):
        engine.may_load.set()
        answers = []
        for refusal in (UnavailableError("not in this mode"), ZeroDivisionError("by nothing")):
            engine.refusal = refusal
            services.ask(make_caller(), LoadModel("B"), answers.append)
            await settle()
        assert [answer.message for answer in answers] == ["not in this mode", "ZeroDivisionError: by nothing"]

    run_control(scenario)


def test_a_load_that_waits_for_itself_is_refused():
    async def scenario(services, engine):
        answers = []
        services.ask(make_caller("A", is_loading=True), LoadModel("A"), answers.append)
        services.ask(make_caller("A", is_loading=True), LoadModel("B"), answers.append)
        await settle()
        services.ask(make_caller("B", is_loading=True), UnloadModel("A"), answers.append)
        await settle()
        assert [answer.message for answer in answers] == [
            "the load of model 'A' would wait for itself, by way of 'A'",
            "the load of model 'B' would wait for itself, by way of 'A'",
        ]
        # A running model may reload itself.
        services.ask(make_caller("A"), LoadModel("A"), answers.append)
        engine.may_load.set()
        await settle()
        assert answers[2:] == [None, None]

    run_control(scenario)


def test_not_all_loading_threads_may_wait_for_loads():
    async def scenario(services, engine):
        answers = []
        services.ask(make_caller("A", is_loading=True), LoadModel("B"), answers.append)
        services.ask(make_caller("C", is_loading=True), LoadModel("D"), answers.append)
        await settle()
        (refusal,) = answers
        assert refusal.message == (
            "'D' cannot be loaded now: 1 models that are being loaded wait for others, and no more than "
            "--model-load-thread-count load at once"
        )
        engine.may_load.set()
        assert await services.stop(5)

    run_control(scenario, threads=2)


def test_stopping_waits_no_longer_than_it_may():
    async def scenario(services, engine):
        services.ask(make_caller(), LoadModel("B"), lambda answer: None)
        await settle()
        assert not await services.stop(0.001)
        await settle()

    run_control(scenario)
