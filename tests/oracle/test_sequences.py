"""Sequences on the real Triton and on merrow: the same requests, one after another, get the same answers and errors.

Each scenario is a script of requests for one model, run on both servers; what it returns is compared whole. Differences
that are meant are taken out where they arise, with the reason.
"""

import http.client
import json
import pathlib
import queue
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tritonclient.grpc

from tests.oracle import real_triton
from tests.oracle.availability import install_or_skip
from tests.oracle.server_process import ADDRESS, ServerProcess, start_merrow, start_real_triton

pytestmark = pytest.mark.slow

CODE_FOLDER = pathlib.Path(__file__).parent / "models"
WIDTH = 9

IDLE_SECONDS = 0.4
BACKLOG_TIMEOUT_US = 150_000


def control(name: str, values: str = "int32_false_true: [ 0, 1 ]") -> str:
    return f'control_input {{ name: "{name}" control {{ kind: CONTROL_SEQUENCE_{name} {values} }} }}\n'


def controls(values: str = "int32_false_true: [ 0, 1 ]", correlation_id: str = "TYPE_UINT64") -> str:
    booleans = "".join(control(name, values) for name in ("START", "END", "READY"))
    return booleans + control("CORRID", f"data_type: {correlation_id}")


STATE = """
state { input_name: "STATE_IN" output_name: "STATE_OUT" data_type: TYPE_INT32 dims: [ 1 ]
  initial_state { name: "start" data_type: TYPE_INT32 dims: [ 1 ] zero_data: true } }
"""

# name -> (max_batch_size, what sequence_batching holds)
MODELS = {
    "direct": (4, controls()),
    "direct_alone": (0, controls()),
    "direct_one_slot": (1, controls()),
    "direct_fp32": (4, controls("fp32_false_true: [ 0, 1 ]", "TYPE_INT64")),
    "direct_bool": (4, controls("bool_false_true: [ false, true ]", "TYPE_UINT32")),
    "direct_swapped": (4, controls("int32_false_true: [ 5, 7 ]", "TYPE_INT32")),
    "direct_plain": (4, ""),
    "oldest": (4, "oldest { max_candidate_sequences: 2 }\n" + controls()),
    "oldest_alone": (0, "oldest { max_candidate_sequences: 2 }\n" + controls()),
    "oldest_order": (4, "oldest { max_candidate_sequences: 4 preserve_ordering: true }\n" + controls()),
    "idle": (1, f"max_sequence_idle_microseconds: {int(IDLE_SECONDS * 1e6)}\n" + controls()),
    "idle_oldest": (
        1,
        f"max_sequence_idle_microseconds: {int(IDLE_SECONDS * 1e6)}\noldest {{ max_candidate_sequences: 1 }}\n"
        + controls(),
    ),
    "state": (4, controls() + STATE),
}


def config_text(max_batch_size: int, batching: str) -> str:
    if "max_sequence_idle_microseconds" not in batching:
        batching = "max_sequence_idle_microseconds: 20000000\n" + batching
    return f"""
backend: "python"
max_batch_size: {max_batch_size}
input {{ name: "IN" data_type: TYPE_INT32 dims: [ 1 ] }}
output {{ name: "OUT" data_type: TYPE_INT64 dims: [ {WIDTH} ] }}
instance_group {{ kind: KIND_CPU count: 1 }}
sequence_batching {{
{batching}}}
"""


def countdown_text(is_decoupled: bool, batching: str) -> str:
    return f"""
backend: "python"
max_batch_size: 0
model_transaction_policy {{ decoupled: {str(is_decoupled).lower()} }}
input {{ name: "IN" data_type: TYPE_INT32 dims: [ 1 ] }}
output {{ name: "OUT" data_type: TYPE_INT64 dims: [ 2 ] }}
instance_group {{ kind: KIND_CPU count: 1 }}
sequence_batching {{ iterative_sequence: true max_sequence_idle_microseconds: 20000000 {batching} }}
"""


