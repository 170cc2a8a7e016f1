"""Instances on the loop's own thread, for models that execute in microseconds.

`submit` runs the model and reports before it returns. A model that takes long would stall every client: the measured
mean is watched, and a model over the budget is named in the log once, with what to do.
"""

import logging
from collections.abc import Sequence

from merrow.backends.base import Instance
from merrow.core.request import Request
from merrow.places.base import InstanceEvents
from merrow.places.guard import execute_guarded

_LOG = logging.getLogger("merrow.places")

BUDGET_NS = 100_000
_SAMPLE_COUNT = 64


class InlineInstance:
    """An instance that runs where it is called. See `places.base.PlacedInstance`."""

    depth = 1
    is_healthy = True

    def __init__(self, name: str, instance: Instance, events: InstanceEvents) -> None:
        self.name = name
        self._instance = instance
        self._events = events
        self._executions = 0
        self._execution_ns = 0

    def submit(self, requests: Sequence[Request]) -> None:
        execution = execute_guarded(self._instance, self.name, requests)
        if self._executions < _SAMPLE_COUNT:
            self._watch(execution.end_ns - execution.start_ns)
        self._events.on_execution(self, requests, execution)

    def cancel(self, request: Request) -> None:
        """Nothing to do: an execution is over before anything else happens on this thread."""

    async def close(self) -> None:
        self._instance.close()

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
