"""Versions and their states, with a loader that does what it is told."""

import asyncio
import time
from dataclasses import replace

import pytest

from merrow.core.errors import InternalError, InvalidArgumentError, NotFoundError
from merrow.core.model_config import ModelConfig
from merrow.engine.lifecycle import ModelLifecycle
from merrow.engine.model import Model
from merrow.repository.layout import ModelId
from merrow.repository.plan import Change, ModelPlan

M = ModelId("", "m")


class Driver:
    """Drains when it is told to."""

    is_healthy = True
    instances = ()
    in_flight_count = pending_count = 0

    def __init__(self):
        self.may_drain = asyncio.Event()

    async def drain(self):
        await self.may_drain.wait()

    def run_on(self, instance, requests, now_ns):
        raise AssertionError("there are no warm-up samples")


class Update:
    """Other instances for a version in service."""

    added = passive = removed = ()

    def __init__(self, model):
        self.model = model

    def apply(self):
        return self.model

    async def close(self):
        pass


class Loader:
    """Loads versions at once; those in `failures` fail as often as it says."""

    def __init__(self):
        self.failures = {}
        self.loaded = []
        self.removed = []
        self.released = 0

    def load(self, plan, version):
        self.loaded.append(version)
        if self.failures.get(version, 0) > 0:
            self.failures[version] -= 1
            raise InternalError("boom")
        return Model(
            name=plan.name,
            version=version,
            config=plan.config,
            config_json="",
            labels={},
            is_decoupled=False,
            has_batch_dim=False,
            place=None,
            load_duration_ns=0,
            validator=None,
            driver=Driver(),
            recorder=None,
            warmup_samples=(),
            plan=plan,
        )

    async def change_instances(self, model, plan, run):
        if self.failures.get(model.version, 0) > 0:
            self.failures[model.version] -= 1
            raise InternalError("boom")
        return Update(replace(model, plan=plan))

    def remove_copy(self, directory):
        self.removed.append(directory)

    def release_memory(self):
        self.released += 1


def plan(*versions, namespace="", directory=""):
    return ModelPlan("m", "/m", ModelConfig(name="m"), versions, namespace=namespace, temporary_directory=directory)


def run(scenario, retry_count=0):
    async def main():
        async def run_blocking(function, *arguments):
            return function(*arguments)

        loader = Loader()
        lifecycle = ModelLifecycle(loader, time.monotonic_ns, run_blocking, lambda model, request: None, retry_count)
        await scenario(lifecycle, loader)

    asyncio.run(main())


def states(lifecycle):
    return {number: (status.state, status.reason) for number, status in lifecycle.statuses(M).items()}


async def drain(*models):
    """Let models finish, and everything that follows happen."""
    for model in models:
        model.driver.may_drain.set()
    for _ in range(10):
        await asyncio.sleep(0)


def test_versions_come_into_service_together_and_replace_the_others():
    async def scenario(lifecycle, loader):
        await lifecycle.load(M, plan(1, 2))
        first = lifecycle.ready[("m", 1)]
        assert lifecycle.latest["m"].version == 2
        await lifecycle.load(M, plan(2, 3))
        assert sorted(lifecycle.ready) == [("m", 2), ("m", 3)]
        assert states(lifecycle) == {1: ("UNLOADING", ""), 2: ("READY", ""), 3: ("READY", "")}
        await drain(first)
        assert states(lifecycle)[1] == ("UNAVAILABLE", "unloaded")

    run(scenario)


def test_one_failure_leaves_everything_as_it_was():
    async def scenario(lifecycle, loader):
        await lifecycle.load(M, plan(1))
        serving = lifecycle.latest["m"]
        loader.failures = {1: 1, 3: 1}
        with pytest.raises(InvalidArgumentError) as caught:
            await lifecycle.load(M, plan(1, 2, 3))
        assert caught.value.message == (
            "version 1 is at UNAVAILABLE state: Internal: boom;version 3 is at UNAVAILABLE state: Internal: boom;"
        )
        assert lifecycle.latest["m"] is serving
        assert states(lifecycle) == {
            1: ("READY", ""),
            2: ("UNAVAILABLE", "unloaded"),
            3: ("UNAVAILABLE", "Internal: boom"),
        }

    run(scenario)


def test_a_version_that_is_to_get_other_instances_stays_as_it_is_if_it_cannot():
    async def scenario(lifecycle, loader):
        await lifecycle.load(M, plan(1, 2))
        loader.failures = {2: 1}
        with pytest.raises(InvalidArgumentError) as caught:
            await lifecycle.load(M, plan(1, 2), Change.INSTANCES)
        assert caught.value.message == "version 2 is at READY state: Internal: boom;"
        assert states(lifecycle) == {1: ("READY", ""), 2: ("READY", "Internal: boom")}
        await lifecycle.load(M, plan(1, 2), Change.INSTANCES)
        assert states(lifecycle) == {1: ("READY", ""), 2: ("READY", "")}

    run(scenario)


