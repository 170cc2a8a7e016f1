"""The pipes that children print into, read in turn by one thread and written to the server's log.

`output` decides what becomes of the bytes. A child that prints more than is logged is read slowly, so that it costs the
server little; it is then the pipe, and in the end the child's own write, that waits.
"""

import logging
import os
import select

from merrow.places.process.output import OutputLines
from merrow.settings import ProcessSettings

_LOG = logging.getLogger("merrow.places")

_READ_BYTE_SIZE = 1 << 16
# A child whose output is being dropped is read this often.
_SLOW_NS = 10_000_000


class OutputPipe:
    """This side of one child's standard output and error."""

    def __init__(self, descriptor: int, origin: str, settings: ProcessSettings) -> None:
        """
        Args:
            descriptor: the end to read from; it is closed with the pipe.
            origin: the model and instance, as the log is to name them.
        """
        os.set_blocking(descriptor, False)
        self.descriptor = descriptor
        self.process_id: int | None = None
        # When it may be read again, while it is read slowly.
        self.resume_ns = 0
        self.origin = origin
        self._lines = OutputLines(settings)

    @property
    def due_ns(self) -> int | None:
        return self._lines.due_ns

    def read(self, now_ns: int) -> bool:
        """Read what is there, once; False at the end."""
        try:
            data = os.read(self.descriptor, _READ_BYTE_SIZE)
        except BlockingIOError:
            return True
        self._log(self._lines.feed(data, now_ns))
        self.resume_ns = now_ns + _SLOW_NS if self._lines.is_dropping else 0
        return bool(data)

    def tick(self, now_ns: int) -> None:
        """Log what has waited long enough."""
        self._log(self._lines.tick(now_ns))

    def close(self, now_ns: int) -> None:
        """Log what is left, however much that is, and close."""
        # The child is dead. Whoever else holds the pipe (it was not in the child's process group) loses it.
        for _ in range(256):
            try:
                data = os.read(self.descriptor, _READ_BYTE_SIZE)
            except BlockingIOError:
                break
            if not data:
                break
            self._log(self._lines.feed(data, now_ns))
        self._log(self._lines.end(now_ns))
        os.close(self.descriptor)

    def _log(self, lines: list[str]) -> None:
        for line in lines:
            if _LOG.isEnabledFor(logging.INFO):
                record = _LOG.makeRecord(_LOG.name, logging.INFO, "output", 0, f"[{self.origin}] {line}", (), None)
                record.process = self.process_id
                _LOG.handle(record)


class OutputPipes:
    """The pipes of all children of one fork server. Used by one thread alone."""

    def __init__(self, poll: "select.poll") -> None:
        """
        Args:
            poll: where the pipes are registered; its owner hands over what is ready.
        """
        self._poll = poll
        self._pipes: dict[int, OutputPipe] = {}
        # Read slowly, and not registered meanwhile.
        self._paused: set[int] = set()

    def __contains__(self, descriptor: int) -> bool:
        return descriptor in self._pipes

    def add(self, pipe: OutputPipe) -> None:
        self._pipes[pipe.descriptor] = pipe
        self._poll.register(pipe.descriptor, select.POLLIN)

    def read(self, descriptor: int, now_ns: int) -> None:
        """The descriptor is ready."""
        pipe = self._pipes[descriptor]
        if not pipe.read(now_ns):
            # Closed by the child and all that it started: a model may do that, and live on.
            self.remove(pipe, now_ns)
        elif pipe.resume_ns:
            self._poll.unregister(descriptor)
            self._paused.add(descriptor)

    def remove(self, pipe: OutputPipe, now_ns: int) -> None:
        """The child is gone: log the rest. Nothing happens the second time."""
        descriptor = pipe.descriptor
        # Once closed, the number may be another pipe's.
        if self._pipes.get(descriptor) is not pipe:
            return
        del self._pipes[descriptor]
        if descriptor in self._paused:
            self._paused.discard(descriptor)
        else:
            self._poll.unregister(descriptor)
        pipe.close(now_ns)

    def tick(self, now_ns: int) -> float | None:
        """Do what is due; returns for how many milliseconds nothing will be, or None for ever."""
        next_ns: int | None = None
        for pipe in self._pipes.values():
            due_ns = pipe.due_ns
            if due_ns is not None and due_ns <= now_ns:
                pipe.tick(now_ns)
                due_ns = pipe.due_ns
            if pipe.descriptor in self._paused:
                if pipe.resume_ns <= now_ns:
                    self._paused.discard(pipe.descriptor)
                    self._poll.register(pipe.descriptor, select.POLLIN)
                elif due_ns is None or pipe.resume_ns < due_ns:
                    due_ns = pipe.resume_ns
            if due_ns is not None and (next_ns is None or due_ns < next_ns):
                next_ns = due_ns
        return None if next_ns is None else max(1.0, (next_ns - now_ns) / 1e6)
