"""ModelInfer: from a message to the engine, and from its response to the reply.

Straight code, as over REST: read the model's name, look it up, decode, submit; the request's sink encodes and
replies.

Source: Triton, grpc/infer_handler.cc.
"""

import logging
from collections.abc import Mapping
from functools import partial

from merrow.core.errors import ServerError, UnavailableError, UnsupportedError
from merrow.core.request import Request
from merrow.core.response import Response
from merrow.core.tensor import Buffer
from merrow.engine.engine import Engine
from merrow.frontends.grpc.status import finish_unexpected, finish_with_error
from merrow.frontends.grpc.traced import trace_call
from merrow.net.exchange import GrpcCall
from merrow.observe.trace import Tracer
from merrow.wire.header_forwarding import HeaderForwarding, metadata_of_application
from merrow.wire.infer_proto import (
    ProtoOutputForms,
    decode_infer_request,
    encode_infer_response,
    parse_infer_request,
    parse_model_version,
)

_LOG = logging.getLogger("merrow.frontends.grpc")

Labels = Mapping[str, tuple[str, ...]]
"""The label file of each output that has one, by output name."""

SHUTTING_DOWN = "GRPC server is shutting down and has stopped accepting new requests."
_NO_DECOUPLED = "ModelInfer RPC doesn't support models with decoupled transaction policy"


class GrpcInference:
    """Handles ModelInfer.

    Args:
        forwarding: which metadata becomes parameters of a request; None for none.
    """

    def __init__(
        self, engine: Engine, tracer: Tracer | None = None, forwarding: HeaderForwarding | None = None
    ) -> None:
        self._engine = engine
        self.tracer = tracer
        self.forwarding = forwarding

    def on_infer(self, call: GrpcCall, message: Buffer) -> None:
        engine = self._engine
        if engine.is_exiting:
            raise UnavailableError(SHUTTING_DOWN)
        parsed = parse_infer_request(message)
        version_text = parsed.model_version
        model = engine.find_model(parsed.model_name, parse_model_version(version_text) if version_text else -1)
        if model.is_decoupled:
            raise UnsupportedError(_NO_DECOUPLED)
        tracer = self.tracer
        if tracer is not None and tracer.is_on:
            call = trace_call(call, tracer, model.name, model.version)
        sink = _InferSink(call, model.labels)
        try:
            request, sink.forms = decode_infer_request(parsed, model.version, model.config, sink, engine.shared_memory)
            if self.forwarding is not None:
                forward_metadata(request, self.forwarding, call)
            if call.trace is not None:
                request.trace = call.trace
            # Set before submitting, which may answer at once; the sink clears it, and with it the reference cycle.
            call.on_cancel = partial(engine.cancel, request)
            engine.submit(model, request)
        except ServerError as error:
            call.on_cancel = None
            finish_with_error(call, error)


def forward_metadata(request: Request, forwarding: HeaderForwarding, call: GrpcCall) -> None:
    """Add a call's metadata to a request's parameters, where they count more than its own.

    Raises:
        InvalidArgumentError: one of them may not be forwarded.
    """
    forwarded = forwarding.parameters_of(metadata_of_application(call.metadata))
    if forwarded:
        request.parameters = {**request.parameters, **forwarded} if request.parameters else {**forwarded}


class _InferSink:
    """Where the response of one request goes: its call."""

    __slots__ = ("call", "forms", "labels")

    forms: ProtoOutputForms

    def __init__(self, call: GrpcCall, labels: Labels) -> None:
        self.call = call
        self.labels = labels

    def on_response(self, response: Response) -> None:
        call = self.call
        call.on_cancel = None
        try:
            if response.error is not None:
                finish_with_error(call, response.error)
            else:
                call.reply(encode_infer_response(response, self.forms, self.labels))
        except ServerError as error:
            finish_with_error(call, error)
        except Exception:
            # The front door: whatever the defect is, the call is answered, and the model goes on.
            _LOG.exception("unexpected error in a response of model '%s'", response.model_name)
            finish_unexpected(call)
