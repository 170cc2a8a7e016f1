"""What Python models may do, through the published clients: streams, calls, metrics, control, readiness."""

import contextlib
import os
import queue
import shutil
import signal
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import InferenceServerException

from merrow.testing.repository_builder import RepositoryBuilder, python_config
from merrow.testing.running_server import RunningServer

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[1] / "oracle" / "models" / "python_backend"
USED_EXAMPLES = (
    "add_sub",
    "async_decoupled",
    "auto_batched",
    "bls_async",
    "bls_decoupled_async",
    "bls_decoupled_sync",
    "bls_sync",
    "custom_metrics",
    "generative",
    "probe",
    "raw_probe",
    "repeat_int32",
    "square_int32",
)

# Executes what it is told: waits until its client has gone, or calls a model that does, or itself.
TOLD = """\
import os
import threading
import time

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.name = args["model_name"]
        self.says_ready = True
        self.kept = []

    def is_ready(self):
        if self.says_ready == "slow":
            time.sleep(0.2)
        return bool(self.says_ready)

    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            what = pb_utils.get_input_tensor_by_name(request, "WHAT").as_numpy()[0].decode()
            getattr(self, what)(request, sender)

    def wait(self, request, sender):
        threading.Thread(target=self.wait_for_end, args=(sender,), daemon=True).start()

    def wait_for_end(self, sender):
        sender.send(response("waiting"))
        while not sender.is_cancelled():
            time.sleep(0.002)
        print(f"{self.name} gave up", flush=True)
        sender.send(
            pb_utils.InferenceResponse(error=pb_utils.TritonError("gone", pb_utils.TritonError.CANCELLED)), flags=1
        )

    def call_waiter(self, request, sender):
        for answer in call("waiter", "wait").exec(decoupled=True):
            if answer.has_error():
                print(f"{self.name} heard {answer.error().message()}", flush=True)
            else:
                sender.send(response("called"))
        sender.send(flags=1)

    def flood(self, request, sender):
        for number in range(200):
            sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", np.full(200_000, number, np.uint8))]))
        print(f"{self.name} has flooded", flush=True)
        sender.send(flags=1)

    def call_itself(self, request, sender):
        (answer, *_) = call(self.name, "call_itself").exec(decoupled=True)
        sender.send(response(answer.error().message()), flags=1)

    def forget(self, request, sender):
        sender.send(response("and then?"))

    def die(self, request, sender):
        sender.send(response("before"))
        self.kept.append(sender)

    def exit(self, request, sender):
        os._exit(1)

    def be_ready(self, request, sender):
        self.says_ready = True
        sender.send(flags=1)

    def be_slow(self, request, sender):
        self.says_ready = "slow"
        sender.send(flags=1)

    def be_unready(self, request, sender):
        self.says_ready = False
        sender.send(flags=1)


def response(text):
    return pb_utils.InferenceResponse([pb_utils.Tensor("OUT", np.frombuffer(text.encode(), np.uint8))])


def call(model_name, what):
    return pb_utils.InferenceRequest(
        model_name=model_name,
        requested_output_names=[],
        inputs=[pb_utils.Tensor("WHAT", np.array([what.encode()], dtype=np.object_))],
    )
"""


def told_config(name: str, extra: str = "") -> str:
    config = python_config(name, [("WHAT", "STRING", (1,))], [("OUT", "UINT8", (-1,))])
    return f"{config}\nmodel_transaction_policy {{ decoupled: true }}\n{extra}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("python") / "models"
    for name in USED_EXAMPLES:
        shutil.copytree(EXAMPLES / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    repository = RepositoryBuilder(folder)
    for name in ("told", "waiter"):
        repository.add(name, told_config(name), {"1/model.py": TOLD})
    for name in ("bls_sync", "bls_decoupled_async"):
        source = (folder / name / "1" / "model.py").read_text()
        config = (folder / name / "config.pbtxt").read_text().replace(name, f"threaded_{name}")
        config += 'parameters { key: "EXECUTION_PLACE" value { string_value: "thread" } }'
        repository.add(f"threaded_{name}", config, {"1/model.py": source})
    with RunningServer(repository.path, "--model-control-mode=explicit", "--load-model=*") as server:
        yield server


@pytest.fixture
def http(server: RunningServer) -> Iterator[httpclient.InferenceServerClient]:
    with contextlib.closing(httpclient.InferenceServerClient(server.http_url)) as client:
        yield client


def http_input(name: str, array: np.ndarray) -> httpclient.InferInput:
    datatype = {"f": "FP32", "i": "INT32", "O": "BYTES", "d": "FP64"}[array.dtype.char]
    tensor = httpclient.InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array)
    return tensor


def text(value: str) -> np.ndarray:
    return np.array([value.encode()], dtype=np.object_)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


