"""The composition root: builds, starts and stops everything, in one visible order.

    start   process place, whose fork server comes before any thread -> engine, which loads the models
            -> front doors -> ports -> serving
    stop    ports take no new connections -> the engine answers what it accepted, and unloads -> connections close
            -> process place

Nothing listens before the start-up models are loaded, so that a client that gets an answer gets a true one. Stopping
is bounded by `--exit-timeout-secs`.
"""

import asyncio
import contextlib
import logging
import os
import platform
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType

import merrow
from merrow.backends.registry import backend_of
from merrow.core.clock import Clock
from merrow.core.errors import CODE_NAMES, ServerError
from merrow.engine.cuda_memory import CudaLibrary, find_cuda
from merrow.engine.device_memory import device_memory_use
from merrow.engine.engine import Engine
from merrow.engine.loader import ModelLoader
from merrow.engine.local_cache import LocalStore
from merrow.engine.memory import use_one_heap
from merrow.engine.model import Model
from merrow.engine.permits import InstancePermits
from merrow.engine.response_cache import ResponseStore
from merrow.engine.services import ModelServices
from merrow.engine.shared_memory import SharedMemoryRegistry
from merrow.frontends.grpc.admin import GrpcAdmin
from merrow.frontends.grpc.delays import DelayedGrpc
from merrow.frontends.grpc.infer import GrpcInference
from merrow.frontends.grpc.methods import GrpcFrontend
from merrow.frontends.grpc.settings import GrpcSettings
from merrow.frontends.http.admin import HttpAdmin
from merrow.frontends.http.door import HttpFrontend
from merrow.frontends.http.generate import HttpGenerate
from merrow.frontends.http.infer import HttpInference
from merrow.frontends.http.routes import Endpoint, Handlers
from merrow.frontends.http.sagemaker import SageMakerFrontend
from merrow.frontends.http.settings import HttpSettings
from merrow.frontends.http.shared_memory import HttpSharedMemory
from merrow.frontends.http.tasks import AnswerTasks
from merrow.frontends.http.vertex_ai import VertexAiFrontend
from merrow.frontends.metrics import MetricsFrontend
from merrow.net.access_log import LoggedGrpc, LoggedHttp
from merrow.net.body import ReceiveBudget
from merrow.net.exchange import GrpcApplication, HttpApplication
from merrow.net.grpc_compression import CompressionLevel
from merrow.net.listener import Listener
from merrow.net.loop import new_event_loop
from merrow.net.tls import TlsError
from merrow.observe.gpu_devices import find_gpus
from merrow.observe.gpu_usage import collect_gpu_usage
from merrow.observe.load_report import report_load
from merrow.observe.logs import TABLE, ServerLog, format_table, start_logging, stop_logging
from merrow.observe.loop_watch import LoopWatch
from merrow.observe.metrics import new_recorder
from merrow.observe.metrics_page import MetricsPage
from merrow.observe.trace import TraceOutput, Tracer
from merrow.observe.trace_file import TraceFile
from merrow.places.local_host import LocalEnvironment
from merrow.places.process.host import ProcessPlace
from merrow.settings import (
    LocalCacheSettings,
    NetworkSettings,
    Settings,
    SettingsError,
    TlsSettings,
    TraceMode,
    TraceSettings,
)
from merrow.wire import admin_json, admin_proto
from merrow.wire.binary_framing import SAGEMAKER_CONTENT_TYPE, VERTEX_AI_CONTENT_TYPE, BinaryFraming
from merrow.wire.header_forwarding import HeaderForwarding

_LOG = logging.getLogger("merrow.server")

PROTOCOL_VERSION = "2.73.0"
"""The release of Triton whose protocol is spoken."""

EXTENSIONS = (
    "classification",
    "sequence",
    "model_repository",
    "model_repository(unload_dependents)",
    "schedule_policy",
    "model_configuration",
    "system_shared_memory",
    "cuda_shared_memory",
    "binary_tensor_data",
    "parameters",
    "statistics",
    "trace",
    "logging",
)
"""The protocol's extensions, as Triton lists them; `generate` works too, and is in nobody's list."""

