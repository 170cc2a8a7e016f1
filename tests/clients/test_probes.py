"""The built-in backends that test a server, asked by `tritonclient`: decoupled models, sequences, state."""

import queue
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as client
import tritonclient.http
from grpc import insecure_channel
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from merrow.testing.running_server import RunningServer
from tests.clients import probe_models

pytestmark = pytest.mark.slow

TIMEOUT_SECONDS = 20
DTYPES = {"INT32": np.int32, "UINT32": np.uint32}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    models = probe_models.build(
        tmp_path_factory.mktemp("probes") / "models",
        sequence=probe_models.sequence(),
        dyna=probe_models.dyna_sequence(),
        dyna_text=probe_models.dyna_sequence("TYPE_STRING"),
        no_state=probe_models.implicit_state(""),
        one_buffer=probe_models.implicit_state(
            probe_models.state("TYPE_INT32", "1", "use_same_buffer_for_input_output: true")
        ),
        two_buffers=probe_models.implicit_state(probe_models.state("TYPE_INT32", "1")),
        growing=probe_models.implicit_state(probe_models.state("TYPE_INT8", "1024, 1024", "use_growable_memory: true")),
        countdown=probe_models.iterative_sequence(),
        countdown_idle=probe_models.iterative_sequence(idle_us=200_000),
        countdown_once=probe_models.iterative_sequence(is_iterative=False),
        repeat=probe_models.repeat(),
        repeat_single=probe_models.repeat(is_decoupled=False),
        square=probe_models.square(),
        square_failing=probe_models.square(CUSTOM_FAIL_COUNT=1, CUSTOM_EMPTY_COUNT=1),
        square_slow=probe_models.square(CUSTOM_INFER_DELAY_NS=50_000_000),
    )
    with RunningServer(models) as running:
        yield running


@pytest.fixture
def grpc(server: RunningServer) -> Iterator[client.InferenceServerClient]:
    with client.InferenceServerClient(server.grpc_url) as grpc:
        yield grpc


def tensor(name: str, values: Any, datatype: str = "INT32") -> client.InferInput:
    array = np.array(values, DTYPES[datatype])
    result = client.InferInput(name, list(array.shape), datatype)
    result.set_data_from_numpy(array)
    return result


def step(grpc: client.InferenceServerClient, model: str, values: list[int], **sequence: Any) -> list[int]:
    """What a model of sequences answers to INPUT with one row of `values`."""
    output = grpc.infer(model, [tensor("INPUT", [values])], **sequence).as_numpy("OUTPUT")
    assert output is not None
    assert output.shape == (1, len(values))
    return output[0].tolist()


def stream(grpc: client.InferenceServerClient, model: str, inputs: list[client.InferInput]) -> list[Any]:
    """Every response to one request: outputs by name, an error's text, or None for the empty final one."""
    answers: queue.Queue[Any] = queue.Queue()
    grpc.start_stream(lambda result, error: answers.put(error or result))
    seen = []
    try:
        grpc.async_stream_infer(model, inputs, enable_empty_final_response=True)
        while True:
            answer = answers.get(timeout=TIMEOUT_SECONDS)
            if isinstance(answer, InferenceServerException):
                seen.append(answer.message())
                continue
            proto = answer.get_response()
            outputs = {output.name: answer.as_numpy(output.name).tolist() for output in proto.outputs}
            seen.append(outputs or None)
            if proto.parameters["triton_final_response"].bool_param:
                return seen
    finally:
        grpc.stop_stream()


def response_counts(grpc: client.InferenceServerClient, model: str) -> tuple[dict[str, set[str]], int, int]:
    (statistics,) = grpc.get_inference_statistics(model).model_stats
    counts = {
        index: {
            name
            for name in ("compute_infer", "compute_output", "success", "fail", "empty_response", "cancel")
            if getattr(each, name).count
        }
        for index, each in sorted(statistics.response_stats.items())
    }
    return counts, statistics.inference_count, statistics.execution_count


def test_a_sequence_adds_up_in_its_row(grpc: client.InferenceServerClient):
    assert step(grpc, "sequence", [1, 2], sequence_id=7, sequence_start=True) == [3, 3]
    assert step(grpc, "sequence", [4], sequence_id=7) == [7]
    assert step(grpc, "sequence", [10], sequence_id=8, sequence_start=True) == [10]
    assert step(grpc, "sequence", [5], sequence_id=7, sequence_end=True) == [12]
    assert step(grpc, "sequence", [1], sequence_id=8, sequence_end=True) == [11]


def test_a_sequence_over_rest(server: RunningServer):
    with tritonclient.http.InferenceServerClient(server.http_url) as rest:
        for value, total, flags in ((1, 1, {"sequence_start": True}), (2, 3, {}), (3, 6, {"sequence_end": True})):
            given = tritonclient.http.InferInput("INPUT", [1, 1], "INT32")
            given.set_data_from_numpy(np.array([[value]], np.int32))
            answer = rest.infer("sequence", [given], sequence_id=9, **flags)
            assert answer.as_numpy("OUTPUT").tolist() == [[total]]


