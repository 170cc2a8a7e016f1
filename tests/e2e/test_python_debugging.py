"""`merrow serve --debug-model`: one model in the server's process, where breakpoint() works while others are served."""

import contextlib
import http.client
import json
import threading

import pytest

from merrow.places.process.system import is_available
from merrow.testing.repository_builder import RepositoryBuilder, python_config
from merrow.testing.running_server import RunningServer, ServerStartError

pytestmark = pytest.mark.slow

SOURCE = """\
import os

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            number = request.inputs()[0].as_numpy()
            if number[0] == 7:
                breakpoint()
            outputs = [pb_utils.Tensor("OUT", number), pb_utils.Tensor("PID", np.array([os.getpid()], np.int32))]
            responses.append(pb_utils.InferenceResponse(outputs))
        return responses
"""


def infer(server: RunningServer, model: str, number: int) -> dict[str, int]:
    body = {"inputs": [{"name": "IN", "datatype": "INT32", "shape": [1], "data": [number]}]}
    with contextlib.closing(http.client.HTTPConnection(server.http_url, timeout=30)) as connection:
        connection.request("POST", f"/v2/models/{model}/infer", json.dumps(body))
        response = connection.getresponse()
        content = json.loads(response.read())
    assert response.status == 200, content
    return {output["name"]: output["data"][0] for output in content["outputs"]}


@pytest.fixture
def repository(tmp_path) -> RepositoryBuilder:
    repository = RepositoryBuilder(tmp_path)
    for name in ("debugged", "other"):
        outputs = [("OUT", "INT32", (1,)), ("PID", "INT32", (1,))]
        two = "instance_group { count: 2 kind: KIND_CPU }"
        config = python_config(name, [("IN", "INT32", (1,))], outputs, extra_config=two)
        repository.add(name, config, {"1/model.py": SOURCE})
    return repository


def test_a_breakpoint_stops_the_model_and_no_other(repository):
    with RunningServer(repository.path, "--debug-model=debugged", has_input=True) as server:
        assert infer(server, "debugged", 1) == {"OUT": 1, "PID": server.pid}
        assert infer(server, "other", 1)["PID"] != server.pid or not is_available()
        # Two instances at one terminal would be a muddle.
        assert "| debugged | 1       | thread x 1 " in server.log
        answers = []
        asking = threading.Thread(target=lambda: answers.append(infer(server, "debugged", 7)))
        asking.start()
        try:
            # From Python 3.13 on the line shown is that of the breakpoint, before that the next one.
            server.wait_for_log("execute()")
            assert infer(server, "other", 2)["OUT"] == 2
            server.write("p 'the number is', int(number[0])\n")
            server.wait_for_log("('the number is', 7)")
            server.write("number[0] = 8\n")
            server.write("c\n")
        finally:
            asking.join(20)
        assert answers == [{"OUT": 8, "PID": server.pid}]
        assert infer(server, "debugged", 3)["OUT"] == 3


def test_a_model_that_is_not_there_cannot_be_debugged(repository):
    with pytest.raises(ServerStartError, match="--debug-model=absent: there is no such model in service"):
        RunningServer(repository.path, "--debug-model=absent").__enter__()
