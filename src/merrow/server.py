"""The composition root: builds, starts and stops everything, in one visible order.

    start   process place, whose fork server comes before any thread -> engine, which loads the models
            -> front doors -> ports -> serving
    stop    ports take no new connections -> the engine answers what it accepted, and unloads -> connections close
            -> process place

Nothing listens before the start-up models are loaded, so that a client that gets an answer gets a true one. Stopping
is bounded by `--exit-timeout-secs`.
"""

import asyncio
import logging
import time
from dataclasses import dataclass
from types import TracebackType

from merrow.backends.registry import backend_of
from merrow.core.clock import Clock
from merrow.core.errors import CODE_NAMES, ServerError
from merrow.engine.cuda_memory import CudaLibrary, find_cuda
from merrow.engine.device_memory import device_memory_use
from merrow.engine.engine import Engine
from merrow.engine.loader import ModelLoader
from merrow.engine.local_cache import LocalStore
from merrow.engine.model import Model
from merrow.engine.permits import InstancePermits
from merrow.engine.response_cache import ResponseStore
from merrow.engine.services import ModelServices
from merrow.engine.shared_memory import SharedMemoryRegistry
from merrow.front_doors import FrontDoorError, FrontDoors, path_of_socket, services
from merrow.net.access_log import LoggedGrpc, LoggedHttp
from merrow.net.body import ReceiveBudget
from merrow.net.exchange import GrpcApplication, HttpApplication
from merrow.net.listener import Listener
from merrow.net.tls import TlsError
from merrow.observe.gpu_devices import find_gpus
from merrow.observe.gpu_usage import collect_gpu_usage
from merrow.observe.logs import TABLE, ServerLog, format_table
from merrow.observe.loop_watch import LoopWatch
from merrow.observe.metrics_page import MetricsPage
from merrow.observe.model_families import new_recorder
from merrow.observe.trace import TraceOutput, Tracer
from merrow.observe.trace_file import TraceFile
from merrow.places.local_host import LocalEnvironment
from merrow.places.process.host import ProcessPlace
from merrow.settings import LocalCacheSettings, Settings, SettingsError, TraceMode, TraceSettings

_LOG = logging.getLogger("merrow.server")

STOP_GRACE_SECONDS = 1.0
"""What closing connections and processes may take beyond `--exit-timeout-secs`."""


class ServerStartError(Exception):
    """The server cannot start; the text says why, as Triton words it where Triton has words for it."""


@dataclass(frozen=True, slots=True)
class Ports:
    """The ports that are open; None for a service that has none of its own. `all` is the one that serves everything."""

    all: int | None = None
    http: int | None = None
    grpc: int | None = None
    metrics: int | None = None
    sagemaker: int | None = None
    vertex_ai: int | None = None


