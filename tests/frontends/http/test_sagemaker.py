"""The port for SageMaker: where each request goes, and the life of models of multi-model endpoints."""

import asyncio
import json

import pytest

from merrow.core.errors import AlreadyExistsError, InternalError, InvalidArgumentError, NotFoundError
from merrow.core.restrictions import ApiCategory, Restriction
from merrow.frontends.http.door import HttpFrontend
from merrow.frontends.http.routes import Endpoint
from merrow.frontends.http.sagemaker import UNLOAD_TIMEOUT_SECONDS, SageMakerFrontend
from merrow.frontends.http.tasks import AnswerTasks
from merrow.settings import SageMakerSettings
from tests.frontends.fakes import FakeEngine, FakeExchange
from tests.frontends.http.test_vertex_ai import name_the_endpoint

URL = "/opt/ml/models/hash/model"


class Engine(FakeEngine):
    """An engine that knows what is registered."""

    def __init__(self):
        super().__init__()
        self.registered = {}
        self.loaded = set()
        self.load_error = None

    async def register_models(self, directory, name):
        if directory in self.registered:
            raise AlreadyExistsError(f"model repository '{directory}' has already been registered")
        if "missing" in directory:
            raise InvalidArgumentError(f"failed to register '{directory}', repository not found")
        self.registered[directory] = name

    def unregister_models(self, directory):
        del self.registered[directory]

    async def load_model(self, name, config=None, files=None):
        if self.load_error is not None:
            raise self.load_error
        self.loaded.add(name)

    async def unload_model(self, name, unload_dependents=False):
        assert unload_dependents
        if self.control_error is not None:
            raise self.control_error
        self.loaded.discard(name)

    async def wait_for_unloads(self, timeout_seconds):
        self.controls.append(("wait", timeout_seconds))
        return True

    def is_model_ready(self, name, version=-1):
        if name not in self.loaded:
            raise NotFoundError("no")
        return True


class Port:
    """A door, and a client of it."""

    def __init__(self, restrictions=None, handlers=None, **settings):
        self.engine = Engine()
        self.handlers = handlers or {endpoint: name_the_endpoint(endpoint) for endpoint in Endpoint}
        self.restrictions = restrictions or {}
        self.settings = SageMakerSettings(default_model="m", **settings)
        self.door = None

    def ask(self, method, target, body=b"", headers=()):
        """Status and body of the answer."""

        async def run():
            tasks = AnswerTasks()
            if self.door is None:
                self.door = SageMakerFrontend(
                    HttpFrontend(self.handlers, self.restrictions),
                    self.engine, tasks, self.settings, self.restrictions, 1 << 20,
                )  # fmt: skip
            self.door._tasks = tasks
            exchange = FakeExchange(method, target, body, headers)
            self.door.on_exchange(exchange)
            await tasks.close()
            return exchange.status, exchange.answer

        return asyncio.run(run())

    def load(self, name="hash", url=URL, target=None):
        headers = [] if target is None else [(b"X-Amzn-SageMaker-Target-Model", target)]
        return self.ask(b"POST", b"/models", json.dumps({"model_name": name, "url": url}).encode(), headers)


def error(text):
    return json.dumps({"error": text}, separators=(",", ":")).encode()


@pytest.mark.parametrize(("mode", "endpoint"), [("ready", b"SERVER_READY"), ("live", b"SERVER_LIVE")])
def test_a_ping_asks_what_the_ping_mode_says(mode, endpoint):
    port = Port(ping_mode=mode)
    assert port.ask(b"GET", b"/ping") == (200, endpoint + b" GET ")
    assert port.ask(b"GET", b"/ping?x") == (200, endpoint + b" GET ")
    assert port.ask(b"POST", b"/ping") == (405, b'{"error":"Method Not Allowed"}')


@pytest.mark.parametrize("kind", ["infer", "generate", "generate_stream"])
def test_an_invocation_is_what_the_inference_type_says(kind):
    port = Port(inference_type=kind)
    assert port.ask(b"POST", b"/invocations") == (200, f"MODEL_{kind.upper()} POST m".encode())
    assert port.ask(b"GET", b"/invocations") == (405, b'{"error":"Method Not Allowed"}')


@pytest.mark.parametrize(
    ("method", "target"),
    [
        (b"GET", b"/"),
        (b"GET", b"/v2"),
        (b"GET", b"/ping/"),
        (b"POST", b"/invocations/"),
        (b"PUT", b"/models"),
        (b"POST", b"/models/m/x"),
        (b"GET", b"/models/m/invoke/x"),
        (b"GET", b"/models/\xff/x"),
    ],
)
def test_anything_else(method, target):
    assert Port().ask(method, target) == (400, b"")


