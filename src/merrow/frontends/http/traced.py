"""An exchange that records when its answer leaves."""

from collections.abc import Sequence

from merrow.core.tensor import Buffer
from merrow.net.exchange import Exchange, Header
from merrow.net.forwarding import ForwardingExchange
from merrow.observe.trace import Trace, Tracer


class TracedExchange(ForwardingExchange):
    """Records the sending of each part of an answer, and finishes the trace with the answer."""

    __slots__ = ("_tracer", "trace")

    def __init__(self, inner: Exchange, tracer: Tracer, trace: Trace) -> None:
        super().__init__(inner)
        self._tracer = tracer
        self.trace: Trace | None = trace

    def respond(self, status: int, headers: Sequence[Header], parts: Sequence[Buffer]) -> None:
        self._record("HTTP_SEND_START")
        super().respond(status, headers, parts)
        self._end()

    def start_stream(self, status: int, headers: Sequence[Header]) -> None:
        self._record("HTTP_SEND_START")
        super().start_stream(status, headers)

    def finish(self) -> None:
        super().finish()
        self._end()

    def _record(self, name: str) -> None:
        if self.trace is not None:
            self.trace.record(name, self._tracer.clock())

    def _end(self) -> None:
        self._record("HTTP_SEND_END")
        trace, self.trace = self.trace, None
        if trace is not None:
            trace.finish()


def trace_exchange(exchange: Exchange, tracer: Tracer, model_name: str, model_version: int) -> Exchange:
    """The exchange to answer instead, if this request is to be traced, else the same."""
    trace = tracer.sample(model_name, model_version, exchange.header(b"traceparent"), exchange.header(b"tracestate"))
    if trace is None:
        return exchange
    now_ns = tracer.clock()
    trace.record("HTTP_RECV_START", now_ns)
    trace.record("HTTP_RECV_END", now_ns)
    return TracedExchange(exchange, tracer, trace)
