"""What Python models do wrong, under a real server: it lives on, other models live on, and everyone is told."""

import contextlib
import http.client
import json
import os
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from merrow.places.process.system import is_available
from merrow.testing.repository_builder import RepositoryBuilder, python_config
from merrow.testing.running_server import RunningServer

pytestmark = [pytest.mark.skipif(not is_available(), reason="needs fork and Unix sockets"), pytest.mark.slow]

# What it does is the text of its one input.
MISCHIEF = """\
import ctypes
import multiprocessing
import os
import subprocess
import sys
import time

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            do = request.inputs()[0].as_numpy()[0].decode()
            result = getattr(self, do)(request)
            if isinstance(result, list):
                return result
            out = np.array([str(result).encode()], dtype=object)
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", out)]))
        return responses

    def pid(self, request):
        return os.getpid()

    def exit(self, request):
        os._exit(7)

    def segfault(self, request):
        print("just before", end="")
        ctypes.string_at(0)

    def leave(self, request):
        sys.exit("no more")

    def hang(self, request):
        print("about to hang")
        time.sleep(600)

    def hang_in_c(self, request):
        ctypes.PyDLL(None).usleep(ctypes.c_uint(600_000_000))

    def take_memory(self, request):
        return len(bytearray(1 << 33))

    def take_too_much_memory(self, request):
        return np.ones(1 << 40, np.uint8).sum()

    def print_for_ever(self, request):
        end = time.monotonic() + 0.7
        while time.monotonic() < end:
            os.write(1, b"spam " * 2000 + b"\\n")
        os.write(2, b"the last word\\n")
        return "done"

    def close_stdout(self, request):
        os.close(1)
        os.close(2)
        sys.stdout.close()
        return "closed"

    def fork(self, request):
        # The copy comes back as well, and would answer the same request.
        return "forked by %d" % os.getpid() if os.fork() else "copy"

    def fork_pool(self, request):
        with multiprocessing.get_context("fork").Pool(2) as pool:
            return sum(pool.map(abs, [-1, -2, -3]))

    def spawn_pool(self, request):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            return sum(pool.map(abs, [-1, -2, -3]))

    def spawn(self, request):
        return subprocess.check_output(["echo", "spawned"]).decode().strip()

    def wrong_count(self, request):
        return []

    def wrong_type(self, request):
        return [1]

    def wrong_shape(self, request):
        return [pb_utils.InferenceResponse([pb_utils.Tensor("OUT", np.zeros((3, 2), np.float32))])]

    def after_final(self, request):
        sender = request.get_response_sender()
        out = np.array([b"first"], dtype=object)
        sender.send(
            pb_utils.InferenceResponse([pb_utils.Tensor("OUT", out)]), pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
        )
        try:
            sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", out)]))
        except pb_utils.TritonModelException as error:
            print("refused:", error)
        return [None]

    def fail(self, request):
        raise ValueError("wrong on purpose")
"""


def line_of(text: str) -> int:
    """The number of the line of the model's file that holds this."""
    (number,) = [number for number, line in enumerate(MISCHIEF.splitlines(), 1) if text in line]
    return number


NOT_HEALTHY = "Stub process 'mischief_0' is not healthy."


@dataclass(frozen=True)
class Answer:
    status: int
    text: str


class Client:
    def __init__(self, server: RunningServer) -> None:
        self._url = server.http_url

    def get(self, path: str, method: str = "GET", body: str | None = None) -> Answer:
        with contextlib.closing(http.client.HTTPConnection(self._url, timeout=30)) as connection:
            connection.request(method, path, body)
            response = connection.getresponse()
            return Answer(response.status, response.read().decode())

    def ask(self, model: str, do: str) -> Answer:
        """The output, or the error."""
        body = json.dumps({"inputs": [{"name": "IN", "datatype": "BYTES", "shape": [1], "data": [do]}]})
        answer = self.get(f"/v2/models/{model}/infer", "POST", body)
        content = json.loads(answer.text)
        if answer.status == 200:
            return Answer(200, str(content["outputs"][0]["data"][0]))
        return Answer(answer.status, content["error"])

    def is_ready(self, model: str) -> bool:
        return self.get(f"/v2/models/{model}/ready").status == 200

    def wait_until_ready(self, model: str) -> None:
        wait_until(lambda: self.is_ready(model))

    def index(self, model: str) -> dict[str, str]:
        entries = json.loads(self.get("/v2/repository/index", "POST").text)
        (entry,) = [entry for entry in entries if entry["name"] == model]
        return entry


