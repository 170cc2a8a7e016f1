"""The gRPC methods there are, and the front door that hands calls to them.

`CATEGORIES` lists every method there is, with what it belongs to where protocols are restricted. A restricted method
gets another handler, so that the others pay nothing for it.

Source: protos/grpc_service.proto, protos/health.proto, protos/reflection_v1.proto; Triton, grpc/grpc_handler.h.
"""

import logging
from collections.abc import Callable, Mapping

from merrow.core.errors import ErrorCode, ServerError
from merrow.core.restrictions import ApiCategory, Restriction, Restrictions
from merrow.core.tensor import Buffer
from merrow.engine.engine import Engine
from merrow.frontends.grpc.admin import GrpcAdmin
from merrow.frontends.grpc.health import HealthWatchers
from merrow.frontends.grpc.infer import GrpcInference
from merrow.frontends.grpc.reflection import ReflectionStream
from merrow.frontends.grpc.settings import GrpcSettings
from merrow.frontends.grpc.shared_memory import GrpcSharedMemory
from merrow.frontends.grpc.status import STATUSES, finish_unexpected, finish_with_error
from merrow.frontends.grpc.stream import InferStream
from merrow.net.exchange import GrpcCall, GrpcStream
from merrow.net.grpc_compression import CompressionLevel
from merrow.settings import ConnectionLimits

_LOG = logging.getLogger("merrow.frontends.grpc")

_SERVICE = b"/inference.GRPCInferenceService/"
_STREAM_INFER = _SERVICE + b"ModelStreamInfer"
_HEALTH_CHECK = b"/grpc.health.v1.Health/Check"
_HEALTH_WATCH = b"/grpc.health.v1.Health/Watch"
_REFLECTIONS = (
    b"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    b"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
)
# What comes before the key of a restriction, in the name of the metadata to send.
RESTRICTED_PREFIX = "triton-grpc-protocol-"

CATEGORIES: Mapping[bytes, ApiCategory] = {
    _SERVICE + b"ServerLive": ApiCategory.HEALTH,
    _SERVICE + b"ServerReady": ApiCategory.HEALTH,
    _SERVICE + b"ModelReady": ApiCategory.HEALTH,
    _SERVICE + b"ServerMetadata": ApiCategory.METADATA,
    _SERVICE + b"ModelMetadata": ApiCategory.METADATA,
    _SERVICE + b"ModelInfer": ApiCategory.INFERENCE,
    _STREAM_INFER: ApiCategory.INFERENCE,
    _SERVICE + b"ModelConfig": ApiCategory.MODEL_CONFIG,
    _SERVICE + b"ModelStatistics": ApiCategory.STATISTICS,
    _SERVICE + b"RepositoryIndex": ApiCategory.MODEL_REPOSITORY,
    _SERVICE + b"RepositoryModelLoad": ApiCategory.MODEL_REPOSITORY,
    _SERVICE + b"RepositoryModelUnload": ApiCategory.MODEL_REPOSITORY,
    _SERVICE + b"SystemSharedMemoryStatus": ApiCategory.SHARED_MEMORY,
    _SERVICE + b"SystemSharedMemoryRegister": ApiCategory.SHARED_MEMORY,
    _SERVICE + b"SystemSharedMemoryUnregister": ApiCategory.SHARED_MEMORY,
    _SERVICE + b"CudaSharedMemoryStatus": ApiCategory.SHARED_MEMORY,
    _SERVICE + b"CudaSharedMemoryRegister": ApiCategory.SHARED_MEMORY,
    _SERVICE + b"CudaSharedMemoryUnregister": ApiCategory.SHARED_MEMORY,
    _SERVICE + b"TraceSetting": ApiCategory.TRACE,
    _SERVICE + b"LogSettings": ApiCategory.LOGGING,
    _HEALTH_CHECK: ApiCategory.HEALTH,
    _HEALTH_WATCH: ApiCategory.HEALTH,
    **dict.fromkeys(_REFLECTIONS, ApiCategory.METADATA),
}

UnaryHandler = Callable[[GrpcCall, Buffer], None]
"""Answers a unary call, now or later; raises `ServerError` to have it answered."""

StreamHandler = Callable[[GrpcCall], GrpcStream]
"""Begins to serve a streaming call. Must not raise."""


