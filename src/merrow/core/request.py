"""One inference request, as the core knows it, whichever door it came through."""

from typing import Protocol

from merrow.core.response import Response
from merrow.core.tensor import Tensor

ParameterValue = bool | int | float | str

SEQUENCE_START = 1
SEQUENCE_END = 2


class ResponseSink(Protocol):
    """Where the responses of a request go.

    `on_response` is called on the loop's thread, once for an ordinary request and any number of times for a decoupled
    one; exactly one call has `response.is_final` set, and it is the last. It must not raise.
    """

    def on_response(self, response: Response) -> None: ...


class RequestOwner(Protocol):
    """Who holds an accepted request until it is answered."""

    def cancel(self, request: "Request") -> None:
        """The client has left."""


class Request:
    """An inference request on its way through the server.

    `inputs` maps a name to its tensor, in the order of the request. `requested_outputs` are the names asked for;
    empty means all. `batch_size` is set by validation: the first dimension for a model that batches, else 1.
    `arrival_ns` is when the core accepted the request, `queue_ns` when it entered a queue (monotonic nanoseconds).
    """

    __slots__ = (
        "arrival_ns",
        "batch_size",
        "correlation_id",
        "flags",
        "id",
        "inputs",
        "is_cancelled",
        "is_raw",
        "model_name",
        "model_version",
        "owner",
        "parameters",
        "priority",
        "queue_ns",
        "requested_outputs",
        "sink",
        "timeout_us",
    )

    def __init__(
        self,
        model_name: str,
        model_version: int,
        sink: ResponseSink,
        inputs: dict[str, Tensor],
        requested_outputs: tuple[str, ...] = (),
        id: str = "",
        parameters: dict[str, ParameterValue] | None = None,
        priority: int = 0,
        timeout_us: int = 0,
        correlation_id: int | str = 0,
        flags: int = 0,
        is_raw: bool = False,
    ) -> None:
        self.model_name = model_name
        self.model_version = model_version
        self.sink = sink
        self.inputs = inputs
        self.requested_outputs = requested_outputs
        self.id = id
        self.parameters = parameters
        self.priority = priority
        self.timeout_us = timeout_us
        self.correlation_id = correlation_id
        self.flags = flags
        # A raw request has one input of unknown name and shape; validation deduces both from the configuration.
        self.is_raw = is_raw
        self.batch_size = 1
        # Set when the request is accepted.
        self.owner: RequestOwner | None = None
        self.is_cancelled = False
        self.arrival_ns = 0
        self.queue_ns = 0

    @property
    def log_prefix(self) -> str:
        """What Triton puts before core error texts: `[request id: <id>] `."""
        return log_prefix(self.id)


def log_prefix(request_id: str) -> str:
    """What Triton puts before core error texts about a request."""
    return f"[request id: {request_id or '<id_unknown>'}] "
