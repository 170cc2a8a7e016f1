"""Instances in processes of their own: starts them, watches over them, and brings them back.

An instance is

    healthy      its child takes batches
    restarting   its child died; another is started after a delay, which `restart` decides
    closed

A child whose `execute` takes longer than its model's time-out, or one of whose deferred requests has had no response
for that long, is made to say where it is, and killed: a death like any other. No time runs while a slow client holds
the model back.

Starting blocks, so it happens on the loading thread that called `start`, or on a thread of the place for a restart; all
else is on the loop's thread. When a child dies, what it had been given fails at once, in this order: the instance turns
unhealthy, then each batch is reported as failed, so that nothing is handed to it in between.
"""

import asyncio
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from merrow.backends.base import Execution, InstanceDescription, ModelContext
from merrow.core.errors import InternalError, ServerError
from merrow.core.model_config import ModelConfig
from merrow.core.request import Request
from merrow.core.response import Response
from merrow.places.base import InstanceEvents, ServerServices
from merrow.places.loop_calls import call_on_loop
from merrow.places.process.channel import RECEIVE_BYTE_SIZE
from merrow.places.process.environments import LINGER_NS, Environments
from merrow.places.process.fork_client import ChildProcess, describe_exit
from merrow.places.process.launch import Launcher
from merrow.places.process.limits import ChildLimits, limits_of
from merrow.places.process.restart import RestartPolicy
from merrow.places.process.session import LaunchedChild, Session, SessionEnvironment
from merrow.places.process.system import count_oom_kills, is_available
from merrow.places.supply import Supply
from merrow.settings import ProcessSettings

_LOG = logging.getLogger("merrow.places")

# Batches that a child is handed in advance, at most.
MAX_DEPTH = 32

# How long a child that hangs has to say where it is before it is killed.
_LAST_WORDS_SECONDS = 0.2


class ProcessPlace:
    """Starts instances in child processes. Owns the fork servers, the first of which starts with the place."""

    def __init__(
        self,
        settings: ProcessSettings,
        services: ServerServices,
        backend_factory: str = "merrow.backends.registry:backend_of",
    ) -> None:
        """
        Args:
            services: what models may ask of the server.
            backend_factory: `module:function`, called in the child with a backend's name.
        """
        self._settings = settings
        self._environments = Environments(backend_factory, settings)
        self._launcher = Launcher(self._environments, settings, services)
        self._receive_buffer = memoryview(bytearray(RECEIVE_BYTE_SIZE))
        self._instances: set[ProcessInstance] = set()
        self._idle_timer: asyncio.TimerHandle | None = None

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
        recipe = _Recipe(self._launcher, context, backend_name, instance, limits_of(context, self._settings), loop)
        child = recipe.launch(None)
        environment = SessionEnvironment(loop, self._receive_buffer, self._settings.arena_initial_byte_size)
        placed = ProcessInstance(recipe, child, events, environment, self._settings, self._on_closed)
        self._instances.add(placed)
        # Whoever hands it a batch on the loop's thread does so after this.
        loop.call_soon_threadsafe(placed.begin)
        return placed

    def auto_complete(self, context: ModelContext, backend_name: str) -> ModelConfig:
        """`Backend.auto_complete`, in a process that is thrown away. Blocks, as `start` does.

        Raises:
            ServerError: as `Backend.auto_complete`; also when the process died or did not start.
        """
        return self._launcher.auto_complete(context, backend_name, limits_of(context, self._settings))

    async def close(self) -> None:
        """Close the instances that are left, then end the fork servers and everything below them."""
        await asyncio.gather(*[instance.close() for instance in list(self._instances)])
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        await asyncio.get_running_loop().run_in_executor(None, self._environments.close)

    def _on_closed(self, instance: "ProcessInstance") -> None:
        self._instances.discard(instance)
        if self._idle_timer is None:
            self._close_idle_later(asyncio.get_running_loop())

    def _close_idle_later(self, loop: asyncio.AbstractEventLoop) -> None:
        self._idle_timer = loop.call_later(LINGER_NS / 1e9 + 0.1, self._close_idle, loop)

    def _close_idle(self, loop: asyncio.AbstractEventLoop) -> None:
        """End fork servers of environments that no model needs any more, on a thread: that takes a moment."""

        def run() -> None:
            if self._environments.close_idle():
                call_on_loop(loop, self._close_idle_later, loop)

        self._idle_timer = None
        threading.Thread(target=run, name="idle fork servers", daemon=True).start()