STOP_GRACE_SECONDS = 1.0
"""What closing connections and processes may take beyond `--exit-timeout-secs`."""


_COMPRESSION_LEVELS = {
    "none": None,
    "low": CompressionLevel.LOW,
    "medium": CompressionLevel.MEDIUM,
    "high": CompressionLevel.HIGH,
}


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
        self._doors: _Doors | None = None
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
            all_loaded = await engine.start()
        except ServerError as error:
            raise ServerStartError(f"creating server: {CODE_NAMES[error.code]} - {error.message}") from error
        _log_models(engine)
        if not all_loaded and settings.repository.exit_on_error:
            raise ServerStartError("creating server: Internal - failed to load all models")
        debugged = settings.repository.debug_model
        if debugged and all(model.name != debugged for model in engine.models()):
            raise ServerStartError(f"--debug-model={debugged}: there is no such model in service")
        assert self._tracer is not None
        self._doors = _Doors(engine, settings, metrics, self._tracer, self._log)
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

    async def _open_ports(self, doors: "_Doors") -> None:
        network = self._settings.network
        ports: dict[str, int] = {}
        receive_budget = ReceiveBudget(network.limits.max_receiving_byte_size)
        for service in _services(network, doors):
            path = _path_of_socket(service.address)
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


class _Doors:
    """The front doors of one server."""

    def __init__(
        self, engine: Engine, settings: Settings, metrics: MetricsPage, tracer: Tracer, log: ServerLog | None
    ) -> None:
        network = settings.network
        description = (settings.server_id, PROTOCOL_VERSION, EXTENSIONS)
        max_input_byte_size = network.http_max_input_byte_size
        self._answer_tasks = AnswerTasks()
        self._grpc_admin = GrpcAdmin(engine, admin_proto.encode_server_metadata(*description))
        self.metrics = MetricsFrontend(engine, metrics)
        self._grpc_settings = GrpcSettings(engine, tracer, log)
        self.grpc = GrpcFrontend(
            engine,
            self._grpc_admin,
            GrpcInference(engine, tracer, forwarding=_forwarding(network.grpc_header_forward_pattern)),
            restrictions=network.grpc_restrictions,
            has_reflection=network.allow_grpc_reflection,
            compression=_COMPRESSION_LEVELS[network.grpc_infer_response_compression_level],
            limits=network.limits,
            settings=self._grpc_settings,
        )
        self.grpc_calls: GrpcApplication = self.grpc
        if network.grpc_delays is not None:
            self.grpc_calls = DelayedGrpc(self.grpc, engine, network.grpc_delays, asyncio.get_running_loop())
        server_metadata = admin_json.encode_server_metadata(*description)
        handlers: Handlers = {
            **HttpAdmin(engine, self._answer_tasks, server_metadata, max_input_byte_size).handlers(),
            **HttpInference(
                engine,
                self._answer_tasks,
                max_input_byte_size,
                tracer,
                forwarding=_forwarding(network.http_header_forward_pattern),
            ).handlers(),
            **HttpGenerate(
                engine,
                self._answer_tasks,
                max_input_byte_size,
                partial(report_load, metrics.custom),
                tracer,
                network.limits,
            ).handlers(),
            **HttpSettings(engine, self._answer_tasks, tracer, log, max_input_byte_size).handlers(),
            **HttpSharedMemory(engine, self._answer_tasks, max_input_byte_size).handlers(),
        }
        self.http = HttpFrontend(handlers, network.http_restrictions)
        # REST and metrics on one port.
        handlers = {**handlers, Endpoint.METRICS: lambda exchange, _: self.metrics.on_exchange(exchange)}
        self.all_http = HttpFrontend(handlers, network.http_restrictions)

        def platform_frontend(framing: BinaryFraming) -> HttpFrontend:
            """The same endpoints, with the form of binary tensors that a platform's containers have."""
            inference = HttpInference(engine, self._answer_tasks, max_input_byte_size, tracer, framing=framing)
            return HttpFrontend({**handlers, **inference.handlers()}, network.http_restrictions)

        self.sagemaker: HttpApplication | None = None
        if network.sagemaker is not None:
            self.sagemaker = SageMakerFrontend(
                platform_frontend(SAGEMAKER_CONTENT_TYPE),
                engine,
                self._answer_tasks,
                network.sagemaker,
                network.http_restrictions,
                max_input_byte_size,
            )
        self.vertex_ai: HttpApplication | None = None
        if network.vertex_ai is not None:
            self.vertex_ai = VertexAiFrontend(
                platform_frontend(VERTEX_AI_CONTENT_TYPE),
                network.vertex_ai.predict_route,
                network.vertex_ai.health_route,
                network.vertex_ai.default_model or _only_model(engine),
            )

    async def close(self) -> None:
        """Wait until what runs in tasks is answered."""
        await self._answer_tasks.close()
        await self._grpc_admin.close()
        await self._grpc_settings.close()
        await self.metrics.close()


