"""What is loaded when: control modes, ensembles, namespaces, overrides, over real directories."""

import asyncio
import json
import os
import shutil
import time
from collections import Counter

import pytest

from merrow.backends.identity import IdentityBackend
from merrow.backends.registry import backend_of
from merrow.core.errors import InternalError, InvalidArgumentError, NotFoundError
from merrow.engine.engine import Engine, IndexEntry
from merrow.engine.loader import ModelLoader
from merrow.observe.metrics_page import MetricsPage
from merrow.places.local_host import LocalEnvironment
from merrow.settings import MetricsSettings, ModelControlMode, RepositorySettings
from tests.places.recording_services import RecordingServices

CONFIG = """
backend: "identity"
max_batch_size: %d
input { name: "IN" data_type: TYPE_FP32 dims: 2 }
output { name: "OUT" data_type: TYPE_FP32 dims: 2 }
%s
"""

CHAIN = """
platform: "ensemble"
max_batch_size: 4
input { name: "IN" data_type: TYPE_FP32 dims: 2 }
output { name: "OUT" data_type: TYPE_FP32 dims: 2 }
ensemble_scheduling { step {
  model_name: "%s" model_version: -1
  input_map { key: "IN" value: "IN" } output_map { key: "OUT" value: "OUT" } } }
"""

OVERRIDE = json.dumps(
    {
        "backend": "identity",
        "max_batch_size": 2,
        "input": [{"name": "IN", "data_type": "TYPE_FP32", "dims": ["2"]}],
        "output": [{"name": "OUT", "data_type": "TYPE_FP32", "dims": ["2"]}],
    }
)


def add_model(repository, name, extra="", max_batch_size=4, versions=(1,)):
    for version in versions:
        (repository / name / str(version)).mkdir(parents=True, exist_ok=True)
    write_config(repository, name, CONFIG % (max_batch_size, extra))


def add_chain(repository, name, model):
    (repository / name / "1").mkdir(parents=True, exist_ok=True)
    write_config(repository, name, CHAIN % model)


def write_config(repository, name, text):
    """Write a configuration that is newer than the one before, however coarse the clock of the disk is."""
    path = repository / name / "config.pbtxt"
    path.parent.mkdir(parents=True, exist_ok=True)
    before = path.stat().st_mtime_ns if path.exists() else 0
    path.write_text(text)
    later = max(before + 10**7, path.stat().st_mtime_ns)
    os.utime(path, ns=(later, later))


def run(
    scenario,
    *repositories,
    mode=ModelControlMode.EXPLICIT,
    loader_options=None,
    make_backend=backend_of,
    **settings,
):
    """Run `scenario(engine, started)` against an engine over these repositories."""

    async def main():
        loop = asyncio.get_running_loop()
        options = RepositorySettings(
            model_repositories=tuple(map(str, repositories)),
            model_control_mode=mode,
            repository_poll_seconds=3600,
            **settings,
        )
        environment = LocalEnvironment(loop, RecordingServices(), 1 << 20)
        loader = ModelLoader(options, make_backend, None, time.monotonic_ns, environment, **(loader_options or {}))
        engine = Engine(options, loader, time.monotonic_ns, MetricsPage(MetricsSettings(), time.monotonic_ns))
        started = await engine.start() is None
        try:
            await scenario(engine, started)
        finally:
            assert await engine.stop(5)

    asyncio.run(main())


def states(engine):
    return {entry.name: entry.state for entry in engine.repository_index(False)}


async def settle(engine):
    """Wait until nothing is being unloaded."""
    await asyncio.gather(*engine._lifecycle._retiring)


async def refusal(awaitable):
    with pytest.raises((InternalError, InvalidArgumentError)) as caught:
        await awaitable
    return caught.value.message


def test_without_names_explicit_mode_loads_nothing(tmp_path):
    add_model(tmp_path, "a")

    async def scenario(engine, started):
        assert started
        assert states(engine) == {"a": ""}

    run(scenario, tmp_path)


def test_start_up_models_bring_what_they_are_made_of(tmp_path):
    for name in "abc":
        add_model(tmp_path, name)
    add_chain(tmp_path, "chain", "b")

    async def scenario(engine, started):
        assert started
        assert states(engine) == {"a": "READY", "b": "READY", "c": "", "chain": "READY"}

    run(scenario, tmp_path, load_models=("a", "chain"))