def build(folder: pathlib.Path) -> list[str]:
    """Write the repository; returns the names of its models."""
    names = {name: ("sequence_view.py", config_text(*settings)) for name, settings in MODELS.items()}
    for is_decoupled in (True, False):
        for strategy, batching in (("direct", ""), ("oldest", "oldest { max_candidate_sequences: 2 }")):
            name = f"countdown_{'decoupled' if is_decoupled else 'single'}_{strategy}"
            names[name] = ("countdown.py", countdown_text(is_decoupled, batching))
    for name, (code, text) in names.items():
        (folder / name / "1").mkdir(parents=True)
        (folder / name / "config.pbtxt").write_text(f'name: "{name}"\n{text}')
        shutil.copyfile(CODE_FOLDER / code, folder / name / "1" / "model.py")
    return list(names)


class Client:
    """Requests to one of the servers."""

    def __init__(self, server: ServerProcess, grpc_port: int) -> None:
        self.server = server
        self._port = server.ports.http
        self._grpc_url = f"{ADDRESS}:{grpc_port}"

    def call(self, method: str, path: str, content: object = None) -> tuple[int, object]:
        connection = http.client.HTTPConnection(ADDRESS, self._port, timeout=30)
        try:
            connection.request(method, path, None if content is None else json.dumps(content))
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    def infer(self, model: str, value: int = 1, rows: int = 1, **parameters: object) -> object:
        """What the model saw, as a list of numbers; or the status and the error's text."""
        shape = [1] if model.endswith("_alone") or model.startswith("countdown") else [rows, 1]
        status, answer = self.call(
            "POST",
            f"/v2/models/{model}/infer",
            {
                "inputs": [{"name": "IN", "datatype": "INT32", "shape": shape, "data": [value] * rows}],
                "parameters": {f"{name}": setting for name, setting in parameters.items()},
            },
        )
        assert isinstance(answer, dict)
        return answer["outputs"][0]["data"] if status == 200 else (status, answer["error"])

    def begin(self, model: str, value: int = 1, **parameters: object) -> "queue.Queue[object]":
        """The same in the background; the answer is in the queue when it is there."""
        answers: queue.Queue[object] = queue.Queue()

        def run() -> None:
            answers.put(self.infer(model, value, **parameters))

        threading.Thread(target=run).start()
        return answers

    def stream(self, model: str, values: list[int]) -> list[list[list[int]]]:
        """The responses to each of these requests, sent at once on a gRPC stream."""
        answers: queue.Queue[object] = queue.Queue()
        client = tritonclient.grpc.InferenceServerClient(self._grpc_url)
        client.start_stream(lambda result, error: answers.put(error or result))
        for index, value in enumerate(values):
            tensor = tritonclient.grpc.InferInput("IN", [1], "INT32")
            tensor.set_data_from_numpy(np.array([value], np.int32))
            client.async_stream_infer(model, [tensor], request_id=str(index), enable_empty_final_response=True)
        responses: list[list[list[int]]] = [[] for _ in values]
        missing = len(values)
        while missing:
            answer = answers.get(timeout=20)
            assert isinstance(answer, tritonclient.grpc.InferResult), answer
            proto = answer.get_response()
            output = answer.as_numpy("OUT")
            responses[int(proto.id)].append([] if output is None else output.tolist())
            missing -= proto.parameters["triton_final_response"].bool_param
        client.stop_stream()
        client.close()
        return responses

    def counts(self, model: str) -> dict[str, object]:
        """What the statistics count, without times."""
        _, answer = self.call("GET", f"/v2/models/{model}/stats")
        assert isinstance(answer, dict)
        (statistics,) = answer["model_stats"]
        return {
            "inference_count": statistics["inference_count"],
            "execution_count": statistics["execution_count"],
            **{name: duration["count"] for name, duration in statistics["inference_stats"].items()},
            "batches": [(batch["batch_size"], batch["compute_infer"]["count"]) for batch in statistics["batch_stats"]],
        }


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Client, Client]]:
    install_or_skip(real_triton.install)
    folder = tmp_path_factory.mktemp("sequences")
    names = build(folder / "models")
    with (
        start_real_triton(folder / "models", folder / "triton.log", "--exit-timeout-secs=1") as triton,
        start_merrow(folder / "models", folder / "merrow.log") as merrow,
    ):
        for server in (triton, merrow):
            server.wait_until_live()
            server.wait_until_models_ready(names)
        yield Client(triton, triton.ports.grpc), Client(merrow, merrow.ports.grpc)