def test_the_life_of_a_model():
    port = Port()
    assert port.ask(b"GET", b"/models") == (200, b'{"models":[]}')
    assert port.ask(b"POST", b"/models/hash/invoke") == (404, b"")
    assert port.ask(b"GET", b"/models/hash") == (404, b"")
    assert port.ask(b"DELETE", b"/models/hash") == (404, b"")

    assert port.load(target=b"mine.tar.gz") == (200, b"")
    assert port.engine.registered == {URL: "mine.tar.gz"}
    assert port.ask(b"GET", b"/models") == (200, f'{{"models":[{{"modelName":"hash","modelUrl":"{URL}"}}]}}'.encode())
    assert port.ask(b"GET", b"/models/hash") == (200, f'{{"modelName":"hash","modelUrl":"{URL}"}}'.encode())
    assert port.ask(b"POST", b"/models/hash/invoke") == (200, b"MODEL_INFER POST mine.tar.gz")
    assert port.load() == (409, error(f"model repository '{URL}' has already been registered"))
    port.engine.loaded.clear()
    assert port.ask(b"GET", b"/models/") == (200, b'{"models":[{}]}')

    assert port.ask(b"DELETE", b"/models/hash") == (200, b"")
    assert port.engine.registered == {}
    assert port.engine.controls == [("wait", UNLOAD_TIMEOUT_SECONDS)]
    assert port.ask(b"GET", b"/models") == (200, b'{"models":[]}')


@pytest.mark.parametrize("target", [None, b"", b"a/b.tar.gz", b"..", b"a\\b"])
def test_a_model_whose_name_cannot_be_one_keeps_the_platforms(target):
    port = Port()
    port.load(target=target)
    assert port.engine.registered == {URL: "hash"}


@pytest.mark.parametrize("url", [URL + "/", URL + "/sub", "/opt/ml/models/a.b/model"])
def test_a_model_is_loaded_from_its_place_in_the_platform_s_directory(url):
    assert Port().load(url=url) == (200, b"")


@pytest.mark.parametrize(
    "url",
    [
        "", "/tmp/x", "/opt/ml/models", "/opt/ml/models/model", "/opt/ml/models/h", "/opt/ml/models/h/other",
        "/opt/ml/models/../model", "/opt/ml/models/h/model/..", "/opt/ml/models/h/model/../../x", URL + "/a/b",
        "/opt/ml/models/./model", "/opt/ml/modelsx/h/model",
    ],
)  # fmt: skip
def test_urls_that_lead_elsewhere(url):
    text = f"Invalid \"url\" '{url}': expected a path of the form /opt/ml/models/<hash>/model[/<subdir>]"
    assert Port().load(url=url) == (400, error(text))


@pytest.mark.parametrize("url", ["/dev/null", "/proc/self/root", "/sys/x"])
def test_urls_of_devices(url):
    assert Port().load(url=url) == (400, b"")


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"[", "failed to parse the request JSON buffer: Invalid value. at 1"),
        (b'{"model_name":1}', "Unable to parse 'model_name': attempt to access JSON non-string as string"),
        (b'{"url":[]}', "Unable to parse 'url': attempt to access JSON non-string as string"),
        (b"x" * ((1 << 20) + 1), "request JSON size of 1048577 bytes exceeds the maximum allowed input size of 1048576 "
         "bytes. Use --http-max-input-size to increase the limit."),
    ],
)  # fmt: skip
def test_requests_to_load_that_are_wrong(body, text):
    assert Port().ask(b"POST", b"/models", body) == (400, error(text))


@pytest.mark.parametrize("text", ["CUDA out of memory. Tried", "OOM", "No space left on device"])
def test_a_lack_of_memory_is_507(text):
    port = Port()
    port.engine.load_error = InternalError(text)
    assert port.load() == (507, error(text))
    assert port.engine.registered == {}
    port.engine.load_error = None
    assert port.load() == (200, b"")


def test_other_failures_are_400():
    port = Port()
    assert port.load(url="/opt/ml/models/missing/model")[0] == 400
    port.engine.load_error = InternalError("failed to load 'hash', failed to poll from model repository")
    assert port.load() == (400, error("failed to load 'hash', failed to poll from model repository"))
    port.engine.load_error = None
    port.load()
    port.engine.control_error = InternalError("busy")
    assert port.ask(b"DELETE", b"/models/hash") == (400, error("busy"))
    assert port.ask(b"GET", b"/models/hash")[0] == 200


@pytest.mark.parametrize(
    ("failure", "status"),
    [(NotFoundError("no"), 400), (InternalError("no"), 400), (InternalError("CUDA out of memory"), 507)],
)
def test_errors_of_inference_have_the_platforms_statuses(failure, status):
    def fail(exchange, route):
        raise failure

    port = Port(handlers={Endpoint.MODEL_INFER: fail})
    port.load()
    assert port.ask(b"POST", b"/models/hash/invoke") == (status, error(failure.message))
    assert port.ask(b"POST", b"/invocations")[0] in (404, 500)


def test_restrictions_hold():
    restrictions = {category: Restriction("X-Key", "v") for category in ApiCategory}
    port = Port(restrictions)
    for method, target in (
        (b"GET", b"/ping"), (b"POST", b"/invocations"), (b"GET", b"/models"), (b"POST", b"/models"),
        (b"GET", b"/models/x"), (b"DELETE", b"/models/x"),
    ):  # fmt: skip
        assert port.ask(method, target)[0] == 403
        assert port.ask(method, target, headers=[(b"X-Key", b"v")])[0] != 403
    port.door._models["hash"] = type("Model", (), {"name": "m"})
    assert port.ask(b"POST", b"/models/hash/invoke")[0] == 403
