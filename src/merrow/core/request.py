"""One inference request, as the core knows it, whichever door it came through."""

from collections.abc import Mapping
from typing import Protocol

from merrow.core.region import RegionSlice
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

    def resume(self, request: "Request") -> None:
        """The client takes responses again (`Request.is_congested` was set, and is not any more)."""


class RequestTrace(Protocol):
    """What records the times of one traced request. Monotonic nanoseconds. On the loop's thread, but for activities."""

    def begin(self, request: "Request") -> None:
        """The core accepts the request: it is valid, and goes to its model now. `engine.submit` calls this."""

    def record_queued(self, queue_ns: int) -> None:
        """It entered a queue (each time, where it is rescheduled)."""

    def record_batch(self, cut: str, now_ns: int) -> None:
        """It was put into a batch, which was cut off for the reason of this name (`schedule.base.BatchCut`)."""

    def record_activity(self, name: str, now_ns: int) -> None:
        """Something that its model names happened; also on the thread where the model runs.

        From `X_START` to `X_END` is a span of its own, for who shows spans.
        """

    def record_execution(self, start_ns: int, input_end_ns: int, output_start_ns: int, end_ns: int) -> None:
        """A batch with it ran."""

    def record_response(self, response: Response, now_ns: int) -> None:
        """A response leaves the core; `is_final` with the last."""

    def child(self, model_name: str, model_version: int) -> "RequestTrace | None":
        """The trace of a request made on behalf of this one: a step of an ensemble, business logic scripting."""

    def context_text(self) -> str:
        """The trace for other services to go on with: W3C headers as a JSON object; "" if there are none."""


class Request:
    """An inference request on its way through the server.

    `inputs` maps a name to its tensor, in the order of the request. `requested_outputs` are the names asked for;
    empty means all. `batch_size` is set by validation: the first dimension for a model that batches, else 1.
    `arrival_ns` is when the core accepted the request, `queue_ns` when it entered a queue (monotonic nanoseconds);
    `batcher_ns`, set where there is a batcher, when it could first have been in a batch.
    """

    batcher_ns: int

    __slots__ = (
        "arrival_ns",
        "batch_size",
        "batcher_ns",
        "correlation_id",
        "flags",
        "id",
        "inputs",
        "is_cancelled",
        "is_congested",
        "is_raw",
        "model_name",
        "model_version",
        "output_regions",
        "owner",
        "parameters",
        "priority",
        "queue_ns",
        "requested_outputs",
        "sink",
        "timeout_us",
        "trace",
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
        # Set by the sink of a decoupled request while its client is slow; models then wait before they send more.
        self.is_congested = False
        # None unless the request is traced.
        self.trace: RequestTrace | None = None
        # The client's shared memory by the name of the output that goes there; whoever runs the model may put it there.
        self.output_regions: Mapping[str, RegionSlice] | None = None
        self.arrival_ns = 0
        self.queue_ns = 0

    @property
    def log_prefix(self) -> str:
        """What Triton puts before core error texts: `[request id: <id>] `."""
        return log_prefix(self.id)


class PaddingRequest(Request):
    """Fills a row of a batch that no request has (sequence batching, DIRECT). It is never answered or counted."""

    __slots__ = ()


def log_prefix(request_id: str) -> str:
    """What Triton puts before core error texts about a request."""
    return f"[request id: {request_id or '<id_unknown>'}] "
