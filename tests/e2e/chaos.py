"""Chaos: mixed traffic over ten Python models while their processes are killed, stopped, crashed and reloaded.

    python -m tests.e2e.chaos --seconds 60          (make soak-processes)

Every request must be answered in time, with the right result or with an error that says what happened; afterwards every
model serves again, and the server holds no more descriptors, threads and processes than before, and hardly more memory.
"""

import argparse
import contextlib
import http.client
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
from tritonclient.grpc import service_pb2 as pb

from merrow.testing.repository_builder import PYTHON_IDENTITY_SOURCE, RepositoryBuilder, python_config
from merrow.testing.running_server import RunningServer

LONGEST_ANSWER_SECONDS = 15.0
WATCHDOG_SECONDS = 1
LARGE = 1 << 18
DIMS = 16

REPEAT = """\
import time

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            array = request.inputs()[0].as_numpy()
            for _ in range(3):
                sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT0", array)]))
                time.sleep(0.001)
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""
CALLING = """\
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            call = pb_utils.InferenceRequest(
                model_name="plain",
                requested_output_names=["OUTPUT0"],
                inputs=[pb_utils.Tensor("INPUT0", request.inputs()[0].as_numpy())],
            )
            answer = call.exec()
            if answer.has_error():
                responses.append(pb_utils.InferenceResponse(error=answer.error()))
            else:
                responses.append(pb_utils.InferenceResponse(answer.output_tensors()))
        return responses
"""
CALLING_ASYNC = """\
import asyncio

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    async def execute(self, requests):
        calls = [
            pb_utils.InferenceRequest(
                model_name=name,
                requested_output_names=["OUTPUT0"],
                inputs=[pb_utils.Tensor("INPUT0", request.inputs()[0].as_numpy())],
            )
            for request in requests
            for name in ("plain", "pair")
        ]
        answers = await asyncio.gather(*[call.async_exec() for call in calls])
        return [
            pb_utils.InferenceResponse(error=answer.error())
            if answer.has_error()
            else pb_utils.InferenceResponse(answer.output_tensors())
            for answer in answers[::2]
        ]
"""
SLOW = PYTHON_IDENTITY_SOURCE.replace("import trit", "import time\n\nimport trit").replace(
    "        return [", "        time.sleep(0.02)\n        return ["
)
NOISY = PYTHON_IDENTITY_SOURCE.replace(
    "        return [", '        print("executing", len(requests))\n        return ['
)
ASYNC = """\
import asyncio

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    async def execute(self, requests):
        calls = [
            pb_utils.InferenceRequest(
                model_name=name,
                requested_output_names=["OUTPUT0"],
                inputs=[pb_utils.Tensor("INPUT0", request.inputs()[0].as_numpy())],
            )
            for request in requests
            for name in ("plain", "pair")
        ]
        answers = await asyncio.gather(*[call.async_exec() for call in calls])
        return [
            pb_utils.InferenceResponse(error=answer.error())
            if answer.has_error()
            else pb_utils.InferenceResponse(answer.output_tensors())
            for answer in answers[::2]
        ]
