"""ModelStreamInfer: many requests and responses on one call.

Responses of ordinary models leave in the order of their requests, across all models of the stream; those of decoupled
models leave as they come. An error is a message of the stream, which stays open; with the metadata
`triton_grpc_error: true` the first error of a model ends the call with its status instead.

Bounds: with `max_stream_requests` requests unanswered, or while the client does not read, or while much waits for an
earlier response, the stream is not read further, and flow control holds the client back. A decoupled model is held
back as far as it allows (`Request.is_congested`); what it goes on to produce for a client that does not read waits
here, up to `max_stream_buffer_byte_size`; beyond, the call ends and its requests are cancelled.

Source: Triton, grpc/stream_infer_handler.cc.
"""

import logging
from collections import deque
from collections.abc import Callable, Sequence

from merrow.core.errors import ErrorCode, ServerError, UnavailableError
from merrow.core.request import Request
from merrow.core.response import Response
from merrow.core.tensor import Buffer
from merrow.engine.engine import Engine
from merrow.frontends.grpc.infer import SHUTTING_DOWN, Labels, forward_metadata
from merrow.frontends.grpc.status import OK, STATUSES, finish_unexpected, finish_with_error
from merrow.frontends.grpc.traced import sample_call
from merrow.net.exchange import GrpcCall
from merrow.observe.trace import Trace, Tracer
from merrow.settings import ConnectionLimits
from merrow.wire.header_forwarding import HeaderForwarding
from merrow.wire.infer_proto import (
    ProtoOutputForms,
    decode_infer_request,
    encode_stream_error,
    encode_stream_response,
    parse_infer_request,
    parse_model_version,
)

_LOG = logging.getLogger("merrow.frontends.grpc")

RESOURCE_EXHAUSTED = 8
TOO_SLOW = "the client does not read the responses of the stream"