def test_what_a_sequence_must_not_do(grpc: client.InferenceServerClient):
    with pytest.raises(InferenceServerException) as caught:
        step(grpc, "sequence", [1], sequence_id=99)
    assert caught.value.message() == (
        "inference request for sequence 99 to model 'sequence' must specify the START flag on the first request of the "
        "sequence"
    )
    with pytest.raises(InferenceServerException) as caught:
        step(grpc, "sequence", [1])
    assert caught.value.message() == (
        "inference request to model 'sequence' must specify a non-zero or non-empty correlation ID"
    )
    with pytest.raises(InferenceServerException) as caught:
        step(grpc, "dyna", [1], sequence_id="text", sequence_start=True)
    assert caught.value.message() == (
        "[request id: <id_unknown>] sequence batching control 'CORRID' data-type is 'BYTES', but model 'dyna' expects "
        "'UINT64'"
    )
    with pytest.raises(InferenceServerException) as caught:
        step(grpc, "sequence", [1], sequence_id="text", sequence_start=True, sequence_end=True)
    assert caught.value.message() == ("[request id: <id_unknown>] correlation ID in request is not an unsigned int")


@pytest.mark.parametrize(("model", "name"), [("dyna", 30), ("dyna_text", "30 apples")])
def test_a_sequence_adds_up_by_its_correlation_id(grpc: client.InferenceServerClient, model: str, name: Any):
    assert step(grpc, model, [1, 2], sequence_id=name, sequence_start=True) == [3, 3]
    assert step(grpc, model, [4], sequence_id=name) == [7]
    assert step(grpc, model, [5], sequence_id=name, sequence_end=True) == [42]
    assert step(grpc, model, [5], sequence_id=name, sequence_start=True, sequence_end=True) == [35]


def test_a_correlation_id_that_is_no_number(grpc: client.InferenceServerClient):
    with pytest.raises(InferenceServerException, match="expects correlation ID to be decodable into an integer"):
        step(grpc, "dyna_text", [1], sequence_id="apples", sequence_start=True, sequence_end=True)


def probe_state(grpc: client.InferenceServerClient, model: str, test_case: int, values: list[int]) -> list[Any]:
    seen: list[Any] = []
    for index, value in enumerate(values):
        try:
            answer = grpc.infer(
                model,
                [tensor("INPUT", [value]), tensor("TEST_CASE", [test_case])],
                sequence_id=5,
                sequence_start=index == 0,
                sequence_end=index == len(values) - 1,
            )
        except InferenceServerException as error:
            seen.append(error.message())
        else:
            seen.append({output.name: answer.as_numpy(output.name) for output in answer.get_response().outputs})
    return seen


def test_a_state_that_is_not_configured(grpc: client.InferenceServerClient):
    assert probe_state(grpc, "no_state", 0, [1]) == [
        "unable to add state 'undefined_state'. State configuration is missing for model 'no_state'."
    ]
    assert probe_state(grpc, "one_buffer", 0, [1]) == ["state 'undefined_state' is not a valid state name."]


def test_a_state_that_is_never_updated(grpc: client.InferenceServerClient):
    assert probe_state(grpc, "two_buffers", 1, [1, 1, 1]) == [{"OUTPUT": [1]}] * 3


def test_a_state_in_one_buffer(grpc: client.InferenceServerClient):
    assert probe_state(grpc, "one_buffer", 2, [1, 1, 1]) == [{}] * 3
    assert probe_state(grpc, "two_buffers", 2, [1, 1]) == [{}, "Input and output state are using different buffers."]


def test_a_state_that_grows(grpc: client.InferenceServerClient):
    mebibyte = 1024 * 1024
    for index, answer in enumerate(probe_state(grpc, "growing", 3, [1, 1, 1])):
        state = answer["OUTPUT_STATE"]
        assert state.shape == ((index + 1) * mebibyte,)
        assert [int(state[part * mebibyte]) for part in range(index + 1)] == list(range(index + 1))
        assert all((state[part * mebibyte : (part + 1) * mebibyte] == part).all() for part in range(index + 1))


def test_a_generation_answers_each_step(grpc: client.InferenceServerClient):
    assert stream(grpc, "countdown", [tensor("INPUT", [[2]])]) == [{"OUTPUT": [[1]]}, {"OUTPUT": [[0]]}]


def test_a_generation_that_takes_longer_than_a_sequence_may_be_idle(grpc: client.InferenceServerClient):
    with pytest.raises(InferenceServerException) as caught:
        _first_error(grpc, "countdown_idle")
    assert caught.value.message() == (
        "inference request for sequence 1 to model 'countdown_idle' must specify the START flag on the first request "
        "of the sequence"
    )


def test_a_model_that_may_not_reschedule(grpc: client.InferenceServerClient):
    with pytest.raises(InferenceServerException) as caught:
        _first_error(grpc, "countdown_once", sequence_id=3, sequence_start=True)
    assert caught.value.message() == (
        "Request is released with TRITONSERVER_REQUEST_RELEASE_RESCHEDULE, while the model is not configured to handle "
        "such a flag."
    )


