"""Holding gRPC calls back at chosen points, for tests of what clients and servers do when the other is slow or gone.

A `DelayedGrpc` stands before the front door where the environment asks for it, and nowhere else. Triton's variables let
a thread of its server sleep; here the call waits and nobody else does, except that answers of the methods that do not
infer leave one after another, as they do there.

    ModelInfer           request ──► process_entry + process ──► core ──► response_complete_exec + response_completion
    ModelStreamInfer     message ──► process_entry ──► core ──► complete (+ response, where a model is decoupled)
    both                 the client has left ──► notification (+ process, unary) ──► its request is cancelled
    all other methods    answer ──► server_response_seconds

Source: Triton, grpc/infer_handler.h and grpc_server.cc: environment variables TRITONSERVER_DELAY_...
"""

import asyncio
from collections.abc import Callable, Sequence

from merrow.core.errors import ServerError
from merrow.core.tensor import Buffer
from merrow.engine.engine import Engine
from merrow.net.exchange import GrpcApplication, GrpcCall, GrpcStream
from merrow.net.forwarding import ForwardingCall
from merrow.net.grpc_compression import CompressionLevel
from merrow.settings import GrpcDelays
from merrow.wire.infer_proto import parse_infer_request, parse_model_version

_UNARY_INFER = b"/inference.GRPCInferenceService/ModelInfer"
_STREAM_INFER = b"/inference.GRPCInferenceService/ModelStreamInfer"


class DelayedGrpc:
    """A `GrpcApplication` that holds back what another one does."""

    def __init__(
        self, inner: GrpcApplication, engine: Engine, delays: GrpcDelays, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._inner = inner
        self._engine = engine
        self._delays = delays
        self._loop = loop
        self._other_answers = _Line(loop)

    def is_streaming(self, path: bytes) -> bool | None:
        return self._inner.is_streaming(path)

    def compression_of(self, path: bytes) -> CompressionLevel | None:
        return self._inner.compression_of(path)

    def on_unary(self, call: GrpcCall, message: Buffer) -> None:
        delays = self._delays
        if call.path != _UNARY_INFER:
            self._inner.on_unary(_DelayedCall(call, self._other_answers, delays.server_response_seconds), message)
            return
        line = _Line(self._loop)
        answer_ms = delays.response_complete_exec_ms + delays.response_completion_ms
        held = _DelayedCall(call, line, answer_ms / 1000, (delays.notification_ms + delays.process_ms) / 1000)
        line.then((delays.process_entry_ms + delays.process_ms) / 1000, lambda: self._begin_unary(held, message))

    def on_stream(self, call: GrpcCall) -> GrpcStream:
        if call.path != _STREAM_INFER:
            return self._inner.on_stream(call)
        return _DelayedStream(self._inner, call, self._engine, self._delays, self._loop)

    def _begin_unary(self, call: "_DelayedCall", message: Buffer) -> None:
        if not call.is_over:
            self._inner.on_unary(call, message)


class _Line:
    """What happens one after another, each after its own delay."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._last = 0.0

    def then(self, seconds: float, callback: Callable[[], None]) -> None:
        """Call back so much later, but not before what was asked for earlier."""
        now = self.loop.time()
        if seconds <= 0 and self._last <= now:
            callback()
            return
        self._last = max(now, self._last) + seconds
        self.loop.call_at(self._last, callback)


class _DelayedCall(ForwardingCall):
    """Answers later, and hears later that its client has left."""

    __slots__ = ("_callback", "_cancel_seconds", "_line", "_seconds", "is_over")

    def __init__(self, inner: GrpcCall, line: _Line, seconds: float, cancel_seconds: float = 0.0) -> None:
        super().__init__(inner)
        self._line = line
        self._seconds = seconds
        self._cancel_seconds = cancel_seconds
        self._callback: Callable[[], None] | None = None
        self.is_over = False
        inner.on_cancel = self._on_inner_cancel

    @property
    def on_cancel(self) -> Callable[[], None] | None:
        return self._callback

    @on_cancel.setter
    def on_cancel(self, callback: Callable[[], None] | None) -> None:
        self._callback = callback

    def set_seconds(self, seconds: float) -> None:
        """How much later from now on."""
        self._seconds = seconds

    def reply(self, parts: Sequence[Buffer]) -> None:
        kept = [bytes(part) for part in parts]
        self._line.then(self._seconds, lambda: self._unless_over(lambda: self._inner.reply(kept)))

    def send(self, parts: Sequence[Buffer]) -> None:
        kept = [bytes(part) for part in parts]
        self._line.then(self._seconds, lambda: self._unless_over(lambda: self._inner.send(kept)))

    def finish(self, status: int = 0, message: str = "") -> None:
        self._line.then(self._seconds, lambda: self._unless_over(lambda: self._inner.finish(status, message)))

    def _unless_over(self, answer: Callable[[], None]) -> None:
        if not self.is_over:
            answer()

    def _on_inner_cancel(self) -> None:
        self.is_over = True
        if self._cancel_seconds > 0:
            self._line.loop.call_later(self._cancel_seconds, self._report_cancel)
        else:
            self._report_cancel()

    def _report_cancel(self) -> None:
        if self._callback is not None:
            self._callback()


class _DelayedStream:
    """The messages of a stream, each later; a `GrpcStream`."""

    def __init__(
        self,
        inner: GrpcApplication,
        call: GrpcCall,
        engine: Engine,
        delays: GrpcDelays,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._engine = engine
        self._delays = delays
        self._requests = _Line(loop)
        self._call = _DelayedCall(call, _Line(loop), delays.complete_ms / 1000, delays.notification_ms / 1000)
        self._stream = inner.on_stream(self._call)

    def on_message(self, message: Buffer) -> None:
        if self._delays.response_ms and self._is_decoupled(message):
            self._call.set_seconds((self._delays.complete_ms + self._delays.response_ms) / 1000)
        self._requests.then(self._delays.process_entry_ms / 1000, lambda: self._stream.on_message(message))

    def on_half_close(self) -> None:
        self._requests.then(0.0, self._stream.on_half_close)

    def _is_decoupled(self, message: Buffer) -> bool:
        try:
            parsed = parse_infer_request(message)
            version = parse_model_version(parsed.model_version) if parsed.model_version else -1
            return self._engine.find_model(parsed.model_name, version).is_decoupled
        except ServerError:
            # Whoever it is for says what is wrong with it.
            return False
