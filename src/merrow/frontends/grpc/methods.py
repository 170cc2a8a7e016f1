"""The gRPC methods there are, and the front door that hands calls to them.

Source: protos/grpc_service.proto, protos/health.proto.
"""

import logging
from collections.abc import Callable, Mapping

from merrow.core.errors import ServerError
from merrow.core.tensor import Buffer
from merrow.engine.engine import Engine
from merrow.frontends.grpc.admin import GrpcAdmin
from merrow.frontends.grpc.infer import GrpcInference
from merrow.frontends.grpc.status import finish_unexpected, finish_with_error
from merrow.frontends.grpc.stream import InferStream
from merrow.net.exchange import GrpcCall, GrpcStream

_LOG = logging.getLogger("merrow.frontends.grpc")

_SERVICE = b"/inference.GRPCInferenceService/"
_STREAM_INFER = _SERVICE + b"ModelStreamInfer"

UnaryHandler = Callable[[GrpcCall, Buffer], None]
"""Answers a unary call, now or later; raises `ServerError` to have it answered."""


class GrpcFrontend:
    """The gRPC front door; a `GrpcApplication`."""

    def __init__(self, engine: Engine, admin: GrpcAdmin, inference: GrpcInference) -> None:
        self._engine = engine
        self._streams: set[InferStream] = set()
        self._unary: Mapping[bytes, UnaryHandler] = {
            _SERVICE + b"ServerLive": admin.on_server_live,
            _SERVICE + b"ServerReady": admin.on_server_ready,
            _SERVICE + b"ModelReady": admin.on_model_ready,
            _SERVICE + b"ServerMetadata": admin.on_server_metadata,
            _SERVICE + b"ModelMetadata": admin.on_model_metadata,
            _SERVICE + b"ModelInfer": inference.on_infer,
            _SERVICE + b"ModelConfig": admin.on_model_config,
            _SERVICE + b"ModelStatistics": admin.on_model_statistics,
            _SERVICE + b"RepositoryIndex": admin.on_repository_index,
            _SERVICE + b"RepositoryModelLoad": admin.on_load,
            _SERVICE + b"RepositoryModelUnload": admin.on_unload,
            b"/grpc.health.v1.Health/Check": admin.on_health_check,
        }
        self._is_streaming = {**dict.fromkeys(self._unary, False), _STREAM_INFER: True}
        # The dictionary's own method: `net` asks for every call, and need not pass through a frame of ours.
        self.is_streaming = self._is_streaming.get

    def on_unary(self, call: GrpcCall, message: Buffer) -> None:
        """Answer a unary call, now or later."""
        try:
            self._unary[call.path](call, message)
        except ServerError as error:
            finish_with_error(call, error)
        except Exception:
            _LOG.exception("unexpected error in %r", call.path)
            finish_unexpected(call)

    def on_stream(self, call: GrpcCall) -> GrpcStream:
        """Begin a stream; there is one method that has them."""
        stream = InferStream(call, self._engine, self._streams.discard)
        self._streams.add(stream)
        return stream

    def shut_down(self) -> None:
        """The server exits: end each stream when what it asked for has been answered."""
        for stream in list(self._streams):
            stream.shut_down()