def test_a_start_up_model_that_is_not_there_is_a_failure(tmp_path):
    add_model(tmp_path, "a")

    async def scenario(engine, started):
        assert not started
        assert states(engine) == {"a": "READY"}

    run(scenario, tmp_path, load_models=("a", "nowhere"))


def test_ensembles_come_after_their_models_at_the_start_too(tmp_path):
    add_chain(tmp_path, "a_first_by_name", "b_chain")
    add_chain(tmp_path, "b_chain", "c")
    add_model(tmp_path, "c")
    add_chain(tmp_path, "broken", "nobody")

    async def scenario(engine, started):
        assert not started
        assert states(engine) == {"a_first_by_name": "READY", "b_chain": "READY", "broken": "", "c": "READY"}
        # As with Triton, what was never tried does not count against the server.
        assert engine.is_ready()
        assert engine.load_failures() == {
            "broken": "ensemble broken contains models that are not available or ambiguous: nobody"
        }

    run(scenario, tmp_path, mode=ModelControlMode.NONE)


def test_a_directory_without_versions_is_known_and_keeps_the_server_unready(tmp_path):
    add_model(tmp_path, "m", versions=())

    async def scenario(engine, started):
        assert not started
        assert engine.repository_index(False) == []
        assert not engine.is_ready()
        with pytest.raises(NotFoundError, match="'m' has no available versions"):
            engine.find_model("m")
        with pytest.raises(NotFoundError, match="'m' version 1 is not found"):
            engine.find_model("m", 1)

    run(scenario, tmp_path, mode=ModelControlMode.NONE)


def test_a_reload_below_reloads_the_ensembles_above(tmp_path):
    add_model(tmp_path, "m")
    add_chain(tmp_path, "lower", "m")
    add_chain(tmp_path, "upper", "lower")

    async def scenario(engine, started):
        before = {name: engine.find_model(name) for name in ("m", "lower", "upper")}
        add_model(tmp_path, "m", max_batch_size=8)
        await engine.load_model("m")
        assert all(engine.find_model(name) is not model for name, model in before.items())
        # A change that does not suit them takes them out of service, until one comes that does.
        add_model(tmp_path, "m", max_batch_size=2)
        await engine.load_model("m")
        await settle(engine)
        assert states(engine) == {"m": "READY", "lower": "UNAVAILABLE", "upper": "UNAVAILABLE"}
        assert "which is not valid" in engine.load_failures()["upper"]
        add_model(tmp_path, "m", max_batch_size=4)
        await engine.load_model("m")
        assert set(states(engine).values()) == {"READY"}
        assert engine.load_failures() == {}

    run(scenario, tmp_path, load_models=("upper",))


def test_a_failed_reload_below_leaves_all_in_service(tmp_path):
    add_model(tmp_path, "m")
    add_chain(tmp_path, "chain", "m")

    async def scenario(engine, started):
        write_config(tmp_path, "m", (CONFIG % (4, "")).replace("dims: 2 }", "dims: 3 }", 1))
        assert "version 1 is at UNAVAILABLE state: " in await refusal(engine.load_model("m"))
        assert set(states(engine).values()) == {"READY"}
        assert engine.is_ready()

    run(scenario, tmp_path, load_models=("chain",))


def test_unloading_a_model_that_is_in_use_takes_its_users_along(tmp_path):
    add_model(tmp_path, "m")
    add_chain(tmp_path, "chain", "m")

    async def scenario(engine, started):
        await engine.unload_model("m")
        await settle(engine)
        assert set(states(engine).values()) == {"UNAVAILABLE"}
        assert engine.is_ready()
        await engine.load_model("m")
        assert set(states(engine).values()) == {"READY"}

    run(scenario, tmp_path, load_models=("chain",))


def test_unload_dependents_spares_what_others_use_or_asked_for(tmp_path):
    for name in ("alone", "shared", "named"):
        add_model(tmp_path, name)
    for name, model in (("x", "alone"), ("y", "shared"), ("z", "shared"), ("w", "named")):
        add_chain(tmp_path, name, model)

    async def scenario(engine, started):
        for name in ("x", "y", "w"):
            await engine.unload_model(name, unload_dependents=True)
        await settle(engine)
        assert {name for name, state in states(engine).items() if state == "READY"} == {"named", "shared", "z"}
        await engine.unload_model("z", unload_dependents=True)
        await settle(engine)
        assert states(engine)["shared"] == "UNAVAILABLE"

    run(scenario, tmp_path, load_models=("w", "x", "y", "z", "named"))