"""
SLOW = PYTHON_IDENTITY_SOURCE.replace("import trit", "import time\n\nimport trit").replace(
    "        return [", "        time.sleep(0.02)\n        return ["
)
NOISY = PYTHON_IDENTITY_SOURCE.replace(
    "        return [", '        print("executing", len(requests))\n        return ['
)
FAILING = PYTHON_IDENTITY_SOURCE.replace(
    "        return [",
    '        if requests[0].request_id() == "fail":\n            raise ValueError("on purpose")\n        return [',
)
ASYNC = PYTHON_IDENTITY_SOURCE.replace("    def execute", "    async def execute")

TWO = "instance_group { count: 2 kind: KIND_CPU }\n"
BATCHING = "dynamic_batching { max_queue_delay_microseconds: 500 }\n"
DECOUPLED = "model_transaction_policy { decoupled: true }\n"
SOURCES = {
    "plain": (PYTHON_IDENTITY_SOURCE, ""),
    "pair": (PYTHON_IDENTITY_SOURCE, TWO),
    "batching": (PYTHON_IDENTITY_SOURCE, BATCHING + TWO),
    "large": (PYTHON_IDENTITY_SOURCE, ""),
    "slow": (SLOW, TWO),
    "noisy": (NOISY, ""),
    "asynchronous": (ASYNC, ""),
    "repeat": (REPEAT, DECOUPLED),
    "calling": (CALLING, ""),
    "calling_async": (CALLING_ASYNC, ""),
}
UNARY = [name for name in SOURCES if name != "repeat"]

# What a client may be told, and nothing else.
EXCUSES = (
    "is not healthy",  # the process died with the request
    "is not ready",  # a called model is being started again
    "has no available versions",  # in the moment of a reload
)


def build_repository(path: Path) -> RepositoryBuilder:
    repository = RepositoryBuilder(path)
    for name, (source, extra) in SOURCES.items():
        dims = [-1] if name == "large" else [DIMS]
        max_batch_size = 8 if "dynamic" in extra else 0
        config = python_config(name, [("INPUT0", "FP32", dims)], [("OUTPUT0", "FP32", dims)], max_batch_size, extra)
        repository.add(name, config, {"1/model.py": source})
    return repository


def input_of(model: str, number: int) -> np.ndarray:
    if model == "large":
        return np.full(LARGE, number, np.float32)
    shape = (1, DIMS) if model == "batching" else (DIMS,)
    return np.full(shape, number, np.float32)


@dataclass(slots=True)
class Report:
    """What happened, counted."""

    answers: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    deeds: Counter[str] = field(default_factory=Counter)
    longest_seconds: float = 0.0
    before: dict[str, int] = field(default_factory=dict)
    after: dict[str, int] = field(default_factory=dict)
    exit_code: int | None = None
    left_behind: list[int] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        yield f"answers  {sum(self.answers.values())}: {dict(self.answers)}"
        yield f"errors   {sum(self.errors.values())}: {dict(self.errors)}"
        yield f"deeds    {sum(self.deeds.values())}: {dict(self.deeds)}"
        yield f"longest  {self.longest_seconds:.2f} s"
        yield f"before   {self.before}"
        yield f"after    {self.after}"
        yield f"exit     {self.exit_code}, left behind {self.left_behind}, wrong {self.wrong[:5]}"


class HttpClient:
    kind = "http"

    def __init__(self, server: RunningServer) -> None:
        self._connection = http.client.HTTPConnection(server.http_url, timeout=LONGEST_ANSWER_SECONDS)

    def ask(self, model: str, array: np.ndarray) -> list[np.ndarray] | str:
        """The outputs, or the error."""
        shape = ",".join(map(str, array.shape))
        tensor = (
            f'"name":"INPUT0","datatype":"FP32","shape":[{shape}],"parameters":{{"binary_data_size":{array.nbytes}}}'
        )
        head = f'{{"inputs":[{{{tensor}}}],"parameters":{{"binary_data_output":true}}}}'.encode()
        headers = {"Inference-Header-Content-Length": str(len(head))}
        self._connection.request("POST", f"/v2/models/{model}/infer", head + array.tobytes(), headers)
        response = self._connection.getresponse()
        body = response.read()
        if response.status != 200:
            return str(json.loads(body)["error"])
        return [np.frombuffer(body[int(response.headers["Inference-Header-Content-Length"]) :], np.float32)]

    def close(self) -> None:
        self._connection.close()


class GrpcClient:
    kind = "grpc"

    def __init__(self, server: RunningServer) -> None:
        self._channel = grpc.insecure_channel(
            server.grpc_url, options=[("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
        )
        service = "/inference.GRPCInferenceService/"
        self._infer = self._channel.unary_unary(
            f"{service}ModelInfer", pb.ModelInferRequest.SerializeToString, pb.ModelInferResponse.FromString
        )
        self._stream = self._channel.stream_stream(
            f"{service}ModelStreamInfer", pb.ModelInferRequest.SerializeToString, pb.ModelStreamInferResponse.FromString
        )

    def ask(self, model: str, array: np.ndarray) -> list[np.ndarray] | str:
        request = pb.ModelInferRequest(model_name=model, raw_input_contents=[array.tobytes()])
        request.inputs.add(name="INPUT0", datatype="FP32", shape=array.shape)
        try:
            if model == "repeat":
                return self._ask_for_many(request)
            response = self._infer(request, timeout=LONGEST_ANSWER_SECONDS)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise
            return str(error.details())
        return [np.frombuffer(response.raw_output_contents[0], np.float32)]

    def _ask_for_many(self, request: pb.ModelInferRequest) -> list[np.ndarray] | str:
        request.parameters["triton_enable_empty_final_response"].bool_param = True
        arrays = []
        for response in self._stream(iter([request]), timeout=LONGEST_ANSWER_SECONDS):
            if response.error_message:
                return response.error_message
            answer = response.infer_response
            arrays += [np.frombuffer(content, np.float32) for content in answer.raw_output_contents]
            if answer.parameters["triton_final_response"].bool_param:
                assert len(arrays) == 3, f"{len(arrays)} responses"
        return arrays

    def close(self) -> None:
        self._channel.close()


class Traffic:
    """Clients that ask without pause until told to stop."""

    def __init__(self, server: RunningServer, report: Report) -> None:
        self._server = server
        self._report = report
        self._lock = threading.Lock()
        self._is_over = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(
        self, new_client: Callable[[RunningServer], HttpClient | GrpcClient], models: list[str], seed: int
    ) -> None:
        thread = threading.Thread(target=self._run, args=(new_client, models, random.Random(seed)))
        self._threads.append(thread)
        thread.start()

    def stop(self) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join(LONGEST_ANSWER_SECONDS * 2)
            if thread.is_alive():
                self._report.wrong.append("a request hangs")

    def _run(
        self, new_client: Callable[[RunningServer], HttpClient | GrpcClient], models: list[str], rng: random.Random
    ) -> None:
        client = new_client(self._server)
        number = 0
        while not self._is_over.is_set():
            model = rng.choice(models)
            number = (number + 1) % 1000
            array = input_of(model, number)
            start = time.monotonic()
            try:
                answer = client.ask(model, array)
            except Exception as error:
                with self._lock:
                    self._report.wrong.append(f"{client.kind} {model}: {error!r}")
                client.close()
                client = new_client(self._server)
                continue
            taken = time.monotonic() - start
            with self._lock:
                self._report.longest_seconds = max(self._report.longest_seconds, taken)
                self._count(client.kind, model, array, answer)
            if isinstance(answer, str):
                # A client that is told that its model is away does not ask again at once.
                self._is_over.wait(0.02)
        client.close()

    def _count(self, kind: str, model: str, array: np.ndarray, answer: list[np.ndarray] | str) -> None:
        if isinstance(answer, str):
            excuse = next((excuse for excuse in EXCUSES if excuse in answer), None)
            if excuse is None:
                self._report.wrong.append(f"{kind} {model}: {answer}")
            else:
                self._report.errors[excuse] += 1
        elif all(np.array_equal(each, array.reshape(-1)) for each in answer):
            self._report.answers[f"{kind} {'decoupled' if model == 'repeat' else 'unary'}"] += 1
        else:
            self._report.wrong.append(f"{kind} {model}: a wrong result")


class Chaos:
    """Does things to the server's processes."""

    def __init__(self, server: RunningServer, repository: RepositoryBuilder, report: Report, seed: int) -> None:
        self._server = server
        self._repository = repository
        self._report = report
        self._rng = random.Random(seed)

    def run(self, seconds: float) -> None:
        deeds = [self._kill, self._kill, self._stop, self._crash, self._reload, self._kill_fork_server]
        end = time.monotonic() + seconds
        pause = threading.Event()
        while time.monotonic() < end:
            deed = self._rng.choices(deeds, [6, 6, 4, 3, 3, 0.3])[0]
            with contextlib.suppress(ProcessLookupError):
                deed()
                self._report.deeds[deed.__name__.strip("_")] += 1
            pause.wait(self._rng.uniform(0.05, 0.4))

    def _child(self) -> int:
        children = [child for server in children_of(self._server.pid) for child in children_of(server)]
        if not children:
            raise ProcessLookupError
        return self._rng.choice(children)

    def _kill(self) -> None:
        os.kill(self._child(), signal.SIGKILL)

    def _stop(self) -> None:
        os.kill(self._child(), signal.SIGSTOP)

    def _crash(self) -> None:
        os.kill(self._child(), signal.SIGSEGV)

    def _reload(self) -> None:
        name = self._rng.choice(list(SOURCES))
        os.utime(self._repository.path / name / "1" / "model.py")
        with contextlib.closing(http.client.HTTPConnection(self._server.http_url, timeout=60)) as connection:
            connection.request("POST", f"/v2/repository/models/{name}/load", "{}")
            # A load may fail, if its process was killed meanwhile; what served before still does.
            connection.getresponse().read()

    def _kill_fork_server(self) -> None:
        os.kill(children_of(self._server.pid)[0], signal.SIGKILL)