class Server:
    """A server in this process, from entering to leaving.

        async with Server(settings) as server:
            print(server.ports.http)

    `ports` is set once it is entered. `stop` tells whether everything ended in time; leaving calls it too.
    """

    def __init__(self, settings: Settings, log: ServerLog | None = None) -> None:
        self._settings = settings
        self._process_place: ProcessPlace | None = None
        self._engine: Engine | None = None
        self._services: ModelServices | None = None
        self._doors: FrontDoors | None = None
        self._listeners: list[Listener] = []
        self._cuda: CudaLibrary | None = None
        self._response_store: ResponseStore | None = None
        self._metrics: MetricsPage | None = None
        self._tracer: Tracer | None = None
        self._log = log
        self.ports = Ports()

    async def __aenter__(self) -> "Server":
        """Raises ServerStartError."""
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    async def _start(self) -> None:
        settings = self._settings
        clock = time.monotonic_ns
        loop = asyncio.get_running_loop()
        metrics = await self._start_observing(clock)
        services = self._services = ModelServices(
            lambda: engine,
            metrics.custom,
            settings.process.max_call_depth,
            settings.repository.model_load_thread_count,
        )
        if ProcessPlace.is_available():
            self._process_place = ProcessPlace(settings.process, services)
        local_environment = LocalEnvironment(loop, services, settings.process.stream_window_byte_size)
        loader = ModelLoader(
            settings.repository,
            backend_of,
            self._process_place,
            clock,
            local_environment,
            device_memory_use=device_memory_use,
            new_recorder=lambda config: new_recorder(config, settings.metrics),
            gpu_ids=await asyncio.to_thread(find_gpus, settings.repository.min_compute_capability),
            permits=None if settings.rate_limit is None else InstancePermits(settings.rate_limit.resources, loop),
            response_store=await self._open_response_store(clock, loop),
        )
        if settings.shared_memory.allow_client_shm:
            self._cuda = await asyncio.to_thread(find_cuda)
        shared_memory = SharedMemoryRegistry(settings.shared_memory, self._cuda)
        if self._response_store is not None:
            metrics.read_cache = self._response_store.usage
        engine = Engine(settings.repository, loader, clock, metrics, shared_memory)
        self._engine = engine
        try:
            failure = await engine.start()
        except ServerError as error:
            raise _start_error(error) from error
        _log_models(engine)
        if failure is not None and settings.repository.exit_on_error:
            raise _start_error(failure)
        debugged = settings.repository.debug_model
        if debugged and all(model.name != debugged for model in engine.models()):
            raise ServerStartError(f"--debug-model={debugged}: there is no such model in service")
        assert self._tracer is not None
        try:
            self._doors = FrontDoors(engine, settings, metrics, self._tracer, self._log)
        except FrontDoorError as error:
            raise ServerStartError(str(error)) from error
        await self._open_ports(self._doors)

    async def _start_observing(self, clock: Clock) -> MetricsPage:
        """Begin to watch the loop, to trace and to measure."""
        settings = self._settings
        gpus = None
        if settings.metrics.allow_gpu_metrics and (settings.network.allow_metrics or settings.network.port is not None):
            interval_ns = settings.metrics.interval_ms * 1_000_000
            gpus = await asyncio.to_thread(collect_gpu_usage, clock, interval_ns)
        metrics = self._metrics = MetricsPage(settings.metrics, clock, gpus)
        if settings.loop_stall_limit_ms:
            metrics.loop_watch = LoopWatch(settings.loop_stall_limit_ms, clock)
            metrics.loop_watch.start()
        try:
            self._tracer = Tracer(settings.trace, _trace_output(settings.trace), clock)
        except SettingsError as error:
            raise ServerStartError(f"creating server: Invalid argument - {error}") from error
        return metrics

    def _logged(
        self, http: HttpApplication | None, grpc: GrpcApplication | None
    ) -> tuple[HttpApplication | None, GrpcApplication | None]:
        """What a port serves, with a line of the log for each answer if that is wanted."""
        if self._settings.access_log:
            http = None if http is None else LoggedHttp(http, time.monotonic_ns)
            grpc = None if grpc is None else LoggedGrpc(grpc, time.monotonic_ns)
        return http, grpc

    async def _open_response_store(self, clock: Clock, loop: asyncio.AbstractEventLoop) -> ResponseStore | None:
        settings = self._settings.cache
        if isinstance(settings, LocalCacheSettings):
            self._response_store = LocalStore(settings.byte_size, clock)
        elif settings is not None:
            try:
                # Where it is wanted: the package takes longer to import than the rest of the server.
                from merrow.engine.redis_cache import RedisStore

                self._response_store = await asyncio.to_thread(RedisStore, settings, loop)
            except ServerError as error:
                raise ServerStartError(f"creating server: {CODE_NAMES[error.code]} - {error.message}") from error
        return self._response_store

    async def _open_ports(self, doors: FrontDoors) -> None:
        network = self._settings.network
        ports: dict[str, int] = {}
        receive_budget = ReceiveBudget(network.limits.max_receiving_byte_size)
        for service in services(network, doors):
            path = path_of_socket(service.address)
            try:
                listener = Listener(
                    *self._logged(service.http, service.grpc),
                    network.limits,
                    address=service.address,
                    port=service.port,
                    path=path,
                    reuse_port=service.reuses_port,
                    tls=service.tls,
                    keepalive=network.keepalive,
                    receive_budget=receive_budget,
                )
                await listener.start()
            except TlsError as error:
                raise ServerStartError(f"failed to start {service.title}: Invalid argument - {error}") from error
            except OSError as error:
                raise ServerStartError(f"failed to start {service.title}: Unavailable - {error}") from error
            self._listeners.append(listener)
            if path is None:
                ports[service.name] = listener.port
                host = f"[{service.address}]" if ":" in service.address else service.address
                _LOG.info("Started %s at %s:%d", service.title, host, listener.port)
            else:
                _LOG.info("Started %s at unix:%s", service.title, path)
        self.ports = Ports(**ports)

    async def stop(self) -> bool:
        """Take no more requests, answer those that were accepted, release everything; a no-op the second time.

        Returns:
            False if the time ran out first: then some requests went without an answer, and something may still run.
        """
        deadline_ns = time.monotonic_ns() + self._settings.exit_timeout_seconds * 10**9
        stopping = asyncio.ensure_future(self._stop(deadline_ns))
        # What runs in a model cannot be cut short; this ends the wait for it.
        await asyncio.wait((stopping,), timeout=self._settings.exit_timeout_seconds + STOP_GRACE_SECONDS)
        if stopping.done():
            return stopping.result()
        stopping.cancel()
        return False

    async def _stop(self, deadline_ns: int) -> bool:
        listeners, self._listeners = self._listeners, []
        closing = [asyncio.ensure_future(listener.shutdown(deadline_ns)) for listener in listeners]
        is_clean = True
        doors, self._doors = self._doors, None
        if doors is not None:
            doors.grpc.shut_down()
        engine, self._engine = self._engine, None
        if engine is not None:
            is_clean = await engine.stop(_seconds_until(deadline_ns))
            if self._services is not None and not await self._services.stop(_seconds_until(deadline_ns)):
                is_clean = False
            engine.shared_memory.close()
        store, self._response_store = self._response_store, None
        if store is not None:
            await store.close()
        if doors is not None:
            try:
                await asyncio.wait_for(doors.close(), _seconds_until(deadline_ns))
            except asyncio.TimeoutError:
                is_clean = False
        for error in await asyncio.gather(*closing, return_exceptions=True):
            if error is not None:
                # A defect; what is left to stop must be stopped all the same.
                _LOG.error("closing a port failed", exc_info=error)
        place, self._process_place = self._process_place, None
        if place is not None:
            await place.close()
        await self._stop_observing(deadline_ns)
        cuda, self._cuda = self._cuda, None
        if cuda is not None:
            cuda.close()
        return is_clean

    async def _stop_observing(self, deadline_ns: int) -> None:
        tracer, self._tracer = self._tracer, None
        if tracer is not None:
            try:
                await asyncio.wait_for(tracer.close(), _seconds_until(deadline_ns) + STOP_GRACE_SECONDS / 2)
            except asyncio.TimeoutError:
                _LOG.error("the last traces could not be written in time")
        metrics, self._metrics = self._metrics, None
        if metrics is not None:
            if metrics.loop_watch is not None:
                metrics.loop_watch.stop()
            metrics.close()