def _only_model(engine: Engine) -> str:
    """The name of the one model there is.

    Raises:
        ServerStartError: there is none, or there are several.
    """
    names = {model.name for model in engine.models()}
    if len(names) != 1:
        raise ServerStartError(
            "failed to start Vertex AI service: Invalid argument - Expect the model repository contains only a single "
            "model if default model is not specified"
        )
    return names.pop()


def _forwarding(pattern: str) -> HeaderForwarding | None:
    return HeaderForwarding(pattern) if pattern else None


@dataclass(frozen=True, slots=True)
class _Service:
    """What one port serves. `name` is the field of `Ports`, `title` what the log calls it."""

    name: str
    title: str
    address: str
    port: int
    reuses_port: bool
    tls: TlsSettings | None
    http: HttpApplication | None = None
    grpc: GrpcApplication | None = None


def _services(network: NetworkSettings, doors: _Doors) -> Iterator[_Service]:
    """The services to start, in Triton's order."""
    if network.port is not None:
        yield _Service(
            "all",
            "all services",
            network.address,
            network.port,
            network.reuse_port,
            network.tls,
            http=doors.all_http,
            grpc=doors.grpc_calls,
        )
    if network.allow_grpc:
        yield _Service(
            "grpc",
            "GRPCInferenceService",
            network.grpc_address,
            network.grpc_port,
            network.reuse_grpc_port,
            network.grpc_tls,
            grpc=doors.grpc_calls,
        )
    if network.allow_http:
        yield _Service(
            "http",
            "HTTPService",
            network.http_address,
            network.http_port,
            network.reuse_http_port,
            network.http_tls,
            http=doors.http,
        )
    if network.sagemaker is not None:
        yield _Service(
            "sagemaker",
            "Sagemaker HTTPService",
            network.sagemaker.address,
            network.sagemaker.port,
            False,
            network.tls,
            http=doors.sagemaker,
        )
    if network.vertex_ai is not None:
        yield _Service(
            "vertex_ai",
            "Vertex AI HTTPService",
            network.vertex_ai.address,
            network.vertex_ai.port,
            False,
            network.tls,
            http=doors.vertex_ai,
        )
    if network.allow_metrics:
        yield _Service(
            "metrics",
            "Metrics Service",
            network.metrics_address,
            network.metrics_port,
            network.reuse_metrics_port,
            network.metrics_tls,
            http=doors.metrics,
        )


def _path_of_socket(address: str) -> str | None:
    """The path of a Unix socket, `unix:PATH` or `unix://PATH`; None for other addresses."""
    scheme, separator, path = address.partition(":")
    return path.removeprefix("//") if separator and scheme == "unix" else None


