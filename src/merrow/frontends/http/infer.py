"""Inference over REST: from an exchange to the engine, and from its response to the answer.

The hot path is straight code: look up the model, decode, submit; the request's sink encodes and answers. Only what
takes long because it is large leaves the loop's thread: JSON that is decoded or encoded, bodies that are inflated or
deflated.

Errors before the request's JSON is read, and those of the model, are text/plain; errors of the request's content are
application/json. Clients do not care; that is how Triton does it.

Source: Triton, http_server.cc, HTTPAPIServer::HandleInfer.
"""

import asyncio
import logging
from collections.abc import Sequence
from functools import partial

from merrow.core.errors import ServerError, UnsupportedError
from merrow.core.request import Request
from merrow.core.response import Response
from merrow.core.tensor import Buffer
from merrow.engine.engine import Engine
from merrow.engine.model import Model
from merrow.frontends.http.routes import Endpoint, Handlers, Route
from merrow.frontends.http.status import JSON_HEADERS, TEXT_HEADERS, respond_error, respond_unexpected
from merrow.frontends.http.tasks import AnswerTasks
from merrow.frontends.http.traced import trace_exchange
from merrow.net.exchange import Exchange, Header
from merrow.observe.trace import Tracer
from merrow.wire.admin_json import encode_error
from merrow.wire.binary_framing import INFERENCE_HEADER, BinaryFraming
from merrow.wire.compression import (
    ContentCoding,
    choose_content_coding,
    compress,
    decode_content_coding,
    decompress,
    oversize_error,
)
from merrow.wire.header_forwarding import HeaderForwarding
from merrow.wire.infer_json import InferJsonCodec, OutputForms

_LOG = logging.getLogger("merrow.frontends.http")

# What is inflated or deflated on the loop's thread; more goes to another thread.
MAX_INLINE_CODING_BYTE_SIZE = 64 * 1024
# JSON that is decoded, and tensors that are written as JSON, on the loop's thread: some milliseconds at most.
MAX_INLINE_JSON_BYTE_SIZE = 256 * 1024
MAX_KEPT_HEADERS = 4096
MAX_KEPT_OPTIONS = 512
MAX_KEPT_OPTIONS_BYTE_SIZE = 2048

UNSUPPORTED_CODING_HEADERS: tuple[Header, ...] = ((b"Accept-Encoding", b"gzip, deflate"), *TEXT_HEADERS)
_NO_DECOUPLED = "HTTP end point doesn't support models with decoupled transaction policy"


