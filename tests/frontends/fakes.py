"""The two neighbours of a front door, in memory: the network, and the engine."""

import asyncio
from collections.abc import Sequence

from merrow.core.errors import InvalidArgumentError, NotFoundError, ServerError
from merrow.core.model_config import ModelConfig
from merrow.core.request import Request
from merrow.core.response import Response
from merrow.engine.engine import IndexEntry
from merrow.engine.shared_memory import SharedMemoryRegistry
from merrow.net.exchange import Exchange, GrpcCall
from merrow.settings import SharedMemorySettings


class FakeExchange(Exchange):
    """An exchange that remembers its answer, and insists on exactly one."""

    def __init__(self, method=b"GET", target=b"/v2", body=b"", headers=()):
        self.method = method
        self.target = target
        self.body = body
        self.headers = list(headers)
        self.on_disconnect = None
        self.status = None
        self.answer_headers = None
        self.answer = None
        # The pieces of a streamed answer; `writable` is the test's to set.
        self.chunks = None
        self.writable = True
        self.drained = None
        self.answered = asyncio.Event()

    def respond(self, status, headers, parts):
        assert self.status is None, "answered twice"
        self.status = status
        self.answer_headers = tuple(headers)
        self.answer = b"".join(bytes(part) for part in parts)
        self.answered.set()

    @property
    def content_type(self):
        return dict(self.answer_headers)[b"Content-Type"]

    def start_stream(self, status, headers):
        assert self.status is None, "answered twice"
        self.status = status
        self.answer_headers = tuple(headers)
        self.chunks = []

    @property
    def is_writable(self):
        return self.writable

    def write(self, data):
        assert self.answer is None, "written after the end"
        self.chunks.append(bytes(data))

    async def drain(self):
        while not self.writable:
            self.drained = asyncio.Event()
            await self.drained.wait()

    def finish(self):
        assert self.answer is None, "ended twice"
        self.answer = b"".join(self.chunks)
        self.answered.set()

    def let_drain(self):
        """The client reads again."""
        self.writable = True
        if self.drained is not None:
            self.drained.set()


class FakeCall(GrpcCall):
    """A call that remembers what was sent; `is_writable` and the client's departure are the test's to decide."""

    def __init__(self, path=b"", metadata=()):
        self.path = path
        self.metadata = list(metadata)
        self.on_cancel = None
        self.on_writable = None
        self.sent = []
        self.status = None
        self.message = None
        self.is_paused = False
        self.writable = True
        self.ended = asyncio.Event()

    @property
    def is_writable(self):
        return self.writable

    def pause_reading(self):
        assert not self.is_paused
        self.is_paused = True

    def resume_reading(self):
        assert self.is_paused
        self.is_paused = False

    def reply(self, parts):
        self.send(parts)
        self.finish()

    def send(self, parts):
        assert self.status is None, "sent after the end"
        self.sent.append(b"".join(bytes(part) for part in parts))

    def finish(self, status=0, message=""):
        assert self.status is None, "ended twice"
        self.status = status
        self.message = message
        self.ended.set()


class FakeModel:
    """As much of a model as a front door looks at."""

    def __init__(self, config: ModelConfig, version=1, labels=None, is_decoupled=False):
        self.name = config.name
        self.version = version
        self.config = config
        self.config_json = f'{{"name":"{config.name}"}}'
        self.labels = labels or {}
        self.is_decoupled = is_decoupled
        self.has_batch_dim = config.max_batch_size > 0
        # What the model itself says about its readiness; None if it says nothing.
        self.says_ready: bool | None = None

    @property
    def has_readiness_check(self):
        return self.says_ready is not None


class FakeEngine:
    """An engine that keeps what is submitted for the test to answer."""

    def __init__(self, *models: FakeModel):
        self.by_name = {model.name: model for model in models}
        self.is_exiting = False
        self.shared_memory = SharedMemoryRegistry(SharedMemorySettings(allow_client_shm=True))
        self.live = self.ready = self.model_ready = True
        self.submitted: list[Request] = []
        self.cancelled: list[Request] = []
        self.submit_error: ServerError | None = None
        self.control_error: ServerError | None = None
        self.controls = []
        self.index: list[IndexEntry] = []
        self.statistics = []

    def models(self):
        return list(self.by_name.values())

    def is_live(self):
        return self.live

    def is_ready(self):
        return self.ready

    @property
    def has_readiness_checks(self):
        return any(model.has_readiness_check for model in self.by_name.values())

    async def check_readiness(self):
        return self.ready and all(model.says_ready is not False for model in self.by_name.values())

    async def check_model(self, model):
        if model.says_ready is False:
            raise InvalidArgumentError(f"Model '{model.name}' is not ready (user-defined check failed).")

    def is_model_ready(self, name, version=-1):
        self.find_model(name, version)
        return self.model_ready

    def find_model(self, name, version=-1):
        model = self.by_name.get(name)
        if model is None or version not in (-1, model.version):
            suffix = "" if version == -1 else f" version {version}"
            raise NotFoundError(f"Request for unknown model: '{name}'{suffix} is not found")
        return model

    def ready_versions(self, name):
        return [model.version for model in self.by_name.values() if model.name == name]

    def model_statistics(self, name="", version=-1):
        self.controls.append(("statistics", name, version))
        return self.statistics

    async def fresh_repository_index(self, ready_only):
        self.controls.append(("index", ready_only))
        return self.index

    async def load_model(self, name, config=None, files=None):
        self.controls.append(("load", name, config, files))
        if self.control_error is not None:
            raise self.control_error

    async def unload_model(self, name, unload_dependents=False):
        self.controls.append(("unload", name, unload_dependents))
        if self.control_error is not None:
            raise self.control_error

    def submit(self, model, request):
        if self.submit_error is not None:
            raise self.submit_error
        self.submitted.append(request)

    def cancel(self, request):
        self.cancelled.append(request)

    def metrics_text(self):
        return "# HELP x\n"

    def answer(self, index=0, outputs: Sequence = (), **arguments):
        """Give a submitted request a response, as the engine would."""
        request = self.submitted[index]
        response = Response(request.model_name, request.model_version, request.id, outputs, **arguments)
        request.sink.on_response(response)
