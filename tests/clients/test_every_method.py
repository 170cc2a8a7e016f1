"""Every public method of `tritonclient`, newest and 2.41, called against a running server; also over TLS.

`drive_tritonclient` makes the calls, in a process of its own, and says what it did not call.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from merrow.testing.repository_builder import RepositoryBuilder, model_config, python_config
from merrow.testing.running_server import RunningServer
from tests.certificates import Authority
from tests.clients import old_client

pytestmark = pytest.mark.slow

# Ends when its client leaves, or after so many seconds.
SLOW = """\
import threading
import time
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            deadline = time.monotonic() + float(request.inputs()[0].as_numpy()[0])
            while time.monotonic() < deadline and not request.is_cancelled():
                threading.Event().wait(0.02)
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", request.inputs()[0].as_numpy())]))
        return responses
"""


def build(path: Path) -> Path:
    repository = RepositoryBuilder(path)
    repository.add_add_sub(datatype="INT32", max_batch_size=0)
    repository.add_python_identity("unload_me")
    repository.add("ident", model_config("ident", "identity", [("IN", "FP32", (16,))], [("OUT", "FP32", (16,))], 4))
    slow = python_config("slow", [("SECONDS", "FP32", (1,))], [("OUT", "FP32", (1,))])
    repository.add("slow", slow, {"1/model.py": SLOW})
    repeat = model_config(
        "repeat",
        "repeat",
        [("IN", "INT32", (-1,)), ("DELAY", "UINT32", (-1,)), ("WAIT", "UINT32", (1,))],
        [("OUT", "INT32", (1,)), ("IDX", "UINT32", (1,))],
        extra_config="model_transaction_policy { decoupled: true }",
    )
    repository.add("repeat", repeat)
    return path


FLAGS = ("--model-control-mode=explicit", "--load-model=*", "--allow-client-shm=true")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("every_method"))


@pytest.fixture(scope="module")
def server(models: Path) -> Iterator[RunningServer]:
    with RunningServer(models, *FLAGS) as running:
        yield running


def drive(server: RunningServer, *options: str, python_path: Path | None = None) -> dict[str, list[str]]:
    """What the driver did not call, by class."""
    script = Path(__file__).with_name("drive_tritonclient.py")
    argv = [sys.executable, str(script), f"http={server.http_url}", f"grpc={server.grpc_url}", *options]
    environment = {**os.environ, "GRPC_VERBOSITY": "NONE"}
    environment.pop("PYTHONPATH", None)
    if python_path is not None:
        environment["PYTHONPATH"] = str(python_path)
    outcome = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False, timeout=110)
    assert outcome.returncode == 0, f"{outcome.stderr}\n{server.log[-4000:]}"
    missing: dict[str, list[str]] = json.loads(outcome.stdout)
    return {name: methods for name, methods in missing.items() if methods}


@pytest.mark.parametrize("families", ["http,http.aio", "grpc,grpc.aio"])
def test_the_newest_client(server: RunningServer, families: str):
    assert drive(server, f"families={families}") == {}


def test_the_client_of_2_41(server: RunningServer):
    try:
        folder = old_client.install()
    except old_client.OldClientUnavailableError as error:
        pytest.skip(str(error))

    assert drive(server, python_path=folder) == {}


def test_the_newest_client_over_tls(models: Path, tmp_path: Path):
    authority = Authority(tmp_path)
    certificate, key = authority.sign("server")
    flags = ("--use-ssl=true", f"--server-cert={certificate}", f"--server-key={key}")

    with RunningServer(models, *FLAGS, *flags) as server:
        assert drive(server, f"ca={authority.certificate_file}") == {}