class GrpcFrontend:
    """The gRPC front door; a `GrpcApplication`.

    Args:
        restrictions: which methods need metadata.
        has_reflection: whether clients may ask which methods there are.
        compression: of the responses of inference; None for none.
        settings: serves the settings of log and traces; None without them.
        limits: of streams.
    """

    def __init__(
        self,
        engine: Engine,
        admin: GrpcAdmin,
        inference: GrpcInference,
        restrictions: Restrictions | None = None,
        has_reflection: bool = True,
        compression: CompressionLevel | None = None,
        limits: ConnectionLimits | None = None,
        settings: GrpcSettings | None = None,
    ) -> None:
        self._engine = engine
        self._streams: set[InferStream] = set()
        shared_memory = GrpcSharedMemory(engine, admin.reply_when_done)
        self._inference = inference
        self._compression = compression
        self._limits = limits
        self._watchers = HealthWatchers(engine)
        unary: dict[bytes, UnaryHandler] = {
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
            _SERVICE + b"SystemSharedMemoryStatus": shared_memory.on_system_status,
            _SERVICE + b"SystemSharedMemoryRegister": shared_memory.on_system_register,
            _SERVICE + b"SystemSharedMemoryUnregister": shared_memory.on_system_unregister,
            _SERVICE + b"CudaSharedMemoryStatus": shared_memory.on_cuda_status,
            _SERVICE + b"CudaSharedMemoryRegister": shared_memory.on_cuda_register,
            _SERVICE + b"CudaSharedMemoryUnregister": shared_memory.on_cuda_unregister,
            _HEALTH_CHECK: admin.on_health_check,
        }
        if settings is not None:
            unary[_SERVICE + b"TraceSetting"] = settings.on_trace_setting
            unary[_SERVICE + b"LogSettings"] = settings.on_log_settings
        streams: dict[bytes, StreamHandler] = {
            _STREAM_INFER: self._begin_infer_stream,
            _HEALTH_WATCH: self._watchers.begin,
        }
        if has_reflection:
            streams.update(dict.fromkeys(_REFLECTIONS, ReflectionStream))
        for path, category in CATEGORIES.items():
            restriction = (restrictions or {}).get(category)
            if restriction is not None and path in unary:
                unary[path] = _RestrictedUnary(unary[path], restriction)
            elif restriction is not None and path in streams:
                streams[path] = _RestrictedStream(streams[path], restriction)
        self._unary: Mapping[bytes, UnaryHandler] = unary
        self._stream_handlers: Mapping[bytes, StreamHandler] = streams
        self._is_streaming = {**dict.fromkeys(unary, False), **dict.fromkeys(streams, True)}
        assert self._is_streaming.keys() <= CATEGORIES.keys(), "every method has its category"
        # The dictionary's own method: `net` asks for every call, and need not pass through a frame of ours.
        self.is_streaming = self._is_streaming.get

    def compression_of(self, path: bytes) -> CompressionLevel | None:
        """Only responses of inference are compressed."""
        return self._compression if CATEGORIES[path] is ApiCategory.INFERENCE else None

    def on_unary(self, call: GrpcCall, message: Buffer) -> None:
        """Answer a unary call, now or later."""
        try:
            self._unary[call.path](call, message)
        except ServerError as error:
            finish_with_error(call, error)
        except Exception:
            # The front door: whatever the defect is, the call is answered.
            _LOG.exception("unexpected error in %r", call.path)
            finish_unexpected(call)

    def on_stream(self, call: GrpcCall) -> GrpcStream:
        """Begin a stream."""
        return self._stream_handlers[call.path](call)

    def _begin_infer_stream(self, call: GrpcCall) -> GrpcStream:
        inference = self._inference
        stream = InferStream(
            call,
            self._engine,
            self._streams.discard,
            inference.tracer,
            forwarding=inference.forwarding,
            limits=self._limits,
        )
        self._streams.add(stream)
        return stream

    def shut_down(self) -> None:
        """The server exits: end each stream when what it asked for has been answered."""
        for stream in list(self._streams):
            stream.shut_down()
        self._watchers.shut_down()


class _Gate:
    """Refuses calls without the metadata that a restriction asks for."""

    def __init__(self, restriction: Restriction) -> None:
        self._restriction = restriction
        key = RESTRICTED_PREFIX + restriction.key
        # Metadata is in lower case on its way.
        self._name = key.lower().encode("utf-8", "surrogateescape")
        self._text = f"This protocol is restricted, expecting header '{key}'"

    def admits(self, call: GrpcCall) -> bool:
        """Whether the call may go on; it has been ended if not."""
        if self._restriction.admits(call.header(self._name)):
            return True
        call.finish(STATUSES[ErrorCode.UNAVAILABLE], self._text)
        return False


class _RestrictedUnary(_Gate):
    """The handler of a restricted unary method."""

    def __init__(self, handler: UnaryHandler, restriction: Restriction) -> None:
        super().__init__(restriction)
        self._handler = handler

    def __call__(self, call: GrpcCall, message: Buffer) -> None:
        if self.admits(call):
            self._handler(call, message)


class _RestrictedStream(_Gate):
    """The handler of a restricted streaming method: checked once, when the stream begins."""

    def __init__(self, handler: StreamHandler, restriction: Restriction) -> None:
        super().__init__(restriction)
        self._handler = handler

    def __call__(self, call: GrpcCall) -> GrpcStream:
        return self._handler(call) if self.admits(call) else _RefusedStream()


class _RefusedStream:
    """A stream whose call has been ended."""

    def on_message(self, message: Buffer) -> None:
        """Nobody listens."""

    def on_half_close(self) -> None:
        """Nobody waits for that."""