class HttpInference:
    """Handles the infer endpoint.

    Args:
        tasks: owns what is inflated and deflated on a thread.
        max_input_byte_size: bytes of a request's JSON, of a tensor in it, or of a body once inflated.
        forwarding: which headers become parameters of a request; None for none.
        framing: where the length of the JSON before binary data stands.
        tracer: traces requests; None for nothing.
    """

    def __init__(
        self,
        engine: Engine,
        tasks: AnswerTasks,
        max_input_byte_size: int,
        tracer: Tracer | None = None,
        forwarding: HeaderForwarding | None = None,
        framing: BinaryFraming = INFERENCE_HEADER,
    ) -> None:
        self._engine = engine
        self._tasks = tasks
        self._max_input_byte_size = max_input_byte_size
        self._tracer = tracer
        self._forwarding = forwarding
        self._framing = framing
        self._headers_of_binary: dict[int, tuple[Header, ...]] = {}
        # By the identity of the headers, which `net` remembers: equal heads of requests are one object.
        self._options: dict[int, _InferOptions] = {}
        # One for each model version that was asked for; those out of service are dropped when one comes in.
        self._codecs: dict[Model, InferJsonCodec] = {}

    def handlers(self) -> Handlers:
        """The handler of the endpoint."""
        return {Endpoint.MODEL_INFER: self.on_infer}

    def on_infer(self, exchange: Exchange, route: Route) -> None:
        options = self._options.get(id(exchange.headers))
        if options is None or options.headers is not exchange.headers:
            options = self._add_options(exchange.headers)
        if options.content_encoding is None:
            self._infer(exchange, route, exchange.body, options)
        else:
            self._inflate(exchange, route, options)

    def _infer(self, exchange: Exchange, route: Route, body: Buffer, options: "_InferOptions") -> None:
        """Decode and submit. Raises the errors that are text/plain, and answers the others."""
        model = self._engine.find_model(route.model_name, route.model_version)
        codec = self._codecs.get(model) or self._add_codec(model)
        header_length = options.header_length
        if options.header_length_text is not None and (header_length is None or header_length > len(body)):
            header_length = self._framing.decode_length(options.header_length_text, len(body))
        tracer = self._tracer
        if tracer is not None and tracer.is_on:
            exchange = trace_exchange(exchange, tracer, model.name, model.version)
        sink = _InferSink(exchange, self, codec, options.accept_encoding)
        if (len(body) if header_length is None else header_length) > MAX_INLINE_JSON_BYTE_SIZE:
            decoding = self._decode_on_thread(exchange, model, body, header_length, sink, options)
            self._tasks.start(exchange, decoding, JSON_HEADERS)
            return
        try:
            request, sink.forms = codec.decode(body, header_length, sink)
            if options.forwarded is not None:
                self._forward(request, options)
            self._submit(exchange, model, request)
        except ServerError as error:
            respond_error(exchange, error, JSON_HEADERS)

    async def _decode_on_thread(
        self,
        exchange: Exchange,
        model: Model,
        body: Buffer,
        header_length: int | None,
        sink: "_InferSink",
        options: "_InferOptions",
    ) -> None:
        request, sink.forms = await asyncio.to_thread(sink.codec.decode, body, header_length, sink)
        if options.forwarded is not None:
            self._forward(request, options)
        self._submit(exchange, model, request)

    def _submit(self, exchange: Exchange, model: Model, request: Request) -> None:
        try:
            # Set before submitting, which may answer at once; the sink clears it, and with it the reference cycle.
            exchange.on_disconnect = partial(self._engine.cancel, request)
            if exchange.trace is not None:
                request.trace = exchange.trace
            self._engine.submit(model, request)
        except ServerError:
            exchange.on_disconnect = None
            raise

    def _forward(self, request: Request, options: "_InferOptions") -> None:
        """Add the headers to a request's parameters, where they count more than its own.

        Raises:
            InvalidArgumentError: one of them may not be forwarded.
        """
        forwarded = options.forwarded
        if isinstance(forwarded, ServerError):
            # A new exception each time: one that is raised again would gather tracebacks.
            raise type(forwarded)(forwarded.message)
        assert forwarded is not None
        request.parameters = {**request.parameters, **forwarded} if request.parameters else dict(forwarded)

    def _add_options(self, headers: list[Header]) -> "_InferOptions":
        options = _InferOptions(headers, self._framing, self._forwarding)
        if sum(len(name) + len(value) for name, value in headers) <= MAX_KEPT_OPTIONS_BYTE_SIZE:
            if len(self._options) >= MAX_KEPT_OPTIONS:
                self._options.clear()
            self._options[id(headers)] = options
        return options

    def _add_codec(self, model: Model) -> InferJsonCodec:
        if model.is_decoupled:
            raise UnsupportedError(_NO_DECOUPLED)
        self._codecs = {known: codec for known, codec in self._codecs.items() if self._is_in_service(known)}
        codec = InferJsonCodec(
            model.name,
            model.version,
            model.has_batch_dim,
            model.labels,
            self._max_input_byte_size,
            self._engine.shared_memory,
        )
        self._codecs[model] = codec
        return codec

    def _is_in_service(self, model: Model) -> bool:
        try:
            return self._engine.find_model(model.name, model.version) is model
        except ServerError:
            return False

    def _inflate(self, exchange: Exchange, route: Route, options: "_InferOptions") -> None:
        """Decode and submit a request whose body may be compressed."""
        if self._engine.find_model(route.model_name, route.model_version).is_decoupled:
            raise UnsupportedError(_NO_DECOUPLED)
        try:
            coding = decode_content_coding(options.content_encoding)
        except UnsupportedError as error:
            exchange.respond(501, UNSUPPORTED_CODING_HEADERS, (encode_error(error.message),))
            return
        body = exchange.body
        if coding is None:
            self._infer(exchange, route, body, options)
            return
        inflated = decompress(body, min(self._max_input_byte_size, MAX_INLINE_CODING_BYTE_SIZE))
        if inflated is not None:
            self._infer(exchange, route, inflated, options)
        else:
            self._tasks.start(exchange, self._inflate_on_thread(exchange, route, options), TEXT_HEADERS)

    async def _inflate_on_thread(self, exchange: Exchange, route: Route, options: "_InferOptions") -> None:
        limit = self._max_input_byte_size
        inflated = await asyncio.to_thread(decompress, exchange.body, limit)
        if inflated is None:
            raise oversize_error(limit)
        self._infer(exchange, route, inflated, options)

    def encode_on_thread(self, sink: "_InferSink", response: Response) -> None:
        """Encode a response whose JSON is large, and answer with it."""
        self._tasks.start(sink.exchange, self._encode_on_thread(sink, response), TEXT_HEADERS)

    async def _encode_on_thread(self, sink: "_InferSink", response: Response) -> None:
        header_length, parts = await asyncio.to_thread(sink.codec.encode, response, sink.forms)
        self.respond(sink.exchange, header_length, parts, sink.accept_encoding)

    def respond(
        self,
        exchange: Exchange,
        header_length: int | None,
        parts: Sequence[Buffer],
        accept_encoding: bytes | None,
    ) -> None:
        """Answer with an encoded response; `header_length` is that of its JSON when binary tensors follow."""
        headers = JSON_HEADERS if header_length is None else self._binary_headers(header_length)
        coding = None if accept_encoding is None else choose_content_coding(accept_encoding)
        if coding is None:
            exchange.respond(200, headers, parts)
            return
        # A list, which `net` does not remember: there is a new one for each answer.
        coded_headers = [*headers, (b"Content-Encoding", coding.value)]
        if sum(len(part) for part in parts) <= MAX_INLINE_CODING_BYTE_SIZE:
            exchange.respond(200, coded_headers, (compress(parts, coding),))
        else:
            self._tasks.start(exchange, _deflate_on_thread(exchange, coded_headers, parts, coding), TEXT_HEADERS)

    def _binary_headers(self, header_length: int) -> tuple[Header, ...]:
        """The headers of an answer with binary tensors, kept so that equal ones are the same object."""
        headers = self._headers_of_binary.get(header_length)
        if headers is None:
            if len(self._headers_of_binary) >= MAX_KEPT_HEADERS:
                self._headers_of_binary.clear()
            headers = self._headers_of_binary[header_length] = self._framing.response_headers(header_length)
        return headers


