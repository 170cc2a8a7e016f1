"""Sequences of ONNX models with implicit state, as Triton's own suites make them: the state is the sum so far."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnx
import pytest
import tritonclient.grpc as client
from onnx import TensorProto, helper
from tritonclient.utils import InferenceServerException

from merrow.testing.repository_builder import RepositoryBuilder
from merrow.testing.running_server import RunningServer

pytestmark = pytest.mark.slow

CONTROLS = """
control_input { name: "START" control { kind: CONTROL_SEQUENCE_START int32_false_true: [ 0, 1 ] } }
control_input { name: "READY" control { kind: CONTROL_SEQUENCE_READY int32_false_true: [ 0, 1 ] } }
"""
STATE = 'state { input_name: "INPUT_STATE" output_name: "OUTPUT_STATE" data_type: TYPE_INT32 dims: [ 1 ] %s }\n'


def accumulator(forgets_at_start: bool = True) -> bytes:
    """OUTPUT = OUTPUT_STATE = INPUT + INPUT_STATE, the state counting only where READY and, if so asked, not START."""
    tensors = [
        helper.make_tensor_value_info(name, TensorProto.INT32, ["N", 1])
        for name in ("INPUT", "START", "READY", "INPUT_STATE", "OUTPUT", "OUTPUT_STATE")
    ]
    one = helper.make_tensor("ONE", TensorProto.INT32, [], [1])
    nodes = [
        helper.make_node("Sub", ["ONE", "START"], ["NOT_START"]),
        helper.make_node("Mul", ["NOT_START", "READY"], ["GOES_ON"])
        if forgets_at_start
        else helper.make_node("Identity", ["READY"], ["GOES_ON"]),
        helper.make_node("Mul", ["INPUT_STATE", "GOES_ON"], ["KEPT"]),
        helper.make_node("Add", ["INPUT", "KEPT"], ["OUTPUT"]),
        helper.make_node("Identity", ["OUTPUT"], ["OUTPUT_STATE"]),
    ]
    graph = helper.make_graph(nodes, "accumulator", tensors[:4], tensors[4:], [one])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString()
    return content


def grower(rows: tuple[str, ...] = ()) -> bytes:
    """OUTPUT = OUTPUT_STATE = INPUT_STATE with INPUT behind it: a state that is longer each time."""
    tensors = [
        helper.make_tensor_value_info("INPUT", TensorProto.INT32, [*rows, 1]),
        *(
            helper.make_tensor_value_info(name, TensorProto.INT32, [*rows, length])
            for name, length in (("INPUT_STATE", "A"), ("OUTPUT", "B"), ("OUTPUT_STATE", "B"))
        ),
    ]
    nodes = [
        helper.make_node("Concat", ["INPUT_STATE", "INPUT"], ["OUTPUT"], axis=len(rows)),
        helper.make_node("Identity", ["OUTPUT"], ["OUTPUT_STATE"]),
    ]
    graph = helper.make_graph(nodes, "grower", tensors[:2], tensors[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    content: bytes = model.SerializeToString()
    return content


def config(name: str, batching: str, max_batch_size: int = 4, dims: int = 1, listed: str = "") -> str:
    return f"""
name: "{name}"
platform: "onnxruntime_onnx"
max_batch_size: {max_batch_size}
input {{ name: "INPUT" data_type: TYPE_INT32 dims: [ 1 ] }}
output {{ name: "OUTPUT" data_type: TYPE_INT32 dims: [ {dims} ] }}
{listed}
instance_group {{ kind: KIND_CPU count: 1 }}
sequence_batching {{ max_sequence_idle_microseconds: 5000000
{batching} }}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    repository = RepositoryBuilder(tmp_path_factory.mktemp("onnx_sequences") / "models")
    hundred = 'initial_state { name: "start" data_type: TYPE_INT32 dims: [ 1 ] data_file: "hundred" }'
    accumulators = {
        "direct": config("direct", CONTROLS + STATE % ""),
        "oldest": config("oldest", "oldest { max_candidate_sequences: 4 }\n" + CONTROLS + STATE % ""),
        "from_file": config("from_file", CONTROLS + STATE % hundred),
        "one_buffer": config("one_buffer", CONTROLS + STATE % "use_same_buffer_for_input_output: true"),
        "listed": config(
            "listed",
            CONTROLS + STATE % "",
            listed='output { name: "OUTPUT_STATE" data_type: TYPE_INT32 dims: [ 1 ] }',
        ),
    }
    for name, text in accumulators.items():
        files: dict[str, str | bytes] = {
            "1/model.onnx": accumulator(forgets_at_start=name != "from_file"),
            "initial_state/hundred": np.array([100], np.int32).tobytes(),
        }
        repository.add(name, text, files)
    growing = (STATE % "use_growable_memory: true").replace("[ 1 ]", "[ -1 ]")
    repository.add("growing", config("growing", growing, 0, -1), {"1/model.onnx": grower()})
    # Both wait a while until all of their sequences have a request.
    for name, strategy in (
        ("growing_direct", "direct { minimum_slot_utilization: 1.0 max_queue_delay_microseconds: 300000 }\n"),
        ("growing_oldest", "oldest { preferred_batch_size: [ 3 ] max_queue_delay_microseconds: 300000 }\n"),
    ):
        repository.add(name, config(name, strategy + growing, 3, -1), {"1/model.onnx": grower(("N",))})
    with RunningServer(repository.path) as running:
        yield running


