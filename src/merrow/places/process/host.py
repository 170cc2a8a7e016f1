"""Instances in processes of their own: starts them, watches over them, and brings them back.

An instance is

    healthy      its child takes batches
    restarting   its child died; another is started after a delay that doubles with each death in a row
    closed

Starting blocks, so it happens on the loading thread that called `start`, or on a thread of the place for a restart; all
else is on the loop's thread. When a child dies, what it had been given fails at once, in this order: the instance turns
unhealthy, then each batch is reported as failed, so that nothing is handed to it in between.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from merrow.backends.base import Execution, InstanceDescription, ModelContext
from merrow.core.errors import InternalError, ServerError
from merrow.core.model_config import ModelConfig
from merrow.core.request import Request
from merrow.places.base import InstanceEvents
from merrow.places.process.channel import RECEIVE_BYTE_SIZE
from merrow.places.process.fork_client import ChildProcess, ForkClient, describe_exit
from merrow.places.process.launch import Launcher
from merrow.places.process.session import LaunchedChild, Session, SessionEnvironment
from merrow.places.process.system import is_available
from merrow.settings import ProcessSettings

_LOG = logging.getLogger("merrow.places")

# A child is kept supplied with batches for this long, so that it need not wait for the server after each.
SUPPLY_NS = 500_000
MAX_DEPTH = 32


class ProcessPlace:
    """Starts instances in child processes. Owns the fork server, which starts with the place."""

    def __init__(self, settings: ProcessSettings, backend_factory: str = "merrow.backends.registry:backend_of") -> None:
        """
        Args:
            backend_factory: `module:function`, called in the child with a backend's name.
        """
        self._settings = settings
        self._client = ForkClient(backend_factory)
        self._launcher = Launcher(self._client, settings)
        self._receive_buffer = memoryview(bytearray(RECEIVE_BYTE_SIZE))
        self._instances: set[ProcessInstance] = set()

    @staticmethod
    def is_available() -> bool:
        """Whether this system can do it; where not, models run on threads."""
        return is_available()

    def start(
        self,
        context: ModelContext,
        backend_name: str,
        instance: InstanceDescription,
        events: InstanceEvents,
        loop: asyncio.AbstractEventLoop,
    ) -> "ProcessInstance":
        """Load an instance in a new process. Blocks until it is ready: never call it on the loop's thread.

        Raises:
            ServerError: the instance cannot be loaded, or its process died or did not start.
        """
        recipe = _Recipe(self._launcher, context, backend_name, instance)
        child = recipe.launch(None)
        environment = SessionEnvironment(loop, self._receive_buffer, self._settings.arena_initial_byte_size)
        placed = ProcessInstance(recipe, child, events, environment, self._settings, self._instances.discard)
        self._instances.add(placed)
        # Whoever hands it a batch on the loop's thread does so after this.
        loop.call_soon_threadsafe(placed.begin)
        return placed

    def auto_complete(self, context: ModelContext, backend_name: str) -> ModelConfig:
        """`Backend.auto_complete`, in a process that is thrown away. Blocks, as `start` does.

        Raises:
            ServerError: as `Backend.auto_complete`; also when the process died or did not start.
        """
        return self._launcher.auto_complete(context, backend_name)

    async def close(self) -> None:
        """Close the instances that are left, then end the fork server and everything below it."""
        await asyncio.gather(*[instance.close() for instance in list(self._instances)])
        await asyncio.get_running_loop().run_in_executor(None, self._client.close)


@dataclass(frozen=True, slots=True)
class _Recipe:
    """How to make the instance, again and again."""

    launcher: Launcher
    context: ModelContext
    backend_name: str
    description: InstanceDescription

    def launch(self, on_forked: Callable[[ChildProcess], None] | None) -> LaunchedChild:
        return self.launcher.launch(self.context, self.backend_name, self.description, on_forked)


class ProcessInstance:
    """An instance with a process of its own. See the module, and `places.base.PlacedInstance`."""

    def __init__(
        self,
        recipe: _Recipe,
        child: LaunchedChild,
        events: InstanceEvents,
        environment: SessionEnvironment,
        settings: ProcessSettings,
        on_closed: "Callable[[ProcessInstance], None]",
    ) -> None:
        self.name = recipe.description.name
        self.depth = 1
        self.is_healthy = True
        self._recipe = recipe
        self._events = events
        self._environment = environment
        self._loop = environment.loop
        self._settings = settings
        self._on_closed = on_closed
        self._mean_execution_ns = float(SUPPLY_NS)
        self._delay_ms = settings.restart_delay_min_ms
        self._started_ns = 0
        self._timer: asyncio.TimerHandle | None = None
        # Set while a restart is under way, on a thread of its own; done when the thread has reported.
        self._restart: asyncio.Future[None] | None = None
        self._restarting_process: ChildProcess | None = None
        self._is_closing = False
        self._session = self._new_session(child)

    @property
    def process_id(self) -> int | None:
        """Of the child, or of the last that there was."""
        return self._session.child.process.process_id

    def submit(self, requests: Sequence[Request]) -> None:
        if self.is_healthy:
            self._session.submit(requests)
        else:
            self._loop.call_soon(self._events.on_failure, self, requests, self._unhealthy())

    def cancel(self, request: Request) -> None:
        if self.is_healthy:
            self._session.cancel(request)

    async def close(self) -> None:
        """Stop the instance once what was submitted has come back; the model is finalized, its process ends."""
        if self._is_closing:
            return
        self._is_closing = True
        if self._timer is not None:
            self._timer.cancel()
        if self._restart is not None:
            if self._restarting_process is not None:
                self._restarting_process.kill()
            await asyncio.wait([self._restart])
        if self.is_healthy:
            await self._session.close(self._settings.close_timeout_seconds)
        self.is_healthy = False
        self._on_closed(self)

    def begin(self) -> None:
        """Begin to listen to the child; the first call on the loop's thread."""
        child = self._session.child.process
        self._started_ns = time.monotonic_ns()
        self._session.start()
        child.exited.add_done_callback(lambda exited: self._log_exit(child, exited.result()))

    def _new_session(self, child: LaunchedChild) -> Session:
        context = self._recipe.context
        return Session(child, context.name, context.version, self._environment, self._on_answer, self._on_lost)

    def _on_answer(self, requests: Sequence[Request], execution: Execution) -> None:
        mean = self._mean_execution_ns
        mean += (execution.end_ns - execution.start_ns - mean) * 0.125
        self._mean_execution_ns = mean
        if mean * MAX_DEPTH <= SUPPLY_NS:
            self.depth = MAX_DEPTH
        elif mean >= SUPPLY_NS:
            self.depth = 1
        else:
            self.depth = int(SUPPLY_NS / mean)
        self._events.on_execution(self, requests, execution)

    def _on_lost(self, batches: list[Sequence[Request]]) -> None:
        self.is_healthy = False
        if not self._is_closing:
            self._events.on_health_change(self, False)
        error = self._unhealthy()
        for requests in batches:
            self._events.on_failure(self, requests, error)
        if not self._is_closing:
            if time.monotonic_ns() - self._started_ns > self._settings.restart_delay_max_ms * 1_000_000:
                # It had been well for long: this is a new misfortune, not the next of a row.
                self._delay_ms = self._settings.restart_delay_min_ms
            self._restart_later()

    def _restart_later(self) -> None:
        self._timer = self._loop.call_later(self._delay_ms / 1000, self._begin_restart)
        self._delay_ms = min(2 * self._delay_ms, self._settings.restart_delay_max_ms)

    def _begin_restart(self) -> None:
        self._timer = None
        self._restart = self._loop.create_future()
        threading.Thread(target=self._launch_again, name=f"restart {self.name}", daemon=True).start()

    def _launch_again(self) -> None:
        """On the restart's thread."""
        result: LaunchedChild | ServerError
        try:
            result = self._recipe.launch(self._on_forked)
        except ServerError as error:
            result = error
        self._loop.call_soon_threadsafe(self._finish_restart, result)

    def _on_forked(self, process: ChildProcess) -> None:
        """On the restart's thread."""
        self._restarting_process = process
        if self._is_closing:
            process.kill()

    def _finish_restart(self, result: "LaunchedChild | ServerError") -> None:
        assert self._restart is not None
        self._restart.set_result(None)
        self._restart = None
        self._restarting_process = None
        if isinstance(result, LaunchedChild):
            self._session = self._new_session(result)
            self.begin()
            self.is_healthy = True
            if not self._is_closing:
                _LOG.info("instance '%s' was restarted", self.name)
                self._events.on_health_change(self, True)
        elif not self._is_closing:
            _LOG.error(
                "instance '%s' could not be restarted, next attempt in %d ms: %s",
                self.name,
                self._delay_ms,
                result.message,
            )
            self._restart_later()

    def _log_exit(self, process: ChildProcess, status: int) -> None:
        """On the thread of the fork client."""
        if self._is_closing and status == 0:
            return
        _LOG.error("process %s of instance '%s' died %s", process.process_id, self.name, describe_exit(status))

    def _unhealthy(self) -> InternalError:
        return InternalError(f"Stub process '{self.name}' is not healthy.")
