"""The port for Amazon SageMaker: health, inference on the default model, and multi-model endpoints.

    GET    /ping                  health, ready or live
    POST   /invocations           infer, generate or generate_stream on the default model
    GET    /models                the models that were loaded here
    POST   /models                load one, from a directory that the platform has put there
    GET    /models/NAME
    POST   /models/NAME/invoke    inference
    DELETE /models/NAME           unload, and wait for that

NAME is the platform's name (a hash). The server knows the model by the name in X-Amzn-SageMaker-Target-Model if the
load had that and it can be a model's name, else by the same. Errors of multi-model endpoints are 400, those that look
like a lack of memory 507. Anything else is 400, without a body.

Source: Triton, sagemaker_server.cc; the platform's contract for containers.
"""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass

from merrow.core.errors import ErrorCode, ServerError
from merrow.core.restrictions import ApiCategory, Restrictions
from merrow.core.tensor import Buffer
from merrow.engine.engine import Engine
from merrow.frontends.http.door import HttpFrontend, is_admitted, respond_restricted
from merrow.frontends.http.redirect import RedirectedExchange, path_of, respond_empty
from merrow.frontends.http.status import TEXT_HEADERS, respond_unexpected
from merrow.frontends.http.tasks import AnswerTasks
from merrow.net.exchange import Exchange, Header
from merrow.settings import SageMakerSettings
from merrow.wire.admin_json import encode_error
from merrow.wire.sagemaker_json import decode_load_request, encode_model, encode_models

_LOG = logging.getLogger("merrow.frontends.http")

TARGET_MODEL_HEADER = b"x-amzn-sagemaker-target-model"
UNLOAD_TIMEOUT_SECONDS = 350

