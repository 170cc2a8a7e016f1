"""Dynamic batching and its queue policies, driven by `tritonclient` against a model that takes its time."""

import queue
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as client

from merrow.testing.running_server import RunningServer
from tests.clients import probe_models

pytestmark = pytest.mark.slow

TIMEOUT_SECONDS = 20
DELAY_MS = 250


def identity(batching: str, max_batch_size: int = 1, extra: str = "") -> str:
    return f"""
backend: "identity"
max_batch_size: {max_batch_size}
input {{ name: "INPUT0" data_type: TYPE_INT32 dims: [ -1 ] }}
output {{ name: "OUTPUT0" data_type: TYPE_INT32 dims: [ -1 ] }}
parameters {{ key: "EXECUTION_PLACE" value {{ string_value: "thread" }} }}
parameters {{ key: "execute_delay_ms" value {{ string_value: "{DELAY_MS}" }} }}
{extra}
dynamic_batching {{ {batching} }}
"""


TWO_INSTANCES = """
instance_group { kind: KIND_CPU count: 2 }
parameters { key: "instance_wise_delay_multiplier" value { string_value: "4" } }
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    timeout = "default_timeout_microseconds: 50000"
    overridable = "default_timeout_microseconds: 60000000 allow_timeout_override: true"
    models = probe_models.build(
        tmp_path_factory.mktemp("queues") / "models",
        full=identity("default_queue_policy { max_queue_size: 1 }"),
        reject=identity(f"default_queue_policy {{ {timeout} }}"),
        override=identity(f"default_queue_policy {{ {overridable} }}"),
        delay=identity(f"default_queue_policy {{ {overridable} timeout_action: DELAY }}"),
        priority=identity("priority_levels: 2 default_priority_level: 2"),
        unordered=identity("", extra=TWO_INSTANCES),
        ordered=identity("preserve_ordering: true", extra=TWO_INSTANCES),
        batched=identity("max_queue_delay_microseconds: 300000", max_batch_size=4),
        shapes=identity("", max_batch_size=8),
    )
    with RunningServer(models, "--log-verbose=1") as running:
        yield running


class Requests:
    """Requests sent one after another, each when the former has arrived; and what came back, in order."""

    def __init__(self, server: RunningServer, grpc: client.InferenceServerClient, model: str) -> None:
        self._server = server
        self._grpc = grpc
        self._model = model
        self._answers: queue.Queue[tuple[str, str | None]] = queue.Queue()
        self._calls: list[Any] = []

    def send(self, name: str, width: int = 1, **settings: Any) -> None:
        tensor = client.InferInput("INPUT0", [1, width], "INT32")
        tensor.set_data_from_numpy(np.zeros((1, width), np.int32))

        def on_answer(result: Any, error: Any) -> None:
            self._answers.put((name, None if error is None else error.message()))

        before = self._arrived()
        self._calls.append(self._grpc.async_infer(self._model, [tensor], on_answer, **settings))
        while self._arrived() == before and self._answers.empty():
            pass

    def answers(self) -> list[tuple[str, str | None]]:
        return [self._answers.get(timeout=TIMEOUT_SECONDS) for _ in self._calls]

    def _arrived(self) -> float:
        """Pending, executing and answered: whatever the server has seen."""
        text = urllib.request.urlopen(f"http://{self._server.metrics_url}/metrics", timeout=TIMEOUT_SECONDS).read()
        families = (
            "nv_inference_pending_request_count",
            "nv_inference_request_success",
            "nv_inference_request_failure",
        )
        seen = sum(
            float(line.rsplit(" ", 1)[1])
            for line in text.decode().splitlines()
            if line.startswith(families) and f'model="{self._model}"' in line
        )
        lines = [line for line in self._server.log.splitlines() if f"model '{self._model}' version 1: batch of" in line]
        return seen + len(lines)


@pytest.fixture
def grpc(server: RunningServer) -> Iterator[client.InferenceServerClient]:
    with client.InferenceServerClient(server.grpc_url) as grpc:
        yield grpc


def test_a_full_queue_refuses(server: RunningServer, grpc: client.InferenceServerClient):
    requests = Requests(server, grpc, "full")
    requests.send("running")
    requests.send("queued")
    requests.send("refused", request_id="r")

    assert requests.answers() == [
        ("refused", "[request id: r] Exceeds maximum queue size"),
        ("running", None),
        ("queued", None),
    ]


def test_a_timeout_refuses(server: RunningServer, grpc: client.InferenceServerClient):
    requests = Requests(server, grpc, "reject")
    requests.send("running")
    requests.send("late")

    assert requests.answers() == [("late", "Request timeout expired"), ("running", None)]


def test_a_request_may_ask_for_a_shorter_timeout(server: RunningServer, grpc: client.InferenceServerClient):
    requests = Requests(server, grpc, "override")
    requests.send("running")
    requests.send("late", timeout=10_000)
    requests.send("patient", timeout=120_000_000)

    assert requests.answers() == [("late", "Request timeout expired"), ("running", None), ("patient", None)]


def test_a_timeout_may_let_others_pass(server: RunningServer, grpc: client.InferenceServerClient):
    requests = Requests(server, grpc, "delay")
    requests.send("running")
    requests.send("late", timeout=10_000)
    requests.send("fresh")

    assert [name for name, _ in requests.answers()] == ["running", "fresh", "late"]


def test_the_first_level_passes_the_second(server: RunningServer, grpc: client.InferenceServerClient):
    requests = Requests(server, grpc, "priority")
    requests.send("running")
    requests.send("second")
    requests.send("first", priority=1)

    assert [name for name, _ in requests.answers()] == ["running", "first", "second"]


@pytest.mark.parametrize(("model", "order"), [("unordered", ["a", "c", "b"]), ("ordered", ["a", "b", "c"])])
def test_answers_leave_in_order_where_it_is_asked_for(
    server: RunningServer, grpc: client.InferenceServerClient, model: str, order: list[str]
):
    requests = Requests(server, grpc, model)
    for name in ("a", "b", "c"):
        requests.send(name)

    assert [name for name, _ in requests.answers()] == order


def batches(grpc: client.InferenceServerClient, model: str) -> dict[int, int]:
    (statistics,) = grpc.get_inference_statistics(model).model_stats
    return {each.batch_size: each.compute_infer.count for each in statistics.batch_stats}


def test_a_batch_waits_for_more_until_it_is_full_or_late(server: RunningServer, grpc: client.InferenceServerClient):
    requests = Requests(server, grpc, "batched")
    for name in "abcde":
        requests.send(name)
    assert sorted(name for name, _ in requests.answers()) == ["a", "b", "c", "d", "e"]

    assert batches(grpc, "batched") == {4: 1, 1: 1}
    reasons = [
        line.rsplit("cut because ", 1)[1].rstrip('"')
        for line in server.log.splitlines()
        if "model 'batched' version 1: batch of" in line
    ]
    assert reasons == ["a preferred size was reached", "the oldest request has waited the queue delay"]


def test_shapes_that_differ_do_not_share_a_batch(server: RunningServer, grpc: client.InferenceServerClient):
    requests = Requests(server, grpc, "shapes")
    for name, width in (("running", 1), ("a", 2), ("b", 2), ("c", 3), ("d", 2)):
        requests.send(name, width)
    requests.answers()

    assert batches(grpc, "shapes") == {1: 3, 2: 1}
