"""kill -9 of the process of a model, under load over both protocols.

Nothing may hang, every request must end in a result or in an error that says what happened, readiness must tell the
truth meanwhile, and the model must come back by itself.
"""

import contextlib
import http.client
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import grpc
import pytest
from tritonclient.grpc import service_pb2 as pb

from merrow.testing.repository_builder import RepositoryBuilder, python_config
from merrow.testing.running_server import RunningServer

pytestmark = pytest.mark.slow

# Each answer takes a moment, so that requests are running and waiting when the process dies.
SOURCE = """\
import os
import time

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        time.sleep(0.005)
        pid = np.array([os.getpid()], dtype=np.int64)
        return [pb_utils.InferenceResponse([pb_utils.Tensor("PID", pid)]) for _ in requests]
"""
INFER = json.dumps({"inputs": [{"name": "IN", "datatype": "INT64", "shape": [1], "data": [0]}]})
LONGEST_ANSWER_SECONDS = 5.0
CLIENTS = 4


@dataclass(slots=True)
class Load:
    """Clients that ask without pause until told to stop, and what they were told."""

    process_ids: list[int] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    is_over: threading.Event = field(default_factory=threading.Event)
    threads: list[threading.Thread] = field(default_factory=list)

    def start(self, client: "Client") -> None:
        self.threads.append(threading.Thread(target=self._run, args=(client,)))
        self.threads[-1].start()

    def stop(self) -> None:
        self.is_over.set()
        for thread in self.threads:
            thread.join(LONGEST_ANSWER_SECONDS * 2)
            assert not thread.is_alive(), "a request hangs"

    def _run(self, client: "Client") -> None:
        with contextlib.closing(client):
            while not self.is_over.is_set():
                try:
                    process_id, error = client.ask()
                except Exception as unexpected:
                    self.broken.append(repr(unexpected))
                    return
                if process_id is not None:
                    self.process_ids.append(process_id)
                else:
                    self.errors.append(error)


class Client(Protocol):
    def ask(self) -> tuple[int | None, str]:
        """One request: the id of the process that answered, or the error."""

    def close(self) -> None: ...


class HttpClient:
    def __init__(self, url: str) -> None:
        self._connection = http.client.HTTPConnection(url, timeout=LONGEST_ANSWER_SECONDS)

    def ask(self) -> tuple[int | None, str]:
        self._connection.request("POST", "/v2/models/pid/infer", INFER)
        response = self._connection.getresponse()
        answer = json.loads(response.read())
        if response.status == 200:
            return answer["outputs"][0]["data"][0], ""
        return None, f"{response.status} {answer['error']}"

    def close(self) -> None:
        self._connection.close()


class GrpcClient:
    def __init__(self, url: str) -> None:
        self._channel = grpc.insecure_channel(url)
        self._infer = self._channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            pb.ModelInferRequest.SerializeToString,
            pb.ModelInferResponse.FromString,
        )
        self._request = pb.ModelInferRequest(model_name="pid")
        self._request.inputs.add(name="IN", datatype="INT64", shape=[1]).contents.int64_contents.append(0)

    def ask(self) -> tuple[int | None, str]:
        try:
            response = self._infer(self._request, timeout=LONGEST_ANSWER_SECONDS)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise
            return None, f"{error.code().name} {error.details()}"
        return int.from_bytes(response.raw_output_contents[0], "little"), ""

    def close(self) -> None:
        self._channel.close()


def process_of_model(url: str) -> int:
    with contextlib.closing(HttpClient(url)) as client:
        process_id, error = client.ask()
    assert process_id is not None, error
    return process_id


def wait_for_readiness(url: str, path: str, status: int, timeout_seconds: float) -> float:
    """Ask again and again until the answer is `status`; returns how long that took."""
    start = time.monotonic()
    with contextlib.closing(http.client.HTTPConnection(url, timeout=LONGEST_ANSWER_SECONDS)) as connection:
        while True:
            connection.request("GET", path)
            response = connection.getresponse()
            response.read()
            taken = time.monotonic() - start
            if response.status == status:
                return taken
            assert taken < timeout_seconds, f"{path} still answers {response.status} after {taken:.1f} s"


def test_a_killed_model_process_loses_no_request_and_comes_back(tmp_path: Path):
    repository = RepositoryBuilder(tmp_path)
    config = python_config("pid", [("IN", "INT64", (1,))], [("PID", "INT64", (1,))])
    repository.add("pid", config, {"1/model.py": SOURCE})
    load = Load()
    with RunningServer(repository.path) as server:
        first_process = process_of_model(server.http_url)
        for _ in range(CLIENTS):
            load.start(HttpClient(server.http_url))
            load.start(GrpcClient(server.grpc_url))
        try:
            wait_until(lambda: len(load.process_ids) > 50)
            os.kill(first_process, signal.SIGKILL)
            wait_for_readiness(server.http_url, "/v2/models/pid/ready", 400, timeout_seconds=1)
            wait_for_readiness(server.http_url, "/v2/health/ready", 200, timeout_seconds=15)
            wait_for_readiness(server.http_url, "/v2/models/pid/ready", 200, timeout_seconds=1)
            answered = len(load.process_ids)
            wait_until(lambda: len(load.process_ids) > answered + 50)
        finally:
            load.stop()

        assert load.broken == []
        assert load.errors, "requests were running when the process died"
        assert {error for error in load.errors if "Stub process" not in error} == set()
        assert {error.split()[0] for error in load.errors} <= {"500", "INTERNAL", "503", "UNAVAILABLE"}
        assert load.process_ids[-1] != first_process


def test_server_readiness_is_false_while_a_model_process_is_gone(tmp_path: Path):
    repository = RepositoryBuilder(tmp_path)
    config = python_config("pid", [("IN", "INT64", (1,))], [("PID", "INT64", (1,))])
    repository.add("pid", config, {"1/model.py": SOURCE})
    with RunningServer(repository.path) as server:
        os.kill(process_of_model(server.http_url), signal.SIGKILL)

        wait_for_readiness(server.http_url, "/v2/health/ready", 400, timeout_seconds=1)
        wait_for_readiness(server.http_url, "/v2/health/ready", 200, timeout_seconds=15)


def wait_until(condition: Callable[[], bool], timeout_seconds: float = 20) -> None:
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
