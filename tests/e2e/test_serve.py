"""`merrow serve` as a process: start-up, clients, signals, exit codes."""

import json
import os
import queue
import re
import signal
import socket
import threading
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http

from merrow.testing.repository_builder import RepositoryBuilder, python_config
from merrow.testing.running_server import RunningServer, ServerStartError

pytestmark = pytest.mark.slow

SLEEPER = """\
import time

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        print("executing", flush=True)
        time.sleep(SECONDS)
        return [pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT0", request.inputs()[0].as_numpy())])
                for request in requests]
"""


LATE_STARTER = """\
import time


class TritonPythonModel:
    def initialize(self, args):
        print("loading", flush=True)
        time.sleep(60)
"""


def add_sleeper(repository, seconds):
    """A model with two instances that says so in the log, sleeps, and gives back its input."""
    config = python_config(
        "sleeper",
        [("INPUT0", "FP32", (4,))],
        [("OUTPUT0", "FP32", (4,))],
        extra_config="instance_group { count: 2 kind: KIND_CPU }",
    )
    repository.add("sleeper", config, {"1/model.py": SLEEPER.replace("SECONDS", str(seconds))})


@pytest.fixture
def repository(tmp_path):
    builder = RepositoryBuilder(tmp_path / "models")
    builder.add_identity("m", dims=(4,))
    return builder


def ask(url, target, data=None):
    """Status and body of one HTTP request."""
    try:
        with urllib.request.urlopen(f"http://{url}{target}", data, timeout=10) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def infer(module, url, model_name="m"):
    client = module.InferenceServerClient(url)
    values = np.arange(4, dtype=np.float32)
    tensor = module.InferInput("INPUT0", [4], "FP32")
    tensor.set_data_from_numpy(values)
    try:
        return client.infer(model_name, [tensor]).as_numpy("OUTPUT0").tolist()
    finally:
        client.close()


def test_the_ports_of_triton_serve_its_clients(repository):
    with RunningServer(repository.path) as server:
        assert infer(tritonclient.http, server.http_url) == [0, 1, 2, 3]
        assert infer(tritonclient.grpc, server.grpc_url) == [0, 1, 2, 3]
        assert b'nv_inference_count{model="m",version="1"} 2' in ask(server.metrics_url, "/metrics")[1]
    assert server.wait() == 0
    assert re.search(r"\| m +\| 1 +\| inline x 1 \| READY +\|", server.log)
    assert "Only this machine can connect; --address=0.0.0.0 lets others in" in server.log
    assert server.log.rstrip().endswith('"stopped"')


def test_one_port_serves_everything(repository):
    with RunningServer(repository.path, "--port=0") as server:
        assert server.http_url == server.grpc_url == server.metrics_url
        assert infer(tritonclient.http, server.http_url) == [0, 1, 2, 3]
        assert infer(tritonclient.grpc, server.grpc_url) == [0, 1, 2, 3]
        assert ask(server.metrics_url, "/metrics")[0] == 200


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_cleanly(repository, number):
    with RunningServer(repository.path) as server:
        os.kill(server.pid, number)
        assert server.wait() == 0
    assert f"signal ({number.name}) received" in server.log


def test_requests_in_flight_are_answered_before_the_end(repository):
    add_sleeper(repository, seconds=0.7)
    answers = []
    with RunningServer(repository.path) as server:
        threads = [
            threading.Thread(target=lambda m=module, u=url: answers.append(infer(m, u, "sleeper")))
            for module, url in ((tritonclient.http, server.http_url), (tritonclient.grpc, server.grpc_url))
        ]
        for thread in threads:
            thread.start()
        server.wait_for_log("executing", line_count=2)
        os.kill(server.pid, signal.SIGTERM)
        assert server.wait() == 0
        for thread in threads:
            thread.join()
    assert answers == [[0, 1, 2, 3]] * 2


def test_the_exit_timeout_bounds_the_wait(repository):
    add_sleeper(repository, seconds=60)
    with (
        RunningServer(repository.path, "--exit-timeout-secs=0") as server,
        socket.create_connection(server.http_url.split(":")) as connection,
    ):
        body = json.dumps({"inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": [4], "data": [0, 0, 0, 0]}]})
        connection.sendall(
            f"POST /v2/models/sleeper/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
        )
        server.wait_for_log("executing")
        os.kill(server.pid, signal.SIGTERM)
        assert server.wait() == 1
    assert "Exit timeout expired. Exiting immediately." in server.log


