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

from merrow.backends.base import Execution, Instance
from merrow.core.request import Request
from merrow.places.base import InstanceEvents
from merrow.places.guard import execute_guarded

_LOG = logging.getLogger("merrow.places")


class ThreadInstance:
    """An instance with a thread of its own. See `places.base.PlacedInstance`.

    The constructor blocks until the instance is created on its thread, and raises what creating it raised.
    """

    depth = 1
    is_healthy = True

    def __init__(
        self,
        name: str,
        create: Callable[[], Instance],
        events: InstanceEvents,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.name = name
        self._create = create
        self._events = events
        self._loop = loop
        self._batches: SimpleQueue[Sequence[Request] | None] = SimpleQueue()
        self._done: deque[tuple[Sequence[Request], Execution]] = deque()
        self._is_awake = False
        self._start_error: BaseException | None = None
        self._started = threading.Event()
        self._stopped = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name=f"instance {name}", daemon=True)
        self._thread.start()
        self._started.wait()
        if self._start_error is not None:
            self._thread.join()
            raise self._start_error

    def submit(self, requests: Sequence[Request]) -> None:
        self._batches.put(requests)

    def cancel(self, request: Request) -> None:
        """Nothing to do: these runtimes cannot stop an execution, and its answer is dropped by the front door."""

    async def close(self) -> None:
        self._batches.put(None)
        await self._stopped.wait()
        self._thread.join()

    def _run(self) -> None:
        try:
            instance = self._create()
        except BaseException as error:
            self._start_error = error
            self._started.set()
            return
        self._started.set()
        while (requests := self._batches.get()) is not None:
            execution = execute_guarded(instance, self.name, requests)
            self._done.append((requests, execution))
            # The flag is cleared by the loop before it empties the list, so no execution is left without a wake-up.
            if not self._is_awake:
                self._is_awake = True
                self._loop.call_soon_threadsafe(self._report)
        try:
            instance.close()
        except Exception:
            _LOG.exception("closing instance '%s' failed", self.name)
        self._loop.call_soon_threadsafe(self._stopped.set)

    def _report(self) -> None:
        self._is_awake = False
        done = self._done
        while done:
            requests, execution = done.popleft()
            self._events.on_execution(self, requests, execution)
