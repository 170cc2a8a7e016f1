"""The generate extension over REST: one JSON object in; one out, or one a response as server-sent events.

What is wrong with a request is answered as JSON, on both endpoints. Once a model has it, its first response decides the
status: 200, or 400 if it is an error.

    generate          waits for the end; anything but exactly one response is an error, with the status of the first
    generate_stream   an event for each response as it comes; an error is an event too, and does not end the stream

A client that does not read holds the model back as far as the model allows (`Request.is_congested`). What comes all the
same waits here, up to `max_stream_buffer_byte_size`; beyond, the stream ends and the request is cancelled, as it is
when its client leaves.

Source: Triton, http_server.cc, HTTPAPIServer::HandleGenerate, GenerateRequestClass.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable

from merrow.core.errors import InvalidArgumentError, ServerError
from merrow.core.request import Request
from merrow.core.response import Response
from merrow.engine.engine import Engine
from merrow.engine.model import Model
from merrow.frontends.http.infer import MAX_INLINE_JSON_BYTE_SIZE
from merrow.frontends.http.routes import Endpoint, Handlers, Route
from merrow.frontends.http.status import JSON_HEADERS, UNEXPECTED_TEXT, respond_error
from merrow.frontends.http.tasks import AnswerTasks
from merrow.frontends.http.traced import trace_exchange
from merrow.net.exchange import Exchange, Header
from merrow.observe.trace import Tracer
from merrow.settings import ConnectionLimits
from merrow.wire.admin_json import encode_error
from merrow.wire.generate_json import NOT_ONE_RESPONSE, GenerateCodec, encode_event

_LOG = logging.getLogger("merrow.frontends.http")

TOO_SLOW = "the client does not read the responses of the stream"

EVENT_HEADERS: tuple[Header, ...] = ((b"Content-Type", b"text/event-stream; charset=utf-8"),)

LoadReport = Callable[[bytes], bytes | None]
"""The value of the load header in a format (`text`, `json`); None if it cannot be told. See `observe.load_report`."""

LOAD_FORMAT_HEADER = b"endpoint-load-metrics-format"
LOAD_HEADER = b"endpoint-load-metrics"


class HttpGenerate:
    """Handles generate and generate_stream.

    Args:
        tasks: owns what is decoded on a thread, and streams whose client is slow.
        max_input_byte_size: bytes of a request's JSON, and of all tensors in it.
        tracer: traces requests; None for nothing.
        limits: of what a client may make the server hold.
    """

    def __init__(
        self,
        engine: Engine,
        tasks: AnswerTasks,
        max_input_byte_size: int,
        report_load: LoadReport,
        tracer: Tracer | None = None,
        limits: ConnectionLimits | None = None,
    ) -> None:
        self._engine = engine
        self.limits = limits or ConnectionLimits()
        self._tasks = tasks
        self._max_input_byte_size = max_input_byte_size
        self._report_load = report_load
        self._tracer = tracer
        # One for each model version that was asked for; those out of service are dropped when one comes in.
        self._codecs: dict[Model, GenerateCodec] = {}

    def handlers(self) -> Handlers:
        """The handlers of the two endpoints."""
        return {
            Endpoint.MODEL_GENERATE: self.on_generate,
            Endpoint.MODEL_GENERATE_STREAM: self.on_generate_stream,
        }

    def on_generate(self, exchange: Exchange, route: Route) -> None:
        self._begin(exchange, route, _SingleAnswer)

    def on_generate_stream(self, exchange: Exchange, route: Route) -> None:
        self._begin(exchange, route, _EventAnswer)

    def _begin(self, exchange: Exchange, route: Route, answer_class: "type[_Answer]") -> None:
        model = self._engine.find_model(route.model_name, route.model_version)
        encoding = exchange.header(b"content-encoding")
        if encoding is not None and encoding != b"identity":
            raise InvalidArgumentError("Unsupported content-encoding, only 'identity' is supported.")
        tracer = self._tracer
        if tracer is not None and tracer.is_on:
            exchange = trace_exchange(exchange, tracer, model.name, model.version)
        answer = answer_class(exchange, self, self._codecs.get(model) or self._add_codec(model))
        load_format = exchange.header(LOAD_FORMAT_HEADER)
        if load_format is not None:
            answer.load_format = load_format
        if len(exchange.body) > MAX_INLINE_JSON_BYTE_SIZE:
            self._tasks.start(exchange, self._decode_on_thread(model, answer), JSON_HEADERS)
            return
        try:
            self._submit(model, answer, answer.codec.decode(exchange.body, answer))
        except ServerError as error:
            respond_error(exchange, error, JSON_HEADERS)

    async def _decode_on_thread(self, model: Model, answer: "_Answer") -> None:
        self._submit(model, answer, await asyncio.to_thread(answer.codec.decode, answer.exchange.body, answer))

    def _submit(self, model: Model, answer: "_Answer", request: Request) -> None:
        exchange = answer.exchange
        if exchange.trace is not None:
            request.trace = exchange.trace
        answer.request = request
        exchange.on_disconnect = answer.on_disconnect
        try:
            self._engine.submit(model, request)
        except ServerError:
            exchange.on_disconnect = None
            answer.request = None
            raise

    def _add_codec(self, model: Model) -> GenerateCodec:
        self._codecs = {known: codec for known, codec in self._codecs.items() if self._is_in_service(known)}
        codec = self._codecs[model] = GenerateCodec(model.version, model.config, self._max_input_byte_size)
        return codec

    def _is_in_service(self, model: Model) -> bool:
        try:
            return self._engine.find_model(model.name, model.version) is model
        except ServerError:
            return False

    # For the answers.

    def cancel(self, request: Request) -> None:
        """The client has left."""
        self._engine.cancel(request)

    def pump(self, answer: "_EventAnswer") -> None:
        """Write what waits for a slow client, as it reads."""
        self._tasks.start(answer.exchange, answer.write_waiting(), JSON_HEADERS)

    def headers(self, content: tuple[Header, ...], load_format: bytes) -> tuple[Header, ...] | list[Header]:
        """The headers of an answer, with the load if that was asked for in a format that there is."""
        report = self._report_load(load_format) if load_format else None
        # A list is not remembered by `net`: there is a new one for each answer.
        return content if report is None else [*content, (LOAD_HEADER, report)]


class _Answer:
    """Where the responses of one request go. `request` is there while the engine has it."""

    def __init__(self, exchange: Exchange, generate: HttpGenerate, codec: GenerateCodec) -> None:
        self.exchange = exchange
        self.codec = codec
        self.load_format = b""
        self.request: Request | None = None
        self._generate = generate
        self._response_count = 0
        # Of the first response.
        self._status = 200

    def on_response(self, response: Response) -> None:
        """A model answered, or failed."""
        if not response.is_empty or response.error is not None:
            content = self._encode(response)
            self._response_count += 1
            self._take(content)
        if response.is_final:
            self.request = None
            self.exchange.on_disconnect = None
            self._end()

    def on_disconnect(self) -> None:
        """The client has left."""
        request, self.request = self.request, None
        if request is not None:
            self._generate.cancel(request)

    def _encode(self, response: Response) -> bytes:
        """The response as JSON; what cannot be written is an error, too."""
        error = response.error
        if error is None:
            try:
                return self.codec.encode(response)
            except ServerError as encode_error_:
                error = encode_error_
            except Exception:
                # The front door: whatever the defect is, the request is answered, and the model goes on.
                _LOG.exception("unexpected error in a response of model '%s'", response.model_name)
                return self._fail(UNEXPECTED_TEXT)
        return self._fail(error.message)

    def _fail(self, message: str) -> bytes:
        if not self._response_count:
            # Triton reads the error's code after it has let go of the error: whatever it was, 400 comes out.
            self._status = 400
        return encode_error(message)

    def _take(self, content: bytes) -> None:
        """A response, as JSON."""
        raise NotImplementedError

    def _end(self) -> None:
        """There are no more responses."""
        raise NotImplementedError


class _SingleAnswer(_Answer):
    """Of generate: one JSON object, when all is over."""

    _first = b""

    def _take(self, content: bytes) -> None:
        if self._response_count == 1:
            self._first = content

    def _end(self) -> None:
        content = self._first if self._response_count == 1 else encode_error(NOT_ONE_RESPONSE)
        exchange = self.exchange
        exchange.start_stream(self._status, self._generate.headers(JSON_HEADERS, self.load_format))
        exchange.write(content)
        exchange.finish()


class _EventAnswer(_Answer):
    """Of generate_stream: an event a response."""

    def __init__(self, exchange: Exchange, generate: HttpGenerate, codec: GenerateCodec) -> None:
        super().__init__(exchange, generate, codec)
        self._has_started = False
        # No more events will come.
        self._is_over = False
        self._has_finished = False
        # Events that wait for the client to read.
        self._waiting: deque[bytes] = deque()
        self._waiting_byte_size = 0

    def on_disconnect(self) -> None:
        self._waiting.clear()
        super().on_disconnect()

    async def write_waiting(self) -> None:
        """Write what waits, as far as the client reads, until nothing does."""
        while self._waiting:
            await self.exchange.drain()
            while self._waiting and self.exchange.is_writable:
                event = self._waiting.popleft()
                self._waiting_byte_size -= len(event)
                self.exchange.write(event)
        request = self.request
        if self._is_over:
            self._finish()
        elif request is not None:
            request.is_congested = False
            if request.owner is not None:
                request.owner.resume(request)

    def _take(self, content: bytes) -> None:
        if self._is_over:
            return
        self._start()
        event = encode_event(content)
        if not self._waiting and self.exchange.is_writable:
            self.exchange.write(event)
            return
        self._waiting.append(event)
        self._waiting_byte_size += len(event)
        request = self.request
        if request is not None:
            request.is_congested = True
        if len(self._waiting) == 1:
            self._generate.pump(self)
        elif self._waiting_byte_size > self._generate.limits.max_stream_buffer_byte_size:
            self._give_up()

    def _give_up(self) -> None:
        """The client is too slow: say so after what it has, and stop the model."""
        self._waiting.clear()
        self._waiting_byte_size = 0
        self._is_over = True
        self.exchange.on_disconnect = None
        self.exchange.write(encode_event(encode_error(TOO_SLOW)))
        self._finish()
        request, self.request = self.request, None
        if request is not None:
            self._generate.cancel(request)

    def _start(self) -> None:
        if not self._has_started:
            self._has_started = True
            self.exchange.start_stream(self._status, self._generate.headers(EVENT_HEADERS, self.load_format))

    def _end(self) -> None:
        self._is_over = True
        if not self._waiting:
            self._start()
            self._finish()

    def _finish(self) -> None:
        if not self._has_finished:
            self._has_finished = True
            self.exchange.finish()
