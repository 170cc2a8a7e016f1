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
from types import TracebackType

import merrow
from merrow.backends.registry import backend_of
from merrow.core.errors import CODE_NAMES, ServerError
from merrow.engine.engine import Engine
from merrow.engine.loader import ModelLoader
from merrow.frontends.grpc.admin import GrpcAdmin
from merrow.frontends.grpc.infer import GrpcInference
from merrow.frontends.grpc.methods import GrpcFrontend
from merrow.frontends.http.admin import HttpAdmin
from merrow.frontends.http.door import HttpFrontend
from merrow.frontends.http.infer import HttpInference
from merrow.frontends.http.routes import Endpoint, Handlers
from merrow.frontends.http.tasks import AnswerTasks
from merrow.frontends.metrics import MetricsFrontend
from merrow.net.exchange import GrpcApplication, HttpApplication
from merrow.net.listener import Listener
from merrow.net.loop import new_event_loop
from merrow.observe.host_usage import HostUsageCollector
from merrow.observe.logs import TABLE, format_table, start_logging, stop_logging
from merrow.places.process.host import ProcessPlace
from merrow.settings import NetworkSettings, Settings
from merrow.wire import admin_json, admin_proto

_LOG = logging.getLogger("merrow.server")

PROTOCOL_VERSION = "2.73.0"
"""The release of Triton whose protocol is spoken."""

EXTENSIONS = (
    "classification",
    "model_repository",
    "schedule_policy",
    "model_configuration",
    "binary_tensor_data",
    "parameters",
    "statistics",
)
"""The protocol's extensions that work, in the order in which Triton lists its own."""

STOP_GRACE_SECONDS = 1.0
"""What closing connections and processes may take beyond `--exit-timeout-secs`."""

HOST_USAGE_INTERVAL_NS = 2 * 10**9
"""How old the CPU and memory figures of the metrics may be."""


class ServerStartError(Exception):
    """The server cannot start; the text says why, as Triton words it where Triton has words for it."""


@dataclass(frozen=True, slots=True)
class Ports:
    """The ports that are open; None for a service that has none of its own. `all` is the one that serves everything."""

    all: int | None = None
    http: int | None = None
    grpc: int | None = None
    metrics: int | None = None


class Server:
    """A server in this process, from entering to leaving.

        async with Server(settings) as server:
            print(server.ports.http)

    `ports` is set once it is entered. `stop` tells whether everything ended in time; leaving calls it too.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._process_place: ProcessPlace | None = None
        self._engine: Engine | None = None
        self._doors: _Doors | None = None
        self._listeners: list[Listener] = []
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
        if ProcessPlace.is_available():
            self._process_place = ProcessPlace(settings.process)
        loader = ModelLoader(settings.repository, backend_of, self._process_place, clock, loop)
        engine = Engine(settings.repository, loader, clock, HostUsageCollector(clock, HOST_USAGE_INTERVAL_NS))
        self._engine = engine
        try:
            all_loaded = await engine.start()
        except ServerError as error:
            raise ServerStartError(f"creating server: {CODE_NAMES[error.code]} - {error.message}") from error
        _log_models(engine)
        if not all_loaded and settings.repository.exit_on_error:
            raise ServerStartError("creating server: Internal - failed to load all models")
        self._doors = _Doors(engine, settings)
        await self._open_ports(self._doors)

    async def _open_ports(self, doors: "_Doors") -> None:
        network = self._settings.network
        ports: dict[str, int] = {}
        for service in _services(network, doors):
            listener = Listener(
                service.http,
                service.grpc,
                network.limits,
                address=service.address,
                port=service.port,
                reuse_port=service.reuses_port,
            )
            try:
                await listener.start()
            except OSError as error:
                raise ServerStartError(f"failed to start {service.title}: Unavailable - {error}") from error
            self._listeners.append(listener)
            ports[service.name] = listener.port
            _LOG.info("Started %s at %s:%d", service.title, service.address, listener.port)
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
        return is_clean


def _seconds_until(deadline_ns: int) -> float:
    return max(0, deadline_ns - time.monotonic_ns()) / 10**9


class _Doors:
    """The front doors of one server."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        description = (settings.server_id, PROTOCOL_VERSION, EXTENSIONS)
        max_input_byte_size = settings.network.http_max_input_byte_size
        self._answer_tasks = AnswerTasks()
        self._grpc_admin = GrpcAdmin(engine, admin_proto.encode_server_metadata(*description))
        self.metrics = MetricsFrontend(engine)
        self.grpc = GrpcFrontend(engine, self._grpc_admin, GrpcInference(engine))
        server_metadata = admin_json.encode_server_metadata(*description)
        handlers: Handlers = {
            **HttpAdmin(engine, self._answer_tasks, server_metadata, max_input_byte_size).handlers(),
            **HttpInference(engine, self._answer_tasks, max_input_byte_size).handlers(),
        }
        self.http = HttpFrontend(handlers)
        # REST and metrics on one port.
        self.all_http = HttpFrontend(
            {**handlers, Endpoint.METRICS: lambda exchange, _: self.metrics.on_exchange(exchange)}
        )

    async def close(self) -> None:
        """Wait until what runs in tasks is answered."""
        await self._answer_tasks.close()
        await self._grpc_admin.close()