class _InferOptions:
    """What the headers of a request say about its body and its answer.

    `header_length` is there if `header_length_text` is a plain length; whether it fits, only the body shows.
    `forwarded` are the headers that become parameters, None without any, or why they may not.
    """

    __slots__ = ("accept_encoding", "content_encoding", "forwarded", "header_length", "header_length_text", "headers")

    def __init__(self, headers: list[Header], framing: BinaryFraming, forwarding: HeaderForwarding | None) -> None:
        self.headers = headers
        fields: dict[bytes, bytes] = {}
        for name, value in headers:
            fields.setdefault(name.lower(), value)
        self.accept_encoding = fields.get(b"accept-encoding") if framing.has_compression else None
        self.content_encoding = fields.get(b"content-encoding") if framing.has_compression else None
        text = self.header_length_text = framing.length_text_of(fields)
        self.header_length = int(text) if text is not None and len(text) < 10 and text.isdigit() else None
        self.forwarded: dict[str, str] | ServerError | None = None
        if forwarding is not None:
            try:
                self.forwarded = forwarding.parameters_of(headers) or None
            except ServerError as error:
                self.forwarded = error


class _InferSink:
    """Where the response of one request goes: its exchange."""

    __slots__ = ("accept_encoding", "codec", "exchange", "forms", "inference")

    forms: OutputForms

    def __init__(
        self, exchange: Exchange, inference: HttpInference, codec: InferJsonCodec, accept_encoding: bytes | None
    ) -> None:
        self.exchange = exchange
        self.inference = inference
        self.codec = codec
        self.accept_encoding = accept_encoding

    def on_response(self, response: Response) -> None:
        exchange = self.exchange
        exchange.on_disconnect = None
        try:
            if response.error is not None:
                respond_error(exchange, response.error, TEXT_HEADERS)
                return
            if self.forms.is_json_larger_than(MAX_INLINE_JSON_BYTE_SIZE, response.outputs):
                self.inference.encode_on_thread(self, response)
                return
            header_length, parts = self.codec.encode(response, self.forms)
            self.inference.respond(exchange, header_length, parts, self.accept_encoding)
        except ServerError as error:
            respond_error(exchange, error, TEXT_HEADERS)
        except Exception:
            # The front door: whatever the defect is, the request is answered, and the model goes on.
            _LOG.exception("unexpected error in a response of model '%s'", response.model_name)
            respond_unexpected(exchange)


async def _deflate_on_thread(
    exchange: Exchange, headers: Sequence[Header], parts: Sequence[Buffer], coding: ContentCoding
) -> None:
    body = await asyncio.to_thread(compress, parts, coding)
    exchange.respond(200, headers, (body,))