def run_chaos(seconds: float, folder: Path, seed: int = 1) -> Report:
    """Run everything once."""
    report = Report()
    repository = build_repository(folder / "models")
    settings = {
        "execution-timeout-seconds": WATCHDOG_SECONDS,
        "restart-delay-min-ms": 10,
        "restart-delay-max-ms": 200,
        # Death is the rule here.
        "crash-loop-deaths": 1_000_000,
        "output-lines-per-second": 20,
    }
    arguments = [f"--backend-config=python,{name}={value}" for name, value in settings.items()]
    arguments += ["--model-control-mode=explicit", "--load-model=*"]
    with RunningServer(repository.path, *arguments) as server:
        warm_up(server, report)
        report.before = held_by(server.pid)
        traffic = Traffic(server, report)
        for index in range(3):
            traffic.start(HttpClient, UNARY, seed + index)
        traffic.start(GrpcClient, UNARY, seed + 10)
        traffic.start(GrpcClient, ["repeat", "plain"], seed + 11)
        try:
            Chaos(server, repository, report, seed).run(seconds)
        finally:
            traffic.stop()
        for process_id in processes_below(server.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process_id, signal.SIGCONT)
        wait_until_all_serve(server, report)
        report.after = settle(server.pid, report.before)
        below = processes_below(server.pid)
        report.exit_code = server.stop()
    deadline = time.monotonic() + 5
    while (left := [each for each in below if Path(f"/proc/{each}").exists()]) and time.monotonic() < deadline:
        time.sleep(0.05)
    report.left_behind = left
    return report


