"""What the server offers instances that run in its own process, on a thread or on the loop itself.

Models call on any thread; the services are asked on the loop's thread. On that thread nothing can be waited for: an
inline model gets what is answered at once, and an error instead of anything else.
"""

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue

from merrow.backends.base import Answer, DropMetric, DropMetricFamily, LoadModel, Question, UnloadModel
from merrow.core.errors import InternalError, ServerError
from merrow.core.request import Request
from merrow.core.response import Response
from merrow.places.base import Caller, ModelCall, ServerServices
from merrow.places.loop_calls import call_on_loop
from merrow.places.stream_window import StreamWindow

_CANNOT_WAIT = (
    "a model that runs inline cannot wait for the server; set its parameter EXECUTION_PLACE to 'thread' or 'process'"
)


@dataclass(frozen=True, slots=True)
class LocalEnvironment:
    """What instances in the server's process share."""

    loop: asyncio.AbstractEventLoop
    services: ServerServices
    # Bytes of one request's responses that may be on their way to a slow client before its model waits.
    stream_window_byte_size: int


class LocalHost:
    """An `InstanceHost`; `deliver` hands a response of a deferred request to the loop's thread, in order.

    Whoever owns it reports what happens on the loop's thread: `on_delivered`, `resume`, `cancel_calls_of`,
    `end_batch`, `close`.
    """

    copies_tensors = False

    def __init__(
        self,
        caller: Caller,
        environment: LocalEnvironment,
        deliver: Callable[[Request, Response], None],
    ) -> None:
        self.caller = caller
        self._services = environment.services
        self._loop = environment.loop
        self._window_byte_size = environment.stream_window_byte_size
        self._deliver = deliver
        # The batch that the instance executes; set by whoever runs it.
        self.executing: Sequence[Request] = ()
        # The thread of the loop, once it is known.
        self.loop_thread_id = 0
        # By request: what is on its way to the client, and what of it the loop's thread has handed on.
        self._windows: dict[Request, StreamWindow] = {}
        self._unreported: dict[Request, int] = {}
        # Open calls; the loop's thread only.
        self.calls: dict[Request, _LocalCall] = {}

    # What models do: see `backends.base.InstanceHost`.

    def can_wait(self) -> bool:
        return threading.get_ident() != self.loop_thread_id

    def send(self, request: Request, response: Response) -> None:
        if self.can_wait():
            window = self._windows.get(request)
            if window is None:
                window = self._windows.setdefault(request, StreamWindow(self._window_byte_size))
            window.reserve(response.weight)
        self._deliver(request, response)

    def infer(self, request: Request, is_decoupled: bool, parents: Sequence[Request], trace: Request | None) -> None:
        executing = self.executing
        if parents and not any(parent is each for parent in parents for each in executing):
            # Made for a request of a batch that is over: this batch does not wait for it.
            executing = ()
        call = ModelCall(self.caller, request, is_decoupled, parents, executing, trace)
        local = _LocalCall(self, call)
        request.sink = local
        self._on_loop(lambda: self._infer(local))

    def cancel(self, request: Request) -> None:
        self._on_loop(lambda: self._cancel(request))

    def consume(self, request: Request, byte_size: int) -> None:
        self._on_loop(lambda: self._consume(request, byte_size))

    def ask(self, question: Question) -> Answer:
        if not self.can_wait() and isinstance(question, (LoadModel, UnloadModel)):
            raise InternalError(_CANNOT_WAIT)
        replies: SimpleQueue[Answer | ServerError] = SimpleQueue()
        self._on_loop(lambda: self._services.ask(self.caller, question, replies.put))
        answer = replies.get()
        if isinstance(answer, ServerError):
            raise answer
        return answer

    def drop(self, question: DropMetric | DropMetricFamily) -> None:
        # Always later: this may be a destructor, in the middle of anything.
        call_on_loop(self._loop, lambda: self._services.ask(self.caller, question, _ignore))

    # What the owner reports, on the loop's thread.

    def on_delivered(self, request: Request, response: Response) -> None:
        """A response was handed on."""
        window = self._windows.get(request)
        if window is None:
            return
        if response.is_final:
            self._windows.pop(request, None)
            self._unreported.pop(request, None)
        elif request.is_congested and not request.is_cancelled:
            self._unreported[request] = self._unreported.get(request, 0) + response.weight
        else:
            window.release(response.weight)

    def resume(self, request: Request) -> None:
        """The client of a request takes responses again, or has gone."""
        window = self._windows.get(request)
        unreported = self._unreported.pop(request, 0)
        if window is not None and unreported:
            window.release(unreported)

    def cancel_calls_of(self, request: Request) -> None:
        """A request was cancelled: so are the calls that were made for it."""
        self.resume(request)
        for local in list(self.calls.values()):
            if local.call.parents and all(parent.is_cancelled for parent in local.call.parents):
                self._services.cancel(local.call)

    def end_batch(self, requests: Sequence[Request]) -> None:
        """A batch came back: calls that are still open do not hold the instance any more."""
        for local in self.calls.values():
            if local.call.executing is requests:
                local.call.executing = ()
                self._services.release(local.call)

    def close(self) -> None:
        """The instance is closed; nobody may wait any longer."""
        for window in list(self._windows.values()):
            window.open()
        for local in list(self.calls.values()):
            local.on_response(Response("", -1, error=InternalError("the instance is closed")))
        self._services.close(self.caller)

    # On the loop's thread.

    def _infer(self, local: "_LocalCall") -> None:
        self.calls[local.call.request] = local
        self._services.infer(local.call)

    def _cancel(self, request: Request) -> None:
        local = self.calls.get(request)
        if local is not None:
            self._services.cancel(local.call)

    def _consume(self, request: Request, byte_size: int) -> None:
        local = self.calls.get(request)
        if local is not None:
            local.outstanding -= byte_size
            if request.is_congested and local.outstanding < self._window_byte_size:
                request.is_congested = False
                self._services.resume(local.call)

    def on_call_response(self, local: "_LocalCall", response: Response) -> None:
        """A response to a call."""
        request = local.call.request
        if self.calls.get(request) is not local:
            return
        if response.is_final:
            del self.calls[request]
        else:
            local.outstanding += response.weight
            request.is_congested = local.outstanding >= self._window_byte_size
        local.sink.on_response(response)

    def _on_loop(self, callback: Callable[[], object]) -> None:
        if self.can_wait():
            call_on_loop(self._loop, callback)
        else:
            callback()


class _LocalCall:
    """A call that the instance made; the sink of its request on the loop's thread."""

    __slots__ = ("call", "host", "outstanding", "sink")

    def __init__(self, host: LocalHost, call: ModelCall) -> None:
        self.host = host
        self.call = call
        # The model's own.
        self.sink = call.request.sink
        # Bytes of responses that the model has not used.
        self.outstanding = 0

    def on_response(self, response: Response) -> None:
        self.host.on_call_response(self, response)


def _ignore(answer: Answer | ServerError) -> None:
    """Nobody waits for it."""
