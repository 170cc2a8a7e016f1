"""A line of the log for each answer (`--access-log`).

    POST /v2/models/m/infer 200, 61 bytes in, 102 out, 812 us
    /inference.GRPCInferenceService/ModelInfer 0, 61 bytes in, 102 out, 640 us
    /inference.GRPCInferenceService/ModelStreamInfer 0, 3 messages out, 245 bytes out, 9120 us
    POST /v2/models/m/infer client left, 61 bytes in, 410 us

The applications are wrapped, so that a server without this log pays nothing for it. The time is from when a request had
arrived whole (for a stream: from its begin) to when its answer was handed to the connection.
"""

import logging
from collections.abc import Callable, Sequence

from merrow.core.clock import Clock
from merrow.core.tensor import Buffer
from merrow.net.exchange import Exchange, GrpcApplication, GrpcCall, GrpcStream, Header, HttpApplication
from merrow.net.forwarding import ForwardingCall, ForwardingExchange

_LOG = logging.getLogger("merrow.net.access")

# Of a request's target; clients can make it as long as a head may be.
MAX_TARGET_LENGTH = 512


class LoggedHttp:
    """An `HttpApplication` whose answers are logged."""

    def __init__(self, application: HttpApplication, clock: Clock) -> None:
        self._application = application
        self._clock = clock

    def on_exchange(self, exchange: Exchange) -> None:
        self._application.on_exchange(_LoggedExchange(exchange, self._clock))


class LoggedGrpc:
    """A `GrpcApplication` whose answers are logged."""

    def __init__(self, application: GrpcApplication, clock: Clock) -> None:
        self._application = application
        self._clock = clock
        # Their own methods: `net` asks for every call, and need not pass through a frame of ours.
        self.is_streaming = application.is_streaming
        self.compression_of = application.compression_of

    def on_unary(self, call: GrpcCall, message: Buffer) -> None:
        self._application.on_unary(_LoggedCall(call, self._clock, len(message)), message)

    def on_stream(self, call: GrpcCall) -> GrpcStream:
        return self._application.on_stream(_LoggedCall(call, self._clock, None))


class _LoggedExchange(ForwardingExchange):
    __slots__ = ("_byte_size", "_clock", "_is_logged", "_start_ns", "_status")

    def __init__(self, inner: Exchange, clock: Clock) -> None:
        super().__init__(inner)
        self._clock = clock
        self._start_ns = clock()
        self._status = 0
        self._byte_size = 0
        self._is_logged = False

    @property
    def on_disconnect(self) -> Callable[[], None] | None:
        return self._inner.on_disconnect

    @on_disconnect.setter
    def on_disconnect(self, callback: Callable[[], None] | None) -> None:
        def on_disconnect() -> None:
            self._log("client left")
            assert callback is not None
            callback()

        self._inner.on_disconnect = None if callback is None else on_disconnect

    def respond(self, status: int, headers: Sequence[Header], parts: Sequence[Buffer]) -> None:
        super().respond(status, headers, parts)
        self._byte_size = sum(len(part) for part in parts)
        self._log(str(status))

    def start_stream(self, status: int, headers: Sequence[Header]) -> None:
        self._status = status
        super().start_stream(status, headers)

    def write(self, data: Buffer) -> None:
        self._byte_size += len(data)
        super().write(data)

    def finish(self) -> None:
        super().finish()
        self._log(str(self._status))

    def _log(self, outcome: str) -> None:
        if self._is_logged:
            # What is answered to a client that has left.
            return
        self._is_logged = True
        _LOG.info(
            "%s %s %s, %d bytes in, %d out, %d us",
            self.method.decode("latin-1"),
            self.target[:MAX_TARGET_LENGTH].decode("utf-8", "backslashreplace"),
            outcome,
            len(self.body),
            self._byte_size,
            (self._clock() - self._start_ns) // 1000,
        )


class _LoggedCall(ForwardingCall):
    __slots__ = ("_byte_size", "_clock", "_is_logged", "_message_byte_size", "_message_count", "_start_ns")

    def __init__(self, inner: GrpcCall, clock: Clock, message_byte_size: int | None) -> None:
        super().__init__(inner)
        self._clock = clock
        self._start_ns = clock()
        # Of a unary call's request.
        self._message_byte_size = message_byte_size
        self._message_count = 0
        self._byte_size = 0
        self._is_logged = False

    @property
    def on_cancel(self) -> Callable[[], None] | None:
        return self._inner.on_cancel

    @on_cancel.setter
    def on_cancel(self, callback: Callable[[], None] | None) -> None:
        def on_cancel() -> None:
            self._log("client left")
            assert callback is not None
            callback()

        self._inner.on_cancel = None if callback is None else on_cancel

    def reply(self, parts: Sequence[Buffer]) -> None:
        super().reply(parts)
        self._byte_size = sum(len(part) for part in parts)
        self._log("0")

    def send(self, parts: Sequence[Buffer]) -> None:
        self._message_count += 1
        self._byte_size += sum(len(part) for part in parts)
        super().send(parts)

    def finish(self, status: int = 0, message: str = "") -> None:
        super().finish(status, message)
        self._log(str(status))

    def _log(self, outcome: str) -> None:
        if self._is_logged:
            return
        self._is_logged = True
        if self._message_byte_size is None:
            size = f"{self._message_count} messages out, {self._byte_size} bytes out"
        else:
            size = f"{self._message_byte_size} bytes in, {self._byte_size} out"
        _LOG.info(
            "%s %s, %s, %d us",
            self.path[:MAX_TARGET_LENGTH].decode("utf-8", "backslashreplace"),
            outcome,
            size,
            (self._clock() - self._start_ns) // 1000,
        )
