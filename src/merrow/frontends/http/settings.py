"""Log and trace settings over REST.

What is read is answered at once; what changes tracing is answered when the traces of the old setting are written, so
that a client that has its answer can read the file.

Source: Triton, http_server.cc, HandleLogging and HandleTrace.
"""

from merrow.core.errors import InvalidArgumentError, UnavailableError
from merrow.engine.engine import Engine
from merrow.frontends.http.routes import Endpoint, Handlers, Route
from merrow.frontends.http.status import JSON_HEADERS
from merrow.frontends.http.tasks import AnswerTasks
from merrow.net.exchange import Exchange
from merrow.observe.logs import ServerLog
from merrow.observe.trace import Tracer
from merrow.wire import settings_json


class HttpSettings:
    """The handlers of both endpoints.

    Args:
        tasks: owns answers that wait for traces to be written.
        log: the server's; None where something else owns the log, which then cannot be changed here.
        max_input_byte_size: bytes that a JSON body may have.
    """

    def __init__(
        self, engine: Engine, tasks: AnswerTasks, tracer: Tracer, log: ServerLog | None, max_input_byte_size: int
    ) -> None:
        self._engine = engine
        self._tasks = tasks
        self._tracer = tracer
        self._log = log
        self._max_input_byte_size = max_input_byte_size

    def handlers(self) -> Handlers:
        """The handler of each endpoint."""
        return {Endpoint.LOG_SETTINGS: self.on_log_settings, Endpoint.TRACE_SETTINGS: self.on_trace_settings}

    def on_log_settings(self, exchange: Exchange, route: Route) -> None:
        log = self._log
        if log is None:
            raise UnavailableError("the server does not support dynamic logging")
        if exchange.method == b"POST":
            for field, value in settings_json.decode_log_request(exchange.body, self._max_input_byte_size):
                log.change(**{field: value})
        exchange.respond(200, JSON_HEADERS, (settings_json.encode_log_settings(log.settings),))

    def on_trace_settings(self, exchange: Exchange, route: Route) -> None:
        name = route.model_name
        if name and not self._engine.is_model_ready(name):
            raise InvalidArgumentError(f"Request for unknown model : {name}")
        if exchange.method == b"POST":
            changes = settings_json.decode_trace_request(exchange.body, self._max_input_byte_size)
            if changes:
                self._tracer.change(name, changes)
                self._tasks.start(exchange, self._answer_when_written(exchange, name), JSON_HEADERS)
                return
        self._answer(exchange, name)

    async def _answer_when_written(self, exchange: Exchange, model_name: str) -> None:
        await self._tracer.flush()
        self._answer(exchange, model_name)

    def _answer(self, exchange: Exchange, model_name: str) -> None:
        tracer = self._tracer
        settings = tracer.settings
        body = settings_json.encode_trace_settings(
            tracer.values(model_name), settings.mode.value, settings.file, settings.opentelemetry
        )
        exchange.respond(200, JSON_HEADERS, (body,))
