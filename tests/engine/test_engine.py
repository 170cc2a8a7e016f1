import asyncio
import time

import pytest

from merrow.backends.registry import backend_of
from merrow.core.errors import (
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from merrow.core.request import Request
from merrow.core.tensor import Tensor
from merrow.engine.engine import Engine, IndexEntry
from merrow.engine.loader import ModelLoader
from merrow.observe.metrics_page import MetricsPage
from merrow.places.local_host import LocalEnvironment
from merrow.settings import MetricsSettings, ModelControlMode, RepositorySettings
from tests.places.recording_services import RecordingServices

IDENTITY = """
backend: "identity"
max_batch_size: 4
input { name: "X" data_type: TYPE_FP32 dims: 2 }
output { name: "Y" data_type: TYPE_FP32 dims: 2 }
"""


class Sink:
    def __init__(self):
        self.responses = []
        self.arrived = asyncio.Event()

    def on_response(self, response):
        self.responses.append(response)
        self.arrived.set()


def add_model(repository, name, config=IDENTITY, versions=(1,)):
    (repository / name).mkdir(parents=True)
    for version in versions:
        (repository / name / str(version)).mkdir(parents=True)
    if config is not None:
        (repository / name / "config.pbtxt").write_text(config)


def run(scenario, *repositories, **settings):
    """Run `scenario(engine, started)` against an engine over real repositories."""

    async def main():
        loop = asyncio.get_running_loop()
        options = RepositorySettings(model_repositories=tuple(map(str, repositories)), **settings)
        loader = ModelLoader(
            options, backend_of, None, time.monotonic_ns, LocalEnvironment(loop, RecordingServices(), 1 << 20)
        )
        engine = Engine(options, loader, time.monotonic_ns, MetricsPage(MetricsSettings(), time.monotonic_ns))
        started = await engine.start() is None
        try:
            result = scenario(engine, started)
            return await result if asyncio.iscoroutine(result) else result
        finally:
            assert await engine.stop(5)

    return asyncio.run(main())


EXPLICIT = {"model_control_mode": ModelControlMode.EXPLICIT}


def infer(engine, name="m", version=-1, rows=1):
    model = engine.find_model(name, version)
    request = Request(name, model.version, Sink(), {"X": Tensor("X", "FP32", (rows, 2), bytes(8 * rows))}, id="a")
    engine.submit(model, request)
    return request


def test_a_repository_is_served(tmp_path):
    add_model(tmp_path, "m")

    def scenario(engine, started):
        assert started
        assert engine.is_live()
        assert engine.is_ready()
        assert engine.is_model_ready("m")
        (response,) = infer(engine).sink.responses
        assert (response.model_name, response.model_version, response.id) == ("m", 1, "a")
        assert [output.name for output in response.outputs] == ["Y"]
        assert engine.repository_index(False) == [IndexEntry("m", 1, "READY", "")]

    run(scenario, tmp_path)


def test_without_a_version_the_largest_in_service_answers(tmp_path):
    add_model(tmp_path, "m", IDENTITY + "version_policy { all {} }", versions=(1, 2, 10))

    def scenario(engine, started):
        assert engine.find_model("m").version == 10
        assert engine.find_model("m", 2).version == 2
        assert engine.ready_versions("m") == [1, 2, 10]

    run(scenario, tmp_path)


def test_what_is_not_there_has_tritons_texts(tmp_path):
    add_model(tmp_path, "m")

    def scenario(engine, started):
        for arguments, error, text in [
            (("x",), NotFoundError, "Request for unknown model: 'x' is not found"),
            (("m", 7), NotFoundError, "Request for unknown model: 'm' version 7 is not found"),
        ]:
            with pytest.raises(error) as caught:
                engine.find_model(*arguments)
            assert caught.value.message == text
        with pytest.raises(InvalidArgumentError, match=r"^requested model 'x' is not available$"):
            engine.model_statistics("x")
        with pytest.raises(InvalidArgumentError, match=r"^requested model version is not available for model 'm'$"):
            engine.model_statistics("m", 9)

    run(scenario, tmp_path)


def test_statistics_count_requests_and_rows(tmp_path):
    add_model(tmp_path, "m")

    def scenario(engine, started):
        infer(engine, rows=3)
        infer(engine)
        (counts,) = engine.model_statistics()
        assert (counts.success.count, counts.inference_count, counts.execution_count) == (2, 4, 2)
        assert engine.model_statistics("m", 1)[0].name == "m"
        text = engine.metrics_text()
        assert 'nv_inference_count{model="m",version="1"} 4' in text

    run(scenario, tmp_path)


def test_an_invalid_request_is_refused_and_counts_nothing(tmp_path):
    add_model(tmp_path, "m")

    def scenario(engine, started):
        with pytest.raises(InvalidArgumentError, match="batch-size must be <= 4"):
            infer(engine, rows=5)
        assert engine.model_statistics()[0].fail.count == 0

    run(scenario, tmp_path)


def test_a_model_that_fails_to_load_leaves_the_others_serving(tmp_path):
    add_model(tmp_path, "good")
    add_model(tmp_path, "bad", IDENTITY.replace("TYPE_FP32 dims: 2 }\n", "TYPE_FP32 dims: 3 }\n", 1))

    def scenario(engine, started):
        assert not started
        assert not engine.is_ready()
        infer(engine, "good")
        bad, good = engine.repository_index(False)
        assert bad.state == "UNAVAILABLE"
        assert bad.reason == "Invalid argument: expected input and output shape to match, got [3] and [2]"
        assert engine.repository_index(True) == [good]
        with pytest.raises(NotFoundError, match="'bad' has no available versions"):
            engine.find_model("bad")

    run(scenario, tmp_path)


def test_readiness_is_lenient_when_asked(tmp_path):
    add_model(tmp_path, "bad", "nonsense")

    def scenario(engine, started):
        assert not started
        assert engine.is_ready()
        assert engine.repository_index(False) == [IndexEntry("bad", None, "", "")]

    run(scenario, tmp_path, strict_readiness=False)


def test_a_model_in_two_repositories_is_not_loaded(tmp_path):
    add_model(tmp_path / "a", "m")
    add_model(tmp_path / "b", "m")

    def scenario(engine, started):
        assert not started
        assert engine.repository_index(False) == [
            IndexEntry("m", None, "UNAVAILABLE", "model appears in two or more repositories")
        ]

    run(scenario, tmp_path / "a", tmp_path / "b")


def test_a_repository_that_is_no_directory_is_an_error(tmp_path):
    with pytest.raises(InternalError, match="repository path is not a valid directory"):
        run(lambda engine, started: None, tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("addition", "text"),
    [
        (
            'parameters { key: "EXECUTION_PLACE" value { string_value: "moon" } }',
            "parameter EXECUTION_PLACE must be 'inline', 'thread' or 'process', got 'moon'",
        ),
    ],
)
def test_what_cannot_be_obeyed_fails_the_load(tmp_path, addition, text):
    add_model(tmp_path, "m", IDENTITY + addition)

    def scenario(engine, started):
        assert not started
        assert text in engine.repository_index(False)[0].reason

    run(scenario, tmp_path)


def test_a_model_may_be_placed_on_a_thread(tmp_path):
    add_model(tmp_path, "m", IDENTITY + 'parameters { key: "EXECUTION_PLACE" value { string_value: "thread" } }')

    async def scenario(engine, started):
        request = infer(engine)
        await asyncio.wait_for(request.sink.arrived.wait(), 5)
        assert engine.find_model("m").place.value == "thread"

    run(scenario, tmp_path)


def test_the_operators_place_wins_over_the_models(tmp_path):
    add_model(tmp_path, "m", IDENTITY + 'parameters { key: "EXECUTION_PLACE" value { string_value: "thread" } }')

    def scenario(engine, started):
        assert engine.find_model("m").place.value == "inline"

    run(scenario, tmp_path, execution_place="inline")


def test_warm_up_is_counted_and_a_failing_one_fails_the_load(tmp_path):
    warmup = """
    model_warmup { name: "s" batch_size: %d count: 3
      inputs { key: "X" value { data_type: TYPE_FP32 dims: 2 zero_data: true } } }
    """
    add_model(tmp_path, "good", IDENTITY + warmup % 2)
    add_model(tmp_path, "bad", IDENTITY + warmup % 99)

    def scenario(engine, started):
        (counts,) = engine.model_statistics()
        assert (counts.name, counts.success.count, counts.execution_count) == ("good", 6, 3)
        assert [batch.batch_size for batch in counts.batch_stats] == [2]
        assert "failed to run warmup sample 's'" in engine.repository_index(False)[0].reason

    run(scenario, tmp_path)


def test_without_explicit_mode_loading_is_refused(tmp_path):
    async def scenario(engine, started):
        for call in (engine.load_model("m"), engine.unload_model("m")):
            with pytest.raises(
                UnavailableError, match=r"^explicit model load / unload is not allowed if polling is enabled$"
            ):
                await call

    run(scenario, tmp_path)


def test_explicit_mode_loads_what_it_is_told(tmp_path):
    add_model(tmp_path, "a")
    add_model(tmp_path, "b")

    async def scenario(engine, started):
        assert started
        assert engine.repository_index(False) == [IndexEntry("a", 1, "READY", ""), IndexEntry("b", None, "", "")]
        await engine.load_model("b")
        infer(engine, "b")
        await engine.unload_model("a")
        with pytest.raises(NotFoundError, match="'a' has no available versions"):
            engine.find_model("a")
        with pytest.raises(UnavailableError, match="'a' version 1 is not at ready state"):
            engine.find_model("a", 1)
        assert engine.repository_index(False)[0].state == "UNLOADING"
        assert await engine.wait_for_unloads(timeout_seconds=10)
        assert engine.repository_index(False)[0] == IndexEntry("a", 1, "UNAVAILABLE", "unloaded")
        assert engine.is_ready()
        await engine.unload_model("never heard of")

    run(scenario, tmp_path, load_models=("a",), **EXPLICIT)


def test_a_reload_serves_the_new_version_and_drops_the_old(tmp_path):
    add_model(tmp_path, "m")

    async def scenario(engine, started):
        (tmp_path / "m" / "2").mkdir()
        await engine.load_model("m")
        assert engine.ready_versions("m") == [2]
        assert infer(engine).sink.responses[0].model_version == 2

    run(scenario, tmp_path, load_models=("*",), **EXPLICIT)


def test_loading_what_has_not_changed_changes_nothing(tmp_path):
    add_model(tmp_path, "m")

    async def scenario(engine, started):
        before = engine.find_model("m")
        await engine.load_model("m")
        assert engine.find_model("m") is before

    run(scenario, tmp_path, load_models=("*",), **EXPLICIT)


def test_a_failed_reload_leaves_the_old_serving(tmp_path):
    add_model(tmp_path, "m")

    async def scenario(engine, started):
        (tmp_path / "m" / "config.pbtxt").write_text(IDENTITY.replace("dims: 2 }", "dims: 3 }", 1))
        with pytest.raises(InvalidArgumentError) as caught:
            await engine.load_model("m")
        assert caught.value.message == (
            "load failed for model 'm': version 1 is at UNAVAILABLE state: Invalid argument: expected input and output "
            "shape to match, got [3] and [2];\n"
        )
        infer(engine)

    run(scenario, tmp_path, load_models=("*",), **EXPLICIT)


@pytest.mark.parametrize(
    ("name", "error", "text"),
    [
        ("x", InternalError, "failed to load 'x', failed to poll from model repository"),
        ("broken", InternalError, "failed to load 'broken', failed to poll from model repository"),
        (
            "empty",
            InvalidArgumentError,
            "load failed for model 'empty': at least one version must be available under "
            "the version policy of model 'empty'\n",
        ),
        ("", InvalidArgumentError, "Model name cannot be empty. Please enter a valid name to deploy."),
        (
            "../m",
            InvalidArgumentError,
            "invalid model name '../m', model name must not contain path traversal characters",
        ),
    ],
)
def test_a_load_that_cannot_work_says_why(tmp_path, name, error, text):
    add_model(tmp_path, "broken", "max_batch_size: -")
    add_model(tmp_path, "empty", versions=())

    async def scenario(engine, started):
        with pytest.raises(error) as caught:
            await engine.load_model(name)
        assert caught.value.message == text

    run(scenario, tmp_path, **EXPLICIT)


def test_a_config_override_replaces_the_file(tmp_path):
    add_model(tmp_path, "m")
    override = (
        '{"backend":"identity","max_batch_size":2,"input":[{"name":"X","data_type":"TYPE_FP32","dims":["2"]}],'
        '"output":[{"name":"Y","data_type":"TYPE_FP32","dims":["2"]}]}'
    )

    async def scenario(engine, started):
        await engine.load_model("m", config=override)
        assert engine.find_model("m").config.max_batch_size == 2
        await engine.load_model("m", config=override, files={"3/x": b""})
        assert engine.ready_versions("m") == [3]

    run(scenario, tmp_path, **EXPLICIT)


def test_stopping_refuses_new_requests(tmp_path):
    add_model(tmp_path, "m")
    kept = []

    def scenario(engine, started):
        engine.find_model("m")
        kept.append(engine)

    run(scenario, tmp_path)
    (engine,) = kept
    assert engine.is_exiting
    with pytest.raises(UnavailableError, match=r"^Server not ready$"):
        engine.find_model("m")


def test_stopping_does_not_wait_longer_than_it_may(tmp_path):
    slow = (
        IDENTITY
        + """
    parameters { key: "EXECUTION_PLACE" value { string_value: "thread" } }
    parameters { key: "execute_delay_ms" value { string_value: "300" } }
    """
    )
    add_model(tmp_path, "m", slow)

    async def main():
        loop = asyncio.get_running_loop()
        options = RepositorySettings(model_repositories=(str(tmp_path),))
        loader = ModelLoader(
            options, backend_of, None, time.monotonic_ns, LocalEnvironment(loop, RecordingServices(), 1 << 20)
        )
        engine = Engine(options, loader, time.monotonic_ns, MetricsPage(MetricsSettings(), time.monotonic_ns))
        assert await engine.start() is None
        request = infer(engine)
        assert not await engine.stop(0.01)
        await asyncio.wait_for(request.sink.arrived.wait(), 5)
        assert await engine.stop(5)

    asyncio.run(main())