def test_polling_follows_what_was_added_changed_and_removed(tmp_path):
    add_model(tmp_path, "stays")
    add_model(tmp_path, "goes")
    add_chain(tmp_path, "chain", "goes")

    async def scenario(engine, started):
        poll = engine._control.poll
        kept = engine.find_model("stays")
        await poll()
        assert engine.find_model("stays") is kept
        add_model(tmp_path, "comes")
        add_model(tmp_path, "stays", max_batch_size=8)
        shutil.rmtree(tmp_path / "goes")
        await poll()
        await settle(engine)
        assert states(engine) == {"chain": "UNAVAILABLE", "comes": "READY", "stays": "READY"}
        assert engine.find_model("stays").config.max_batch_size == 8
        with pytest.raises(NotFoundError, match="'goes' has no available versions"):
            engine.find_model("goes")
        add_model(tmp_path, "goes")
        await poll()
        assert states(engine)["chain"] == "READY"

    run(scenario, tmp_path, mode=ModelControlMode.POLL)


def test_polling_keeps_what_serves_while_its_directory_cannot_be_loaded(tmp_path, caplog):
    add_model(tmp_path, "m")

    async def scenario(engine, started):
        poll = engine._control.poll
        write_config(tmp_path, "m", "nonsense: 1")
        await poll()
        await poll()
        assert engine.find_model("m")
        # Said once, not with each poll.
        assert caplog.text.count("Poll failed for model directory 'm'") == 1
        # What can be read and not loaded is tried each time.
        write_config(tmp_path, "m", (CONFIG % (4, "")).replace("dims: 2 }", "dims: 3 }", 1))
        await poll()
        await poll()
        assert caplog.text.count("failed to load 'm' version 1") == 2
        add_model(tmp_path, "m", max_batch_size=3)
        await poll()
        assert engine.find_model("m").config.max_batch_size == 3

    run(scenario, tmp_path, mode=ModelControlMode.POLL)


def test_polling_loads_a_model_when_its_double_is_gone(tmp_path):
    for repository in ("r1", "r2"):
        add_model(tmp_path / repository, "m")

    async def scenario(engine, started):
        assert not started
        entry = IndexEntry("m", None, "UNAVAILABLE", "model appears in two or more repositories")
        assert await engine.fresh_repository_index(False) == [entry]
        assert await engine.fresh_repository_index(True) == []
        shutil.rmtree(tmp_path / "r2" / "m")
        await engine._control.poll()
        assert states(engine) == {"m": "READY"}

    run(scenario, tmp_path / "r1", tmp_path / "r2", mode=ModelControlMode.POLL)


def test_polling_takes_a_model_out_of_service_that_a_second_repository_has(tmp_path):
    add_model(tmp_path / "r1", "m")
    add_chain(tmp_path / "r1", "chain", "m")
    (tmp_path / "r2").mkdir()

    async def scenario(engine, started):
        add_model(tmp_path / "r2", "m")
        await engine._control.poll()
        await settle(engine)
        assert engine.repository_index(False) == [
            IndexEntry("chain", 1, "UNAVAILABLE", "unloaded"),
            IndexEntry("m", None, "UNAVAILABLE", "model appears in two or more repositories"),
        ]
        with pytest.raises(NotFoundError):
            engine.find_model("m")
        shutil.rmtree(tmp_path / "r1" / "m")
        await engine._control.poll()
        assert states(engine) == {"chain": "READY", "m": "READY"}

    run(scenario, tmp_path / "r1", tmp_path / "r2", mode=ModelControlMode.POLL)


def test_a_repository_that_is_away_does_not_hide_what_serves(tmp_path):
    add_model(tmp_path / "models", "m")

    async def scenario(engine, started):
        (tmp_path / "models").rename(tmp_path / "away")
        assert await engine.fresh_repository_index(False) == [IndexEntry("m", 1, "READY", "")]
        with pytest.raises(InternalError):
            await engine._control.poll()
        assert engine.find_model("m")

    run(scenario, tmp_path / "models", mode=ModelControlMode.POLL)


def test_the_index_shows_directories_that_came_since(tmp_path):
    add_model(tmp_path, "m")

    async def scenario(engine, started):
        add_model(tmp_path, "new")
        assert await engine.fresh_repository_index(False) == [
            IndexEntry("m", 1, "READY", ""),
            IndexEntry("new", None, "", ""),
        ]

    run(scenario, tmp_path, load_models=("m",))


