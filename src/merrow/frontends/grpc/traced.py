"""A call that records when its reply leaves."""

from collections.abc import Sequence

from merrow.core.tensor import Buffer
from merrow.net.exchange import GrpcCall
from merrow.net.forwarding import ForwardingCall
from merrow.observe.trace import Trace, Tracer


class TracedCall(ForwardingCall):
    """A unary call that records the sending of its reply, and finishes the trace with it."""

    __slots__ = ("_tracer", "trace")

    def __init__(self, inner: GrpcCall, tracer: Tracer, trace: Trace) -> None:
        super().__init__(inner)
        self._tracer = tracer
        self.trace: Trace | None = trace

    def reply(self, parts: Sequence[Buffer]) -> None:
        self._record("GRPC_SEND_START")
        super().reply(parts)
        self._end()

    def finish(self, status: int = 0, message: str = "") -> None:
        self._record("GRPC_SEND_START")
        super().finish(status, message)
        self._end()

    def _record(self, name: str) -> None:
        if self.trace is not None:
            self.trace.record(name, self._tracer.clock())

    def _end(self) -> None:
        self._record("GRPC_SEND_END")
        trace, self.trace = self.trace, None
        if trace is not None:
            trace.finish()


def sample_call(call: GrpcCall, tracer: Tracer, model_name: str, model_version: int) -> Trace | None:
    """The trace of a request that has arrived on a call, if it is to be traced."""
    trace = tracer.sample(model_name, model_version, call.header(b"traceparent"), call.header(b"tracestate"))
    if trace is not None:
        now_ns = tracer.clock()
        # There is no thread here that waits for requests, as there is in Triton.
        trace.record("GRPC_WAITREAD_START", now_ns)
        trace.record("GRPC_WAITREAD_END", now_ns)
    return trace


def trace_call(call: GrpcCall, tracer: Tracer, model_name: str, model_version: int) -> GrpcCall:
    """The call to answer instead, if this request is to be traced, else the same."""
    trace = sample_call(call, tracer, model_name, model_version)
    return call if trace is None else TracedCall(call, tracer, trace)
