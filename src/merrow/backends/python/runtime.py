"""What the parts of one running model share: its requests, their senders, and the functions it imports.

A model may answer a request long after `execute` returned, and may as well forget to. What can still be answered is
therefore owned: by the request and its senders together (`pb_sender.Answering`), and when the model has dropped them
all nothing can come any more. That is noticed where the last of them is dropped, or, where they sit in a reference
cycle, by asking the collector, which is done while such requests are open, ever more rarely, and never for more than a
fiftieth of the time.
"""

import gc
import threading
import time
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from queue import Empty, SimpleQueue

from merrow.backends.base import InstanceHost
from merrow.backends.python.pb_errors import TritonModelException
from merrow.core.request import Request

_FIRST_PATIENCE_SECONDS = 0.05
_LAST_PATIENCE_SECONDS = 5.0
# Of the time, what looking for lost senders may take.
_SHARE = 50


class ModelRuntime:
    """See the module. One per instance; `instance_name` is as in error texts."""

    def __init__(
        self,
        host: InstanceHost,
        instance_name: str,
        version_directory: str,
        is_decoupled: bool,
        output_names: Sequence[str],
    ) -> None:
        self.host = host
        self.instance_name = instance_name
        self.version_directory = version_directory
        self.is_decoupled = is_decoupled
        # What a client that names no outputs asks for.
        self.output_names = output_names
        # The arrays of what is sent may change before the server has read them.
        self.must_copy = not host.copies_tensors
        # Other models can be called: not in `initialize`, nor from `finalize` on.
        self.accepts_calls = False
        # The batch that `execute` has, and the thread on which it runs.
        self.executing: Sequence[Request] = ()
        self.execute_thread_id = 0
        # The batch of a coroutine.
        self.batch: ContextVar[Sequence[Request]] = ContextVar("batch", default=())
        self._lost = _LostAnswers()

    def check_calls(self) -> None:
        """Raises TritonModelException where other models cannot be called."""
        if not self.accepts_calls:
            raise TritonModelException("BLS is only supported during the 'execute' function.")

    def parents(self) -> Sequence[Request]:
        """The requests on whose behalf this thread, or this coroutine, works; empty if that is not known."""
        if threading.get_ident() == self.execute_thread_id and self.executing:
            return self.executing
        return self.batch.get()

    def describe_failure(self, message: str) -> str:
        """As a client reads it."""
        return f"Failed to process the request(s) for model '{self.instance_name}', message: {message}"

    def watch(self, key: int) -> None:
        """An answer is awaited that a sender may yet send; `key` says which."""
        self._lost.add(key)

    def settle(self, key: int) -> None:
        """It was sent."""
        self._lost.discard(key)

    def abandon(self, key: int, end: Callable[[], None]) -> None:
        """It can never be sent: `end` is called, on a thread of its own. Safe in the middle of anything."""
        self._lost.discard(key)
        self._lost.put(end)

    def close(self) -> None:
        """Nothing is awaited any more."""
        self.accepts_calls = False
        self._lost.stop()


class _LostAnswers:
    """Ends what was abandoned, and looks for what was abandoned unnoticed. Its thread starts with the first answer."""

    def __init__(self) -> None:
        self._open: set[int] = set()
        self._ends: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        # Whether the thread looks from time to time, and so need not be woken.
        self._is_looking = False

    def add(self, key: int) -> None:
        self._open.add(key)
        if not self._is_looking:
            self._is_looking = True
            self._ends.put(_nothing)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="lost response senders", daemon=True)
                self._thread.start()

    def discard(self, key: int) -> None:
        self._open.discard(key)

    def put(self, end: Callable[[], None]) -> None:
        self._ends.put(end)

    def stop(self) -> None:
        if self._thread is not None:
            self._ends.put(None)
            self._thread.join()

    def _run(self) -> None:
        patience = _FIRST_PATIENCE_SECONDS
        while True:
            try:
                end = self._ends.get(timeout=patience if self._is_looking else None)
            except Empty:
                if not self._open:
                    # Cleared first: whoever adds one after this look wakes the thread.
                    self._is_looking = False
                    if self._open:
                        self._is_looking = True
                    patience = _FIRST_PATIENCE_SECONDS
                    continue
                started = time.monotonic()
                gc.collect()
                patience = min(2 * patience, _LAST_PATIENCE_SECONDS)
                patience = max(patience, (time.monotonic() - started) * _SHARE)
                continue
            if end is None:
                return
            end()


def _nothing() -> None:
    """Only wakes the thread."""