def _trace_output(settings: TraceSettings) -> TraceOutput:
    if settings.mode is TraceMode.TRITON:
        return TraceFile(settings.file)
    # The packages that it needs are not everywhere.
    from merrow.observe.open_telemetry import OpenTelemetryOutput

    return OpenTelemetryOutput(settings, time.monotonic_ns, time.time_ns)


def _seconds_until(deadline_ns: int) -> float:
    return max(0, deadline_ns - time.monotonic_ns()) / 10**9


def _log_models(engine: Engine) -> None:
    """The table of models: what is served, where it runs, and what is not served and why."""
    loaded = {(model.name, model.version): model for model in engine.models()}
    failures = engine.load_failures()
    rows = []
    for entry in engine.repository_index(ready_only=False):
        version = "" if entry.version is None else str(entry.version)
        model = None if entry.version is None else loaded.get((entry.name, entry.version))
        place = "" if model is None else _place_text(model)
        status = f"{entry.state}: {entry.reason}" if entry.reason else entry.state or "not loaded"
        if entry.version is None and entry.name in failures:
            status = f"not loaded: {failures[entry.name]}"
        rows.append((entry.name, version, place, status))
    _LOG.info("\n%s\n", format_table(("Model", "Version", "Place", "Status"), rows), extra=TABLE)


def _place_text(model: Model) -> str:
    return "ensemble" if model.place is None else f"{model.place.value} x {len(model.driver.instances)}"


def _start_error(error: ServerError) -> ServerStartError:
    return ServerStartError(f"creating server: {CODE_NAMES[error.code]} - {error.message}")