def test_only_versions_whose_files_changed_are_loaded_again():
    async def scenario(lifecycle, loader):
        await lifecycle.load(M, replace(plan(1, 2), modification_times={"1/f": 1, "2/f": 1}))
        kept = lifecycle.ready[("m", 1)]
        changed = replace(plan(1, 2, 3), modification_times={"1/f": 1, "2/f": 2, "3/f": 1})
        await lifecycle.load(M, changed, Change.INSTANCES)
        assert loader.loaded == [1, 2, 2, 3]
        assert lifecycle.ready[("m", 1)].driver is kept.driver

    run(scenario)


def test_a_temporary_directory_stays_while_instances_that_came_from_it_do():
    async def scenario(lifecycle, loader):
        await lifecycle.load(M, plan(1, directory="/old"))
        await lifecycle.load(M, plan(1, directory="/new"), Change.INSTANCES)
        await lifecycle.load(M, plan(1, directory="/newer"), Change.INSTANCES)
        assert loader.removed == []
        model = lifecycle.latest["m"]
        lifecycle.unload(M)
        await drain(model)
        assert sorted(loader.removed) == ["/new", "/newer", "/old"]

    run(scenario)


def test_a_failed_load_is_tried_again():
    async def scenario(lifecycle, loader):
        loader.failures = {1: 2}
        await lifecycle.load(M, plan(1))
        assert loader.loaded == [1, 1, 1]

    run(scenario, retry_count=2)


def test_a_model_without_versions_is_known_and_no_more():
    async def scenario(lifecycle, loader):
        with pytest.raises(InvalidArgumentError, match="at least one version must be available"):
            await lifecycle.load(M, plan())
        assert lifecycle.is_known(M)
        assert lifecycle.statuses(M) == {}

    run(scenario)


def test_a_name_that_two_namespaces_serve_is_in_no_table():
    async def scenario(lifecycle, loader):
        first, second = ModelId("r1", "m"), ModelId("r2", "m")
        await lifecycle.load(first, plan(1, namespace="r1"))
        assert lifecycle.latest["m"].model_id == first
        await lifecycle.load(second, plan(5, namespace="r2"))
        assert (lifecycle.ready, lifecycle.latest) == ({}, {})
        assert lifecycle.serving_ids("m") == [first, second]
        assert [model.version for model in lifecycle.models()] == [1, 5]
        assert lifecycle.find_composing((second,), "m", -1).version == 5
        with pytest.raises(NotFoundError):
            lifecycle.find_composing((second,), "m", 1)
        lifecycle.unload(first)
        assert lifecycle.latest["m"].version == 5

    run(scenario)


def test_a_temporary_directory_goes_with_the_last_version_that_came_from_it():
    async def scenario(lifecycle, loader):
        await lifecycle.load(M, plan(1, 2, directory="/copy"))
        one, two = lifecycle.models()
        lifecycle.unload(M)
        await drain(one)
        assert loader.removed == []
        await drain(two)
        assert loader.removed == ["/copy"]
        lifecycle.drop_unleased("/unused")
        lifecycle.drop_unleased("")
        lifecycle.release("")
        await drain()
        assert loader.removed == ["/copy", "/unused"]

    run(scenario)


def test_what_is_held_is_not_drained():
    async def scenario(lifecycle, loader):
        await lifecycle.load(M, plan(1))
        model = lifecycle.latest["m"]
        model.hold()
        lifecycle.unload(M)
        await drain(model)
        assert states(lifecycle) == {1: ("UNLOADING", "")}
        model.release()
        await drain()
        assert states(lifecycle) == {1: ("UNAVAILABLE", "unloaded")}

    run(scenario)


def test_memory_is_given_back_when_all_that_was_unloaded_has_gone():
    async def scenario(lifecycle, loader):
        await lifecycle.load(M, plan(1, 2))
        one, two = lifecycle.models()
        lifecycle.unload(M)
        await drain(one)
        assert loader.released == 0
        await drain(two)
        assert loader.released == 1

    run(scenario)


def test_stopping_waits_for_what_is_under_way_and_not_longer():
    async def scenario(lifecycle, loader):
        await lifecycle.load(M, plan(1))
        model = lifecycle.latest["m"]
        assert not await lifecycle.stop(0)
        assert lifecycle.ready == {}
        model.driver.may_drain.set()
        assert await lifecycle.stop(1)
        with pytest.raises(InvalidArgumentError, match="Server exiting"):
            await lifecycle.load(M, plan(1))

    run(scenario)
