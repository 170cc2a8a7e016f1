"""Loading: from a plan to a model version whose instances run. Everything here blocks and runs on a loading thread.

A version is completed by its backend, checked, placed and started, in that order; whatever was started is stopped again
when a later step fails. What a configuration asks for and the server cannot do is an error of the load, never ignored.
"""

import asyncio
import logging
import weakref
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from merrow.backends.base import Backend, Instance, InstanceDescription, InstanceHost, ModelContext, Place
from merrow.core.clock import Clock
from merrow.core.errors import InvalidArgumentError, UnavailableError, UnsupportedError
from merrow.core.model_config import ENVIRONMENT_PARAMETER, ModelConfig, ModelInstanceGroup
from merrow.engine.driver import ModelDriver, Timer
from merrow.engine.ensemble import EnsembleDriver, FindModel, Submit
from merrow.engine.instances import InstancePlan, Signature, change_instances, plan_instances
from merrow.engine.memory import return_memory
from merrow.engine.model import Model
from merrow.engine.permits import InstancePermits
from merrow.engine.response_cache import ResponseCaches, ResponseStore
from merrow.engine.scheduling import make_scheduler, preserves_order, refuse_batch_strategy
from merrow.engine.validation import RequestValidator, ResponseShaper
from merrow.engine.warmup import plan_samples
from merrow.observe.statistics import StatisticsRecorder
from merrow.places.affinity import bind_to_cores, cores_of_node
from merrow.places.base import Caller, InstanceEvents, PlacedInstance
from merrow.places.inline import InlineInstance
from merrow.places.local_host import LocalEnvironment
from merrow.places.thread import ThreadInstance
from merrow.repository import autofill, scan
from merrow.repository import plan as planning
from merrow.repository.ensemble import ModelKey, is_decoupled
from merrow.repository.plan import ModelPlan
from merrow.repository.reader import RepositoryReader
from merrow.repository.validation import check_response_cache, validate_tensors
from merrow.settings import RepositorySettings

_LOG = logging.getLogger("merrow.engine")

StartedInstance = tuple[Signature, PlacedInstance]
"""An instance, and what it is."""

DeviceMemoryUse = Callable[[int], float | None]
"""The fraction of a device's memory that is in use, by the device's number; None where it cannot be told."""

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


class RunBlocking(Protocol):
    """Runs a function that blocks on a loading thread."""

    def __call__(self, function: Callable[..., Any], /, *arguments: object) -> Awaitable[Any]: ...


@dataclass(frozen=True, slots=True)
class InstanceUpdate:
    """A model in service with other instances: those that are added run, and wait to be taken into service.

    Those that are `passive` run, too, and are never given work.
    """

    model: Model
    driver: ModelDriver
    added: Sequence[PlacedInstance]
    passive: Sequence[PlacedInstance]
    removed: Sequence[PlacedInstance]
    batch_limit: int | None

    def apply(self) -> Model:
        """Put them into service; the caller takes the `removed` ones out (`ModelDriver.close_instance`)."""
        self.driver.batch_limit = self.batch_limit
        for instance in self.added:
            self.driver.add_instance(instance)
        return self.model

    async def close(self) -> None:
        """Undo it before it was applied."""
        for instance in (*self.added, *self.passive):
            await self.driver.close_instance(instance)


