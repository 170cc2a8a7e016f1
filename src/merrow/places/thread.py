"""Instances on a thread each, for runtimes that release the GIL while they compute.

A batch goes to the thread through a queue. Executions come back through one list per instance and one wake-up of the
loop for all that gathered since the last, because a wake-up costs more than a list.
"""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from queue import SimpleQueue

from merrow.backends.base import Execution, Instance, InstanceHost
from merrow.core.request import Request
from merrow.core.response import Response
from merrow.places.affinity import compute_in_the_background
from merrow.places.base import Caller, InstanceEvents
from merrow.places.guard import execute_guarded
from merrow.places.local_host import LocalEnvironment, LocalHost
from merrow.places.readiness import ReadinessCheck
from merrow.places.supply import Supply

# Batches that a thread is handed in advance, at most; beyond, it waits for the loop no less.
MAX_DEPTH = 4

_LOG = logging.getLogger("merrow.places")


class ThreadInstance:
    """An instance with a thread of its own. See `places.base.PlacedInstance`.

    The constructor blocks until the instance is created on its thread, and raises what creating it raised.
    """

    is_healthy = True
    health_reason = ""
    is_in_crash_loop = False

    def __init__(
        self,
        caller: Caller,
        create: Callable[[InstanceHost], Instance],
        events: InstanceEvents,
        environment: LocalEnvironment,
    ) -> None:
        self.name = caller.instance_name
        self.depth = 1
        self._create = create
        self._events = events
        self._loop = environment.loop
        self._host = LocalHost(caller, environment, self._deliver)
        self.has_readiness_check = False
        self._readiness: ReadinessCheck | None = None
        # What waits behind an execution that waits for another model may be what that waits for.
        self._max_depth = MAX_DEPTH
        self._supply = Supply()
        self._batches: SimpleQueue[Sequence[Request] | None] = SimpleQueue()
        self._done: deque[tuple[Sequence[Request], Execution] | tuple[Request, Response]] = deque()
        self._is_awake = False
        self._start_error: BaseException | None = None
        self._started = threading.Event()
        self._stopped = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name=f"instance {self.name}", daemon=True)
        self._thread.start()
        self._started.wait()
        if self._start_error is not None:
            self._thread.join()
            self._loop.call_soon_threadsafe(self._host.close)
            raise self._start_error
        caller.is_loading = False

    def submit(self, requests: Sequence[Request]) -> None:
        self._batches.put(requests)

    def cancel(self, request: Request) -> None:
        """A runtime cannot stop an execution, and its answer is dropped by the front door; a Python model may look."""
        self._host.cancel_calls_of(request)

    def resume(self, request: Request) -> None:
        self._host.resume(request)

    async def check_readiness(self, timeout_seconds: float) -> bool:
        assert self._readiness is not None
        return await self._readiness.ask(timeout_seconds)

    async def close(self) -> None:
        self._batches.put(None)
        await self._stopped.wait()
        self._thread.join()
        self._host.close()

    def _run(self) -> None:
        compute_in_the_background()
        try:
            instance = self._create(self._host)
        except BaseException as error:
            self._start_error = error
            self._started.set()
            return
        self.has_readiness_check = instance.has_readiness_check
        self._readiness = ReadinessCheck(instance)
        if instance.makes_calls:
            self._max_depth = 1
        self._started.set()
        host = self._host
        while (requests := self._batches.get()) is not None:
            host.executing = requests
            execution = execute_guarded(instance, self.name, requests)
            host.executing = ()
            self._done.append((requests, execution))
            self._wake()
        try:
            instance.close()
        except Exception:
            _LOG.exception("closing instance '%s' failed", self.name)
        self._loop.call_soon_threadsafe(self._stopped.set)

    def _deliver(self, request: Request, response: Response) -> None:
        self._done.append((request, response))
        self._wake()

    def _wake(self) -> None:
        # The flag is cleared by the loop before it empties the list, so nothing in it is left without a wake-up.
        if not self._is_awake:
            self._is_awake = True
            self._loop.call_soon_threadsafe(self._report)

    def _report(self) -> None:
        self._is_awake = False
        done = self._done
        while done:
            what, outcome = done.popleft()
            if isinstance(what, Request):
                assert isinstance(outcome, Response)
                self._events.on_response(self, what, outcome)
                self._host.on_delivered(what, outcome)
            else:
                assert isinstance(outcome, Execution)
                if self._host.calls:
                    self._host.end_batch(what)
                self.depth = self._supply.depth_after(outcome, self._max_depth)
                self._events.on_execution(self, what, outcome)