@dataclass(frozen=True, slots=True)
class _Recipe:
    """How to make the instance, again and again."""

    launcher: Launcher
    context: ModelContext
    backend_name: str
    description: InstanceDescription
    limits: ChildLimits
    loop: asyncio.AbstractEventLoop

    def launch(self, on_forked: Callable[[ChildProcess], None] | None) -> LaunchedChild:
        return self.launcher.launch(
            self.context, self.backend_name, self.description, self.limits, self.loop, on_forked
        )


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
        self._supply = Supply()
        self._policy = RestartPolicy(settings)
        self._last_death = ""
        self._oom_kill_count = 0
        self._watchdog: _Watchdog | None = None
        if recipe.limits.execution_timeout_ns:
            self._watchdog = _Watchdog(self, recipe.limits.execution_timeout_ns, environment.loop)
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

    @property
    def health_reason(self) -> str:
        """Why the instance is not healthy; empty while it is."""
        if self.is_healthy:
            return ""
        state = self._policy.verdict or "its process died and is started again"
        return f"instance '{self.name}': {state}{self._last_death}"

    @property
    def is_in_crash_loop(self) -> bool:
        """Whether it is not healthy, and seldom given another chance."""
        return not self.is_healthy and self._policy.is_crash_loop

    def submit(self, requests: Sequence[Request]) -> None:
        if self.is_healthy:
            self._session.submit(requests)
            if self._watchdog is not None:
                self._watchdog.arm()
        else:
            self._loop.call_soon(self._events.on_failure, self, requests, self._unhealthy())

    def cancel(self, request: Request) -> None:
        if self.is_healthy:
            self._session.cancel(request)

    def resume(self, request: Request) -> None:
        if self.is_healthy:
            self._session.resume(request)

    @property
    def has_readiness_check(self) -> bool:
        return self._session.child.has_readiness_check

    async def check_readiness(self, timeout_seconds: float) -> bool:
        return await self._session.check_readiness(timeout_seconds)

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
        if self._watchdog is not None:
            self._watchdog.cancel()
        self._on_closed(self)

    def begin(self) -> None:
        """Begin to listen to the child; the first call on the loop's thread."""
        child = self._session.child.process
        self._policy.start(time.monotonic_ns())
        self._oom_kill_count = count_oom_kills()
        self._session.start()
        child.exited.add_done_callback(lambda exited: self._log_exit(child, exited.result()))

    @property
    def watched_session(self) -> Session | None:
        """Where the watchdog looks; None while there is no child."""
        return self._session if self.is_healthy else None

    def abort(self, what: str, timeout_ns: int) -> None:
        """The child hangs: have it say where it is, which a signal does even in C, and kill it.

        Args:
            what: what it does for too long.
        """
        process = self._session.child.process
        _LOG.error(
            "instance '%s' %s for more than its time-out of %g s; process %s is killed",
            self.name,
            what,
            timeout_ns / 1e9,
            process.process_id,
        )
        if process.process_id is not None and not process.exited.done():
            try:
                os.kill(process.process_id, signal.SIGABRT)
            except ProcessLookupError:
                pass
        self._loop.call_later(_LAST_WORDS_SECONDS, self._session.lose)

    def _new_session(self, child: LaunchedChild) -> Session:
        context = self._recipe.context
        return Session(
            child, context.name, context.version, self._environment, self._on_answer, self._on_response, self._on_lost
        )

    def _on_answer(self, requests: Sequence[Request], execution: Execution) -> None:
        # What waits behind an execution that waits for another model may be what that waits for.
        max_depth = 1 if self._session.services.has_made_calls else MAX_DEPTH
        self.depth = self._supply.depth_after(execution, max_depth)
        self._events.on_execution(self, requests, execution)

    def _on_response(self, request: Request, response: Response) -> None:
        self._events.on_response(self, request, response)

    def _on_lost(self, batches: list[Sequence[Request]], deferred: list[Request]) -> None:
        self.is_healthy = False
        if self._watchdog is not None:
            self._watchdog.cancel()
        if not self._is_closing:
            self._events.on_health_change(self, False)
        error = self._unhealthy()
        for requests in batches:
            self._events.on_failure(self, requests, error)
        context = self._recipe.context
        for request in deferred:
            self._events.on_response(self, request, Response(context.name, context.version, request.id, error=error))
        if not self._is_closing:
            self._restart_later()

    def _restart_later(self) -> int:
        """Returns after how many milliseconds."""
        was_crash_loop = self._policy.is_crash_loop
        delay_ms = self._policy.die(time.monotonic_ns())
        if self._policy.is_crash_loop and not was_crash_loop:
            _LOG.error("instance '%s' is in a %s", self.name, self._policy.verdict)
        self._timer = self._loop.call_later(delay_ms / 1000, self._begin_restart)
        return delay_ms

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
            self._last_death = f"; the last start failed: {result.message}"
            delay_ms = self._restart_later()
            _LOG.error(
                "instance '%s' could not be restarted, next attempt in %d ms: %s", self.name, delay_ms, result.message
            )

    def _log_exit(self, process: ChildProcess, status: int) -> None:
        """On the thread of the fork client."""
        if self._is_closing and status == 0:
            return
        reason = describe_exit(status)
        if status == signal.SIGKILL and count_oom_kills() > self._oom_kill_count:
            reason += ", and the system has been killing processes for want of memory"
        self._last_death = f"; it died {reason}"
        _LOG.error("process %s of instance '%s' died %s", process.process_id, self.name, reason)

    def _unhealthy(self) -> InternalError:
        return InternalError(f"Stub process '{self.name}' is not healthy.")