def run(settings: Settings, warnings: Sequence[str] = ()) -> int:
    """Serve until SIGTERM or SIGINT.

    Args:
        warnings: what the log is to say first.

    Returns:
        The exit code: 0 after a clean end, 1 if the server could not start. Where requests were still running when
        the time to exit was over, the process ends here, with 1.
    """
    try:
        log = start_logging(settings.log)
    except OSError as error:
        print(f"error: cannot open the log file: {error}", file=sys.stderr)
        return 1
    use_one_heap()
    loop = new_event_loop()
    try:
        asyncio.set_event_loop(loop)
        _log_greeting(warnings)
        is_clean = loop.run_until_complete(_serve(settings, log))
        if not is_clean:
            _LOG.error("Exit timeout expired. Exiting immediately.")
            log.flush()
            # Threads that still execute a model cannot be ended in any other way; child processes end with this one.
            os._exit(1)
        loop.run_until_complete(loop.shutdown_default_executor())
        return 0
    except ServerStartError as error:
        if settings.log.file:
            _LOG.error("%s", error)
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        asyncio.set_event_loop(None)
        loop.close()
        stop_logging(log)


async def _serve(settings: Settings, log: ServerLog) -> bool:
    """Start, wait for a signal, stop; whether it all ended in time."""
    start_ns = time.monotonic_ns()
    server = Server(settings, log)
    with _termination_signals() as signals:
        starting = asyncio.ensure_future(server.__aenter__())
        signalled = asyncio.ensure_future(signals.get())
        await asyncio.wait((starting, signalled), return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            _LOG.info("signal (%s) received while starting", signalled.result())
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            return True
        if starting.exception() is not None:
            signalled.cancel()
            await starting
        _log_serving(settings.network, time.monotonic_ns() - start_ns)
        name = await signalled
        _LOG.info(
            "signal (%s) received: no new requests; those accepted have %d s. A second signal exits at once",
            name,
            settings.exit_timeout_seconds,
        )
        impatient = asyncio.ensure_future(signals.get())
        stopping = asyncio.ensure_future(server.stop())
        await asyncio.wait((stopping, impatient), return_when=asyncio.FIRST_COMPLETED)
        if not stopping.done():
            stopping.cancel()
            await asyncio.gather(stopping, return_exceptions=True)
            return False
        impatient.cancel()
        if stopping.result():
            _LOG.info("stopped")
        return stopping.result()


@contextlib.contextmanager
def _termination_signals() -> "Iterator[asyncio.Queue[str]]":
    """The names of the signals that ask the process to end, as they come."""
    loop = asyncio.get_running_loop()
    received: asyncio.Queue[str] = asyncio.Queue()
    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        try:
            loop.add_signal_handler(number, received.put_nowait, number.name)
        except NotImplementedError:  # Windows
            signal.signal(
                number,
                lambda raised, _: loop.call_soon_threadsafe(received.put_nowait, signal.Signals(raised).name),
            )
    try:
        yield received
    finally:
        for number in numbers:
            with contextlib.suppress(NotImplementedError):
                loop.remove_signal_handler(number)
            signal.signal(number, previous[number])


def _log_greeting(warnings: Sequence[str]) -> None:
    _LOG.info(
        "merrow %s (protocol of Triton %s), Python %s, %s, %s CPUs, process %d",
        merrow.__version__,
        PROTOCOL_VERSION,
        platform.python_version(),
        platform.platform(terse=True),
        os.cpu_count(),
        os.getpid(),
    )
    for warning in warnings:
        _LOG.warning("%s", warning)


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


def _log_serving(network: NetworkSettings, start_ns: int) -> None:
    addresses = {
        address
        for is_open, address in (
            (network.port is not None, network.address),
            (network.allow_http, network.http_address),
            (network.allow_grpc, network.grpc_address),
        )
        if is_open
    }
    if addresses and addresses <= {"127.0.0.1", "::1", "localhost"}:
        _LOG.info("Only this machine can connect; --address=0.0.0.0 lets others in")
    _LOG.info("Serving, %.2f s after the start", start_ns / 1e9)
