"""The versions of every model, from being loaded to being released.

A model version is in one of Triton's states:

    LOADING      being loaded, off the loop's thread
    READY        serves requests
    UNLOADING    serves what it accepted, takes nothing new
    UNAVAILABLE  failed to load (with the reason), or was unloaded (reason "unloaded")

All versions that a plan selects are published in one step, or none is; the ones they replace are retired in the same
step, so that no request sees a gap. A version that failed to load leaves what served before in service.

Tables are touched on the loop's thread only. What the versions are loaded from may be a temporary directory; it is
removed with the last version that came from it.

Source: Triton, model_lifecycle.cc.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Coroutine, Sequence
from functools import partial
from typing import Any

from merrow.core.clock import Clock
from merrow.core.errors import InvalidArgumentError, NotFoundError, ServerError, UnavailableError
from merrow.engine.ensemble import Submit
from merrow.engine.loader import InstanceUpdate, ModelLoader, RunBlocking
from merrow.engine.model import Model
from merrow.repository.ensemble import LATEST, composing_models
from merrow.repository.layout import ModelId
from merrow.repository.plan import Change, ModelPlan, has_version_changed
from merrow.repository.version_policy import no_version_error

_LOG = logging.getLogger("merrow.engine")

UNLOADED = "unloaded"
"""The reason of a version that was unloaded on purpose."""


class VersionStatus:
    """A version of a model: its state, why, and the model while it is READY."""

    __slots__ = ("model", "reason", "state")

    def __init__(self, state: str, reason: str = "", model: Model | None = None) -> None:
        self.state = state
        self.reason = reason
        self.model = model


class ModelLifecycle:
    """See the module.

    `ready` and `latest` are the request path's tables: versions in service by name, and the largest of each model. A
    name that several namespaces serve is in neither.

    Args:
        submit: how an ensemble's requests get to its models.
        retry_count: how often a failed load of a version is tried again.
    """

    def __init__(self, loader: ModelLoader, clock: Clock, run: RunBlocking, submit: Submit, retry_count: int) -> None:
        self._loader = loader
        self._clock = clock
        self._run = run
        self._submit = submit
        self._retry_count = retry_count
        self.ready: dict[tuple[str, int], Model] = {}
        self.latest: dict[str, Model] = {}
        self._serving: dict[ModelId, dict[int, Model]] = {}
        self._versions: dict[ModelId, dict[int, VersionStatus]] = {}
        # Loads under way, for the log: begun and done since the last time that there were none.
        self._begun = 0
        self._done = 0
        self._retiring: set[asyncio.Task[None]] = set()
        # Whether something was released since memory was last given back.
        self._is_untidy = False
        self._tidying: asyncio.Task[None] | None = None
        self._leases: Counter[str] = Counter()
        # Temporary directories that a version has instances from, besides that of its plan.
        self._older_directories: dict[Model, tuple[str, ...]] = {}
        self._removals: set[asyncio.Task[None]] = set()
        self._is_stopping = False

    # What there is.

    def is_known(self, model_id: ModelId) -> bool:
        """Whether the model was ever loaded, or tried to be."""
        return model_id in self._versions

    def known_ids(self) -> list[ModelId]:
        return sorted(self._versions)

    def ids_of(self, name: str) -> list[ModelId]:
        """The models of a name that were ever loaded, or tried to be; several only with namespaces."""
        return sorted(model_id for model_id in self._versions if model_id.name == name)

    def serving_ids(self, name: str) -> list[ModelId]:
        """The models of a name that are in service."""
        return sorted(model_id for model_id in self._serving if model_id.name == name)

    def statuses(self, model_id: ModelId) -> dict[int, VersionStatus]:
        """The versions of a model by number, ascending."""
        return dict(sorted(self._versions.get(model_id, {}).items()))

    def serving(self, model_id: ModelId) -> dict[int, Model]:
        """A model's versions in service."""
        return self._serving.get(model_id, {})

    def models(self) -> list[Model]:
        """Every version in service, by name, namespace and version."""
        ids = sorted(self._serving, key=lambda model_id: (model_id.name, model_id.namespace))
        return [model for model_id in ids for _, model in sorted(self._serving[model_id].items())]

    def find_composing(self, composing: Sequence[ModelId], name: str, version: int) -> Model:
        """What an ensemble that is made of these models means by a name and a version; -1 is the largest.

        Raises:
            NotFoundError: it is not in service.
        """
        for model_id in composing:
            if model_id.name == name:
                serving = self.serving(model_id)
                model = serving.get(max(serving, default=-1) if version == LATEST else version)
                if model is not None:
                    return model
        raise NotFoundError(f"Request for unknown model: '{name}' has no available versions")

    # Loading.

    async def load(self, model_id: ModelId, plan: ModelPlan, change: Change = Change.RELOAD) -> None:
        """Load every version of a plan; all are published together, or none.

        Args:
            change: with `INSTANCES`, versions in service whose files are the same stay, and get the plan's instance
                groups.

        Raises:
            InvalidArgumentError: what failed, version by version, as the load API answers after its prefix.
        """
        versions = self._versions.setdefault(model_id, {})
        if not plan.versions:
            nothing = no_version_error(plan.name)
            _LOG.error("failed to load '%s': %s", model_id, nothing.message)
            if not self.serving(model_id):
                # Nothing of it was or can be served: that keeps the server unready until another load.
                versions.clear()
            raise nothing
        serving = self.serving(model_id)
        kept = [
            number
            for number in plan.versions
            if change is Change.INSTANCES
            and number in serving
            and not has_version_changed(serving[number].plan, plan, number)
        ]
        numbers = [number for number in plan.versions if number not in kept]
        for number in numbers:
            if number not in serving:
                versions[number] = VersionStatus("LOADING")
        loads: list[Coroutine[Any, Any, Model | InstanceUpdate]] = [
            *(self._load_version(model_id, plan, number) for number in numbers),
            *(self._loader.change_instances(serving[number], plan, self._run) for number in kept),
        ]
        results = await asyncio.gather(*loads, return_exceptions=True)
        if self._is_stopping or any(isinstance(result, BaseException) for result in results):
            error = UnavailableError("Server exiting") if self._is_stopping else None
            failures = [await self._discard(result, error) for result in results]
            raise self._load_failure(model_id, plan.name, [*numbers, *kept], failures, kept)
        self._publish(model_id, results)

    def unload(self, model_id: ModelId) -> None:
        """Take all versions of a model out of service; they finish in the background. Unknown models are fine."""
        for number in list(self.serving(model_id)):
            self._withdraw(model_id, number)
        self._refresh(model_id.name)

    async def stop(self, timeout_seconds: float) -> bool:
        """Withdraw everything, and wait for it to be released; False if the time ran out first."""
        self._is_stopping = True
        for model_id in list(self._serving):
            self.unload(model_id)
        self.ready.clear()
        self.latest.clear()
        if not self._retiring:
            return True
        _LOG.info("waiting for %d models to finish their requests", len(self._retiring))
        _, late = await asyncio.wait(self._retiring, timeout=timeout_seconds)
        return not late

    async def wait_for_retirements(self, timeout_seconds: float) -> bool:
        """Wait until versions that are out of service by now are released; False if the time ran out first."""
        if not self._retiring:
            return True
        _, late = await asyncio.wait(set(self._retiring), timeout=timeout_seconds)
        return not late

    async def wait_for_removals(self, timeout_seconds: float) -> None:
        """Wait until what was released is cleaned up, temporary directories above all."""
        cleaning = self._removals | ({self._tidying} if self._tidying is not None else set())
        if cleaning:
            await asyncio.wait(cleaning, timeout=timeout_seconds)

    # Temporary directories.

    def lease(self, directory: str) -> None:
        """Keep a temporary directory; each call needs one of `release`. "" is none."""
        if directory:
            self._leases[directory] += 1

    def release(self, directory: str) -> None:
        """Remove a temporary directory if this was the last that needed it."""
        if not directory:
            return
        self._leases[directory] -= 1
        if not self._leases[directory]:
            del self._leases[directory]
            task = asyncio.ensure_future(self._remove(directory))
            self._removals.add(task)
            task.add_done_callback(self._removals.discard)

    def drop_unleased(self, directory: str) -> None:
        """Remove a temporary directory that nobody keeps; "" is none."""
        if directory and directory not in self._leases:
            self.lease(directory)
            self.release(directory)

    async def _remove(self, directory: str) -> None:
        await self._run(self._loader.remove_copy, directory)

    # One version.

    async def _load_version(self, model_id: ModelId, plan: ModelPlan, number: int) -> Model:
        _LOG.info("loading: %s:%d", model_id, number)
        if self._done == self._begun:
            self._done = self._begun = 0
        self._begun += 1
        try:
            for attempt in range(self._retry_count, 0, -1):
                try:
                    return await self._load_once(plan, number)
                except Exception as error:
                    if self._is_stopping:
                        raise
                    reason = error.describe() if isinstance(error, ServerError) else repr(error)
                    _LOG.warning(
                        "loading '%s' version %d again, %d times at most: %s", model_id, number, attempt, reason
                    )
            return await self._load_once(plan, number)
        finally:
            self._done += 1

    async def _load_once(self, plan: ModelPlan, number: int) -> Model:
        if plan.config.is_ensemble:
            return self._load_ensemble(plan, number)
        model: Model = await self._run(self._loader.load, plan, number)
        try:
            await model.warm_up(self._clock)
        except BaseException:
            await model.close()
            raise
        return model

    def _load_ensemble(self, plan: ModelPlan, number: int) -> Model:
        """An ensemble is loaded after its models, whose configurations it is checked against once more."""
        find = partial(self.find_composing, plan.composing)
        configs = {key: find(*key).config for key in composing_models(plan.config)}
        return self._loader.load_ensemble(plan, number, configs, find, self._submit)

    async def _discard(
        self, result: Model | InstanceUpdate | BaseException, error: ServerError | None
    ) -> BaseException | None:
        """Undo what was loaded for nothing; what failed is kept."""
        if isinstance(result, BaseException):
            return result
        await result.close()
        return error

    def _publish(self, model_id: ModelId, results: Sequence[Model | InstanceUpdate | BaseException]) -> None:
        versions, serving = self._versions[model_id], self._serving.setdefault(model_id, {})
        published: set[int] = set()
        for result in results:
            assert not isinstance(result, BaseException)
            model = result if isinstance(result, Model) else result.apply()
            published.add(model.version)
            replaced = serving.get(model.version)
            serving[model.version] = model
            versions[model.version] = VersionStatus("READY", model=model)
            self.lease(model.plan.temporary_directory)
            if isinstance(result, Model):
                _LOG.info(
                    "successfully loaded '%s' version %d in %.2f s%s",
                    model_id,
                    model.version,
                    model.load_duration_ns / 1e9,
                    self._progress(),
                )
                if replaced is not None:
                    self._retire(self._finish(replaced))
                continue
            assert replaced is not None
            # Instances that stay were made from the files of then.
            older = self._older_directories.pop(replaced, ())
            self._older_directories[model] = (*older, replaced.plan.temporary_directory)
            for instance in result.removed:
                self._retire(result.driver.close_instance(instance))
            if result.added or result.passive or result.removed:
                _LOG.info("changed the instances of '%s' version %d", model_id, model.version)
        for number in [number for number in serving if number not in published]:
            self._withdraw(model_id, number)
        self._refresh(model_id.name)

    def _progress(self) -> str:
        """How many of the loads that are under way together are done; nothing to say of one alone."""
        return f" ({self._done} of {self._begun})" if self._begun > 1 else ""

    def _load_failure(
        self,
        model_id: ModelId,
        name: str,
        numbers: Sequence[int],
        failures: Sequence[BaseException | None],
        kept: Sequence[int],
    ) -> InvalidArgumentError:
        versions = self._versions[model_id]
        clauses = []
        for number, failure in sorted(zip(numbers, failures, strict=True), key=lambda pair: pair[0]):
            status = versions[number]
            if failure is None:
                # It would have loaded, alone; it was, and is gone again.
                if status.model is None:
                    versions[number] = VersionStatus("UNAVAILABLE", UNLOADED)
                continue
            if isinstance(failure, ServerError):
                reason = failure.describe()
            elif isinstance(failure, Exception):
                _LOG.error("loading '%s' version %d failed", name, number, exc_info=failure)
                reason = f"Internal: {type(failure).__name__}: {failure}"
            else:
                raise failure
            _LOG.error("failed to load '%s' version %d: %s", model_id, number, reason)
            if status.model is None:
                versions[number] = VersionStatus("UNAVAILABLE", reason)
            # Said of what failed to load, also where an older one goes on serving. Who was to get other instances is
            # what it was, and the index says why.
            state = "UNAVAILABLE"
            if number in kept:
                state, status.reason = status.state, reason
            clauses.append(f"version {number} is at {state} state: {reason};")
        return InvalidArgumentError("".join(clauses))

    def _withdraw(self, model_id: ModelId, number: int) -> None:
        """Take one version out of the tables, and let it finish in the background."""
        status = self._versions[model_id][number]
        model = self._serving[model_id].pop(number)
        if not self._serving[model_id]:
            del self._serving[model_id]
        status.model = None
        status.state = "UNLOADING"
        self._retire(self._finish(model)).add_done_callback(lambda _: self._mark_unloaded(status))

    def _refresh(self, name: str) -> None:
        """Bring the request path's tables up to date with what serves under a name."""
        for key in [key for key in self.ready if key[0] == name]:
            del self.ready[key]
        self.latest.pop(name, None)
        serving = [versions for model_id, versions in self._serving.items() if model_id.name == name]
        if len(serving) == 1:
            for number, model in serving[0].items():
                self.ready[(name, number)] = model
            self.latest[name] = serving[0][max(serving[0])]

    def _mark_unloaded(self, status: VersionStatus) -> None:
        if status.state == "UNLOADING":
            status.state, status.reason = "UNAVAILABLE", UNLOADED

    def _retire(self, ending: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task: asyncio.Task[None] = asyncio.ensure_future(ending)
        self._retiring.add(task)
        task.add_done_callback(self._on_retired)
        return task

    def _on_retired(self, task: "asyncio.Task[None]") -> None:
        self._retiring.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _LOG.error("releasing a model failed", exc_info=task.exception())
        self._is_untidy = True
        if not self._retiring and self._tidying is None and not self._is_stopping:
            self._tidying = asyncio.ensure_future(self._tidy())

    async def _tidy(self) -> None:
        """Give memory back to the system, once for all that was just released."""
        try:
            while self._is_untidy and not self._is_stopping:
                self._is_untidy = False
                await self._run(self._loader.release_memory)
        finally:
            self._tidying = None

    async def _finish(self, model: Model) -> None:
        try:
            # Requests of ensembles that are under way may need it yet.
            await model.wait_until_unheld()
            await model.driver.drain()
        finally:
            await model.close()
            for directory in (model.plan.temporary_directory, *self._older_directories.pop(model, ())):
                self.release(directory)
            _LOG.info("successfully unloaded '%s' version %d", model.model_id, model.version)