def one_sequence(client: Client, model: str, **more: object) -> list[object]:
    """Begin, go on, end; and what must not be done before, after and at all."""
    return [
        client.infer(model, 1),
        client.infer(model, 1, sequence_id=0, sequence_start=True),
        client.infer(model, 2, sequence_id=42),
        client.infer(model, 3, sequence_id=42, sequence_start=True),
        client.infer(model, 4, sequence_id=42),
        client.infer(model, 5, sequence_id=42, sequence_end=True),
        client.infer(model, 6, sequence_id=42),
        client.infer(model, 7, sequence_id=42, sequence_end=True),
        client.infer(model, 8, sequence_id=42, sequence_start=True, sequence_end=True),
        client.infer(model, 9, sequence_id=42),
    ]


def interleaved(client: Client, model: str) -> list[object]:
    """Two sequences in turns, then a third in the place of the first."""
    return [
        client.infer(model, 10, sequence_id=1, sequence_start=True),
        client.infer(model, 20, sequence_id=2, sequence_start=True),
        client.infer(model, 11, sequence_id=1),
        client.infer(model, 21, sequence_id=2),
        client.infer(model, 12, sequence_id=1, sequence_end=True),
        client.infer(model, 30, sequence_id=3, sequence_start=True),
        client.infer(model, 22, sequence_id=2, sequence_end=True),
        client.infer(model, 31, sequence_id=3, sequence_end=True),
    ]


@pytest.mark.parametrize("model", [name for name in MODELS if "idle" not in name])
def test_one_sequence(model: str, both: tuple[Client, Client]):
    triton, merrow = both
    assert one_sequence(merrow, model) == one_sequence(triton, model)


@pytest.mark.parametrize("model", ["direct", "direct_plain", "direct_fp32", "oldest", "oldest_alone", "oldest_order"])
def test_interleaved_sequences(model: str, both: tuple[Client, Client]):
    triton, merrow = both
    assert interleaved(merrow, model) == interleaved(triton, model)


@pytest.mark.parametrize("model", ["direct", "oldest"])
def test_more_than_one_row(model: str, both: tuple[Client, Client]):
    theirs, ours = (
        [client.infer(model, 1, rows=2, sequence_id=1, sequence_start=True), client.infer(model, 1, rows=2)]
        for client in both
    )
    assert ours == theirs
    assert theirs[0][0] == 400  # type: ignore[index]


@pytest.mark.parametrize(
    ("model", "correlation_id"),
    [
        (model, correlation_id)
        for model in ("direct", "direct_swapped", "direct_bool", "direct_fp32", "oldest")
        for correlation_id in (2**31, 2**40 + 3, 2**63 + 1, 2**64 - 1)
        # These two answer with the id, in an INT64.
        if model not in ("direct", "oldest") or correlation_id < 2**63
    ],
)
def test_large_correlation_ids(model: str, correlation_id: int, both: tuple[Client, Client]):
    theirs, ours = (
        client.infer(model, 1, sequence_id=correlation_id, sequence_start=True, sequence_end=True) for client in both
    )
    assert ours == theirs


def test_text_as_a_correlation_id(both: tuple[Client, Client]):
    # For a model without a CORRID control: what 2.51 writes into an integer control is refused by newer versions.
    triton, merrow = both

    def script(client: Client) -> list[object]:
        return [
            client.infer("direct_plain", 1, sequence_id="a", sequence_start=True),
            client.infer("direct_plain", 2, sequence_id="b", sequence_start=True),
            client.infer("direct_plain", 3, sequence_id="a", sequence_end=True),
            client.infer("direct_plain", 3, sequence_id="c"),
            client.infer("direct_plain", 4, sequence_id="b", sequence_end=True),
            client.infer("direct_plain", 3, sequence_id="", sequence_start=True),
            client.infer("direct_plain", 3, sequence_id="x" * 128, sequence_start=True, sequence_end=True),
            client.infer("direct_plain", 3, sequence_id="x" * 129, sequence_start=True, sequence_end=True),
        ]

    assert script(merrow) == script(triton)


@pytest.mark.parametrize("model", ["direct", "direct_one_slot", "oldest"])
def test_a_start_in_the_middle(model: str, both: tuple[Client, Client]):
    triton, merrow = both

    def script(client: Client) -> list[object]:
        return [
            client.infer(model, 1, sequence_id=9, sequence_start=True),
            client.infer(model, 2, sequence_id=9, sequence_start=True),
            client.infer(model, 4, sequence_id=9),
            client.infer(model, 8, sequence_id=9, sequence_end=True),
            client.infer(model, 16, sequence_id=9),
        ]

    assert script(merrow) == script(triton)


