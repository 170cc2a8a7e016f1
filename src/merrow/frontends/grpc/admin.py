"""Everything over gRPC that is not inference: health, metadata, configuration, statistics, the repository.

Handlers raise `ServerError` for the door (`methods`) to answer. Loading and unloading wait, so each runs in a task of
its own, which this object owns until `close`.

Source: Triton, grpc/grpc_server.cc.
"""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from merrow.core.errors import InvalidArgumentError, ServerError, UnavailableError
from merrow.core.tensor import Buffer
from merrow.engine.engine import Engine
from merrow.engine.model import Model
from merrow.frontends.grpc.status import finish_unexpected, finish_with_error
from merrow.net.exchange import GrpcCall
from merrow.wire import admin_proto
from merrow.wire.infer_proto import parse_model_version

_LOG = logging.getLogger("merrow.frontends.grpc")


class GrpcAdmin:
    """The handlers of all unary methods but ModelInfer.

    Args:
        server_metadata: the message that answers ServerMetadata; it never changes.
    """

    def __init__(self, engine: Engine, server_metadata: bytes) -> None:
        self._engine = engine
        self._server_metadata = server_metadata
        self._tasks: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Wait until the loads and unloads that were asked for are answered."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def on_server_live(self, call: GrpcCall, message: Buffer) -> None:
        admin_proto.decode_empty_request(message)
        self._check_not_exiting()
        call.reply((admin_proto.encode_server_live(self._engine.is_live()),))

    def on_server_ready(self, call: GrpcCall, message: Buffer) -> None:
        admin_proto.decode_empty_request(message)
        self._check_not_exiting()
        if self._engine.has_readiness_checks:
            self.reply_when_done(call, self._check_server())
        else:
            call.reply((admin_proto.encode_server_ready(self._engine.is_ready()),))

    def on_health_check(self, call: GrpcCall, message: Buffer) -> None:
        admin_proto.decode_health_request(message)
        self._check_not_exiting()
        call.reply((admin_proto.encode_health(self._engine.is_ready()),))

    def on_model_ready(self, call: GrpcCall, message: Buffer) -> None:
        name, version = admin_proto.decode_model_request(message)
        is_ready = self._engine.is_model_ready(name, parse_model_version(version))
        if is_ready and (model := self._engine.find_model(name, parse_model_version(version))).has_readiness_check:
            self.reply_when_done(call, self._check_model(model))
        else:
            call.reply((admin_proto.encode_model_ready(is_ready),))

    def on_server_metadata(self, call: GrpcCall, message: Buffer) -> None:
        admin_proto.decode_empty_request(message)
        call.reply((self._server_metadata,))

    def on_model_metadata(self, call: GrpcCall, message: Buffer) -> None:
        name, version_text = admin_proto.decode_model_request(message)
        version = parse_model_version(version_text)
        model = self._engine.find_model(name, version)
        versions = [model.version] if version != -1 else self._engine.ready_versions(name)
        call.reply((admin_proto.encode_model_metadata(versions, model.config),))

    def on_model_config(self, call: GrpcCall, message: Buffer) -> None:
        name, version = admin_proto.decode_model_request(message)
        model = self._engine.find_model(name, parse_model_version(version))
        call.reply((admin_proto.encode_model_config(model.config),))

    def on_model_statistics(self, call: GrpcCall, message: Buffer) -> None:
        name, version = admin_proto.decode_model_request(message)
        statistics = self._engine.model_statistics(name, parse_model_version(version))
        call.reply((admin_proto.encode_statistics(statistics),))

    def on_repository_index(self, call: GrpcCall, message: Buffer) -> None:
        self.reply_when_done(call, self._index(admin_proto.decode_index_request(message)))

    def on_load(self, call: GrpcCall, message: Buffer) -> None:
        name, options = admin_proto.decode_load_request(message)
        self.reply_when_done(call, self._engine.load_model(name, options.config, options.files or None))

    def on_unload(self, call: GrpcCall, message: Buffer) -> None:
        name, unload_dependents = admin_proto.decode_unload_request(message)
        self.reply_when_done(call, self._engine.unload_model(name, unload_dependents))

    def _check_not_exiting(self) -> None:
        if self._engine.is_exiting:
            raise UnavailableError("Server exiting")

    async def _check_server(self) -> bytes:
        return admin_proto.encode_server_ready(await self._engine.check_readiness())

    async def _check_model(self, model: Model) -> bytes:
        try:
            await self._engine.check_model(model)
        except InvalidArgumentError:
            return admin_proto.encode_model_ready(False)
        return admin_proto.encode_model_ready(True)

    async def _index(self, is_ready_only: bool) -> bytes:
        return admin_proto.encode_repository_index(await self._engine.fresh_repository_index(is_ready_only))

    def reply_when_done(self, call: GrpcCall, operation: Coroutine[Any, Any, bytes | None]) -> None:
        """Run what waits in a task, and reply with the message that it returns, an empty one for None, or its error."""
        task = asyncio.ensure_future(_reply_when_done(call, operation))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _reply_when_done(call: GrpcCall, operation: Coroutine[Any, Any, bytes | None]) -> None:
    try:
        message = await operation
    except ServerError as error:
        finish_with_error(call, error)
    except Exception:
        # The front door: whatever the defect is, the call is answered.
        _LOG.exception("unexpected error in %r", call.path)
        finish_unexpected(call)
    else:
        call.reply((admin_proto.EMPTY_MESSAGE if message is None else message,))
