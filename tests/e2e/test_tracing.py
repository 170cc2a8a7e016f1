"""Traces of a running server: files that Triton's tools read, and spans at a collector."""

import json
import queue
import urllib.error
import urllib.request

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient

from merrow.testing.repository_builder import RepositoryBuilder, model_config
from merrow.testing.running_server import RunningServer
from tests.e2e.trace_summary import read_traces, summarize
from tests.observe.otlp_collector import Collector

pytestmark = pytest.mark.slow

ENSEMBLE = """\
platform: "ensemble"
max_batch_size: 0
input { name: "A" data_type: TYPE_FP32 dims: [ 4 ] }
output { name: "B" data_type: TYPE_FP32 dims: [ 4 ] }
ensemble_scheduling {
  step { model_name: "first" model_version: -1
         input_map { key: "INPUT0" value: "A" } output_map { key: "OUTPUT0" value: "between" } }
  step { model_name: "second" model_version: -1
         input_map { key: "INPUT0" value: "between" } output_map { key: "OUTPUT0" value: "B" } }
}
"""
REPEAT = model_config(
    "repeat",
    "repeat",
    [("IN", "INT32", (-1,)), ("DELAY", "UINT32", (-1,)), ("WAIT", "UINT32", (1,))],
    [("OUT", "INT32", (1,)), ("IDX", "UINT32", (1,))],
    extra_config="model_transaction_policy { decoupled: true }",
)
CALLER = """\
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            tensor = pb_utils.get_input_tensor_by_name(request, "INPUT0")
            call = pb_utils.InferenceRequest(
                model_name="first",
                requested_output_names=["OUTPUT0"],
                inputs=[tensor],
                trace=request.trace(),
            )
            output = pb_utils.get_output_tensor_by_name(call.exec(), "OUTPUT0")
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT0", output.as_numpy())]))
        return responses
"""