def test_the_index_is_read_once_for_all_who_ask_at_the_same_time(tmp_path, monkeypatch):
    add_model(tmp_path, "m")

    async def scenario(engine, started):
        reader = engine._loader.reader
        read, count = reader.list_models, []
        monkeypatch.setattr(reader, "list_models", lambda: count.append(1) or read())
        indexes = await asyncio.gather(*(engine.fresh_repository_index(False) for _ in range(5)))
        assert indexes == [[IndexEntry("m", None, "", "")]] * 5
        assert len(count) == 1
        await engine.fresh_repository_index(False)
        assert len(count) == 2

    run(scenario, tmp_path)


def test_other_instances_are_added_to_a_model_in_service(tmp_path):
    add_model(tmp_path, "m", "instance_group { count: 1 kind: KIND_CPU }")

    async def scenario(engine, started):
        before = engine.find_model("m")
        (kept,) = before.driver.instances
        add_model(tmp_path, "m", "instance_group { count: 3 kind: KIND_CPU }")
        await engine.load_model("m")
        model = engine.find_model("m")
        assert model.driver is before.driver
        assert model.driver.instances[0] is kept
        assert len(model.driver.instances) == 3
        assert model.config.instance_group[0].count == 3
        assert json.loads(model.config_json)["instance_group"][0]["count"] == 3
        add_model(tmp_path, "m", 'instance_group { name: "other" count: 1 kind: KIND_CPU }')
        await engine.load_model("m")
        # The others leave in tasks of their own, which nothing announces.
        while engine.find_model("m").driver.instances != [kept]:  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert states(engine) == {"m": "READY"}

    run(scenario, tmp_path, load_models=("m",))


def test_instances_that_are_added_are_made_by_who_made_the_first(tmp_path):
    # They may share something: a session of a runtime.
    add_model(tmp_path, "m", "instance_group { count: 1 kind: KIND_CPU }")
    made = []

    def make_backend(name):
        made.append(backend_of(name))
        return made[-1]

    async def scenario(engine, started):
        add_model(tmp_path, "m", "instance_group { count: 3 kind: KIND_CPU }")
        await engine.load_model("m")
        assert len(engine.find_model("m").driver.instances) == 3
        assert len(made) == 1

    run(scenario, tmp_path, load_models=("m",), make_backend=make_backend)


def test_other_instances_may_have_another_limit_of_batches_at_once(tmp_path):
    add_model(tmp_path, "m", "instance_group { count: 1 kind: KIND_CPU }")

    class Backend(IdentityBackend):
        def batch_limit(self, config):
            return config.instance_group[0].count + 10

    async def scenario(engine, started):
        assert engine.find_model("m").driver.batch_limit == 11
        add_model(tmp_path, "m", "instance_group { count: 3 kind: KIND_CPU }")
        await engine.load_model("m")
        assert len(engine.find_model("m").driver.instances) == 3
        assert engine.find_model("m").driver.batch_limit == 13

    run(scenario, tmp_path, load_models=("m",), make_backend=lambda name: Backend())


def test_instances_that_were_started_for_nothing_are_closed_passive_ones_too(tmp_path):
    both_versions = "version_policy { all {} } instance_group { count: 1 kind: KIND_CPU }"
    add_model(tmp_path, "m", both_versions, versions=(1, 2))
    backends = []
    running = Counter()

    class Backend(IdentityBackend):
        refuses = False

        def create_instance(self, context, instance, host):
            if self.refuses:
                raise InternalError("no more")
            running[context.version] += 1
            made = super().create_instance(context, instance, host)
            made.close = lambda: running.subtract({context.version: 1})
            return made

    def make_backend(name):
        backends.append(Backend())
        return backends[-1]

    async def scenario(engine, started):
        assert running == {1: 1, 2: 1}
        engine._loader._backends[engine.find_model("m", 2).driver].refuses = True
        more = "instance_group { count: 1 kind: KIND_CPU passive: true } instance_group { count: 1 kind: KIND_MODEL }"
        add_model(tmp_path, "m", both_versions + more)
        assert "no more" in await refusal(engine.load_model("m"))
        assert running == {1: 1, 2: 1}

    run(scenario, tmp_path, load_models=("m",), make_backend=make_backend)


