"""Log and trace settings over gRPC; see `frontends.http.settings`.

Source: Triton, grpc/grpc_server.cc, LogSettings and TraceSetting.
"""

import asyncio

from merrow.core.errors import InvalidArgumentError, ServerError, UnavailableError
from merrow.core.tensor import Buffer
from merrow.engine.engine import Engine
from merrow.net.exchange import GrpcCall
from merrow.observe.logs import ServerLog
from merrow.observe.trace import Tracer
from merrow.wire import settings_proto


class GrpcSettings:
    """The handlers of LogSettings and TraceSetting.

    Args:
        log: the server's; None where something else owns the log, which then cannot be changed here.
    """

    def __init__(self, engine: Engine, tracer: Tracer, log: ServerLog | None) -> None:
        self._engine = engine
        self._tracer = tracer
        self._log = log
        self._tasks: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Wait until everything is answered."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def on_log_settings(self, call: GrpcCall, message: Buffer) -> None:
        log = self._log
        if log is None:
            raise UnavailableError("the server does not support dynamic logging")
        for field, value in settings_proto.decode_log_request(message):
            log.change(**{field: value})
        call.reply((settings_proto.encode_log_settings(log.settings),))

    def on_trace_setting(self, call: GrpcCall, message: Buffer) -> None:
        name, changes = settings_proto.decode_trace_request(message)
        if name:
            try:
                is_ready = self._engine.is_model_ready(name)
            except ServerError:
                call.reply((settings_proto.EMPTY_TRACE_SETTINGS,))
                return
            if not is_ready:
                raise InvalidArgumentError(f"Request for unknown model : {name}")
        if not changes:
            self._reply(call, name)
            return
        self._tracer.change(name, changes)
        task = asyncio.ensure_future(self._reply_when_written(call, name))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _reply_when_written(self, call: GrpcCall, model_name: str) -> None:
        await self._tracer.flush()
        self._reply(call, model_name)

    def _reply(self, call: GrpcCall, model_name: str) -> None:
        tracer = self._tracer
        settings = tracer.settings
        message = settings_proto.encode_trace_settings(
            tracer.values(model_name), settings.mode.value, settings.file, settings.opentelemetry
        )
        call.reply((message,))