@pytest.mark.parametrize("model", ["idle", "idle_oldest"])
def test_an_idle_sequence_is_forgotten(model: str, both: tuple[Client, Client]):
    triton, merrow = both

    def script(client: Client) -> list[object]:
        seen = [client.infer(model, 1, sequence_id=1, sequence_start=True)]
        # Another one gets the slot, without an end of the first.
        waiting = client.begin(model, 2, sequence_id=2, sequence_start=True)
        seen.append(waiting.get(timeout=10))
        seen.append(client.infer(model, 3, sequence_id=1))
        seen.append(client.infer(model, 4, sequence_id=2, sequence_end=True))
        seen.append(client.infer(model, 5, sequence_id=1, sequence_start=True))
        time.sleep(IDLE_SECONDS * 3)
        seen.append(client.infer(model, 6, sequence_id=1))
        return seen

    # Side by side: both mostly wait.
    with ThreadPoolExecutor(2) as pool:
        ours, theirs = pool.map(script, (merrow, triton))
    assert ours == theirs


def test_a_timeout_in_the_backlog(both: tuple[Client, Client]):
    triton, merrow = both

    def script(client: Client) -> list[object]:
        model = "direct_one_slot"
        seen = [client.infer(model, 1, sequence_id=1, sequence_start=True, timeout=BACKLOG_TIMEOUT_US)]
        seen.append(
            client.begin(model, 2, sequence_id=2, sequence_start=True, timeout=BACKLOG_TIMEOUT_US).get(timeout=10)
        )
        # In its slot, a sequence has no time-out.
        seen.append(client.infer(model, 3, sequence_id=1, timeout=1))
        seen.append(client.infer(model, 3, sequence_id=2))
        seen.append(client.infer(model, 4, sequence_id=1, sequence_end=True))
        seen.append(client.infer(model, 5, sequence_id=2, sequence_start=True, sequence_end=True))
        return seen

    theirs = script(triton)
    assert script(merrow) == theirs
    assert theirs[1] == (503, "timeout of the corresponding sequence has been expired")


def test_the_backlog_moves_up(both: tuple[Client, Client]):
    triton, merrow = both

    def script(client: Client) -> list[object]:
        model = "direct_one_slot"
        seen = [client.infer(model, 1, sequence_id=1, sequence_start=True)]
        waiting = client.begin(model, 2, sequence_id=2, sequence_start=True, sequence_end=True)
        seen.append(client.infer(model, 3, sequence_id=1))
        seen.append(client.infer(model, 4, sequence_id=1, sequence_end=True))
        seen.append(waiting.get(timeout=10))
        return seen

    assert script(merrow) == script(triton)


@pytest.mark.parametrize("strategy", ["direct", "oldest"])
def test_a_countdown_with_many_responses(strategy: str, both: tuple[Client, Client]):
    triton, merrow = both
    model = f"countdown_decoupled_{strategy}"

    assert merrow.stream(model, [3]) == triton.stream(model, [3])
    assert merrow.stream(model, [2, 5, 1]) == triton.stream(model, [2, 5, 1])


@pytest.mark.parametrize("strategy", ["direct", "oldest"])
def test_a_countdown_with_one_response(strategy: str, both: tuple[Client, Client]):
    triton, merrow = both
    model = f"countdown_single_{strategy}"

    def script(client: Client) -> list[object]:
        return [client.infer(model, value) for value in (3, 1, 2)]

    assert script(merrow) == script(triton)


def test_everything_was_counted_the_same(both: tuple[Client, Client]):
    triton, merrow = both
    for model in MODELS:
        assert merrow.counts(model) == triton.counts(model), model
    for strategy in ("direct", "oldest"):
        for kind in ("decoupled", "single"):
            model = f"countdown_{kind}_{strategy}"
            theirs, ours = triton.counts(model), merrow.counts(model)
            # Triton counts the request with which it ends each generation as a failed one; nobody sent it.
            assert ours.pop("fail") == 0
            theirs.pop("fail")
            assert ours == theirs, model


def test_configurations_are_shown_the_same(both: tuple[Client, Client]):
    for model in MODELS:
        theirs, ours = (client.call("GET", f"/v2/models/{model}/config") for client in both)
        assert json.dumps(ours) == json.dumps(theirs)