class InferStream:
    """One call of ModelStreamInfer; a `GrpcStream`."""

    def __init__(
        self,
        call: GrpcCall,
        engine: Engine,
        on_end: "Callable[[InferStream], None]",
        tracer: Tracer | None = None,
        forwarding: HeaderForwarding | None = None,
        limits: ConnectionLimits | None = None,
    ) -> None:
        self._limits = limits or ConnectionLimits()
        self._call = call
        self._engine = engine
        self._tracer = tracer
        self._forwarding = forwarding
        self._on_end = on_end
        self._ends_at_error = call.header(b"triton_grpc_error") == b"true"
        # Requests whose final response has not been written; those of ordinary models also stand in line.
        self._unanswered: set[_StreamSink] = set()
        self._line: deque[_StreamSink] = deque()
        # Messages that wait for the client to read.
        self._waiting: deque[Sequence[Buffer]] = deque()
        self._waiting_byte_size = 0
        # Of responses that came before their turn.
        self._early_byte_size = 0
        self._is_paused = False
        # Set when no more requests are taken: the call ends with this after the last response.
        self._last_words: tuple[int, str] | None = None
        self._has_ended = False
        call.on_cancel = self._end
        call.on_writable = self._on_writable

    def on_message(self, message: Buffer) -> None:
        """A request arrived."""
        try:
            if not self._has_ended:
                self._on_request(message)
        except Exception:
            # The front door: whatever the defect is, it ends this call and nothing else.
            _LOG.exception("unexpected error in a stream")
            self._end()
            finish_unexpected(self._call)

    def on_half_close(self) -> None:
        """No more requests will come; the call ends after the last response."""
        if self._last_words is None:
            self._last_words = (OK, "")
        self._settle()

    def shut_down(self) -> None:
        """The server exits: what was accepted is answered, then the call ends."""
        self._last_words = (STATUSES[ErrorCode.UNAVAILABLE], SHUTTING_DOWN)
        self._settle()

    def _on_request(self, message: Buffer) -> None:
        engine = self._engine
        try:
            parsed = parse_infer_request(message)
        except ServerError as error:
            self._end_with(error)
            return
        sink = _StreamSink(self, parsed.id, parsed.model_version)
        self._unanswered.add(sink)
        try:
            if engine.is_exiting:
                raise UnavailableError(SHUTTING_DOWN)
            version_text = parsed.model_version
            model = engine.find_model(parsed.model_name, parse_model_version(version_text) if version_text else -1)
        except ServerError as error:
            self._line.append(sink)
            self._refuse(sink, error)
            return
        sink.labels = model.labels
        sink.is_decoupled = model.is_decoupled
        if not model.is_decoupled:
            self._line.append(sink)
        tracer = self._tracer
        if tracer is not None and tracer.is_on:
            sink.trace = sample_call(self._call, tracer, model.name, model.version)
        try:
            request, sink.forms = decode_infer_request(parsed, model.version, model.config, sink, engine.shared_memory)
            if self._forwarding is not None:
                forward_metadata(request, self._forwarding, self._call)
            sink.request = request
            request.is_congested = sink.is_decoupled and bool(self._waiting)
            request.trace = sink.trace
            engine.submit(model, request)
        except ServerError as error:
            self._refuse(sink, error)
        else:
            self._settle()

    def on_response(self, sink: "_StreamSink", response: Response) -> None:
        """A model answered, or failed, one of the requests."""
        if response.is_final:
            sink.request = None
        if self._has_ended:
            return
        try:
            if response.error is not None and self._ends_at_error:
                self._end_with(response.error)
            else:
                self._add(sink, _encode(sink, response), response.is_final)
        except Exception:
            # The front door: whatever the defect is, it ends this call, and the model goes on.
            _LOG.exception("unexpected error in a response of model '%s'", response.model_name)
            self._end()
            finish_unexpected(self._call)

    def _refuse(self, sink: "_StreamSink", error: ServerError) -> None:
        """Answer a request that was not submitted."""
        sink.request = None
        self._add(sink, encode_stream_error(error.message, sink.request_id), is_final=True)

    def _add(self, sink: "_StreamSink", message: Sequence[Buffer] | None, is_final: bool) -> None:
        """Write the next message of a request, if it has one, in its turn."""
        if sink.is_decoupled:
            if message is not None:
                self._write_for(sink, message)
                if self._waiting_byte_size > self._limits.max_stream_buffer_byte_size:
                    self._end()
                    self._call.finish(RESOURCE_EXHAUSTED, TOO_SLOW)
                    return
            if is_final:
                self._forget(sink)
        else:
            sink.message = message
            sink.is_answered = is_final
            line = self._line
            if message is not None and line[0] is not sink:
                self._early_byte_size += _byte_size(message)
            while line and line[0].is_answered:
                first = line.popleft()
                if first.message is not None:
                    if first is not sink:
                        self._early_byte_size -= _byte_size(first.message)
                    self._write_for(first, first.message)
                self._forget(first)
        self._settle()

    def _forget(self, sink: "_StreamSink") -> None:
        """The last response of a request has been written."""
        self._unanswered.discard(sink)
        if sink.trace is not None:
            sink.trace.finish()
            sink.trace = None

    def _write_for(self, sink: "_StreamSink", message: Sequence[Buffer]) -> None:
        if sink.trace is None:
            self._write(message)
            return
        assert self._tracer is not None
        sink.trace.record("GRPC_SEND_START", self._tracer.clock())
        self._write(message)
        sink.trace.record("GRPC_SEND_END", self._tracer.clock())

    def _write(self, message: Sequence[Buffer]) -> None:
        if self._waiting or not self._call.is_writable:
            if not self._waiting:
                self._hold_models(True)
            self._waiting.append(message)
            self._waiting_byte_size += _byte_size(message)
        else:
            self._call.send(message)

    def _on_writable(self) -> None:
        while self._waiting and self._call.is_writable:
            message = self._waiting.popleft()
            self._waiting_byte_size -= _byte_size(message)
            self._call.send(message)
            if not self._waiting:
                self._hold_models(False)
        self._settle()

    def _hold_models(self, is_congested: bool) -> None:
        """Let the decoupled models that answer this stream wait, or go on."""
        for sink in list(self._unanswered):
            request = sink.request
            if request is not None and sink.is_decoupled:
                request.is_congested = is_congested
                if not is_congested and request.owner is not None:
                    request.owner.resume(request)

    def _settle(self) -> None:
        """After any change: end the call if all is done, hold the client back or let it go on."""
        if self._has_ended:
            return
        if self._last_words is not None and not self._unanswered and not self._waiting:
            self._end()
            self._call.finish(*self._last_words)
            return
        must_pause = (
            bool(self._waiting)
            or len(self._unanswered) >= self._limits.max_stream_requests
            or self._early_byte_size > self._limits.max_stream_buffer_byte_size
        )
        if must_pause and not self._is_paused:
            self._is_paused = True
            self._call.pause_reading()
        elif self._is_paused and not must_pause:
            self._is_paused = False
            self._call.resume_reading()

    def _end_with(self, error: ServerError) -> None:
        self._end()
        finish_with_error(self._call, error)

    def _end(self) -> None:
        """Cancel what is under way, and let go of everything."""
        self._has_ended = True
        self._call.on_cancel = None
        self._call.on_writable = None
        self._on_end(self)
        self._waiting.clear()
        self._line.clear()
        unanswered, self._unanswered = self._unanswered, set()
        for sink in unanswered:
            if sink.request is not None:
                self._engine.cancel(sink.request)
                sink.request = None
            if sink.trace is not None:
                sink.trace.finish()
                sink.trace = None


class _StreamSink:
    """Where the responses of one request go: its place in the stream.

    `request_id` and `model_version` are the request's own words, which errors repeat. `request` is there while the
    engine has it.
    """

    __slots__ = (
        "forms",
        "is_answered",
        "is_decoupled",
        "labels",
        "message",
        "model_version",
        "request",
        "request_id",
        "stream",
        "trace",
    )

    forms: ProtoOutputForms
    labels: Labels

    def __init__(self, stream: InferStream, request_id: str, model_version: str) -> None:
        self.stream = stream
        self.request_id = request_id
        self.model_version = model_version
        self.request: Request | None = None
        self.is_decoupled = False
        self.is_answered = False
        self.trace: Trace | None = None
        self.message: Sequence[Buffer] | None = None

    def on_response(self, response: Response) -> None:
        self.stream.on_response(self, response)


def _byte_size(message: Sequence[Buffer]) -> int:
    return sum([len(part) for part in message])


def _encode(sink: _StreamSink, response: Response) -> Sequence[Buffer] | None:
    """The message for a response; None for one that only says that a request is over, unless that was asked for."""
    is_bare_end = response.is_empty and response.error is None
    if is_bare_end and not (response.is_final and sink.forms.wants_empty_final_response):
        return None
    try:
        return encode_stream_response(response, sink.forms, sink.labels, sink.model_version)
    except ServerError as error:
        failure = Response(response.model_name, response.model_version, response.id, error=error)
        failure.is_final = response.is_final
        return encode_stream_response(failure, sink.forms, sink.labels, sink.model_version)
