"""Instances on the loop's own thread, for models that execute in microseconds.

`submit` runs the model and reports before it returns. A model that takes long would stall every client: the measured
mean is watched, and a model over the budget is named in the log once, with what to do.
"""

import logging
import threading
from collections.abc import Callable, Sequence

from merrow.backends.base import Instance, InstanceHost
from merrow.core.request import Request
from merrow.core.response import Response
from merrow.places.base import Caller, InstanceEvents
from merrow.places.guard import execute_guarded
from merrow.places.local_host import LocalEnvironment, LocalHost
from merrow.places.readiness import ReadinessCheck

_LOG = logging.getLogger("merrow.places")

BUDGET_NS = 100_000
_SAMPLE_COUNT = 64


class InlineInstance:
    """An instance that runs where it is called. See `places.base.PlacedInstance`.

    The constructor creates it, on a loading thread.
    """

    depth = 1
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
        self._events = events
        self._loop = environment.loop
        self._host = LocalHost(caller, environment, self._deliver)
        try:
            self._instance = create(self._host)
        except BaseException:
            self._loop.call_soon_threadsafe(self._host.close)
            raise
        caller.is_loading = False
        self.has_readiness_check = self._instance.has_readiness_check
        self._readiness = ReadinessCheck(self._instance)
        self._executions = 0
        self._execution_ns = 0

    def submit(self, requests: Sequence[Request]) -> None:
        host = self._host
        if not host.loop_thread_id:
            host.loop_thread_id = threading.get_ident()
        host.executing = requests
        execution = execute_guarded(self._instance, self.name, requests)
        host.executing = ()
        if host.calls:
            host.end_batch(requests)
        if self._executions < _SAMPLE_COUNT:
            self._watch(execution.end_ns - execution.start_ns)
        self._events.on_execution(self, requests, execution)

    def cancel(self, request: Request) -> None:
        """An execution is over before anything else happens on this thread; a deferred request may look."""
        self._host.cancel_calls_of(request)

    def resume(self, request: Request) -> None:
        self._host.resume(request)

    async def check_readiness(self, timeout_seconds: float) -> bool:
        return await self._readiness.ask(timeout_seconds)

    async def close(self) -> None:
        self._instance.close()
        self._host.close()

    def _deliver(self, request: Request, response: Response) -> None:
        if self._host.can_wait():
            self._loop.call_soon_threadsafe(self._report, request, response)
        else:
            self._report(request, response)

    def _report(self, request: Request, response: Response) -> None:
        self._events.on_response(self, request, response)
        self._host.on_delivered(request, response)

    def _watch(self, execution_ns: int) -> None:
        self._executions += 1
        self._execution_ns += execution_ns
        if self._executions == _SAMPLE_COUNT and self._execution_ns > BUDGET_NS * _SAMPLE_COUNT:
            _LOG.warning(
                "instance '%s' runs inline but takes %d us per execution, during which no other client is served; "
                'set the model\'s parameter EXECUTION_PLACE to "thread" or "process"',
                self.name,
                self._execution_ns // _SAMPLE_COUNT // 1000,
            )