_MODELS = re.compile(r"/models/?([^/]+)?(/invoke)?")
# Below the directory of models: a hash, and what the container's tools make of an archive.
_URL = re.compile(r"/(?!\.\.?/)[^/\0]+/model(?:/(?!\.\.?(?:/|$))[^/\0]+)?/?")
_DEVICES = ("/dev/", "/proc/", "/sys/")
_NO_MEMORY = re.compile(
    rb"CUDA out of memory|CUDA_OUT_OF_MEMORY|out of memory|OOM|No space left on device|failed to allocate memory"
    rb"|std::bad_alloc|MemoryError",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class _LoadedModel:
    """A model that was loaded here: where from, and how the server calls it."""

    url: str
    name: str


class SageMakerFrontend:
    """An `HttpApplication`.

    Args:
        frontend: serves Triton's endpoints, with the platform's form of binary tensors.
        tasks: owns loads and unloads.
    """

    def __init__(
        self,
        frontend: HttpFrontend,
        engine: Engine,
        tasks: AnswerTasks,
        settings: SageMakerSettings,
        restrictions: Restrictions,
        max_input_byte_size: int,
    ) -> None:
        self._frontend = frontend
        self._engine = engine
        self._tasks = tasks
        self._restriction = restrictions.get(ApiCategory.MODEL_REPOSITORY)
        self._max_input_byte_size = max_input_byte_size
        self._models_directory = settings.models_directory
        self._ping_target = f"/v2/health/{settings.ping_mode}".encode()
        self._invocation_target = f"/v2/models/{settings.default_model}/{settings.inference_type}".encode()
        # By the platform's names.
        self._models: dict[str, _LoadedModel] = {}

    def on_exchange(self, exchange: Exchange) -> None:
        """Answer a request, now or later."""
        try:
            path = path_of(exchange)
            if path == b"/ping":
                self._frontend.on_exchange(RedirectedExchange(exchange, self._ping_target))
            elif path == b"/invocations":
                self._frontend.on_exchange(RedirectedExchange(exchange, self._invocation_target))
            else:
                self._serve_models(exchange, path)
        except Exception:
            # The front door: whatever the defect is, the request is answered.
            _LOG.exception("unexpected error in the answer to %r", exchange.target)
            respond_unexpected(exchange)

    def _serve_models(self, exchange: Exchange, path: bytes) -> None:
        match = _MODELS.fullmatch(path.decode("utf-8", "surrogateescape"))
        method = exchange.method
        if match is None or method not in (b"GET", b"POST", b"DELETE"):
            respond_empty(exchange, 400)
            return
        name = match[1] or ""
        if method == b"POST" and match[2]:
            self._invoke(exchange, name)
        elif self._restriction is not None and not is_admitted(exchange, self._restriction):
            respond_restricted(exchange, self._restriction)
        elif method == b"POST":
            self._tasks.start(exchange, self._load(exchange), TEXT_HEADERS)
        elif method == b"DELETE":
            self._unload(exchange, name)
        elif not name:
            ready = ((name, model.url) if self._is_ready(model) else None for name, model in list(self._models.items()))
            exchange.respond(200, TEXT_HEADERS, (encode_models(ready),))
        elif name in self._models:
            exchange.respond(200, TEXT_HEADERS, (encode_model(name, self._models[name].url),))
        else:
            respond_empty(exchange, 404)

    def _invoke(self, exchange: Exchange, name: str) -> None:
        model = self._models.get(name)
        if model is None:
            respond_empty(exchange, 404)
        else:
            target = f"/v2/models/{model.name}/infer".encode("utf-8", "surrogateescape")
            self._frontend.on_exchange(_MultiModelExchange(exchange, target))

    async def _load(self, exchange: Exchange) -> None:
        try:
            name, url = decode_load_request(exchange.body, self._max_input_byte_size)
            if url.startswith(_DEVICES):
                respond_empty(exchange, 400)
                return
            root = self._models_directory
            if not (url.startswith(root) and _URL.fullmatch(url, len(root))):
                text = f"Invalid \"url\" '{url}': expected a path of the form {root}/<hash>/model[/<subdir>]"
                exchange.respond(400, TEXT_HEADERS, (encode_error(text),))
                return
            model_name = self._model_name(exchange, name)
            await self._engine.register_models(url, model_name)
            try:
                await self._engine.load_model(model_name)
            except BaseException:
                self._engine.unregister_models(url)
                raise
            self._models[name] = _LoadedModel(url, model_name)
            respond_empty(exchange, 200)
        except ServerError as error:
            respond_multi_model_error(exchange, error)

    def _model_name(self, exchange: Exchange, name: str) -> str:
        """What the server calls a model: as the platform's client calls it, unless that is a path."""
        target = (exchange.header(TARGET_MODEL_HEADER) or b"").decode("utf-8", "surrogateescape")
        return name if not target or "/" in target or "\\" in target or ".." in target else target

    def _unload(self, exchange: Exchange, name: str) -> None:
        model = self._models.pop(name, None)
        if model is None:
            respond_empty(exchange, 404)
        else:
            self._tasks.start(exchange, self._unload_model(exchange, name, model), TEXT_HEADERS)

    async def _unload_model(self, exchange: Exchange, name: str, model: _LoadedModel) -> None:
        try:
            await self._engine.unload_model(model.name, unload_dependents=True)
        except ServerError as error:
            self._models[name] = model
            respond_multi_model_error(exchange, error)
            return
        self._engine.unregister_models(model.url)
        # The platform takes a model's directory away when this is answered.
        await self._engine.wait_for_unloads(UNLOAD_TIMEOUT_SECONDS)
        respond_empty(exchange, 200)

    def _is_ready(self, model: _LoadedModel) -> bool:
        try:
            return self._engine.is_model_ready(model.name)
        except ServerError:
            return False


class _MultiModelExchange(RedirectedExchange):
    """An inference on a multi-model endpoint: its errors have the platform's statuses."""

    __slots__ = ()

    def respond(self, status: int, headers: Sequence[Header], parts: Sequence[Buffer]) -> None:
        if status >= 400 and status != 403:
            status = 507 if _NO_MEMORY.search(b"".join(parts)) else 400
        super().respond(status, headers, parts)


def respond_multi_model_error(exchange: Exchange, error: ServerError) -> None:
    """Answer with an error of loading or unloading."""
    body = encode_error(error.message)
    if error.code is ErrorCode.ALREADY_EXISTS:
        status = 409
    else:
        status = 507 if _NO_MEMORY.search(body) else 400
    exchange.respond(status, TEXT_HEADERS, (body,))
