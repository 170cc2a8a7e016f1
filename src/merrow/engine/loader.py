"""Loading: from a plan to a model version whose instances run. Everything here blocks and runs on a loading thread.

A version is completed by its backend, checked, placed and started, in that order; whatever was started is stopped again
when a later step fails. What a configuration asks for and the server cannot do is an error of the load, never ignored.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from merrow.backends.base import Backend, Instance, InstanceDescription, ModelContext, Place
from merrow.core.clock import Clock
from merrow.core.errors import InternalError, InvalidArgumentError, UnsupportedError
from merrow.core.model_config import ModelConfig
from merrow.engine.driver import ModelDriver, Timer
from merrow.engine.model import Model
from merrow.engine.validation import RequestValidator, ResponseShaper
from merrow.engine.warmup import plan_samples
from merrow.observe.statistics import StatisticsRecorder
from merrow.places.base import InstanceEvents, PlacedInstance
from merrow.places.inline import InlineInstance
from merrow.places.thread import ThreadInstance
from merrow.repository import plan as planning
from merrow.repository import scan
from merrow.repository.plan import ModelPlan, PlanSettings, PollFailure
from merrow.schedule.dynamic_batch import BatchPolicy, DynamicBatcher
from merrow.settings import RepositorySettings

_LOG = logging.getLogger("merrow.engine")

_PLACE_PARAMETER = "EXECUTION_PLACE"


class ProcessPlace(Protocol):
    """Instances in child processes; see `places.process`."""

    def auto_complete(self, context: ModelContext, backend_name: str) -> ModelConfig:
        """`Backend.auto_complete` in a throw-away child."""

    def start(
        self,
        context: ModelContext,
        backend_name: str,
        instance: InstanceDescription,
        events: InstanceEvents,
        loop: asyncio.AbstractEventLoop,
    ) -> PlacedInstance:
        """Start a child; blocks until its instance is created, and raises what creating it raised."""


class ModelLoader:
    """Polls repositories and loads model versions.

    Args:
        backend_of: the backend of a name (`backends.registry.backend_of`).
        process_place: None where the platform has no such processes; threads stand in, and the log says so.
    """

    def __init__(
        self,
        settings: RepositorySettings,
        backend_of: Callable[[str], Backend],
        process_place: ProcessPlace | None,
        clock: Clock,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._settings = settings
        self._backend_of = backend_of
        self._process_place = process_place
        self._clock = clock
        self._loop = loop
        self._plan_settings = PlanSettings(auto_complete=settings.auto_complete_config)

    # Polling.

    def poll(self) -> dict[str, ModelPlan | PollFailure]:
        """Read every model of every repository, by name.

        Raises:
            InternalError: a repository cannot be read at all.
        """
        try:
            repositories = planning.plan_repositories(scan.list_models(self._settings.model_repositories))
        except scan.RepositoryError as error:
            raise InternalError(str(error)) from None
        plans: dict[str, ModelPlan | PollFailure] = {
            name: planning.load_plan(location, self._plan_settings) for name, location in repositories.locations.items()
        }
        for name in repositories.duplicates:
            plans[name] = PollFailure(name, "", planning.DUPLICATE_REASON)
        return plans

    def poll_one(self, name: str, config_override: str | None) -> ModelPlan | PollFailure:
        """Read one model, with a configuration that replaces its own if one is given."""
        locations = scan.find_model(self._settings.model_repositories, name)
        if not locations:
            return PollFailure(name, "", f"model '{name}' is in none of the model repositories")
        if len(locations) > 1:
            return PollFailure(name, "", planning.DUPLICATE_REASON)
        return planning.load_plan(locations[0], self._plan_settings, config_override)

    # Loading.

    def load(self, plan: ModelPlan, version: int) -> Model:
        """Load one version and start its instances.

        Raises:
            ServerError: it cannot be loaded; nothing of it is left running.
        """
        start_ns = self._clock()
        config = plan.config
        if config.is_ensemble:
            raise UnsupportedError(f"model '{plan.name}': ensembles are not supported yet")
        backend = self._backend_of(config.backend)
        place = self._place_of(plan.name, config, backend)
        context = self._context(plan, version, config, backend)
        completed: ModelConfig | None = None
        if self._settings.auto_complete_config:
            if place is Place.PROCESS and self._process_place is not None:
                completed = self._process_place.auto_complete(context, backend.name)
            else:
                completed = backend.auto_complete(context)
        config = planning.finish_config(
            config, completed, preferred_cpu_instance_count=backend.preferred_cpu_instance_count
        )
        if plan.label_error is not None:
            raise plan.label_error
        _refuse_unsupported(config)
        context = self._context(plan, version, config, backend)
        backend.validate(context)
        samples = plan_samples(config, lambda name: scan.read_warmup_file(plan.directory, name))
        validator = RequestValidator(config)
        recorder = StatisticsRecorder()
        batching = config.dynamic_batching
        batcher = None
        if batching is not None:
            batch_key = validator.batch_key if validator.batch_key_needed() else None
            batcher = DynamicBatcher(BatchPolicy.from_config(config, batch_key))
        driver = ModelDriver(
            plan.name,
            version,
            batcher,
            ResponseShaper(config),
            recorder,
            self._clock,
            self._call_at,
            batching is not None and batching.preserve_ordering,
        )
        for instance in self._start_instances(context, backend, place, driver):
            driver.add_instance(instance)
        return Model(
            name=plan.name,
            version=version,
            config=config,
            config_json=context.config_json,
            labels=plan.labels,
            is_decoupled=config.is_decoupled,
            has_batch_dim=config.has_batch_dim,
            place=place,
            load_duration_ns=self._clock() - start_ns,
            validator=validator,
            driver=driver,
            recorder=recorder,
            warmup_samples=samples,
        )

    def _context(self, plan: ModelPlan, version: int, config: ModelConfig, backend: Backend) -> ModelContext:
        backend_config: Mapping[str, str] = {
            **self._settings.backend_config.get("", {}),
            **self._settings.backend_config.get(backend.name, {}),
        }
        return ModelContext(
            name=plan.name,
            version=version,
            config=config,
            config_json=planning.config_json(config),
            model_directory=plan.directory,
            version_directory=f"{plan.directory}/{version}",
            backend_config=backend_config,
        )

    def _place_of(self, name: str, config: ModelConfig, backend: Backend) -> Place:
        parameter = config.parameters.get(_PLACE_PARAMETER)
        wanted = self._settings.execution_place
        if wanted is None and parameter is not None:
            wanted = parameter.string_value
        place = backend.default_place
        if wanted is not None:
            try:
                place = Place(wanted)
            except ValueError:
                raise InvalidArgumentError(
                    f"model '{name}': parameter {_PLACE_PARAMETER} must be 'inline', 'thread' or 'process', "
                    f"got '{wanted}'"
                ) from None
        if place is Place.PROCESS and self._process_place is None:
            _LOG.warning("model '%s' runs on threads: this platform cannot run models in child processes", name)
            return Place.THREAD
        return place

    def _start_instances(
        self, context: ModelContext, backend: Backend, place: Place, driver: ModelDriver
    ) -> Sequence[PlacedInstance]:
        started: list[PlacedInstance] = []
        try:
            for group in context.config.instance_group:
                if group.passive:
                    continue
                for device_id in group.gpus or (0,):
                    for number in range(group.count):
                        description = InstanceDescription(f"{group.name}_{number}", group.kind, device_id)
                        started.append(self._start_instance(context, backend, place, driver, description))
        except BaseException:
            for instance in started:
                asyncio.run_coroutine_threadsafe(instance.close(), self._loop).result()
            raise
        return started

    def _start_instance(
        self,
        context: ModelContext,
        backend: Backend,
        place: Place,
        driver: ModelDriver,
        description: InstanceDescription,
    ) -> PlacedInstance:
        def create() -> Instance:
            return backend.create_instance(context, description)

        if place is Place.PROCESS:
            assert self._process_place is not None
            return self._process_place.start(context, backend.name, description, driver, self._loop)
        if place is Place.THREAD:
            return ThreadInstance(description.name, create, driver, self._loop)
        return InlineInstance(description.name, create(), driver)

    def _call_at(self, deadline_ns: int, callback: Callable[[], None]) -> Timer:
        return self._loop.call_later(max(0, deadline_ns - self._clock()) / 1e9, callback)


def _refuse_unsupported(config: ModelConfig) -> None:
    """What a configuration may ask for and this version of the server does not do."""
    asked = []
    if config.sequence_batching is not None:
        asked.append("sequence_batching")
    if config.batch_input or config.batch_output:
        asked.append("batch_input and batch_output (ragged batching)")
    if config.model_repository_agents is not None and config.model_repository_agents.agents:
        asked.append("model_repository_agents")
    if config.is_decoupled:
        asked.append("model_transaction_policy { decoupled: true }")
    if asked:
        raise UnsupportedError(f"model '{config.name}': {', '.join(asked)} not supported yet by this server")
