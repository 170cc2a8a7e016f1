"""The engine: everything behind both front doors. Which models there are, what state they are in, and their requests.

A model version is in one of Triton's states:

    LOADING      being loaded, off the loop's thread
    READY        serves requests
    UNLOADING    serves what it accepted, takes nothing new
    UNAVAILABLE  failed to load (with the reason), or was unloaded (reason "unloaded")

Tables are touched on the loop's thread only. Loading runs on a few threads; a loaded version is published, and the one
it replaces retired, in one step, so that no request sees a gap.

Source: Triton, model_repository_manager.cc, model_lifecycle.cc.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from merrow.core.clock import Clock
from merrow.core.errors import (
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    ServerError,
    UnavailableError,
    UnsupportedError,
)
from merrow.core.request import Request
from merrow.engine.loader import ModelLoader
from merrow.engine.model import Model
from merrow.observe.host_usage import HostUsageCollector
from merrow.observe.metrics import ModelMetrics, ServerMetrics, render_metrics
from merrow.observe.statistics import ModelStatistics
from merrow.repository.layout import check_model_name
from merrow.repository.plan import DUPLICATE_REASON, Change, ModelPlan, PollFailure, change_between
from merrow.repository.version_policy import no_version_error
from merrow.settings import ModelControlMode, RepositorySettings

_LOG = logging.getLogger("merrow.engine")

_UNLOADED = "unloaded"

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """One line of the repository index; `version` is None and `state` "" for a model that was never loaded."""

    name: str
    version: int | None
    state: str
    reason: str


class _Version:
    """A version of a model: its state, why, and the model while it is READY."""

    __slots__ = ("model", "reason", "state")

    def __init__(self, state: str, reason: str = "", model: Model | None = None) -> None:
        self.state = state
        self.reason = reason
        self.model = model


class _Entry:
    """A model of the repository, loaded or not."""

    __slots__ = ("failure", "lock", "name", "plan", "versions")

    def __init__(self, name: str) -> None:
        self.name = name
        self.versions: dict[int, _Version] = {}
        # Why the repository could not even be polled for it; shown in the index only for duplicates, as Triton does.
        self.failure: PollFailure | None = None
        # What the versions in service were loaded from.
        self.plan: ModelPlan | None = None
        # Loads and unloads of one model happen one after another.
        self.lock = asyncio.Lock()


class Engine:
    """See the module. Call `start` once, then anything, then `stop` once."""

    def __init__(
        self, settings: RepositorySettings, loader: ModelLoader, clock: Clock, host_usage: HostUsageCollector
    ) -> None:
        self._settings = settings
        self._loader = loader
        self._clock = clock
        self._host_usage = host_usage
        self._entries: dict[str, _Entry] = {}
        # The hot path's tables: versions in service, and the largest of each model.
        self._ready: dict[tuple[str, int], Model] = {}
        self._latest: dict[str, Model] = {}
        self._retiring: set[asyncio.Task[None]] = set()
        self._executor = ThreadPoolExecutor(settings.model_load_thread_count, "load")
        self.is_exiting = False

    # Life.

    async def start(self) -> bool:
        """Load the start-up models; True if all of them loaded.

        Raises:
            ServerError: a repository cannot be read.
        """
        plans = await self._run(self._loader.poll)
        wanted = self._settings.load_models
        explicit = self._settings.model_control_mode is ModelControlMode.EXPLICIT
        tasks = []
        for name, plan in plans.items():
            entry = self._entry_of(name)
            if explicit and wanted != ("*",) and name not in wanted:
                continue
            if isinstance(plan, PollFailure):
                entry.failure = plan
                _LOG.error("%s", plan.log_message)
            else:
                tasks.append(asyncio.ensure_future(self._load_or_log(entry, plan)))
        missing = [name for name in wanted if name != "*" and name not in plans]
        for name in missing:
            _LOG.error("failed to load '%s': it is in none of the model repositories", name)
        loaded = await asyncio.gather(*tasks)
        failed = any(entry.failure for entry in self._entries.values())
        return all(loaded) and not failed and not missing

    async def stop(self, timeout_seconds: float) -> bool:
        """Refuse new requests, let accepted ones finish, release every model.

        Returns:
            False if the time ran out first. Models that still execute are then left as they are: a process can be
            killed, a thread cannot, and only the end of this process ends it.
        """
        self.is_exiting = True
        models = list(self._ready.values())
        self._ready.clear()
        self._latest.clear()
        for model in models:
            self._retire(model)
        is_clean = True
        if self._retiring:
            _LOG.info("waiting for %d models to finish their requests", len(self._retiring))
            _, late = await asyncio.wait(self._retiring, timeout=timeout_seconds)
            is_clean = not late
        self._executor.shutdown(wait=False, cancel_futures=True)
        return is_clean

    # Health and look-up.

    def is_live(self) -> bool:
        """Whether the server runs. A server with failed models is live."""
        return True

    def is_ready(self) -> bool:
        """Whether every known model version is in service and its processes live (`--strict-readiness`)."""
        if not self._settings.strict_readiness:
            return True
        for entry in self._entries.values():
            if entry.failure is not None:
                return False
            for version in entry.versions.values():
                if version.state == "READY":
                    if version.model is None or not version.model.driver.is_healthy:
                        return False
                elif version.reason != _UNLOADED:
                    return False
        return True

    def find_model(self, name: str, version: int = -1) -> Model:
        """The model version in service; -1 is the largest.

        Raises:
            NotFoundError: there is no such model or version.
            UnavailableError: the version is there, but not in service.
        """
        model = self._latest.get(name) if version == -1 else self._ready.get((name, version))
        if model is None:
            raise self._not_found(name, version)
        return model

    def is_model_ready(self, name: str, version: int = -1) -> bool:
        """Whether the version can answer requests now.

        Raises:
            NotFoundError, UnavailableError: as `find_model`.
        """
        return self.find_model(name, version).driver.is_healthy

    def ready_versions(self, name: str) -> list[int]:
        """Versions of a model in service, ascending."""
        return sorted(version for model_name, version in self._ready if model_name == name)

    def models(self) -> list[Model]:
        """Every model version in service, by name and version."""
        return [self._ready[key] for key in sorted(self._ready)]

    def model_statistics(self, name: str = "", version: int = -1) -> list[ModelStatistics]:
        """Statistics of all versions in service, of one model's, or of one version.

        Raises:
            InvalidArgumentError: no such model or version is in service.
        """
        if not name:
            return [model.statistics() for model in self.models()]
        versions = self.ready_versions(name)
        if not versions:
            raise InvalidArgumentError(f"requested model '{name}' is not available")
        if version != -1:
            if version not in versions:
                raise InvalidArgumentError(f"requested model version is not available for model '{name}'")
            versions = [version]
        return [self._ready[(name, number)].statistics() for number in versions]

    def metrics_text(self) -> str:
        """The text of `/metrics`, as of now."""
        models = [
            ModelMetrics(
                statistics=model.statistics(),
                pending_request_count=model.driver.pending_count,
                load_duration_ns=model.load_duration_ns,
                metric_tags=model.config.metric_tags,
            )
            for model in self.models()
        ]
        return render_metrics(models, ServerMetrics(host_usage=self._host_usage.usage()))

    def repository_index(self, ready_only: bool) -> list[IndexEntry]:
        """The index, sorted by name and version."""
        index: list[IndexEntry] = []
        for name in sorted(self._entries):
            entry = self._entries[name]
            if entry.failure is not None and entry.failure.reason == DUPLICATE_REASON:
                if not ready_only:
                    index.append(IndexEntry(name, None, "UNAVAILABLE", entry.failure.reason))
            elif not entry.versions:
                if not ready_only:
                    index.append(IndexEntry(name, None, "", ""))
            else:
                for number, version in sorted(entry.versions.items()):
                    if version.state == "READY" or not ready_only:
                        index.append(IndexEntry(name, number, version.state, version.reason))
        return index

    # Requests.

    def submit(self, model: Model, request: Request) -> None:
        """Accept a request for a model that `find_model` returned.

        Afterwards its sink gets exactly one final response, possibly before this returns.

        Raises:
            ServerError: the request is refused: it is invalid, or the queue is full. Its sink hears nothing.
        """
        now_ns = self._clock()
        request.arrival_ns = now_ns
        model.validator.validate(request)
        driver = model.driver
        request.owner = driver
        driver.enqueue(request, now_ns)

    def cancel(self, request: Request) -> None:
        """The client of an accepted, unanswered request has left."""
        if request.owner is not None:
            request.owner.cancel(request)

    # Loading and unloading.

    async def load_model(self, name: str, config: str | None = None, files: Mapping[str, bytes] | None = None) -> None:
        """Load, or reload, a model by name (explicit mode); returns when it serves.

        Args:
            config: a configuration as JSON text in place of the model's own.
            files: content of the model's files by path, in place of its directory; needs `config`.

        Raises:
            ServerError: it cannot be loaded; what served before still does.
        """
        self._check_explicit()
        check_model_name(name)
        if files:
            raise UnsupportedError(f"failed to load '{name}': file overrides are not supported yet by this server")
        plan = await self._run(self._loader.poll_one, name, config)
        if isinstance(plan, PollFailure):
            _LOG.error("%s", plan.log_message)
            raise InternalError(f"failed to load '{name}', failed to poll from model repository")
        entry = self._entry_of(name)
        entry.failure = None
        await self._load(entry, plan)

    async def unload_model(self, name: str, unload_dependents: bool = False) -> None:
        """Take a model out of service; returns before its accepted requests are answered. Unknown names are fine.

        `unload_dependents` concerns models that an ensemble brought along; there are none to unload here.
        """
        self._check_explicit()
        entry = self._entries.get(name)
        if entry is None:
            return
        async with entry.lock:
            for number, version in entry.versions.items():
                if version.model is not None:
                    self._withdraw(entry, number)

    def _check_explicit(self) -> None:
        if self._settings.model_control_mode is not ModelControlMode.EXPLICIT:
            raise UnavailableError("explicit model load / unload is not allowed if polling is enabled")

    def _entry_of(self, name: str) -> _Entry:
        entry = self._entries.get(name)
        if entry is None:
            entry = self._entries[name] = _Entry(name)
        return entry

    async def _load_or_log(self, entry: _Entry, plan: ModelPlan) -> bool:
        try:
            await self._load(entry, plan)
        except ServerError as error:
            _LOG.error("%s", error.message.rstrip())
            return False
        return True

    async def _load(self, entry: _Entry, plan: ModelPlan) -> None:
        """Load every version of a plan; all are published together, or none.

        Raises:
            InvalidArgumentError: with each failed version's reason, as the load API answers.
        """
        async with entry.lock:
            if not plan.versions:
                raise InvalidArgumentError(
                    f"load failed for model '{plan.name}': {no_version_error(plan.name).message}\n"
                )
            if self._is_loaded(entry, plan):
                return
            for number in plan.versions:
                known = entry.versions.get(number)
                if known is None or known.model is None:
                    entry.versions[number] = _Version("LOADING")
            results = await asyncio.gather(
                *(self._load_version(plan, number) for number in plan.versions), return_exceptions=True
            )
            loaded = [result for result in results if isinstance(result, Model)]
            if len(loaded) == len(results):
                self._publish(entry, loaded)
                entry.plan = plan
            else:
                for model in loaded:
                    await model.close()
                raise self._load_failure(entry, plan, results)

    def _is_loaded(self, entry: _Entry, plan: ModelPlan) -> bool:
        """Whether what is in service came from these very files."""
        if entry.plan is None or change_between(entry.plan, plan) is not Change.NONE:
            return False
        return all((plan.name, number) in self._ready for number in plan.versions)

    async def _load_version(self, plan: ModelPlan, number: int) -> Model:
        model = await self._run(self._loader.load, plan, number)
        try:
            await model.warm_up(self._clock)
        except BaseException:
            await model.close()
            raise
        return model

    def _publish(self, entry: _Entry, models: Sequence[Model]) -> None:
        for model in models:
            replaced = self._ready.get((model.name, model.version))
            entry.versions[model.version] = _Version("READY", model=model)
            self._ready[(model.name, model.version)] = model
            if replaced is not None:
                self._retire(replaced)
            _LOG.info("successfully loaded '%s' version %d", model.name, model.version)
        kept = {model.version for model in models}
        for number, version in entry.versions.items():
            if number not in kept and version.model is not None:
                self._withdraw(entry, number)
        self._latest[entry.name] = max(models, key=lambda model: model.version)

    def _load_failure(
        self, entry: _Entry, plan: ModelPlan, results: Sequence[Model | BaseException]
    ) -> InvalidArgumentError:
        clauses = []
        for number, result in zip(plan.versions, results, strict=True):
            version = entry.versions[number]
            if isinstance(result, Model):
                if version.model is None:
                    del entry.versions[number]
                continue
            if isinstance(result, ServerError):
                reason = result.describe()
            elif isinstance(result, Exception):
                _LOG.error("loading '%s' version %d failed", plan.name, number, exc_info=result)
                reason = f"Internal: {type(result).__name__}: {result}"
            else:
                raise result
            _LOG.error("failed to load '%s' version %d: %s", plan.name, number, reason)
            if version.model is None:
                entry.versions[number] = version = _Version("UNAVAILABLE", reason)
            clauses.append(f"version {number} is at {version.state} state: {reason};\n")
        return InvalidArgumentError(f"load failed for model '{plan.name}': {''.join(clauses)}")

    def _withdraw(self, entry: _Entry, number: int) -> None:
        """Take one version out of the tables, and let it finish in the background."""
        version = entry.versions[number]
        model = version.model
        assert model is not None
        del self._ready[(entry.name, number)]
        remaining = self.ready_versions(entry.name)
        if remaining:
            self._latest[entry.name] = self._ready[(entry.name, remaining[-1])]
        else:
            self._latest.pop(entry.name, None)
        version.model = None
        version.state = "UNLOADING"
        self._retire(model).add_done_callback(lambda _: self._mark_unloaded(version))

    def _mark_unloaded(self, version: _Version) -> None:
        if version.state == "UNLOADING":
            version.state, version.reason = "UNAVAILABLE", _UNLOADED

    def _retire(self, model: Model) -> "asyncio.Task[None]":
        task = asyncio.ensure_future(self._finish(model))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)
        return task

    async def _finish(self, model: Model) -> None:
        try:
            await model.driver.drain()
        finally:
            await model.close()
            _LOG.info("successfully unloaded '%s' version %d", model.name, model.version)

    def _not_found(self, name: str, version: int) -> ServerError:
        if self.is_exiting:
            return UnavailableError("Server not ready")
        prefix = "Request for unknown model: "
        entry = self._entries.get(name)
        if entry is None or not entry.versions:
            return NotFoundError(f"{prefix}'{name}' is not found")
        if version == -1:
            return NotFoundError(f"{prefix}'{name}' has no available versions")
        if version not in entry.versions:
            return NotFoundError(f"{prefix}'{name}' version {version} is not found")
        return UnavailableError(f"{prefix}'{name}' version {version} is not at ready state")

    async def _run(self, function: Callable[..., _T], *arguments: object) -> _T:
        """Run what blocks on a loading thread."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, function, *arguments)
