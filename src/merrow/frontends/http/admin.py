"""Everything over REST that is not inference: health, metadata, configuration, statistics, the repository.

Handlers raise `ServerError` for the door to answer. Loading and unloading wait, so each runs in a task of its own.

Source: Triton, http_server.cc.
"""

import asyncio

from merrow.core.errors import InvalidArgumentError, ServerError, UnavailableError, UnsupportedError
from merrow.engine.engine import Engine
from merrow.engine.model import Model
from merrow.frontends.http.routes import Endpoint, Handlers, Route
from merrow.frontends.http.status import JSON_HEADERS, TEXT_HEADERS
from merrow.frontends.http.tasks import AnswerTasks
from merrow.net.exchange import Exchange
from merrow.wire import admin_json

# A body up to this size is parsed on the loop; a larger one (with a model's files in it) on a thread.
MAX_INLINE_BODY_BYTE_SIZE = 64 * 1024


class HttpAdmin:
    """The handlers of all endpoints but inference.

    Args:
        tasks: owns loads and unloads.
        server_metadata: the body of the endpoint's answer; it never changes.
        max_input_byte_size: bytes that a JSON body may have (`--http-max-input-size`).
    """

    def __init__(self, engine: Engine, tasks: AnswerTasks, server_metadata: bytes, max_input_byte_size: int) -> None:
        self._engine = engine
        self._tasks = tasks
        self._server_metadata = server_metadata
        self._max_input_byte_size = max_input_byte_size

    def handlers(self) -> Handlers:
        """The handler of each endpoint that this object answers."""
        return {
            Endpoint.SERVER_LIVE: self.on_server_live,
            Endpoint.SERVER_READY: self.on_server_ready,
            Endpoint.SERVER_METADATA: self.on_server_metadata,
            Endpoint.MODEL_READY: self.on_model_ready,
            Endpoint.MODEL_METADATA: self.on_model_metadata,
            Endpoint.MODEL_CONFIG: self.on_model_config,
            Endpoint.MODEL_STATISTICS: self.on_model_statistics,
            Endpoint.ALL_STATISTICS: self.on_all_statistics,
            Endpoint.REPOSITORY_INDEX: self.on_repository_index,
            Endpoint.REPOSITORY_MODEL_LOAD: self.on_load,
            Endpoint.REPOSITORY_MODEL_UNLOAD: self.on_unload,
        }

    def on_server_live(self, exchange: Exchange, route: Route) -> None:
        self._check_not_exiting()
        exchange.respond(200 if self._engine.is_live() else 400, TEXT_HEADERS, ())

    def on_server_ready(self, exchange: Exchange, route: Route) -> None:
        self._check_not_exiting()
        if self._engine.has_readiness_checks:
            self._tasks.start(exchange, self._check_server(exchange), TEXT_HEADERS)
        else:
            exchange.respond(200 if self._engine.is_ready() else 400, TEXT_HEADERS, ())

    def on_model_ready(self, exchange: Exchange, route: Route) -> None:
        if not self._engine.is_model_ready(route.model_name, route.model_version):
            raise InvalidArgumentError("Model version not ready")
        model = self._engine.find_model(route.model_name, route.model_version)
        if model.has_readiness_check:
            self._tasks.start(exchange, self._check_model(exchange, model), JSON_HEADERS)
        else:
            exchange.respond(200, TEXT_HEADERS, ())

    def on_server_metadata(self, exchange: Exchange, route: Route) -> None:
        exchange.respond(200, JSON_HEADERS, (self._server_metadata,))

    def on_model_metadata(self, exchange: Exchange, route: Route) -> None:
        model = self._engine.find_model(route.model_name, route.model_version)
        versions = [model.version] if route.model_version != -1 else self._engine.ready_versions(model.name)
        exchange.respond(200, JSON_HEADERS, (admin_json.encode_model_metadata(versions, model.config),))

    def on_model_config(self, exchange: Exchange, route: Route) -> None:
        model = self._engine.find_model(route.model_name, route.model_version)
        exchange.respond(200, JSON_HEADERS, (model.config_json.encode(),))

    def on_model_statistics(self, exchange: Exchange, route: Route) -> None:
        statistics = self._engine.model_statistics(route.model_name, route.model_version)
        exchange.respond(200, JSON_HEADERS, (admin_json.encode_statistics(statistics),))

    def on_all_statistics(self, exchange: Exchange, route: Route) -> None:
        exchange.respond(200, JSON_HEADERS, (admin_json.encode_statistics(self._engine.model_statistics()),))

    def on_repository_index(self, exchange: Exchange, route: Route) -> None:
        is_ready_only = admin_json.decode_index_request(exchange.body, self._max_input_byte_size)
        self._tasks.start(exchange, self._index(exchange, is_ready_only), JSON_HEADERS)

    def on_load(self, exchange: Exchange, route: Route) -> None:
        _check_no_repository(route)
        self._tasks.start(exchange, self._load(exchange, route.model_name), JSON_HEADERS)

    def on_unload(self, exchange: Exchange, route: Route) -> None:
        _check_no_repository(route)
        try:
            unload_dependents = admin_json.decode_unload_request(exchange.body, self._max_input_byte_size)
        except ServerError:
            # Triton loses this error on its way; clients have come to send anything.
            unload_dependents = False
        self._tasks.start(exchange, self._unload(exchange, route.model_name, unload_dependents), JSON_HEADERS)

    async def _check_server(self, exchange: Exchange) -> None:
        exchange.respond(200 if await self._engine.check_readiness() else 400, TEXT_HEADERS, ())

    async def _check_model(self, exchange: Exchange, model: Model) -> None:
        await self._engine.check_model(model)
        exchange.respond(200, TEXT_HEADERS, ())

    async def _index(self, exchange: Exchange, is_ready_only: bool) -> None:
        index = await self._engine.fresh_repository_index(is_ready_only)
        exchange.respond(200, JSON_HEADERS, (admin_json.encode_repository_index(index),))

    async def _load(self, exchange: Exchange, model_name: str) -> None:
        body = exchange.body
        if len(body) <= MAX_INLINE_BODY_BYTE_SIZE:
            options = admin_json.decode_load_request(body, self._max_input_byte_size)
        else:
            options = await asyncio.to_thread(admin_json.decode_load_request, body, self._max_input_byte_size)
        await self._engine.load_model(model_name, options.config, options.files or None)
        exchange.respond(200, JSON_HEADERS, ())

    async def _unload(self, exchange: Exchange, model_name: str, unload_dependents: bool) -> None:
        await self._engine.unload_model(model_name, unload_dependents)
        exchange.respond(200, JSON_HEADERS, ())

    def _check_not_exiting(self) -> None:
        if self._engine.is_exiting:
            raise UnavailableError("Server exiting")


def _check_no_repository(route: Route) -> None:
    if route.repository:
        raise UnsupportedError("'repository_name' specification is not supported")
