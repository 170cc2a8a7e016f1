"""What the engine sees of a place: instances that take batches and give back executions.

A place starts instances off the loop's thread (`Place.start` blocks and is called from a loading thread); from then on
every call in either direction happens on the loop's thread: `PlacedInstance.submit` never blocks, and the outcome
comes back through `InstanceEvents`.
"""

from collections.abc import Sequence
from typing import Protocol

from merrow.backends.base import Execution
from merrow.core.errors import ServerError
from merrow.core.request import Request


class InstanceEvents(Protocol):
    """What a placed instance reports, on the loop's thread."""

    def on_execution(self, instance: "PlacedInstance", requests: Sequence[Request], execution: Execution) -> None:
        """A submitted batch ran; each request has its outcome."""

    def on_failure(self, instance: "PlacedInstance", requests: Sequence[Request], error: ServerError) -> None:
        """A submitted batch could not run at all (its process died); every request fails with `error`."""

    def on_health_change(self, instance: "PlacedInstance", is_healthy: bool) -> None:
        """The instance can no longer (or can again) take batches; it restarts by itself."""


class PlacedInstance(Protocol):
    """One instance where it runs.

    `depth` is how many batches may be handed over before the first comes back: 1 where handing over is free, more
    where it pays to keep a child process supplied. It may change over time.
    """

    name: str
    depth: int
    is_healthy: bool

    def submit(self, requests: Sequence[Request]) -> None:
        """Hand over one batch; returns at once. With the inline place, the outcome is reported before it returns."""

    def cancel(self, request: Request) -> None:
        """Tell a running model that the client of `request` has gone. Best effort."""

    async def close(self) -> None:
        """Stop the instance once what was submitted has come back; releases threads, processes and memory."""
