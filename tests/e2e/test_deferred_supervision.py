"""Python models that hang after `execute` returned, with requests that they deferred, under a real server."""

import contextlib
import os
import queue
import signal
import time
from collections.abc import Iterator

import grpc
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc as service

from merrow.places.process.system import is_available
from merrow.testing.repository_builder import RepositoryBuilder, python_config
from merrow.testing.running_server import RunningServer

pytestmark = [pytest.mark.skipif(not is_available(), reason="needs fork and Unix sockets"), pytest.mark.slow]

TIMEOUT_SECONDS = 1.5
NOT_HEALTHY = "Stub process 'deferring_0' is not healthy."
FLOOD_COUNT = 64

# The first response says which process it is.
DEFERRING = """\
import os
import threading
import time

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            do = request.inputs()[0].as_numpy()[0].decode()
            sender = request.get_response_sender()
            if do == "flood in execute":
                self.run("flood", sender)
            else:
                threading.Thread(target=self.run, args=(do, sender), daemon=True).start()

    def run(self, do, sender):
        self.send(sender, str(os.getpid()))
        getattr(self, do)(sender)
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def send(self, sender, text):
        tensor = pb_utils.Tensor("OUT", np.array([text.encode()], dtype=object))
        sender.send(pb_utils.InferenceResponse([tensor]))

    def nothing(self, sender):
        pass

    def hang(self, sender):
        time.sleep(600)  # here it hangs

    def tick(self, sender):
        for number in range(8):
            time.sleep(0.4)
            self.send(sender, str(number))

    def flood(self, sender):
        for _ in range(FLOOD_COUNT):
            self.send(sender, "x" * 500_000)
""".replace("FLOOD_COUNT", str(FLOOD_COUNT))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    repository = RepositoryBuilder(tmp_path_factory.mktemp("models"))
    extra = (
        "model_transaction_policy { decoupled: true }\n"
        'parameters { key: "EXECUTION_TIMEOUT_SECONDS" '
        f'value {{ string_value: "{TIMEOUT_SECONDS}" }} }}\n'
    )
    config = python_config("deferring", [("IN", "BYTES", (1,))], [("OUT", "BYTES", (1,))], extra_config=extra)
    repository.add("deferring", config, {"1/model.py": DEFERRING})
    settings = ("restart-delay-min-ms=10", "crash-loop-deaths=1000")
    with RunningServer(repository.path, *[f"--backend-config=python,{setting}" for setting in settings]) as running:
        yield running


@contextlib.contextmanager
def stream(server: RunningServer, *requests: str) -> Iterator[Iterator[str]]:
    """The outputs, one after another, and the text of an error."""
    pending: queue.Queue[pb.ModelInferRequest | None] = queue.Queue()
    for do in requests:
        request = pb.ModelInferRequest(model_name="deferring")
        data = len(do).to_bytes(4, "little") + do.encode()
        request.inputs.add(name="IN", datatype="BYTES", shape=[1])
        request.raw_input_contents.append(data)
        pending.put(request)
    with grpc.insecure_channel(server.grpc_url) as channel:
        call = service.GRPCInferenceServiceStub(channel).ModelStreamInfer(iter(pending.get, None), timeout=60)
        yield (
            message.error_message or message.infer_response.raw_output_contents[0][4:].decode()
            for message in call
            if message.error_message or message.infer_response.raw_output_contents
        )
        pending.put(None)
        call.cancel()


def process_id(server: RunningServer) -> int:
    """Of the model, when it is there."""
    deadline = time.monotonic() + 15
    while True:
        with stream(server, "nothing") as outputs:
            text = next(outputs)
        if text.isdigit():
            return int(text)
        assert time.monotonic() < deadline


def test_a_thread_that_hangs_is_made_to_say_where_and_its_model_replaced(server: RunningServer):
    before = process_id(server)
    with stream(server, "hang") as outputs:
        assert next(outputs) == str(before)
        start = time.monotonic()
        assert next(outputs) == NOT_HEALTHY
        assert TIMEOUT_SECONDS - 0.1 < time.monotonic() - start < TIMEOUT_SECONDS + 2.5
    server.wait_for_log(
        "instance 'deferring_0' has sent no response to a request that it deferred for more than its time-out of 1.5 s"
    )
    (line,) = [number for number, text in enumerate(DEFERRING.splitlines(), 1) if "here it hangs" in text]
    server.wait_for_log(f'1/model.py\\", line {line} in hang')
    assert process_id(server) != before


def test_a_model_that_was_stopped_with_deferred_requests_alone_is_replaced(server: RunningServer):
    before = process_id(server)
    with stream(server, "hang", "hang") as outputs:
        assert [next(outputs), next(outputs)] == [str(before)] * 2
        os.kill(before, signal.SIGSTOP)
        assert [next(outputs), next(outputs)] == [NOT_HEALTHY] * 2
    assert process_id(server) != before


def test_each_response_begins_the_time_anew(server: RunningServer):
    before = process_id(server)
    with stream(server, "tick") as outputs:
        start = time.monotonic()
        assert [next(outputs) for _ in range(9)] == [str(before), *map(str, range(8))]
        assert time.monotonic() - start > 2 * TIMEOUT_SECONDS
    assert process_id(server) == before


@pytest.mark.parametrize("do", ["flood", "flood in execute"])
def test_no_time_runs_while_a_slow_client_holds_the_model_back(server: RunningServer, do: str):
    before = process_id(server)
    deaths = server.log.count("is killed")
    with stream(server, do) as outputs:
        assert next(outputs) == str(before)
        # The client does not read for longer than the time-out.
        end = time.monotonic() + 2 * TIMEOUT_SECONDS
        while time.monotonic() < end:
            time.sleep(0.01)
        assert server.log.count("is killed") == deaths
        assert [len(next(outputs)) for _ in range(FLOOD_COUNT)] == [500_000] * FLOOD_COUNT
    assert process_id(server) == before