def test_a_second_signal_ends_the_wait(repository):
    add_sleeper(repository, seconds=60)
    with (
        RunningServer(repository.path) as server,
        socket.create_connection(server.http_url.split(":")) as connection,
    ):
        body = json.dumps({"inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": [4], "data": [0, 0, 0, 0]}]})
        connection.sendall(
            f"POST /v2/models/sleeper/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
        )
        server.wait_for_log("executing")
        os.kill(server.pid, signal.SIGTERM)
        server.wait_for_log("signal (SIGTERM) received")
        os.kill(server.pid, signal.SIGTERM)
        assert server.wait() == 1


def test_a_signal_ends_a_server_that_is_still_loading(repository):
    config = python_config("late", [("INPUT0", "FP32", (4,))], [("OUTPUT0", "FP32", (4,))])
    repository.add("late", config, {"1/model.py": LATE_STARTER})
    server = RunningServer(repository.path)
    server.start()
    server.wait_for_log("loading")
    assert server.stop() == 0
    assert "signal (SIGTERM) received while starting" in server.log


def test_an_open_stream_does_not_delay_the_end(repository):
    with RunningServer(repository.path) as server:
        answers = queue.Queue()
        client = tritonclient.grpc.InferenceServerClient(server.grpc_url)
        client.start_stream(lambda result, error: answers.put((result, error)))
        tensor = tritonclient.grpc.InferInput("INPUT0", [4], "FP32")
        tensor.set_data_from_numpy(np.zeros(4, np.float32))
        client.async_stream_infer("m", [tensor])
        assert answers.get(timeout=10)[1] is None

        start = time.monotonic()
        os.kill(server.pid, signal.SIGTERM)
        assert server.wait() == 0
        assert time.monotonic() - start < 5

        assert answers.get(timeout=10)[1].message() == (
            "GRPC server is shutting down and has stopped accepting new requests."
        )
        client.stop_stream()
        client.close()


def test_a_model_that_fails_to_load_ends_the_start(repository):
    repository.add("broken", 'backend: "nope"')
    with pytest.raises(ServerStartError) as raised, RunningServer(repository.path) as server:
        pass
    assert "error: creating server: Internal - failed to load all models" in str(raised.value)
    server = RunningServer(repository.path)
    server.start()
    assert server.wait() == 1


def test_a_server_may_start_without_the_models_that_fail(repository):
    repository.add("broken", 'backend: "nope"')
    with RunningServer(repository.path, "--exit-on-error=false") as server:
        assert infer(tritonclient.http, server.http_url) == [0, 1, 2, 3]
        assert ask(server.http_url, "/v2/health/ready") == (400, b"")
    with RunningServer(repository.path, "--exit-on-error=false", "--strict-readiness=false") as server:
        assert ask(server.http_url, "/v2/health/ready") == (200, b"")


def test_models_are_loaded_and_unloaded_by_clients_in_explicit_mode(repository):
    repository.add_identity("n", dims=(4,))
    with RunningServer(repository.path, "--model-control-mode=explicit", "--load-model=m") as server:
        for module, url in ((tritonclient.http, server.http_url), (tritonclient.grpc, server.grpc_url)):
            client = module.InferenceServerClient(url)
            assert client.is_model_ready("m")
            client.load_model("n")
            assert infer(module, url, "n") == [0, 1, 2, 3]
            client.unload_model("n")
            with pytest.raises(module.InferenceServerException) as raised:
                infer(module, url, "n")
            assert raised.value.message() == "Request for unknown model: 'n' has no available versions"
            assert client.is_server_ready()
            client.close()


def test_models_cannot_be_loaded_otherwise(repository):
    with RunningServer(repository.path) as server:
        assert ask(server.http_url, "/v2/repository/models/m/load", b"") == (
            503,
            b'{"error":"explicit model load / unload is not allowed if polling is enabled"}',
        )


def test_the_log_may_go_to_a_file(tmp_path):
    path = tmp_path / "server.log"
    server = RunningServer(tmp_path / "nowhere", f"--log-file={path}", "--log-format=ISO8601", "--port=0")
    server.start()
    assert server.wait() == 1
    first, *_, last = path.read_text().splitlines()
    assert re.match(r'^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ I \d+ server_process.py:\d+\] "merrow ', first)
    error = last.partition('] "')[2].rstrip('"')
    assert error.startswith("creating server: Internal - ")
    assert f"{tmp_path}/nowhere" in error
    assert server.log == f"error: {error}\n"


def test_a_wrong_flag_ends_the_start(tmp_path):
    server = RunningServer(tmp_path, "--http-prt=0")
    server.start()
    assert server.wait() == 1
    assert server.log.endswith("unrecognized option '--http-prt'; did you mean '--http-port'?\n")