def check(report: Report) -> None:
    """Raises AssertionError for whatever must not be."""
    assert report.wrong == [], report.wrong[:5]
    assert report.longest_seconds < LONGEST_ANSWER_SECONDS
    assert sum(report.answers.values()) > sum(report.deeds.values())
    assert set(report.answers) == {"http unary", "grpc unary", "grpc decoupled"}
    assert report.after["descriptors"] <= report.before["descriptors"] + 3
    # A page for each instance, and the segments of those with large tensors.
    assert report.after["segments"] <= report.before["segments"] + 4
    assert report.after["processes"] == report.before["processes"]
    assert report.after["threads"] <= report.before["threads"] + 4
    assert report.after["memory_mib"] <= report.before["memory_mib"] + 48
    assert report.exit_code == 0
    assert report.left_behind == []


def warm_up(server: RunningServer, report: Report) -> None:
    """Every model over both protocols, so that what is made once has been made."""
    for new_client in (HttpClient, GrpcClient):
        client = new_client(server)
        for _ in range(20):
            for model in SOURCES if new_client is GrpcClient else UNARY:
                answer = client.ask(model, input_of(model, 1))
                assert not isinstance(answer, str), f"{model}: {answer}"
        client.close()


def wait_until_all_serve(server: RunningServer, report: Report) -> None:
    client = GrpcClient(server)
    deadline = time.monotonic() + 30
    for model in SOURCES:
        # A stopped process that nobody asked anything is found out only now.
        while isinstance(answer := client.ask(model, input_of(model, 1)), str):
            if time.monotonic() > deadline:
                report.wrong.append(f"{model} does not come back: {answer}")
                break
            time.sleep(0.05)
    client.close()


def children_of(process_id: int) -> list[int]:
    children: list[int] = []
    for path in Path(f"/proc/{process_id}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            children += map(int, path.read_text().split())
    return children


def processes_below(process_id: int) -> list[int]:
    return [each for child in children_of(process_id) for each in (child, *processes_below(child))]


def descriptor_paths(process_id: int) -> list[Path]:
    return [path for path in Path(f"/proc/{process_id}/fd").iterdir() if os.path.lexists(path)]


def _target(path: Path) -> str | None:
    """What a descriptor is; None if it was closed since."""
    try:
        return os.readlink(path)
    except FileNotFoundError:
        return None


def held_by(process_id: int) -> dict[str, int]:
    """What the server's process holds, and how many are below it."""
    resident = int(Path(f"/proc/{process_id}/statm").read_text().split()[1])
    targets = [target for path in descriptor_paths(process_id) if (target := _target(path)) is not None]
    segments = sum("memfd:" in target for target in targets)
    return {
        "segments": segments,
        "descriptors": len(targets) - segments,
        "threads": len(os.listdir(f"/proc/{process_id}/task")),
        "processes": len(processes_below(process_id)),
        "memory_mib": resident * os.sysconf("SC_PAGE_SIZE") >> 20,
    }


def settle(process_id: int, before: dict[str, int]) -> dict[str, int]:
    """What is held once connections are closed and memory is given back."""
    deadline = time.monotonic() + 15
    while True:
        after = held_by(process_id)
        if after["descriptors"] <= before["descriptors"] and after["processes"] == before["processes"]:
            return after
        if time.monotonic() > deadline:
            return after
        time.sleep(0.1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = run_chaos(options.seconds, Path(folder), options.seed)
    print("\n".join(report.lines()))
    check(report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
