"""`pb_utils.InferenceResponseSender`: responses that a model sends itself, from any thread, also after `execute`.

All senders of a request and the request itself share its `Answering`, which is in one of these states:

    open       nothing was sent; a decoupled model may have sent any number of responses
    held       a model that is not decoupled sent its response, but not the final flag (its client waits for that)
    closed     the final flag was sent, or the request is answered otherwise: nothing can be sent any more

Source: Triton, python_backend/src/response_sender.cc.
"""

import threading

from merrow.backends.python.pb_errors import C_MODULE, TritonModelException, incompatible_arguments
from merrow.backends.python.pb_response import InferenceResponse, encode_response
from merrow.backends.python.runtime import ModelRuntime
from merrow.core.errors import InternalError, ServerError
from merrow.core.request import Request
from merrow.core.response import Response

TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1

_NOT_SENT = "An error occurred while sending a response."

_SIGNATURE = (
    f"(self: {C_MODULE}.InferenceResponseSender, response: {C_MODULE}.InferenceResponse = None, flags: int = 0) -> None"
)


class Answering:
    """The right to answer a request. When the model has dropped it, the request is ended. Thread-safe."""

    __slots__ = ("_has_sent", "_held", "_lock", "_request", "_runtime", "is_closed", "is_final", "is_rescheduled")

    def __init__(self, runtime: ModelRuntime, request: Request) -> None:
        self._runtime = runtime
        self._request = request
        self._lock = threading.Lock()
        self._has_sent = False
        self._held: Response | None = None
        self.is_closed = False
        # The last response was sent.
        self.is_final = False
        # The model wants the request executed again.
        self.is_rescheduled = False

    @property
    def has_sent(self) -> bool:
        """Whether a response was sent."""
        return self._has_sent

    def send(self, response: InferenceResponse | None, is_final: bool) -> None:
        """Send a response, the final flag, or both.

        Raises:
            TritonModelException: it cannot be sent any more, or not to this model's clients.
        """
        runtime = self._runtime
        with self._lock:
            if not runtime.is_decoupled:
                if response is not None and self._has_sent:
                    raise TritonModelException(
                        "Unable to send response. Non-decoupled model cannot send more than one response."
                    )
                if response is None and not self._has_sent:
                    raise TritonModelException(
                        "Unable to send response. Non-decoupled model cannot send complete final before sending a "
                        "response."
                    )
            if self.is_closed:
                raise TritonModelException("Unable to send response. Response sender has been closed.")
            encoded = None
            if response is not None:
                # What is held is read later, when the model may have changed its arrays.
                must_copy = runtime.must_copy or not (runtime.is_decoupled or is_final)
                encoded = encode_response(response, self._request, runtime.output_names, must_copy)
                self._has_sent = True
            if not runtime.is_decoupled:
                encoded = encoded or self._held
                self._held = None if is_final else encoded
            if is_final:
                self.is_closed = self.is_final = True
                runtime.settle(id(self))
                encoded = encoded or Response("", 0, is_empty=True)
            elif not runtime.is_decoupled:
                return
            assert encoded is not None
            encoded.is_final = is_final
            # Under the lock, so that what two threads send keeps its order.
            try:
                _send(runtime, self._request, encoded)
            except ServerError as error:
                raise TritonModelException(_NOT_SENT) from error

    def watch(self) -> None:
        """The batch is over and the request is not."""
        with self._lock:
            if not self.is_closed:
                self._runtime.watch(id(self))

    def close(self) -> None:
        """The request is answered otherwise."""
        with self._lock:
            self.is_closed = True

    def fail(self, message: str) -> None:
        """End the request with an error, unless it is over."""
        with self._lock:
            if self.is_closed:
                return
            self.is_closed = True
        self._runtime.settle(id(self))
        _send_failure(self._runtime, self._request, message)

    def __del__(self) -> None:
        if self.is_closed:
            return
        runtime, request, held = self._runtime, self._request, self._held

        def end() -> None:
            if held is not None:
                try:
                    _send(runtime, request, held)
                except ServerError:
                    # The request has ended with the reason, and the model has gone on.
                    pass
            elif runtime.is_decoupled:
                _send_failure(
                    runtime, request, "The model dropped the response sender of a request without the final flag."
                )
            else:
                _send_failure(
                    runtime,
                    request,
                    "The model returned None for a request and dropped its response sender without sending a response.",
                )

        runtime.abandon(id(self), end)


def _send(runtime: ModelRuntime, request: Request, response: Response) -> None:
    """Send a response. If it is the last, the request ends whatever happens.

    Raises:
        ServerError: it cannot be sent: it fits no message, there is no memory for it, or the server is gone.
    """
    try:
        runtime.host.send(request, response)
    except ServerError as error:
        if response.is_final:
            _send_failure(runtime, request, f"{_NOT_SENT.removesuffix('.')}: {error.message}")
        raise


def _send_failure(runtime: ModelRuntime, request: Request, message: str) -> None:
    error = InternalError(runtime.describe_failure(message))
    try:
        runtime.host.send(request, Response("", 0, error=error))
    except ServerError:
        # The server is gone.
        pass


class InferenceResponseSender:
    """Sends the responses of one request; got from the request. A model that is not decoupled sends exactly one."""

    __module__ = C_MODULE
    __slots__ = ("_answering", "_request")
    _answering: Answering | None
    _request: Request

    def __init__(self) -> None:
        raise TypeError(f"{C_MODULE}.InferenceResponseSender: No constructor defined!")

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        """Send a response, the final flag, or both at once. Waits while the client is slow."""
        if (response is not None and not isinstance(response, InferenceResponse)) or not isinstance(flags, int):
            raise incompatible_arguments(_SIGNATURE, (self, response), {"flags": flags}, "send")
        if flags not in (0, TRITONSERVER_RESPONSE_COMPLETE_FINAL):
            raise TritonModelException("Unable to send response. Unsupported flag provided.")
        if response is None and not flags:
            raise TritonModelException(
                "Inference Response object must be provided when the response flags is set to zero."
            )
        if self._answering is None:
            raise TritonModelException(
                "Unable to send response. Response sender has no reference to the decoupled state of the model."
            )
        self._answering.send(response, bool(flags))

    def is_cancelled(self) -> bool:
        """Whether the client has gone."""
        return self._request.is_cancelled


def make_sender(request: Request, answering: Answering | None) -> InferenceResponseSender:
    """A sender; `answering` is None for a request that the model made itself."""
    sender: InferenceResponseSender = object.__new__(InferenceResponseSender)
    sender._request = request
    sender._answering = answering
    return sender