def test_instances_that_cannot_be_added_leave_the_others_for_the_next_load(tmp_path):
    add_model(tmp_path, "m", "instance_group { count: 1 kind: KIND_CPU }")

    async def scenario(engine, started):
        before = engine.find_model("m")
        add_model(tmp_path, "m", "instance_group { count: 1 kind: KIND_GPU }")
        text = (
            "version 1 is at READY state: Invalid argument: instance group m_0 of model m has kind KIND_GPU but no "
            "GPUs are available;"
        )
        assert await refusal(engine.load_model("m")) == f"load failed for model 'm': {text}\n"
        assert [f"version 1 is at READY state: {entry.reason};" for entry in engine.repository_index(False)] == [text]
        add_model(tmp_path, "m", "instance_group { count: 2 kind: KIND_CPU }")
        await engine.load_model("m")
        assert engine.find_model("m").driver is before.driver
        assert [entry.reason for entry in engine.repository_index(False)] == [""]

    run(scenario, tmp_path, load_models=("m",))


def test_a_version_that_comes_or_changes_leaves_the_others_as_they_are(tmp_path):
    add_model(tmp_path, "m", "version_policy { all {} }")

    async def scenario(engine, started):
        kept = engine.find_model("m", 1)
        add_model(tmp_path, "m", "version_policy { all {} }", versions=(2,))
        await engine.load_model("m")
        assert engine.ready_versions("m") == [1, 2]
        second = engine.find_model("m", 2)
        (tmp_path / "m" / "2" / "file").write_text("x")
        await engine.load_model("m")
        assert engine.find_model("m", 1).driver is kept.driver
        assert engine.find_model("m", 2).driver is not second.driver

    run(scenario, tmp_path, load_models=("m",))


def test_versions_are_added_and_taken_away_beside_those_that_stay(tmp_path):
    add_model(tmp_path, "m", versions=(1, 2))

    async def scenario(engine, started):
        kept = engine.find_model("m", 2)
        add_model(tmp_path, "m", "version_policy { all {} }")
        await engine.load_model("m")
        assert engine.ready_versions("m") == [1, 2]
        assert engine.find_model("m", 2).driver is kept.driver
        add_model(tmp_path, "m", "version_policy { specific { versions: 1 } }")
        await engine.load_model("m")
        assert engine.ready_versions("m") == [1]

    run(scenario, tmp_path, load_models=("m",))


def test_another_runtime_than_the_backends_own_is_refused(tmp_path):
    add_model(tmp_path, "m", 'runtime: "libtriton_identity.so"')
    add_model(tmp_path, "other", 'runtime: "model.py"')

    async def scenario(engine, started):
        await engine.load_model("m")
        assert await refusal(engine.load_model("other")) == (
            "load failed for model 'other': version 1 is at UNAVAILABLE state: Invalid argument: unable to find "
            "backend library 'model.py' for model 'other', searched: the backend that is built in "
            "('libtriton_identity.so');\n"
        )

    run(scenario, tmp_path)


def test_one_bad_version_fails_them_all(tmp_path):
    add_model(
        tmp_path, "m", 'version_policy { all {} } parameters { key: "EXECUTION_PLACE" value { string_value: "x" } }'
    )
    (tmp_path / "m" / "2").mkdir()

    async def scenario(engine, started):
        message = await refusal(engine.load_model("m"))
        assert message.startswith("load failed for model 'm': version 1 is at UNAVAILABLE state: ")
        assert ";version 2 is at UNAVAILABLE state: " in message
        assert message.endswith(";\n")
        assert [entry.version for entry in engine.repository_index(False)] == [1, 2]

    run(scenario, tmp_path)


def test_the_same_name_in_two_namespaces(tmp_path):
    first, second = tmp_path / "r1", tmp_path / "r2"
    add_model(first, "m")
    add_model(second, "m", max_batch_size=2)
    add_chain(first, "chain", "m")
    add_model(second, "only")

    async def scenario(engine, started):
        await engine.load_model("chain")
        await engine.load_model("only")
        # While only one of them is loaded, the name is enough.
        assert engine.find_model("m").config.max_batch_size == 4
        await engine.load_model("m")
        with pytest.raises(InvalidArgumentError) as caught:
            engine.find_model("m")
        assert caught.value.message == (
            "There are 2 identifiers of model 'm' in global map, model namespace must be provided to resolve ambiguity."
        )
        assert [model.name for model in engine.models()] == ["chain", "m", "m", "only"]
        assert [entry.name for entry in engine.repository_index(False)] == ["chain", "m", "m", "only"]
        (step,) = engine.find_model("chain").config.ensemble_scheduling.step
        assert step.model_namespace == str(first)
        await engine.unload_model("m")
        await settle(engine)
        assert states(engine) == {"chain": "UNAVAILABLE", "m": "UNAVAILABLE", "only": "READY"}

    run(scenario, first, second, model_namespacing=True)