@dataclass(frozen=True, slots=True)
class _Service:
    """What one port serves. `name` is the field of `Ports`, `title` what the log calls it."""

    name: str
    title: str
    address: str
    port: int
    reuses_port: bool
    http: HttpApplication | None = None
    grpc: GrpcApplication | None = None


def _services(network: NetworkSettings, doors: _Doors) -> Iterator[_Service]:
    """The services to start, in Triton's order."""
    if network.port is not None:
        yield _Service(
            "all", "all services", network.address, network.port, False, http=doors.all_http, grpc=doors.grpc
        )
    if network.allow_grpc:
        yield _Service(
            "grpc",
            "GRPCInferenceService",
            network.grpc_address,
            network.grpc_port,
            network.reuse_grpc_port,
            grpc=doors.grpc,
        )
    if network.allow_http:
        yield _Service(
            "http", "HTTPService", network.http_address, network.http_port, network.reuse_http_port, http=doors.http
        )
    if network.allow_metrics:
        yield _Service(
            "metrics", "Metrics Service", network.metrics_address, network.metrics_port, False, http=doors.metrics
        )


def run(settings: Settings, warnings: Sequence[str] = ()) -> int:
    """Serve until SIGTERM or SIGINT.

    Args:
        warnings: what the log is to say first.

    Returns:
        The exit code: 0 after a clean end, 1 if the server could not start. Where requests were still running when
        the time to exit was over, the process ends here, with 1.
    """
    try:
        handler = start_logging(settings.log)
    except OSError as error:
        print(f"error: cannot open the log file: {error}", file=sys.stderr)
        return 1
    loop = new_event_loop()
    try:
        asyncio.set_event_loop(loop)
        _log_greeting(warnings)
        is_clean = loop.run_until_complete(_serve(settings))
        if not is_clean:
            _LOG.error("Exit timeout expired. Exiting immediately.")
            handler.flush()
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
        stop_logging(handler)


async def _serve(settings: Settings) -> bool:
    """Start, wait for a signal, stop; whether it all ended in time."""
    start_ns = time.monotonic_ns()
    server = Server(settings)
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
    rows = []
    for entry in engine.repository_index(ready_only=False):
        version = "" if entry.version is None else str(entry.version)
        model = None if entry.version is None else loaded.get((entry.name, entry.version))
        place = "" if model is None else f"{model.place.value} x {len(model.driver.instances)}"
        status = f"{entry.state}: {entry.reason}" if entry.reason else entry.state or "not loaded"
        rows.append((entry.name, version, place, status))
    _LOG.info("\n%s\n", format_table(("Model", "Version", "Place", "Status"), rows), extra=TABLE)


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