class Stream:
    """One request on a stream of its own, and what comes back."""

    def __init__(self, server: RunningServer, model: str, **inputs: np.ndarray) -> None:
        self._client = grpcclient.InferenceServerClient(server.grpc_url)
        self._news: queue.Queue[tuple[grpcclient.InferResult | None, Exception | None]] = queue.Queue()
        self._client.start_stream(lambda result, error: self._news.put((result, error)))
        tensors = []
        for name, array in inputs.items():
            datatype = {"i": "INT32", "I": "UINT32", "O": "BYTES"}[array.dtype.char]
            tensors.append(grpcclient.InferInput(name, list(array.shape), datatype))
            tensors[-1].set_data_from_numpy(array)
        self._client.async_stream_infer(model, tensors, enable_empty_final_response=True)

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *error: object) -> None:
        self.cancel()
        self._client.close()

    def next(self) -> tuple[grpcclient.InferResult | None, Exception | None]:
        return self._news.get(timeout=20)

    def cancel(self) -> None:
        stream = self._client._stream
        if stream is not None:
            self._client.stop_stream(cancel_requests=True)
            # The thread that sends waits for more; the client forgets it.
            stream._request_queue.put(None)

    def outputs(self, name: str) -> list[list[int]]:
        """Of every response until the final one."""
        found = []
        while True:
            result, error = self.next()
            assert error is None, error
            assert result is not None
            if result.as_numpy(name) is not None:
                found.append(result.as_numpy(name).reshape(-1).tolist())
            if result.get_response().parameters["triton_final_response"].bool_param:
                return found


def test_models_call_models(server: RunningServer, http: httpclient.InferenceServerClient):
    ones = [http_input(f"INPUT{number}", np.full(4, number + 1, np.float32)) for number in range(2)]
    for model in ("bls_sync", "threaded_bls_sync"):
        result = http.infer(model, [http_input("MODEL_NAME", text("add_sub")), *ones])
        assert result.as_numpy("OUTPUT0").tolist() == [3] * 4
        assert result.as_numpy("OUTPUT1").tolist() == [-1] * 4
        with pytest.raises(InferenceServerException, match="Model 'nothing' is not ready"):
            http.infer(model, [http_input("MODEL_NAME", text("nothing")), *ones])
    assert http.infer("bls_async", ones).as_numpy("OUTPUT0").tolist() == [3] * 4
    for model, count in (("bls_decoupled_sync", 25), ("bls_decoupled_async", 50), ("threaded_bls_decoupled_async", 50)):
        assert http.infer(model, [http_input("IN", ints(5))]).as_numpy("SUM").tolist() == [count]


def test_decoupled_models_answer_any_number_of_times(server: RunningServer):
    for model, inputs, expected in (
        ("square_int32", {"IN": ints(3)}, [[3], [3], [3]]),
        ("square_int32", {"IN": ints(0)}, []),
        ("async_decoupled", {"IN": ints(3)}, [[3], [2], [1]]),
        ("generative", {"IN": ints(3).reshape(1, 1)}, [[3], [2], [1]]),
        (
            "repeat_int32",
            {"IN": ints(7, 8), "DELAY": np.array([1, 2], np.uint32), "WAIT": np.array([0], np.uint32)},
            [[7], [8]],
        ),
    ):
        with Stream(server, model, **inputs) as stream:
            assert stream.outputs("OUT") == expected


def test_large_tensors_pass_from_model_to_model(http: httpclient.InferenceServerClient):
    source = (
        "big = pb_utils.Tensor('SOURCE', np.array([b'result = [text(chr(120) * 3_000_000)]'], object))\n"
        "r = pb_utils.InferenceRequest(model_name='raw_probe', inputs=[big], requested_output_names=[])\n"
        "result = [len(r.exec().output_tensors()[0].as_numpy()[0]) for _ in range(3)]"
    )
    result = http.infer("probe", [http_input("SOURCE", text(source))])
    assert result.as_numpy("RESULT")[0] == b"[3000000, 3000000, 3000000]"


def test_a_ring_of_calls_is_an_error_and_no_hang(server: RunningServer):
    with Stream(server, "told", WHAT=text("call_itself")) as stream:
        (said,) = stream.outputs("OUT")
        assert bytes(said).decode() == (
            "Model told - Error when running inference: the call would never end, because every instance of model "
            "'told' waits for it: told -> told"
        )


def test_a_client_that_leaves_is_seen_by_the_model_and_by_those_it_calls(server: RunningServer):
    with Stream(server, "told", WHAT=text("wait")) as stream:
        stream.next()
        stream.cancel()
        server.wait_for_log("told gave up")
    with Stream(server, "told", WHAT=text("call_waiter")) as stream:
        stream.next()
        stream.cancel()
        server.wait_for_log("waiter gave up")
        server.wait_for_log("told heard gone")