@pytest.fixture
def grpc(server: RunningServer) -> Iterator[client.InferenceServerClient]:
    with client.InferenceServerClient(server.grpc_url) as grpc:
        yield grpc


def step(grpc: client.InferenceServerClient, model: str, value: int, sequence_id: int, **flags: bool) -> Any:
    shape = [1] if model == "growing" else [1, 1]
    tensor = client.InferInput("INPUT", shape, "INT32")
    tensor.set_data_from_numpy(np.full(shape, value, np.int32))
    return grpc.infer(model, [tensor], sequence_id=sequence_id, **flags)


def total(grpc: client.InferenceServerClient, model: str, value: int, sequence_id: int, **flags: bool) -> int:
    return int(step(grpc, model, value, sequence_id, **flags).as_numpy("OUTPUT").reshape(-1)[0])


@pytest.mark.parametrize("model", ["direct", "oldest", "one_buffer", "listed"])
def test_each_sequence_has_its_sum(grpc: client.InferenceServerClient, model: str):
    assert total(grpc, model, 1, 1, sequence_start=True) == 1
    assert total(grpc, model, 10, 2, sequence_start=True) == 10
    assert total(grpc, model, 2, 1) == 3
    assert total(grpc, model, 20, 2) == 30
    assert total(grpc, model, 3, 1, sequence_end=True) == 6
    assert total(grpc, model, 30, 2, sequence_end=True) == 60
    assert total(grpc, model, 5, 1, sequence_start=True, sequence_end=True) == 5


def test_a_sequence_starts_from_a_file(grpc: client.InferenceServerClient):
    assert total(grpc, "from_file", 1, 1, sequence_start=True) == 101
    assert total(grpc, "from_file", 1, 1, sequence_end=True) == 102


def test_a_state_can_be_an_output_too(grpc: client.InferenceServerClient):
    answer = step(grpc, "listed", 7, 1, sequence_start=True, sequence_end=True)
    assert answer.as_numpy("OUTPUT_STATE").tolist() == [[7]]
    tensor = client.InferInput("INPUT", [1, 1], "INT32")
    tensor.set_data_from_numpy(np.zeros((1, 1), np.int32))
    with pytest.raises(InferenceServerException) as caught:
        grpc.infer("direct", [tensor], outputs=[client.InferRequestedOutput("OUTPUT_STATE")], sequence_id=1)
    assert caught.value.message() == "unexpected inference output 'OUTPUT_STATE' for model 'direct'"


def test_a_state_may_grow(grpc: client.InferenceServerClient):
    seen = [
        step(grpc, "growing", value, 1, **flags).as_numpy("OUTPUT").tolist()
        for value, flags in ((5, {"sequence_start": True}), (6, {}), (7, {"sequence_end": True}))
    ]
    assert seen == [[0, 5], [0, 5, 6], [0, 5, 6, 7]]


@pytest.mark.parametrize("model", ["growing_direct", "growing_oldest"])
def test_states_of_different_length_do_not_share_a_batch(server: RunningServer, model: str):
    def ask(value: int, sequence_id: int, start: bool) -> list[int]:
        with client.InferenceServerClient(server.grpc_url) as grpc:
            answer = step(grpc, model, value, sequence_id, sequence_start=start)
        numbers: list[int] = answer.as_numpy("OUTPUT")[0].tolist()
        return numbers

    def ask_all(*requests: tuple[int, bool]) -> list[list[int]]:
        with ThreadPoolExecutor(3) as pool:
            return list(pool.map(ask, (value for value, _ in requests), (1, 2, 3), (start for _, start in requests)))

    assert ask_all((11, True), (21, True), (31, True)) == [[0, 11], [0, 21], [0, 31]]
    assert ask_all((12, True), (22, False), (32, False)) == [[0, 12], [0, 21, 22], [0, 31, 32]]
    # Of the lengths 2, 1 and 3: together as many numbers as three of the first.
    assert ask_all((13, False), (23, True), (33, False)) == [[0, 12, 13], [0, 23], [0, 31, 32, 33]]