def wait_until(condition, timeout_seconds: float = 15) -> None:
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def add_model(repository: RepositoryBuilder, name: str, parameters: dict[str, str] | None = None) -> None:
    extra = "".join(
        f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n'
        for key, value in (parameters or {}).items()
    )
    config = python_config(name, [("IN", "BYTES", (1,))], [("OUT", "BYTES", (1,))], extra_config=extra)
    repository.add(name, config, {"1/model.py": MISCHIEF})


def is_alive(process_id: int) -> bool:
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    repository = RepositoryBuilder(tmp_path_factory.mktemp("models"))
    add_model(repository, "mischief", {"EXECUTION_TIMEOUT_SECONDS": "1.5", "MEMORY_LIMIT_MB": "200"})
    add_model(repository, "neighbour")
    settings = ("restart-delay-min-ms=10", "crash-loop-deaths=1000", "output-lines-per-second=100")
    with RunningServer(repository.path, *[f"--backend-config=python,{setting}" for setting in settings]) as server:
        yield server


@pytest.fixture
def client(server: RunningServer) -> Iterator[Client]:
    """Each test finds both models well, and leaves the neighbour as it was."""
    client = Client(server)
    client.wait_until_ready("mischief")
    neighbour = client.ask("neighbour", "pid")
    yield client
    assert client.ask("neighbour", "pid") == neighbour
    client.wait_until_ready("mischief")
    assert client.ask("mischief", "pid").status == 200


@pytest.mark.parametrize(
    ("do", "death"),
    [("exit", "with exit code 7"), ("segfault", "of signal 11 (SIGSEGV)")],
)
def test_a_death_fails_its_request_at_once_and_is_told(server, client, do, death):
    deaths = server.log.count(death)

    assert client.ask("mischief", do) == Answer(500, NOT_HEALTHY)
    server.wait_for_log(death, deaths + 1)


def test_a_crash_shows_where_the_model_was_and_loses_no_output(server, client):
    crashes = server.log.count("Fatal Python error: Segmentation fault")
    client.ask("mischief", "segfault")
    server.wait_for_log("died of signal 11", crashes + 1)

    log = server.log
    assert log.count("[mischief_0] just before") == crashes + 1
    line = line_of("string_at(0)")
    assert re.search(rf'\[mischief_0\]   File \\".*/mischief/1/model.py\\", line {line} in segfault', log)


def test_sys_exit_is_an_exception_like_any_other(client):
    before = client.ask("mischief", "pid")
    answer = client.ask("mischief", "leave")

    assert answer.status == 500
    assert "SystemExit: no more" in answer.text
    assert client.ask("mischief", "pid") == before


@pytest.mark.parametrize(("do", "code"), [("hang", "time.sleep(600)"), ("hang_in_c", "usleep")])
def test_a_model_that_hangs_is_made_to_say_where_and_replaced(server, client, do, code):
    before = client.ask("mischief", "pid")
    start = time.monotonic()
    answer = client.ask("mischief", do)
    taken = time.monotonic() - start

    assert answer == Answer(500, NOT_HEALTHY)
    assert 1.4 < taken < 4
    assert "execution time-out 1.5 s, memory limit 200 MB" in server.log
    server.wait_for_log("executes for more than its time-out of 1.5 s")
    server.wait_for_log(f'1/model.py\\", line {line_of(code)} in {do}')
    client.wait_until_ready("mischief")
    assert client.ask("mischief", "pid") != before


def test_a_model_that_was_stopped_is_replaced(server, client):
    process_id = int(client.ask("mischief", "pid").text)
    os.kill(process_id, signal.SIGSTOP)

    assert client.ask("mischief", "pid") == Answer(500, NOT_HEALTHY)
    wait_until(lambda: not is_alive(process_id))


@pytest.mark.parametrize("do", ["take_memory", "take_too_much_memory"])
def test_too_much_memory_is_an_error_of_the_model_alone(client, do):
    before = client.ask("mischief", "pid")
    answer = client.ask("mischief", do)

    assert answer.status == 500
    assert "MemoryError" in answer.text
    assert client.ask("mischief", "pid") == before


def test_endless_output_is_bounded_and_its_end_is_seen(server, client):
    lines = len(server.log.splitlines())
    assert client.ask("mischief", "print_for_ever") == Answer(200, "done")
    server.wait_for_log("of output were dropped")
    assert len(server.log.splitlines()) - lines < 350


def test_a_model_may_close_its_standard_output(client):
    before = client.ask("mischief", "pid")

    assert client.ask("mischief", "close_stdout") == Answer(200, "closed")
    assert client.ask("mischief", "pid") == before
    # The next test's model can print again.
    client.ask("mischief", "exit")


def test_a_copy_of_the_model_cannot_answer(server, client):
    before = client.ask("mischief", "pid")

    assert client.ask("mischief", "fork") == Answer(200, f"forked by {before.text}")
    server.wait_for_log("a process that the model forked returned from it, and ends here")
    assert client.ask("mischief", "pid") == before