def test_a_slow_client_makes_the_model_wait(server: RunningServer):
    request = pb.ModelInferRequest(model_name="told")
    request.inputs.add(name="WHAT", datatype="BYTES", shape=[1]).contents.bytes_contents.append(b"flood")
    is_over = threading.Event()

    def requests() -> Iterator[pb.ModelInferRequest]:
        yield request
        is_over.wait(30)

    with grpc.insecure_channel(server.grpc_url) as channel:
        stream_infer = channel.stream_stream(
            "/inference.GRPCInferenceService/ModelStreamInfer",
            pb.ModelInferRequest.SerializeToString,
            pb.ModelStreamInferResponse.FromString,
        )
        call = stream_infer(requests())
        next(call)
        # While nothing is read of 40 MB, another model is served, and this one does not get to its end.
        with Stream(server, "square_int32", IN=ints(1)) as stream:
            assert stream.outputs("OUT") == [[1]]
        assert "told has flooded" not in server.log
        values = [next(call).infer_response.raw_output_contents[0][0] for _ in range(199)]
        assert values == list(range(1, 200))
        server.wait_for_log("told has flooded")
        is_over.set()
        call.cancel()


def test_a_request_that_its_model_forgets_ends_with_an_error(
    server: RunningServer, http: httpclient.InferenceServerClient
):
    with Stream(server, "told", WHAT=text("forget")) as stream:
        result, _ = stream.next()
        assert result is not None
        _, error = stream.next()
        assert "dropped the response sender of a request without the final flag" in str(error)
    with pytest.raises(InferenceServerException, match="dropped its response sender without sending a response"):
        http.infer("raw_probe", [http_input("SOURCE", text("result = [None]"))])


def test_streams_end_with_the_process_of_their_model(server: RunningServer):
    with Stream(server, "waiter", WHAT=text("die")) as stream:
        stream.next()
        with Stream(server, "waiter", WHAT=text("exit")) as other:
            _, error = other.next()
            assert "Stub process 'waiter" in str(error)
        _, error = stream.next()
        assert "Stub process 'waiter" in str(error)
    server.wait_for_log("instance 'waiter_0' was restarted")


def test_metrics_of_a_model_are_shown_until_it_is_gone(server: RunningServer, http: httpclient.InferenceServerClient):
    def shown() -> list[str]:
        with urllib.request.urlopen(f"http://{server.metrics_url}/metrics") as page:
            return [line for line in page.read().decode().splitlines() if "requests_processed" in line]

    amount = http_input("AMOUNT", np.array([1.5]))
    for count in (1, 2):
        assert http.infer("custom_metrics", [amount]).as_numpy("VALUES").tolist() == [count, 1.5]
    assert shown() == [
        "# HELP requests_processed Requests that the model has processed",
        "# TYPE requests_processed counter",
        'requests_processed{model="custom_metrics",version="1"} 2',
    ]
    http.unload_model("custom_metrics")
    server.wait_for_log("successfully unloaded 'custom_metrics'")
    assert shown() == []


def test_models_load_and_unload_models(http: httpclient.InferenceServerClient):
    def run(source: str) -> str:
        return http.infer("probe", [http_input("SOURCE", text(source))]).as_numpy("RESULT")[0].decode()

    assert run("pb_utils.unload_model('square_int32'); result = pb_utils.is_model_ready('square_int32')") == "False"
    assert not http.is_model_ready("square_int32")
    assert run("pb_utils.load_model('square_int32'); result = pb_utils.is_model_ready('square_int32')") == "True"
    assert http.is_model_ready("square_int32")
    assert run("pb_utils.load_model('nothing')").startswith(
        "TritonModelException: Failed to load model: Failed to process the request for model 'probe_0_0', message: "
    )


def test_a_model_says_itself_whether_it_is_ready(server: RunningServer, http: httpclient.InferenceServerClient):
    def tell(what: str) -> None:
        with Stream(server, "told", WHAT=text(what)) as stream:
            stream.outputs("OUT")

    with contextlib.closing(grpcclient.InferenceServerClient(server.grpc_url)) as grpc_client:
        for what, is_ready in (("be_unready", False), ("be_slow", True), ("be_unready", False), ("be_ready", True)):
            tell(what)
            assert http.is_model_ready("told") is is_ready
            assert grpc_client.is_model_ready("told") is is_ready
            assert http.is_server_ready() is is_ready
            assert grpc_client.is_server_ready() is is_ready


def test_a_logger_writes_to_the_servers_log_with_the_instances_name(
    server: RunningServer, http: httpclient.InferenceServerClient
):
    http.infer("probe", [http_input("SOURCE", text("pb_utils.Logger.log_warn('a line of its own')"))])
    server.wait_for_log("[probe_0_0] a line of its own")


def test_the_server_ends_in_time_while_models_wait_for_clients(tmp_path: Path):
    repository = RepositoryBuilder(tmp_path)
    repository.add("told", told_config("told"), {"1/model.py": TOLD})
    with (
        RunningServer(repository.path, "--exit-timeout-secs=1") as server,
        Stream(server, "told", WHAT=text("wait")) as stream,
    ):
        stream.next()
        os.kill(server.pid, signal.SIGTERM)
        assert server.wait() in (0, 1)
