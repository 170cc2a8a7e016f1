"""Whether the event loop keeps up: how late it is, and what holds it up.

A timer beats on the loop; how late a beat is, is the loop's lag. A lag above the limit is a stall, after which the
server counts as not live for a while, so that a supervisor that probes now and then learns of it. A thread watches the
beat from outside, and writes to the log what the loop is doing while it is stalled.
"""

import asyncio
import logging
import sys
import threading
import traceback

from merrow.core.clock import Clock

_LOG = logging.getLogger("merrow.observe.loop_watch")

BEAT_SECONDS = 0.25
# How long a stall is held against the server, and how long the longest lag is shown.
MEMORY_NS = 10 * 10**9
_MAX_FRAMES = 12


class LoopWatch:
    """See the module. `start` and `stop` are called on the loop's thread, once each.

    Args:
        limit_ms: a lag above is a stall.
    """

    def __init__(self, limit_ms: int, clock: Clock) -> None:
        self._limit_ns = limit_ms * 1_000_000
        self._clock = clock
        self._due_ns = 0
        self._handle: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="loop-watch", daemon=True)
        # The longest lags: of the interval under way, and of the one before.
        self._lags_ns = [0, 0]
        self._interval_start_ns = 0
        self._last_stall_ns: int | None = None
        self.stall_count = 0

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._interval_start_ns = self._clock()
        self._arm()
        self._thread.start()

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
            self._stopped.set()
            self._thread.join()

    def is_live(self) -> bool:
        """Whether the loop keeps up, and has for a while."""
        now_ns = self._clock()
        if now_ns - self._due_ns > self._limit_ns:
            return False
        return self._last_stall_ns is None or now_ns - self._last_stall_ns > MEMORY_NS

    @property
    def lag_ns(self) -> int:
        """The longest lag of the last while."""
        return max(self._lags_ns)

    def _arm(self) -> None:
        assert self._loop is not None
        self._due_ns = self._clock() + int(BEAT_SECONDS * 10**9)
        self._handle = self._loop.call_later(BEAT_SECONDS, self._beat)

    def _beat(self) -> None:
        now_ns = self._clock()
        lag_ns = max(0, now_ns - self._due_ns)
        if now_ns - self._interval_start_ns > MEMORY_NS:
            self._interval_start_ns = now_ns
            self._lags_ns = [0, self._lags_ns[0]]
        self._lags_ns[0] = max(self._lags_ns[0], lag_ns)
        if lag_ns > self._limit_ns:
            self.stall_count += 1
            self._last_stall_ns = now_ns
            _LOG.error("the event loop was held up for %d ms", lag_ns // 1_000_000)
        self._arm()

    def _watch(self) -> None:
        """On the thread: say once in each stall what the loop is at."""
        reported_ns = 0
        while not self._stopped.wait(self._limit_ns / 2 / 10**9):
            due_ns = self._due_ns
            if due_ns != reported_ns and self._clock() - due_ns > self._limit_ns:
                reported_ns = due_ns
                frame = sys._current_frames().get(self._loop_thread)
                stack = "".join(traceback.format_stack(frame, _MAX_FRAMES)) if frame is not None else ""
                _LOG.error("the event loop is held up by\n%s", stack)
