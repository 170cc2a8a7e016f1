"""Business logic scripting: a model runs another model of the server.

`Call` is the sink of such a request: it gathers the responses, on whichever thread they come, for whoever waits. What
goes wrong is a value, a response with an error; an exception says that the model may not call at all.

Source: Triton, python_backend/src/infer_request.cc (Exec), response_iterator.cc.
"""

import asyncio
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from merrow.backends.python.pb_errors import C_MODULE, TritonError
from merrow.backends.python.pb_response import InferenceResponse, decode_response
from merrow.backends.python.runtime import ModelRuntime
from merrow.core.errors import InternalError
from merrow.core.request import Request
from merrow.core.response import Response

_CANNOT_WAIT = (
    "Model {} - Error when running inference: the caller runs inline, where it cannot wait for another model; set its "
    "parameter EXECUTION_PLACE to 'thread' or 'process'"
)


class Call:
    """One request to another model, and its responses as they come. A `ResponseSink`."""

    def __init__(self, runtime: ModelRuntime) -> None:
        self._runtime = runtime
        self._responses: SimpleQueue[Response] = SimpleQueue()
        self._request: Request | None = None
        # Called on the thread that brings a response, after it was added.
        self._on_news: Callable[[], None] | None = None
        self._is_discarded = False

    def begin(self, request: Request, is_decoupled: bool, trace: Request | None) -> None:
        """Make the call; `request.sink` is this."""
        self._request = request
        self._runtime.host.infer(request, is_decoupled, self._runtime.parents(), trace)

    def on_response(self, response: Response) -> None:
        self._responses.put(response)
        if self._is_discarded:
            self._discard()
        if self._on_news is not None:
            self._on_news()

    def wait(self) -> Response:
        """The next response."""
        assert self._request is not None
        if not self._runtime.host.can_wait() and self._responses.empty():
            self.cancel()
            error = InternalError(_CANNOT_WAIT.format(self._request.model_name))
            return Response("", -1, error=error)
        return self._take()

    async def wait_async(self) -> Response:
        """The next response, leaving the event loop to others meanwhile."""
        loop = asyncio.get_running_loop()
        has_come = asyncio.Event()

        def wake() -> None:
            try:
                loop.call_soon_threadsafe(has_come.set)
            except RuntimeError:
                # The model has closed its loop.
                pass

        self._on_news = wake
        try:
            if self._responses.empty():
                await has_come.wait()
        finally:
            self._on_news = None
        return self._take()

    def cancel(self) -> None:
        """Ask the other model to stop."""
        assert self._request is not None
        self._runtime.host.cancel(self._request)

    def discard(self) -> None:
        """Nobody will take what comes; the other model goes on."""
        self._is_discarded = True
        self._discard()

    def _take(self) -> Response:
        response = self._responses.get()
        if not response.is_final:
            assert self._request is not None
            self._runtime.host.consume(self._request, response.weight)
        return response

    def _discard(self) -> None:
        while not self._responses.empty():
            self._take()


class ResponseIterator:
    """The responses of a decoupled call, as they come; once they have all come, iterating begins anew."""

    __module__ = C_MODULE

    def __init__(self, call: Call, first: Response | None = None) -> None:
        self._call = call
        self._responses: list[InferenceResponse] = []
        self._position = 0
        self._is_finished = False
        if first is not None:
            self._add(first)

    def __iter__(self) -> "ResponseIterator":
        if self._is_finished:
            self._position = 0
        return self

    def __next__(self) -> InferenceResponse:
        if self._position == len(self._responses):
            if self._is_finished:
                raise StopIteration
            self._add(self._call.wait())
        self._position += 1
        return self._responses[self._position - 1]

    def cancel(self) -> None:
        """Ask the other model to stop; what it still answers comes."""
        if not self._is_finished:
            self._call.cancel()

    def _add(self, response: Response) -> None:
        self._is_finished = response.is_final
        self._responses.append(decode_response(response))

    def __del__(self) -> None:
        if not self._is_finished:
            self._call.discard()


def single_response(response: Response) -> InferenceResponse:
    """The response to a call that is not decoupled."""
    if response.is_empty and response.error is None:
        return InferenceResponse([], TritonError("Unexpected empty response."))
    return decode_response(response)


def run(runtime: ModelRuntime, make: Callable[[Any], Request], is_decoupled: bool, trace: Request | None) -> Any:
    """`InferenceRequest.exec`: an InferenceResponse, or a ResponseIterator.

    Args:
        make: the request, with the given sink.
    """
    runtime.check_calls()
    call = Call(runtime)
    call.begin(make(call), is_decoupled, trace)
    return ResponseIterator(call) if is_decoupled else single_response(call.wait())


async def run_async(
    runtime: ModelRuntime, make: Callable[[Any], Request], is_decoupled: bool, trace: Request | None
) -> Any:
    """`InferenceRequest.async_exec`: as `run`, once there is a response."""
    runtime.check_calls()
    call = Call(runtime)
    call.begin(make(call), is_decoupled, trace)
    response = await call.wait_async()
    return ResponseIterator(call, response) if is_decoupled else single_response(response)