def _first_error(grpc: client.InferenceServerClient, model: str, **sequence: Any) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    grpc.start_stream(lambda result, error: answers.put(error or result))
    try:
        grpc.async_stream_infer(model, [tensor("INPUT", [[2]])], **sequence)
        answer = answers.get(timeout=TIMEOUT_SECONDS)
    finally:
        grpc.stop_stream()
    if isinstance(answer, InferenceServerException):
        raise answer


def repeat_inputs(values: list[int], delays: list[int], wait: int = 0) -> list[client.InferInput]:
    return [tensor("IN", values), tensor("DELAY", delays, "UINT32"), tensor("WAIT", [wait], "UINT32")]


def test_repeat_answers_each_element_and_then_the_end(grpc: client.InferenceServerClient):
    assert stream(grpc, "repeat", repeat_inputs([4, 2, 0], [0, 10, 0])) == [
        {"OUT": [4], "IDX": [0]},
        {"OUT": [2], "IDX": [1]},
        {"OUT": [0], "IDX": [2]},
        None,
    ]
    assert stream(grpc, "repeat", repeat_inputs([], [])) == [None]


def test_repeat_with_shapes_that_differ(grpc: client.InferenceServerClient):
    answers: queue.Queue[Any] = queue.Queue()
    grpc.start_stream(lambda result, error: answers.put(error or result))
    grpc.async_stream_infer("repeat", repeat_inputs([1], [0, 0]))
    error = answers.get(timeout=TIMEOUT_SECONDS)
    grpc.stop_stream()

    assert error.message() == "expected IN and DELAY shape to match, got [1] and [2]"


def test_repeat_as_an_ordinary_model_answers_once(grpc: client.InferenceServerClient):
    answer = grpc.infer("repeat_single", repeat_inputs([5], [1]))
    assert answer.as_numpy("OUT").tolist() == [5]
    for values, count in (([], 0), ([1, 2], 2)):
        with pytest.raises(InferenceServerException) as caught:
            grpc.infer("repeat_single", repeat_inputs(values, [0] * len(values)))
        assert caught.value.message() == f"expected a single response, got {count}"


def test_requests_of_one_stream_do_not_wait_for_each_others_responses(grpc: client.InferenceServerClient):
    answers: queue.Queue[Any] = queue.Queue()
    grpc.start_stream(lambda result, error: answers.put(error or result))
    grpc.async_stream_infer("repeat", repeat_inputs([1, 2], [0, 300]), request_id="slow")
    grpc.async_stream_infer("repeat", repeat_inputs([3], [20]), request_id="quick")
    ids = [answers.get(timeout=TIMEOUT_SECONDS).get_response().id for _ in range(3)]
    grpc.stop_stream()

    assert ids == ["slow", "quick", "slow"]


def test_square_answers_so_many_times(grpc: client.InferenceServerClient):
    assert stream(grpc, "square", [tensor("IN", [3])]) == [{"OUT": [3]}] * 3 + [None]
    assert stream(grpc, "square", [tensor("IN", [0])]) == [None]
    succeeded = {"compute_infer", "compute_output", "success"}
    assert response_counts(grpc, "square") == ({"0": succeeded, "1": succeeded, "2": succeeded}, 0, 0)


def test_square_with_failures_and_nothing(grpc: client.InferenceServerClient):
    assert stream(grpc, "square_failing", [tensor("IN", [3])]) == [{"OUT": [3]}, "simulated failure", None]
    counts, _, _ = response_counts(grpc, "square_failing")
    assert counts == {
        "0": {"compute_infer", "compute_output", "success"},
        "1": {"compute_infer", "compute_output", "fail"},
        "2": {"compute_infer", "empty_response"},
    }


def test_square_stops_when_its_client_leaves(server: RunningServer, grpc: client.InferenceServerClient):
    request = service_pb2.ModelInferRequest(
        model_name="square_slow",
        inputs=[service_pb2.ModelInferRequest.InferInputTensor(name="IN", datatype="INT32", shape=[1])],
        raw_input_contents=[np.array([1000], np.int32).tobytes()],
    )
    with insecure_channel(server.grpc_url) as channel:
        call = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer(iter([request]))
        next(call)
        call.cancel()
    counts: dict[str, set[str]] = {}
    while {"cancel"} not in counts.values():
        counts, _, _ = response_counts(grpc, "square_slow")

    assert len(counts) < 20


def test_evictions_are_counted(server: RunningServer, grpc: client.InferenceServerClient):
    with pytest.raises(InferenceServerException):
        _first_error(grpc, "countdown_idle")
    text = urllib.request.urlopen(f"http://{server.metrics_url}/metrics", timeout=TIMEOUT_SECONDS).read().decode()

    (line,) = [
        line
        for line in text.splitlines()
        if line.startswith("merrow_sequence_evictions") and 'model="countdown_idle"' in line and 'reason="idle"' in line
    ]
    assert float(line.rsplit(" ", 1)[1]) >= 1