def test_files_of_a_load_are_kept_while_the_model_is_served(tmp_path, monkeypatch):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    add_model(tmp_path / "models", "m")

    async def scenario(engine, started):
        await engine.load_model("new", config=OVERRIDE, files={"2/data": b"x"})
        model = engine.find_model("new")
        assert model.version == 2
        assert os.listdir(f"{model.plan.directory}/2") == ["data"]
        assert await engine.fresh_repository_index(False) == [IndexEntry("m", None, "", "")]
        # Each load makes it anew; a plain one finds nothing.
        await engine.load_model("new", config=OVERRIDE, files={"3/data": b"x"})
        assert engine.ready_versions("new") == [3]
        assert await refusal(engine.load_model("new")) == "failed to load 'new', failed to poll from model repository"
        assert engine.ready_versions("new") == [3]
        for wrong in (
            {"config": None, "files": {"1/x": b""}},
            {"config": "{", "files": {"1/x": b""}},
            {"config": OVERRIDE, "files": {"../x": b""}},
        ):
            assert "failed to poll" in await refusal(engine.load_model("new", **wrong))
        await engine.unload_model("new")

    run(scenario, tmp_path / "models")
    assert list(temporary.iterdir()) == []


def test_a_plain_load_after_files_reads_the_repository_again(tmp_path):
    add_model(tmp_path, "m")

    async def scenario(engine, started):
        await engine.load_model("m", config=OVERRIDE, files={"3/data": b"x"})
        await engine.load_model("m")
        assert engine.ready_versions("m") == [1]
        assert engine.find_model("m").config.max_batch_size == 4

    run(scenario, tmp_path, load_models=("m",))


def test_loads_of_one_model_wait_for_one_another(tmp_path):
    add_model(tmp_path, "m")
    add_chain(tmp_path, "chain", "m")

    async def scenario(engine, started):
        await asyncio.gather(
            *(engine.load_model("m") for _ in range(3)),
            *(engine.load_model("chain") for _ in range(3)),
            engine.unload_model("m"),
            engine.load_model("chain"),
        )
        assert set(states(engine).values()) == {"READY"}
        assert not engine._control._busy

    run(scenario, tmp_path)


def test_a_failed_load_is_tried_again_as_often_as_told(tmp_path, caplog):
    add_model(tmp_path, "m", 'parameters { key: "EXECUTION_PLACE" value { string_value: "x" } }')

    async def scenario(engine, started):
        assert not started
        assert caplog.text.count("loading 'm' version 1 again") == 2

    run(scenario, tmp_path, mode=ModelControlMode.NONE, model_load_retry_count=2)


@pytest.mark.parametrize(("used", "is_loaded"), [(0.4, True), (0.6, False), (None, True)])
def test_nothing_is_loaded_onto_a_gpu_that_is_full(tmp_path, used, is_loaded):
    add_model(tmp_path, "m", "instance_group { kind: KIND_GPU gpus: 1 }")

    async def scenario(engine, started):
        assert started is is_loaded
        if not is_loaded:
            (entry,) = engine.repository_index(False)
            assert entry.reason == (
                "Unavailable: can not create model 'm': memory limit set for KIND_GPU 1 has exceeded, model loading is "
                "rejected."
            )

    run(
        scenario,
        tmp_path,
        mode=ModelControlMode.NONE,
        model_load_gpu_limits={1: 0.5},
        loader_options={"gpu_ids": (0, 1), "device_memory_use": lambda device_id: used},
    )


def test_stopping_while_models_load_leaves_none(tmp_path):
    for number in range(8):
        add_model(tmp_path, f"m{number}")

    async def scenario(engine, started):
        loads = asyncio.gather(*(engine.load_model(f"m{number}") for number in range(8)), return_exceptions=True)
        await asyncio.sleep(0)
        assert await engine.stop(5)
        await loads
        assert engine.models() == []

    run(scenario, tmp_path)
