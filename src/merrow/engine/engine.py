"""The engine: everything behind both front doors. Which models there are, what state they are in, and their requests.

`engine.control` decides what is loaded and when, `engine.lifecycle` has the versions and their states, and this finds
the model that a request is for and hands it over. Tables are touched on the loop's thread only; what blocks runs on a
few loading threads.

Source: Triton, model_repository_manager.cc, model_lifecycle.cc.
"""

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from merrow.core.clock import Clock
from merrow.core.errors import InvalidArgumentError, NotFoundError, ServerError, UnavailableError
from merrow.core.request import Request
from merrow.engine.control import IndexEntry, RepositoryControl
from merrow.engine.lifecycle import UNLOADED, ModelLifecycle
from merrow.engine.loader import ModelLoader
from merrow.engine.model import Model
from merrow.engine.readiness import check_models, not_ready
from merrow.engine.shared_memory import SharedMemoryRegistry
from merrow.observe.metrics import ModelMetrics
from merrow.observe.metrics_page import MetricsPage
from merrow.observe.statistics import ModelStatistics
from merrow.repository.reader import Overrides
from merrow.settings import RepositorySettings, SharedMemorySettings

_T = TypeVar("_T")


class Engine:
    """See the module. Call `start` once, then anything, then `stop` once."""

    def __init__(
        self,
        settings: RepositorySettings,
        loader: ModelLoader,
        clock: Clock,
        metrics: MetricsPage,
        shared_memory: SharedMemoryRegistry | None = None,
    ) -> None:
        self._settings = settings
        self._loader = loader
        self._clock = clock
        self._metrics = metrics
        self.shared_memory = SharedMemoryRegistry(SharedMemorySettings()) if shared_memory is None else shared_memory
        self._executor = ThreadPoolExecutor(settings.model_load_thread_count, "load")
        self._lifecycle = ModelLifecycle(loader, clock, self._run, self.submit, settings.model_load_retry_count)
        self._control = RepositoryControl(settings, loader.reader, self._lifecycle, self._run)
        # The request path's tables: versions in service, and the largest of each model.
        self._ready = self._lifecycle.ready
        self._latest = self._lifecycle.latest
        self.is_exiting = False

    # Life.

    async def start(self) -> ServerError | None:
        """Load the start-up models.

        Returns:
            What to end with if all of them are needed; None if all of them loaded.

        Raises:
            ServerError: a repository cannot be read.
        """
        return await self._control.start()

    async def stop(self, timeout_seconds: float) -> bool:
        """Refuse new requests, let accepted ones finish, release every model.

        Returns:
            False if the time ran out first. Models that still execute are then left as they are: a process can be
            killed, a thread cannot, and only the end of this process ends it.
        """
        self.is_exiting = True
        deadline_ns = self._clock() + int(timeout_seconds * 1e9)
        is_clean = await self._lifecycle.stop(timeout_seconds)
        await self._control.stop(max(0, deadline_ns - self._clock()) / 1e9)
        await self._lifecycle.wait_for_removals(max(0, deadline_ns - self._clock()) / 1e9)
        self._executor.shutdown(wait=False, cancel_futures=True)
        return is_clean

    # Health and look-up.

    def is_live(self) -> bool:
        """Whether the server runs and keeps up. A server with failed models is live."""
        watch = self._metrics.loop_watch
        return watch is None or watch.is_live()

    def is_ready(self) -> bool:
        """Whether every known model version is in service and its processes live (`--strict-readiness`)."""
        if not self._settings.strict_readiness:
            return True
        for model_id in self._lifecycle.known_ids():
            statuses = self._lifecycle.statuses(model_id)
            if not statuses:
                # Nothing of it can be served, not even an old version.
                return False
            for status in statuses.values():
                if status.state == "READY":
                    if status.model is None or not status.model.driver.is_healthy:
                        return False
                elif status.reason != UNLOADED:
                    return False
        return True

    @property
    def has_readiness_checks(self) -> bool:
        """Whether a model in service says itself whether it is ready, so that `check_readiness` says more."""
        return self._settings.strict_readiness and any(model.has_readiness_check for model in self.models())

    async def check_readiness(self) -> bool:
        """As `is_ready`, and every model says so that has a check of its own."""
        return self.is_ready() and await check_models(self.models())

    def find_model(self, name: str, version: int = -1) -> Model:
        """The model version in service; -1 is the largest.

        Raises:
            NotFoundError: there is no such model or version.
            UnavailableError: the version is there, but not in service.
            InvalidArgumentError: several repositories serve a model of that name.
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

    async def check_model(self, model: Model) -> None:
        """Ask a model in service whether it is ready.

        Raises:
            InvalidArgumentError: it is not.
        """
        if not await check_models([model]):
            raise InvalidArgumentError(not_ready(model))

    def ready_versions(self, name: str) -> list[int]:
        """Versions of a model in service, ascending."""
        return sorted(version for model_name, version in self._ready if model_name == name)

    def models(self) -> list[Model]:
        """Every model version in service, by name and version."""
        return self._lifecycle.models()

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
                namespace=model.model_id.namespace or None,
                is_cached=model.cache is not None,
            )
            for model in self.models()
        ]
        return self._metrics.render(models)

    async def fresh_repository_index(self, ready_only: bool) -> list[IndexEntry]:
        """The index by name and version, of the directories that are in the repositories now."""
        return await self._control.index(ready_only)

    def repository_index(self, ready_only: bool) -> list[IndexEntry]:
        """The index, of the directories that were there when they were last looked at."""
        return self._control.known_index(ready_only)

    def load_failures(self) -> dict[str, str]:
        """Why models are not served, by name, where the index keeps silent, as Triton's does."""
        return self._control.failures()

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
        if request.trace is not None:
            request.trace.begin(request)
        cache = model.cache
        if cache is not None:
            # An answer that is kept for others must not lie where this client could change it.
            request.output_regions = None
            cache.enqueue(request, now_ns, model.hold, model.release)
            return
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
        await self._control.load_model(name, Overrides(config, files))

    async def unload_model(self, name: str, unload_dependents: bool = False) -> None:
        """Take a model out of service; returns before its accepted requests are answered. Unknown names are fine.

        `unload_dependents` also unloads what an ensemble brought along, unless something else needs it.

        Raises:
            UnavailableError: not in this control mode.
        """
        await self._control.unload_model(name, unload_dependents)

    async def register_models(self, directory: str, name: str) -> None:
        """Make the models of a directory outside of the repositories known, so that they can be loaded.

        Args:
            name: of the one that is served; see `RepositoryReader.register`.

        Raises:
            ServerError: the directory is known already, or cannot be read.
        """
        await self._run(self._loader.reader.register, directory, name)

    def unregister_models(self, directory: str) -> None:
        """Forget them; those that are loaded stay until they are unloaded."""
        self._loader.reader.unregister(directory)

    async def wait_for_unloads(self, timeout_seconds: float) -> bool:
        """Wait until models that were taken out of service are released; False if the time ran out first."""
        return await self._lifecycle.wait_for_retirements(timeout_seconds)

    def _not_found(self, name: str, version: int) -> ServerError:
        if self.is_exiting:
            return UnavailableError("Server not ready")
        prefix = "Request for unknown model: "
        serving = self._lifecycle.serving_ids(name)
        if len(serving) > 1:
            return InvalidArgumentError(
                f"There are {len(serving)} identifiers of model '{name}' in global map, model namespace must be "
                "provided to resolve ambiguity."
            )
        known = self._lifecycle.ids_of(name)
        if not known:
            return NotFoundError(f"{prefix}'{name}' is not found")
        if version == -1:
            return NotFoundError(f"{prefix}'{name}' has no available versions")
        if not any(version in self._lifecycle.statuses(model_id) for model_id in known):
            return NotFoundError(f"{prefix}'{name}' version {version} is not found")
        return UnavailableError(f"{prefix}'{name}' version {version} is not at ready state")

    async def _run(self, function: Callable[..., _T], *arguments: object) -> _T:
        """Run what blocks on a loading thread."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, function, *arguments)