class _Watchdog:
    """Looks, while the child has batches, whether the oldest is still the same after the time-out.

    And, while it has deferred requests, whether one has had no response for so long.
    """

    def __init__(self, instance: ProcessInstance, timeout_ns: int, loop: asyncio.AbstractEventLoop) -> None:
        self._instance = instance
        self._timeout_ns = timeout_ns
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None
        self._batch: int | None = None
        self._seen_ns = 0

    def arm(self) -> None:
        """A batch was handed over."""
        if self._timer is None:
            self._look()

    def cancel(self) -> None:
        """The child is gone."""
        self._batch = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        now_ns = time.monotonic_ns()
        session = self._instance.watched_session
        batch = None if session is None else session.requests.oldest_batch
        if session is None or (batch is None and not session.requests.has_deferred):
            self._batch = None
            return
        if session.services.is_holding_back:
            # Whatever it does may have to wait for that.
            self._batch = None
            session.requests.forgive_silence()
        if batch != self._batch:
            self._batch, self._seen_ns = batch, now_ns
        execution_ns = 0 if batch is None else now_ns - self._seen_ns
        silence_ns = session.requests.longest_silence_ns(now_ns)
        if max(execution_ns, silence_ns) >= self._timeout_ns:
            self._batch = None
            session.requests.forgive_silence()
            is_executing = execution_ns >= self._timeout_ns
            what = "executes" if is_executing else "has sent no response to a request that it deferred"
            self._instance.abort(what, self._timeout_ns)
            return
        # A batch is seen at most an eighth of the time-out after it became the oldest, and a request after it was
        # deferred.
        left_ns = self._timeout_ns - max(execution_ns, silence_ns)
        self._timer = self._loop.call_later(max(1_000_000, min(left_ns, self._timeout_ns // 8)) / 1e9, self._look)
