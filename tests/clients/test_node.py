"""Node's HTTP/2 and grpc-js against a running server.

grpc-js is installed by npm, once, beside its scripts; where that is not possible the test says so in the summary.
"""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from merrow.testing.repository_builder import RepositoryBuilder, python_config
from merrow.testing.running_server import RunningServer

pytestmark = pytest.mark.slow

SCRIPTS = Path(__file__).parent / "node"
PROTOS = Path(__file__).parents[2] / "protos"
SLEEPER = """\
import time

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        time.sleep(1)
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT0", request.inputs()[0].as_numpy())])
            for request in requests
        ]
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    if shutil.which("node") is None:
        pytest.skip("NOT TESTED with Node: it is not installed")
    repository = RepositoryBuilder(tmp_path_factory.mktemp("node"))
    repository.add_identity("identity", dims=(-1,), max_batch_size=8)
    config = python_config("sleeper", [("INPUT0", "FP32", (1, 4))], [("OUTPUT0", "FP32", (1, 4))])
    repository.add("sleeper", config, {"1/model.py": SLEEPER})
    with RunningServer(repository.path) as running:
        yield running


def run(script, *arguments):
    command = ["node", SCRIPTS / script, *arguments]
    return json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60, cwd=SCRIPTS).stdout)


@pytest.fixture(scope="module")
def grpc_js(server):
    if (SCRIPTS / "node_modules" / "@grpc" / "grpc-js").is_dir():
        return
    command = ["npm", "install", "--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts"]
    try:
        subprocess.run(command, cwd=SCRIPTS, capture_output=True, check=True, timeout=100)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"NOT TESTED with grpc-js: npm cannot install it ({error})")


def test_http2(server):
    assert run("http2_client.js", server.http_url) == {
        "live": 200,
        "metadata": "triton",
        "echoed": [True] * 4,
        "parallel": True,
        "unknown": {"status": 404, "body": '{"error":"Not Found"}'},
        "wrongMethod": 405,
        "pinged": True,
    }


def test_grpc_js(server, grpc_js):
    seen = run("grpc_client.js", server.grpc_url, PROTOS)
    assert seen.pop("late")["code"] == 4
    assert seen == {
        "live": {"live": True},
        "metadata": "triton",
        "echoed": [True] * 4,
        "parallel": True,
        "unknown": {"code": 5, "details": "Request for unknown model: 'nothing' is not found"},
        "cancelled": {"code": 1, "details": "Cancelled on client"},
        "stream": {"code": 0, "ids": [str(number) for number in range(20)]},
        "compressed": [True] * 4,
    }
