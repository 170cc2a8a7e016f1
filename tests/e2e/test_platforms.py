"""The ports for SageMaker and Vertex AI on a running server, with models that run."""

import asyncio
import json
import struct

import pytest

from merrow.server import Server
from merrow.settings import ModelControlMode, NetworkSettings, RepositorySettings, SageMakerSettings, Settings
from merrow.testing.repository_builder import RepositoryBuilder, model_config
from merrow.testing.running_server import RunningServer, ServerStartError
from tests.e2e.endpoints import INFER_BODY, ask

pytestmark = pytest.mark.slow

ROUTES = {"AIP_PREDICT_ROUTE": "/predict", "AIP_HEALTH_ROUTE": "/health", "SAGEMAKER_TRITON_DEFAULT_MODEL_NAME": "m"}
JSON_PART = (
    b'{"inputs":[{"name":"INPUT0","datatype":"FP32","shape":[1,2],"parameters":{"binary_data_size":8}}],'
    b'"outputs":[{"name":"OUTPUT0","parameters":{"binary_data":true}}]}'
)
BODY = JSON_PART + struct.pack("<ff", 1, 2)
ANSWER = {"name": "OUTPUT0", "datatype": "FP32", "shape": [1, 2], "data": [1.0, 2.0]}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    repository = RepositoryBuilder(tmp_path_factory.mktemp("platforms"))
    repository.add_identity("m", dims=(2,), max_batch_size=8)
    flags = ("--allow-sagemaker=true", "--sagemaker-port=0", "--allow-vertex-ai=true", "--vertex-ai-port=0")
    with RunningServer(repository.path, "--address=127.0.0.1", *flags, environment=ROUTES) as running:
        yield running


def test_sagemaker_serves_the_default_model(server):
    assert ask(server.sagemaker_url, "GET", "/ping") == (200, "text/plain", b"")
    status, _, answer = ask(server.sagemaker_url, "POST", "/invocations", INFER_BODY)
    assert (status, json.loads(answer)["outputs"]) == (200, [ANSWER])


def test_sagemaker_has_binary_tensors_by_content_type(server):
    prefix = "application/vnd.sagemaker-triton.binary+json;json-header-size="
    headers = {"Content-Type": f"{prefix}{len(JSON_PART)}", "Accept-Encoding": "gzip"}
    status, content_type, answer = ask(server.sagemaker_url, "POST", "/invocations", BODY, headers)
    assert status == 200
    assert content_type == f"{prefix}{len(answer) - 8}"
    assert answer[-8:] == BODY[-8:]


def test_vertex_ai_predicts(server):
    assert ask(server.vertex_ai_url, "GET", "/health") == (200, "text/plain", b"")
    status, _, answer = ask(server.vertex_ai_url, "POST", "/predict", INFER_BODY)
    assert (status, json.loads(answer)["outputs"]) == (200, [ANSWER])
    headers = {"Content-Type": f"application/vnd.vertex-ai-triton.binary+json;json-header-size={len(JSON_PART)}"}
    status, content_type, answer = ask(server.vertex_ai_url, "POST", "/predict", BODY, headers)
    assert (status, content_type, answer[-8:]) == (200, "application/octet-stream", BODY[-8:])


def test_vertex_ai_redirects(server):
    def redirect(target, body=b""):
        return ask(server.vertex_ai_url, "POST", "/predict", body, {"X-Vertex-Ai-Triton-Redirect": target})

    assert json.loads(redirect("v2")[2])["name"] == "triton"
    assert json.loads(redirect("v2/models/m/infer", INFER_BODY)[2])["outputs"] == [ANSWER]
    assert redirect("metrics")[2].startswith(b"# HELP nv_inference_request_success")
    assert redirect("v2/repository/models/m/unload") == (403, "text/plain", b"")
    assert redirect("v2/logging") == (400, "text/plain", b"")


def test_vertex_ai_needs_a_model(tmp_path):
    repository = RepositoryBuilder(tmp_path)
    for name in ("a", "b"):
        repository.add_identity(name)
    server = RunningServer(
        repository.path, "--allow-vertex-ai=true", "--vertex-ai-port=0", "--address=127.0.0.1", environment=ROUTES
    )
    text = "Expect the model repository contains only a single model if default model is not specified"
    with pytest.raises(ServerStartError, match=text):
        server.__enter__()


def test_sagemaker_loads_and_unloads_models(tmp_path):
    """In this process, because the platform's directory is always the same, and not ours to write to."""
    models = tmp_path / "models"
    RepositoryBuilder(models / "h1" / "model").add_identity("inner", dims=(2,), max_batch_size=8)
    own = models / "h2" / "model"
    (own / "1").mkdir(parents=True)
    tensors = [("INPUT0", "FP32", (2,))], [("OUTPUT0", "FP32", (2,))]
    (own / "config.pbtxt").write_text(model_config("h2", "identity", *tensors, max_batch_size=8))
    (tmp_path / "empty").mkdir()
    settings = Settings(
        repository=RepositorySettings((str(tmp_path / "empty"),), ModelControlMode.EXPLICIT),
        network=NetworkSettings(
            allow_http=False,
            allow_grpc=False,
            allow_metrics=False,
            sagemaker=SageMakerSettings(port=0, models_directory=str(models)),
        ),
    )

    async def run():
        async with Server(settings) as server:
            url = f"127.0.0.1:{server.ports.sagemaker}"

            async def request(method, target, body=b"", headers=None):
                return (await asyncio.to_thread(ask, url, method, target, body, headers))[::2]

            def load(name):
                body = json.dumps({"model_name": name, "url": str(models / name / "model")}).encode()
                return request("POST", "/models", body, {"X-Amzn-SageMaker-Target-Model": f"{name}.tar.gz"})

            for name in ("h1", "h2"):
                assert await load(name) == (200, b"")
                status, answer = await request("POST", f"/models/{name}/invoke", INFER_BODY)
                assert (status, json.loads(answer)["outputs"]) == (200, [ANSWER])
                assert json.loads(answer)["model_name"] == f"{name}.tar.gz"
            assert (await load("h1"))[0] == 409
            assert await request("POST", "/models/h1/invoke", b"{") == (
                400,
                b'{"error":"failed to parse the request JSON buffer: Missing a name for object member. at 1"}',
            )
            assert await request("DELETE", "/models/h1") == (200, b"")
            assert await request("POST", "/models/h1/invoke", INFER_BODY) == (404, b"")
            assert await load("h1") == (200, b"")
            assert await load("none") == (
                400,
                f'{{"error":"failed to register \'{models}/none/model\', repository not found"}}'.encode(),
            )
            assert len(json.loads((await request("GET", "/models"))[1])["models"]) == 2

    asyncio.run(run())
