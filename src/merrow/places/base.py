"""What the engine sees of a place: instances that take batches and give back executions.

A place starts instances off the loop's thread (`Place.start` blocks and is called from a loading thread); from then on
every call in either direction happens on the loop's thread: `PlacedInstance.submit` never blocks, and the outcome
comes back through `InstanceEvents`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from merrow.backends.base import Answer, Execution, Question
from merrow.core.errors import ServerError
from merrow.core.request import Request
from merrow.core.response import Response


class InstanceEvents(Protocol):
    """What a placed instance reports, on the loop's thread."""

    def on_execution(self, instance: "PlacedInstance", requests: Sequence[Request], execution: Execution) -> None:
        """A submitted batch ran; each request has its outcome, or will have it through `on_response` (deferred)."""

    def on_response(self, instance: "PlacedInstance", request: Request, response: Response) -> None:
        """A response of a deferred request; it may come before `on_execution` of its batch. In the order of sending.

        When an instance is lost, its place ends every deferred request whose batch had come back with a final error.
        """

    def on_failure(self, instance: "PlacedInstance", requests: Sequence[Request], error: ServerError) -> None:
        """A submitted batch could not run at all (its process died); every request that is not over fails with it."""

    def on_health_change(self, instance: "PlacedInstance", is_healthy: bool) -> None:
        """The instance can no longer (or can again) take batches; it restarts by itself."""


class PlacedInstance(Protocol):
    """One instance where it runs.

    `depth` is how many batches may be handed over before the first comes back: 1 where handing over is free, more
    where it pays to keep a thread or a child process supplied (`supply`). It may change over time.
    """

    name: str
    depth: int
    is_healthy: bool

    @property
    def health_reason(self) -> str:
        """Why the instance is not healthy, for the repository index; empty while it is."""

    @property
    def is_in_crash_loop(self) -> bool:
        """Whether it is not healthy, and seldom given another chance."""

    @property
    def has_readiness_check(self) -> bool:
        """Whether the model has something to say about its readiness."""

    def submit(self, requests: Sequence[Request]) -> None:
        """Hand over one batch; returns at once. With the inline place, the outcome is reported before it returns."""

    def cancel(self, request: Request) -> None:
        """Tell a running model that the client of `request` has gone. Best effort."""

    def resume(self, request: Request) -> None:
        """The client of a request that was congested (`Request.is_congested`) takes responses again."""

    async def check_readiness(self, timeout_seconds: float) -> bool:
        """Whether the model says that it is ready; questions at the same time are one.

        Raises:
            ServerError: it cannot say.
            asyncio.TimeoutError: it does not say in time.
        """

    async def close(self) -> None:
        """Stop the instance once what was submitted has come back; releases threads, processes and memory."""


@dataclass(slots=True, eq=False)
class Caller:
    """A running model as the server's services know it: one life of one instance.

    `is_loading` until the instance is ready. `metrics` and `families` are the numbers of the custom metrics that it
    holds.
    """

    model_name: str
    model_version: int
    instance_name: str
    is_loading: bool = True
    metrics: set[int] = field(default_factory=set)
    families: set[int] = field(default_factory=set)


@dataclass(slots=True, eq=False)
class ModelCall:
    """A request that a model makes of another (business logic scripting).

    Args:
        request: its sink hears every response and every error; `model_version` is -1 for the latest.
        is_decoupled: whether more than one response is welcome.
        parents: the requests on whose behalf it is made.
        executing: the batch that the instance executes meanwhile, and which is not done before this is answered, as
            far as anyone knows; empty if there is none.
        trace: the request whose trace it belongs to.
    """

    caller: Caller
    request: Request
    is_decoupled: bool
    parents: Sequence[Request]
    executing: Sequence[Request]
    trace: Request | None


class ServerServices(Protocol):
    """What running models may ask of the server. Every call in either direction is on the loop's thread."""

    def infer(self, call: ModelCall) -> None:
        """Run a model; every failure, too, comes to the request's sink as a final response."""

    def release(self, call: ModelCall) -> None:
        """The instance went on although the call is not answered: it does not hold it any more."""

    def cancel(self, call: ModelCall) -> None:
        """Nobody waits for the responses of a call any more."""

    def resume(self, call: ModelCall) -> None:
        """A caller whose request was congested takes responses again."""

    def ask(self, caller: Caller, question: Question, reply: Callable[[Answer | ServerError], None]) -> None:
        """Answer a question, perhaps later; once."""

    def close(self, caller: Caller) -> None:
        """The instance is gone: its calls are cancelled and its metrics dropped. Nothing is replied any more."""