@pytest.mark.parametrize(("do", "result"), [("spawn", "spawned"), ("fork_pool", "6"), ("spawn_pool", "6")])
def test_a_model_may_have_processes_of_its_own(client, do, result):
    before = client.ask("neighbour", "pid")

    assert client.ask("neighbour", do) == Answer(200, result)
    assert client.ask("neighbour", "pid") == before


@pytest.mark.parametrize(
    ("do", "text"),
    [
        (
            "wrong_count",
            "Number of InferenceResponse objects do not match the number of InferenceRequest objects. "
            "InferenceRequest(s) size is:1, and InferenceResponse(s) size is:0\n",
        ),
        (
            "wrong_type",
            "Expected an 'InferenceResponse' object in the execute function return list, found type '<class 'int'>'.",
        ),
    ],
)
def test_a_wrong_answer_fails_in_triton_s_words(client, do, text):
    prefix = "Failed to process the request(s) for model 'mischief_0', message: "

    assert client.ask("mischief", do) == Answer(500, prefix + text)


def test_wrong_shapes_and_datatypes_pass_as_in_triton(client):
    assert client.ask("mischief", "wrong_shape") == Answer(200, "0.0")


def test_a_response_after_the_final_one_is_refused_to_the_model(server, client):
    assert client.ask("mischief", "after_final") == Answer(200, "first")
    server.wait_for_log(
        "[mischief_0] refused: Unable to send response. Non-decoupled model cannot send more than one response."
    )


def test_a_traceback_names_the_model_s_own_line(server, client):
    answer = client.ask("mischief", "fail")

    assert answer.status == 500
    assert re.fullmatch(
        r"Failed to process the request\(s\) for model 'mischief_0', message: ValueError: wrong on purpose\n\n"
        r"At:\n  /.*/mischief/1/model\.py\(\d+\): fail\n  /.*/mischief/1/model\.py\(\d+\): execute\n",
        answer.text,
    )
    server.wait_for_log("wrong on purpose")


DYING = """\
import os
import time


class TritonPythonModel:
    def initialize(self, args):
        if os.path.exists(os.path.join(args["model_repository"], "doomed")):
            os._exit(3)
"""


def test_a_crash_loop_is_called_one_and_tried_seldom(tmp_path):
    repository = RepositoryBuilder(tmp_path)
    add_model(repository, "neighbour")
    directory = repository.add("dying", python_config("dying", [], []), {"1/model.py": DYING})
    settings = (
        "restart-delay-min-ms=10",
        "restart-delay-max-ms=20",
        "crash-loop-deaths=4",
        "crash-loop-window-seconds=30",
        "crash-loop-retry-seconds=1",
    )
    with RunningServer(repository.path, *[f"--backend-config=python,{setting}" for setting in settings]) as server:
        client = Client(server)
        (process_id,) = map(int, re.findall(r"instance 'dying_0' .* runs in process (\d+)", server.log))
        assert client.index("dying") == {"name": "dying", "version": "1", "state": "READY"}
        (directory / "doomed").touch()
        os.kill(process_id, signal.SIGKILL)
        server.wait_for_log("instance 'dying_0' is in a crash loop: its process died 4 times within")
        entry = client.index("dying")
        assert entry["state"] == "UNAVAILABLE"
        assert re.fullmatch(
            r"instance 'dying_0': crash loop: its process died 4 times within [\d.]+ s and is started again only every "
            r"1 s; the last start failed: Stub process 'dying_0' is not healthy\.",
            entry["reason"],
        )
        assert not client.is_ready("dying")
        assert client.get("/v2/health/ready").status == 400
        assert client.get("/v2/health/live").status == 200
        assert client.ask("neighbour", "pid").status == 200

        # Where the reason is gone, the model comes back by itself.
        (directory / "doomed").unlink()
        client.wait_until_ready("dying")
        assert client.index("dying") == {"name": "dying", "version": "1", "state": "READY"}


def test_nothing_is_left_behind_after_kill_9_of_the_server(tmp_path):
    repository = RepositoryBuilder(tmp_path)
    add_model(repository, "mischief")
    with RunningServer(repository.path) as server:
        client = Client(server)
        model = int(client.ask("mischief", "pid").text)
        below = processes_below(server.pid)
        assert model in below
        assert len(below) == 2
        os.kill(server.pid, signal.SIGKILL)
        wait_until(lambda: not any(map(is_alive, below)))


def processes_below(process_id: int) -> list[int]:
    found: list[int] = []
    for path in Path(f"/proc/{process_id}/task").glob("*/children"):
        for child in map(int, path.read_text().split()):
            found += [child, *processes_below(child)]
    return found