class ModelLoader:
    """Loads model versions. Its `reader` reads the repositories that they are in.

    Args:
        backend_of: the backend of a name (`backends.registry.backend_of`).
        process_place: None where the platform has no such processes; threads stand in, and the log says so.
        local_environment: of instances in the server's own process.
        device_memory_use: for `--model-load-gpu-limit`.
        gpu_ids: the GPUs that models may run on.
        permits: the rate limiter; None without limits.
        response_store: what answers of models with `response_cache` are kept in; None without a cache.
    """

    def __init__(
        self,
        settings: RepositorySettings,
        backend_of: Callable[[str], Backend],
        process_place: ProcessPlace | None,
        clock: Clock,
        local_environment: LocalEnvironment,
        device_memory_use: DeviceMemoryUse = lambda device_id: None,
        new_recorder: Callable[[ModelConfig], StatisticsRecorder] = lambda config: StatisticsRecorder(),
        gpu_ids: Sequence[int] = (),
        permits: InstancePermits | None = None,
        response_store: ResponseStore | None = None,
    ) -> None:
        self._gpu_ids = gpu_ids
        self._permits = permits
        self._caches = ResponseCaches(response_store, clock)
        self._new_recorder = new_recorder
        self._device_memory_use = device_memory_use
        self._settings = settings
        self._backend_of = backend_of
        self._process_place = process_place
        self._clock = clock
        self._local_environment = local_environment
        self._loop = local_environment.loop
        # What made the instances of each model that is loaded, and may share something among them.
        self._backends: weakref.WeakKeyDictionary[ModelDriver, Backend] = weakref.WeakKeyDictionary()
        self.reader = RepositoryReader(settings)

    # Loading.

    def load(self, plan: ModelPlan, version: int) -> Model:
        """Load one version and start its instances.

        Raises:
            ServerError: it cannot be loaded; nothing of it is left running.
        """
        start_ns = self._clock()
        config = plan.config
        assert not config.is_ensemble, "ensembles are loaded by load_ensemble"
        backend = self._backend_of(config.backend)
        _check_runtime(config)
        place = self._place_of(plan.name, config, backend)
        context = self._context(plan, version, config, backend)
        completed: ModelConfig | None = None
        if self._settings.auto_complete_config:
            if place is Place.PROCESS and self._process_place is not None:
                completed = self._process_place.auto_complete(context, backend.name)
            else:
                completed = backend.auto_complete(context)
        config = planning.finish_config(
            config, completed, self._gpu_ids, backend.preferred_cpu_instance_count, backend.takes_gpus
        )
        check_response_cache(config)
        refuse_batch_strategy(config, version, plan.modification_times)
        if plan.label_error is not None:
            raise plan.label_error
        context = self._context(plan, version, config, backend)
        backend.validate(context)
        samples = plan_samples(config, lambda name: scan.read_warmup_file(plan.directory, name))
        validator = RequestValidator(config)
        recorder = self._new_recorder(config)
        scheduler = make_scheduler(
            config,
            validator,
            recorder,
            lambda name: scan.read_initial_state_file(plan.directory, name),
            self._settings.scheduler_hold,
        )
        driver = ModelDriver(
            plan.name,
            version,
            scheduler,
            ResponseShaper(config),
            recorder,
            self._clock,
            self._call_at,
            preserves_order(config),
            config.is_decoupled,
            self._permits,
            backend.batch_limit(config),
            self._loop.call_soon,
        )
        self._backends[driver] = backend
        fingerprint = self._caches.fingerprint(plan, version, context.config_json)
        started = self._start_instances(context, backend, place, driver)
        for signature, instance in started:
            if not signature[0].passive:
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
            plan=plan,
            started=started,
            cache=self._caches.cache_of(config, lambda: fingerprint, driver, recorder),
            fingerprint=lambda: fingerprint,
        )

    async def change_instances(self, model: Model, plan: ModelPlan, run: RunBlocking) -> "InstanceUpdate":
        """Start the instances that a plan asks for and a model in service lacks; nothing else of the plan differs.

        Returns:
            What to put into service, and what to take out of it, in one step.

        Raises:
            ServerError: an instance cannot be started; the model is as it was.
        """
        driver = model.driver
        assert isinstance(driver, ModelDriver)
        assert model.place is not None
        backend = self._backends[driver]
        config = replace(model.config, instance_group=plan.config.instance_group)
        config = planning.finish_config(
            replace(config, version_policy=plan.config.version_policy),
            None,
            self._gpu_ids,
            backend.preferred_cpu_instance_count,
            backend.takes_gpus,
        )
        context = self._context(plan, model.version, config, backend)
        change = change_instances([(each[0], each) for each in model.started], plan_instances(config))
        started = await run(self._start_planned, context, backend, model.place, driver, change.added)
        changed = replace(
            model, config=config, config_json=context.config_json, plan=plan, started=(*change.kept, *started)
        )
        instances = [instance for signature, instance in started if not signature[0].passive]
        for instance in instances:
            driver.prepare_instance(instance)
        passive = [instance for signature, instance in started if signature[0].passive]
        removed = [instance for _, instance in change.removed]
        update = InstanceUpdate(changed, driver, instances, passive, removed, backend.batch_limit(config))
        try:
            await changed.warm_up(self._clock, instances)
        except BaseException:
            await update.close()
            raise
        return update

    # Releasing.

    def remove_copy(self, directory: str) -> None:
        """Remove the temporary directory that a plan was made from."""
        self.reader.remove_copy(directory)

    def release_memory(self) -> None:
        """Give back to the system what the models that are gone have left; other threads go on meanwhile."""
        return_memory()

    def load_ensemble(
        self,
        plan: ModelPlan,
        version: int,
        configs: Mapping[ModelKey, ModelConfig],
        find_model: FindModel,
        submit: Submit,
    ) -> Model:
        """Load one version of an ensemble whose composing models are in service. Blocks on nothing.

        Args:
            configs: the completed configurations of the composing models, which the ensemble fits.

        Raises:
            ServerError: it cannot be loaded.
        """
        start_ns = self._clock()
        namespaces = {model_id.name: model_id.namespace for model_id in plan.composing}
        config = autofill.complete_ensemble(plan.config, is_decoupled(plan.config, configs), namespaces)
        validate_tensors(config)
        check_response_cache(config)
        if plan.label_error is not None:
            raise plan.label_error
        recorder = self._new_recorder(config)
        config_json = planning.config_json(config)
        driver = EnsembleDriver(config, version, find_model, submit, recorder, self._clock)
        own_fingerprint = self._caches.fingerprint(plan, version, config_json)

        def fingerprint() -> bytes:
            return own_fingerprint + b"".join(model.fingerprint() for model in driver.find_models())

        return Model(
            name=plan.name,
            version=version,
            config=config,
            config_json=config_json,
            labels=plan.labels,
            is_decoupled=config.is_decoupled,
            has_batch_dim=config.has_batch_dim,
            place=None,
            load_duration_ns=self._clock() - start_ns,
            validator=RequestValidator(config),
            driver=driver,
            recorder=recorder,
            warmup_samples=(),
            plan=plan,
            cache=self._caches.cache_of(config, fingerprint, driver, recorder),
            fingerprint=fingerprint,
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
        environment = config.parameters.get(ENVIRONMENT_PARAMETER)
        has_environment = environment is not None and environment.string_value != ""
        if name == self._settings.debug_model:
            _LOG.warning("model '%s' runs in the server's process, one instance on a thread: --debug-model", name)
            if has_environment:
                _LOG.warning("model '%s' is debugged with the server's interpreter, not its environment", name)
            return Place.THREAD
        if has_environment and place is not Place.PROCESS:
            _LOG.warning("model '%s' runs in a process: it has an execution environment of its own", name)
            place = Place.PROCESS
        if place is Place.PROCESS and self._process_place is None:
            if has_environment:
                raise UnsupportedError(
                    f"model '{name}': parameter {ENVIRONMENT_PARAMETER} needs processes, which this platform lacks"
                )
            _LOG.warning("model '%s' runs on threads: this platform cannot run models in child processes", name)
            return Place.THREAD
        return place

    def _start_instances(
        self, context: ModelContext, backend: Backend, place: Place, driver: ModelDriver
    ) -> list[StartedInstance]:
        plans = plan_instances(context.config)
        if context.name == self._settings.debug_model:
            del plans[1:]
        return self._start_planned(context, backend, place, driver, plans)

    def _start_planned(
        self,
        context: ModelContext,
        backend: Backend,
        place: Place,
        driver: ModelDriver,
        plans: Sequence[InstancePlan],
    ) -> list[StartedInstance]:
        started: list[StartedInstance] = []
        try:
            for plan in plans:
                self._check_device_memory(context.name, plan.description)
                cores = self._cores_of(plan.signature[0], plan.description)
                description = replace(plan.description, cpu_cores=cores, has_own_process=place is Place.PROCESS)
                instance = self._start_instance(context, backend, place, driver, description)
                started.append((plan.signature, instance))
            asyncio.run_coroutine_threadsafe(self._register(started, driver), self._loop).result()
        except BaseException:
            for _, instance in started:
                asyncio.run_coroutine_threadsafe(instance.close(), self._loop).result()
            raise
        return started

    async def _register(self, started: Sequence[StartedInstance], driver: ModelDriver) -> None:
        """Make instances known to the rate limiter; all of them, or none.

        Raises:
            InvalidArgumentError: one could never execute.
        """
        permits = self._permits
        if permits is None:
            return
        try:
            for (group, device), instance in started:
                if not group.passive:
                    permits.add(instance, group.rate_limiter, device, driver)
        except BaseException:
            for _, instance in started:
                permits.remove(instance)
            raise

    def _cores_of(self, group: ModelInstanceGroup, instance: InstanceDescription) -> tuple[int, ...]:
        """The cores that an instance is bound to; empty is any."""
        default = {"KIND_GPU": f"gpu_{instance.device_id}", "KIND_MODEL": "model"}.get(instance.kind, "cpu")
        if group.secondary_devices:
            _LOG.warning("instance '%s' makes no use of its secondary_devices: no backend can", instance.name)
        policy = self._settings.host_policies.get(group.host_policy or default)
        if policy is None:
            if group.host_policy:
                _LOG.warning(
                    "instance '%s' has the host policy '%s', which no --host-policy describes",
                    instance.name,
                    group.host_policy,
                )
            return ()
        if policy.cpu_cores or policy.numa_node is None:
            return policy.cpu_cores
        return cores_of_node(policy.numa_node)

    def _check_device_memory(self, name: str, instance: InstanceDescription) -> None:
        """Refuse an instance on a device whose memory is filled beyond `--model-load-gpu-limit`."""
        limit = self._settings.model_load_gpu_limits.get(instance.device_id)
        if limit is None or instance.kind != "KIND_GPU":
            return
        used = self._device_memory_use(instance.device_id)
        if used is not None and used > limit:
            raise UnavailableError(
                f"can not create model '{name}': memory limit set for {instance.kind} {instance.device_id} has "
                "exceeded, model loading is rejected."
            )

    def _start_instance(
        self,
        context: ModelContext,
        backend: Backend,
        place: Place,
        driver: ModelDriver,
        description: InstanceDescription,
    ) -> PlacedInstance:
        def create(host: InstanceHost) -> Instance:
            if place is Place.THREAD:
                # The thread is the instance's own.
                bind_to_cores(description.cpu_cores)
            return backend.create_instance(context, description, host)

        if place is Place.PROCESS:
            assert self._process_place is not None
            return self._process_place.start(context, backend.name, description, driver, self._loop)
        caller = Caller(context.name, context.version, description.name)
        if place is Place.THREAD:
            return ThreadInstance(caller, create, driver, self._local_environment)
        return InlineInstance(caller, create, driver, self._local_environment)

    def _call_at(self, deadline_ns: int, callback: Callable[[], None]) -> Timer:
        return self._loop.call_later(max(0, deadline_ns - self._clock()) / 1e9, callback)


def _check_runtime(config: ModelConfig) -> None:
    """Refuse another library than the backend's own: what it would do, nobody here does.

    Raises:
        InvalidArgumentError
    """
    own = f"libtriton_{config.backend}.so"
    if config.runtime not in ("", own):
        raise InvalidArgumentError(
            f"unable to find backend library '{config.runtime}' for model '{config.name}', searched: the backend that "
            f"is built in ('{own}')"
        )