CONTEXT = """\
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        texts = [str(request.trace().get_context()) for request in requests]
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor("TEXT", np.array([text.encode()], object))]) for text in texts
        ]
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    builder = RepositoryBuilder(tmp_path_factory.mktemp("tracing"))
    builder.add_identity("first", dims=(4,))
    builder.add_identity("second", dims=(4,))
    builder.add("ensemble", ENSEMBLE)
    builder.add("repeat", REPEAT)
    caller = model_config("caller", "python", [("INPUT0", "FP32", (4,))], [("OUTPUT0", "FP32", (4,))])
    builder.add("caller", caller, {"1/model.py": CALLER})
    context = model_config("context", "python", [("INPUT0", "FP32", (4,))], [("TEXT", "BYTES", (1,))])
    builder.add("context", context, {"1/model.py": CONTEXT})
    return builder.path


def infer_http(server, model="first", input_name="INPUT0", headers=None, request_id=""):
    tensor = httpclient.InferInput(input_name, [4], "FP32")
    tensor.set_data_from_numpy(np.array([1, 2.5, 3, -0.1], np.float32))
    with httpclient.InferenceServerClient(server.http_url) as client:
        client.infer(model, [tensor], headers=headers, request_id=request_id)


def infer_grpc(server, model="first", input_name="INPUT0", headers=None):
    tensor = grpcclient.InferInput(input_name, [4], "FP32")
    tensor.set_data_from_numpy(np.array([1, 2.5, 3, -0.1], np.float32))
    with grpcclient.InferenceServerClient(server.grpc_url) as client:
        client.infer(model, [tensor], headers=headers, request_id="g")


def repeat_grpc(server, count):
    values = [
        ("IN", np.arange(count, dtype=np.int32)),
        ("DELAY", np.zeros(count, np.uint32)),
        ("WAIT", np.zeros(1, np.uint32)),
    ]
    inputs = []
    for name, array in values:
        inputs.append(grpcclient.InferInput(name, list(array.shape), "INT32" if name == "IN" else "UINT32"))
        inputs[-1].set_data_from_numpy(array)
    answers = queue.Queue()
    with grpcclient.InferenceServerClient(server.grpc_url) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        client.async_stream_infer("repeat", inputs, request_id="s")
        client.stop_stream()
    assert answers.qsize() == count


def post(server, path, body, headers=None):
    url = f"http://{server.http_url}{path}"
    request = urllib.request.Request(url, data=json.dumps(body).encode(), headers=headers or {})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.read()


CORE = {"REQUEST", "QUEUE", "COMPUTE", "COMPUTE_INPUT", "COMPUTE_INFER", "COMPUTE_OUTPUT"}
HTTP = {"HTTP_INFER", "HTTP_RECV", "HTTP_SEND"}
GRPC = {"GRPC_INFER", "GRPC_WAITREAD", "GRPC_SEND"}


def test_files_that_tools_read(repository, tmp_path):
    path = tmp_path / "trace.json"
    flags = ["level=TIMESTAMPS", "level=TENSORS", "rate=1", f"triton,file={path}"]
    with RunningServer(repository, *(f"--trace-config={flag}" for flag in flags)) as server:
        infer_http(server, request_id="h")
        infer_grpc(server)
        infer_http(server, "ensemble", "A")
        repeat_grpc(server, 3)
        events = post(server, "/v2/models/repeat/generate_stream", {"IN": [7, 8], "DELAY": [0, 0], "WAIT": 0})
        assert events.count(b"data: ") == 2
        infer_http(server, "caller")
        with pytest.raises(httpclient.InferenceServerException):
            infer_http(server, "first", "nope")
        assert not path.exists()

    traces = read_traces(path)
    by_model = {}
    for trace in traces.values():
        by_model.setdefault(trace.model, []).append(trace)
    over_http, over_grpc, in_ensemble, from_model = sorted(by_model["first", 1], key=lambda trace: trace.id)
    assert (over_http.request_id, over_grpc.request_id) == ("h", "g")
    assert set(over_http.spans()) == CORE | HTTP
    assert set(over_grpc.spans()) == CORE | GRPC
    assert over_http.tensors == [
        ("TENSOR_QUEUE_INPUT", "INPUT0", "1,2.5,3,-0.1"),
        ("TENSOR_BACKEND_OUTPUT", "OUTPUT0", "1,2.5,3,-0.1"),
    ]

    (ensemble,) = by_model["ensemble", 1]
    (second,) = by_model["second", 1]
    assert set(ensemble.spans()) == {"REQUEST", *HTTP}
    assert in_ensemble.parent_id == second.parent_id == ensemble.id
    assert set(second.spans()) == CORE

    (caller,) = by_model["caller", 1]
    assert from_model.parent_id == caller.id
    assert set(caller.spans()) == CORE | HTTP

    streamed, generated = sorted(by_model["repeat", 1], key=lambda trace: trace.id)
    assert len(streamed.times["INFER_RESPONSE_COMPLETE"]) == 3
    assert len(streamed.times["GRPC_SEND_START"]) == len(streamed.times["GRPC_SEND_END"]) == 3
    assert len(generated.times["INFER_RESPONSE_COMPLETE"]) == 2
    assert {"REQUEST", *HTTP} <= set(generated.spans())

    # Refused before it reached a model: what the front door did, and no more.
    (refused,) = by_model[None]
    assert set(refused.spans()) == HTTP

    assert summarize(traces.values())["first", 1]["COMPUTE"] == 4


def test_settings_over_both_protocols(repository, tmp_path):
    path = tmp_path / "trace.json"
    with RunningServer(repository, f"--trace-config=triton,file={path}") as server:
        http = httpclient.InferenceServerClient(server.http_url)
        grpc = grpcclient.InferenceServerClient(server.grpc_url)
        start = http.get_trace_settings()
        assert start == {
            "trace_level": ["OFF"],
            "trace_rate": "1000",
            "trace_count": "-1",
            "log_frequency": "0",
            "trace_file": str(path),
            "trace_mode": "triton",
        }
        infer_http(server)
        changed = grpc.update_trace_settings(
            "first", {"trace_level": ["TIMESTAMPS"], "trace_rate": "2", "trace_count": "2"}, as_json=True
        )
        assert changed["settings"]["trace_rate"] == {"value": ["2"]}
        assert http.get_trace_settings("first")["trace_level"] == ["TIMESTAMPS"]
        assert http.get_trace_settings("second") == start
        for _ in range(3):
            infer_http(server)
            infer_http(server, "second")
        assert grpc.get_trace_settings("first", as_json=True)["settings"]["trace_count"] == {"value": ["1"]}
        infer_grpc(server)
        infer_grpc(server)
        assert http.get_trace_settings("first")["trace_count"] == "0"

        # All there were, because the count is used up; answered when it is written.
        http.update_trace_settings("first", {"trace_level": None, "trace_rate": None, "trace_count": None})
        assert http.get_trace_settings("first") == start
        assert [trace.model for trace in read_traces(tmp_path / "trace.json.0").values()] == [("first", 1)] * 2
        with pytest.raises(httpclient.InferenceServerException, match="can not be updated through network protocol"):
            http.update_trace_settings(settings={"trace_file": "/tmp/x"})

        http.update_trace_settings(settings={"trace_level": ["TIMESTAMPS"], "trace_rate": "1", "log_frequency": "2"})
        for _ in range(3):
            infer_http(server, "second")
        http.update_trace_settings(settings={"log_frequency": None})
        assert len(read_traces(tmp_path / "trace.json.1")) == 2
        assert len(read_traces(tmp_path / "trace.json.2")) == 1
        infer_http(server, "second")
        http.close()
        grpc.close()

    assert len(read_traces(path)) == 1


CALLERS_TRACE = "0af7651916cd43dd8448eb211c80319c"


def test_spans_at_a_collector(repository):
    with Collector() as collector:
        flags = [
            "mode=opentelemetry",
            f"opentelemetry,url={collector.url}",
            "opentelemetry,resource=service.name=mine",
            "opentelemetry,bsp_schedule_delay=100",
            "level=TIMESTAMPS",
            "rate=1000",
        ]
        with RunningServer(repository, *(f"--trace-config={flag}" for flag in flags)) as server:
            with httpclient.InferenceServerClient(server.http_url) as client:
                assert client.get_trace_settings() == {
                    "trace_level": ["TIMESTAMPS"],
                    "trace_rate": "1000",
                    "trace_count": "-1",
                    "trace_mode": "opentelemetry",
                    "url": collector.url,
                    "resource": "service.name=mine",
                    "bsp_schedule_delay": "100",
                    "bsp_max_export_batch_size": "512",
                    "bsp_max_queue_size": "2048",
                }
            infer_http(server)
            asked = {"traceparent": f"00-{CALLERS_TRACE}-b7ad6b7169203331-01"}
            infer_grpc(server, "ensemble", "A", headers=asked)
            # While the server runs.
            spans = collector.wait_for_spans(6)
            infer_http(server, "caller", headers=asked)
            asked["tracestate"] = "a=b"
            answer = json.loads(post(server, "/v2/models/context/generate", {"INPUT0": [1, 2, 3, 4]}, asked))
            assert json.loads(post(server, "/v2/models/context/generate", {"INPUT0": [1, 2, 3, 4]}))["TEXT"] == "None"

    assert {span["trace"] for span in spans} == {CALLERS_TRACE}
    assert collector.resource["service.name"] == "mine"
    (root,) = (span for span in spans if span["name"] == "InferRequest")
    assert root["parent"] == "b7ad6b7169203331"
    assert [name for name, _ in root["events"]] == [
        "GRPC_WAITREAD_START",
        "GRPC_WAITREAD_END",
        "INFER_RESPONSE_COMPLETE",
        "GRPC_SEND_START",
        "GRPC_SEND_END",
    ]
    (ensemble,) = (span for span in spans if span["name"] == "ensemble")
    assert ensemble["parent"] == root["id"]
    steps = [span for span in spans if span["name"] in ("first", "second")]
    assert [span["name"] for span in steps] == ["first", "second"]
    assert {span["parent"] for span in steps} == {ensemble["id"]}
    assert {span["parent"] for span in spans if span["name"] == "compute"} == {span["id"] for span in steps}
    for span in steps:
        assert ensemble["start"] <= span["start"] <= span["end"] <= ensemble["end"]

    # What was waiting when the server ended left with it.
    called = collector.spans()[len(spans) :]
    assert {span["name"] for span in called} == {"InferRequest", "caller", "first", "compute", "context"}
    # The model could have gone on from where its own span was.
    (asking,) = (span for span in called if span["name"] == "context")
    assert json.loads(answer["TEXT"]) == {
        "traceparent": f"00-{CALLERS_TRACE}-{asking['id']}-01",
        "tracestate": "a=b",
    }
    (caller,) = (span for span in called if span["name"] == "caller")
    (step,) = (span for span in called if span["name"] == "first")
    assert step["parent"] == caller["id"]


def test_the_older_flags_do_the_same(repository, tmp_path):
    path = tmp_path / "trace.json"
    flags = [f"--trace-file={path}", "--trace-level=TIMESTAMPS", "--trace-rate=1", "--trace-count=5"]
    with RunningServer(repository, *flags, "--trace-log-frequency=1") as server:
        assert "'--trace-level' has been deprecated" in server.log
        infer_http(server)
        with httpclient.InferenceServerClient(server.http_url) as client:
            settings = client.get_trace_settings()
        assert (settings["trace_level"], settings["trace_count"], settings["log_frequency"]) == (
            ["TIMESTAMPS"],
            "4",
            "1",
        )

    assert len(read_traces(tmp_path / "trace.json.0")) == 1
