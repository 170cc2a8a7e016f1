"""Log settings, metrics, statistics, the access log and liveness of a running server, by its flags and its clients."""

import asyncio
import re
import urllib.request

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
import tritonclient.grpc.aio as grpcclient_aio
import tritonclient.http as httpclient
import tritonclient.http.aio as httpclient_aio

from merrow.testing.repository_builder import RepositoryBuilder
from merrow.testing.running_server import RunningServer

pytestmark = pytest.mark.slow

HISTOGRAM = """\
metric_tags { key: "team" value: "a" }
model_metrics {
  metric_control {
    metric_identifier { family: "nv_inference_first_response_histogram_ms" }
    histogram_options { buckets: [ 0.001, 60000 ] }
  }
}
parameters { key: "unused" value: { string_value: "x" } }
"""
METER = """\
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.family = pb_utils.MetricFamily("mine", "calls of this model", pb_utils.MetricFamily.COUNTER)
        self.metric = self.family.Metric(labels={"model": "meter"})
        self.blocks = pb_utils.MetricFamily("nv_trt_llm_kv_cache_block_metrics", "", pb_utils.MetricFamily.GAUGE)
        self.values = []
        for kind, value in (("tokens_per", 64), ("used", 10), ("max", 40)):
            metric = self.blocks.Metric(labels={"kv_cache_block_type": kind})
            metric.set(value)
            self.values.append(metric)

    def execute(self, requests):
        responses = []
        for request in requests:
            self.metric.increment(1)
            tensor = pb_utils.get_input_tensor_by_name(request, "INPUT0")
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT0", tensor.as_numpy())]))
        return responses
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    builder = RepositoryBuilder(tmp_path_factory.mktemp("observing"))
    builder.add_identity("identity", dims=(4,), max_batch_size=8, extra_config=HISTOGRAM)
    builder.add_identity("other", dims=(4,))
    return builder.path


@pytest.fixture(scope="module")
def server(repository, tmp_path_factory):
    """One for the tests that leave its settings as they were."""
    file = tmp_path_factory.mktemp("traces") / "trace.json"
    with RunningServer(repository, "--access-log=true", f"--trace-config=triton,file={file}") as running:
        yield running


def infer(server, model="identity"):
    shape = [1, 4] if model == "identity" else [4]
    tensor = httpclient.InferInput("INPUT0", shape, "FP32")
    tensor.set_data_from_numpy(np.ones(shape, np.float32))
    with httpclient.InferenceServerClient(server.http_url) as client:
        client.infer(model, [tensor])


def metrics_of(server):
    with urllib.request.urlopen(f"http://{server.metrics_url}/metrics", timeout=10) as answer:
        assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
        lines = answer.read().decode().splitlines()
    return dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))


LABELS = '_team="a",model="identity",version="1"'


def test_metrics_as_they_are_configured(repository):
    flags = ["summary_latencies=true", "summary_quantiles=0.5:0.05,0.75:0.01", "histogram_latencies=true"]
    with RunningServer(
        repository, *(f"--metrics-config={flag}" for flag in flags), "--allow-cpu-metrics=false"
    ) as server:
        for _ in range(5):
            infer(server)
        values = metrics_of(server)

    assert values[f"nv_inference_request_success{{{LABELS}}}"] == "5"
    assert values[f"nv_inference_request_summary_us_count{{{LABELS}}}"] == "5"
    assert float(values[f'nv_inference_request_summary_us{{{LABELS},quantile="0.75"}}']) > 0
    assert values[f"nv_inference_first_response_histogram_ms_count{{{LABELS}}}"] == "5"
    assert values[f'nv_inference_first_response_histogram_ms_bucket{{{LABELS},le="0.001"}}'] == "0"
    assert values[f'nv_inference_first_response_histogram_ms_bucket{{{LABELS},le="60000"}}'] == "5"
    assert values[f"merrow_request_duration_seconds_count{{{LABELS}}}"] == "5"
    assert values[f'merrow_batch_size_bucket{{{LABELS},le="1"}}'] == "5"
    assert "merrow_loop_lag_seconds" in values
    assert "nv_cpu_utilization" not in values


def test_metrics_can_be_few(repository):
    flags = ["--metrics-config=counter_latencies=false", "--metrics-config=merrow_histograms=false"]
    with RunningServer(repository, *flags, "--loop-stall-limit-ms=0", "--allow-gpu-metrics=false") as server:
        infer(server)
        values = metrics_of(server)

    names = {name.partition("{")[0] for name in values}
    assert not {name for name in names if "duration_us" in name or "merrow" in name or "nv_gpu" in name}
    assert values[f"nv_inference_request_success{{{LABELS}}}"] == "1"


def test_metrics_of_a_model_s_own_and_the_load_they_tell(tmp_path):
    builder = RepositoryBuilder(tmp_path)
    builder.add_python_identity("meter", dims=(4,))
    (tmp_path / "meter" / "1" / "model.py").write_text(METER)
    with RunningServer(tmp_path) as server:
        for _ in range(3):
            infer(server, "meter")
        assert metrics_of(server)['mine{model="meter"}'] == "3"
        headers = {}
        for load_format in ("text", "json", "other"):
            request = urllib.request.Request(
                f"http://{server.http_url}/v2/models/meter/generate",
                data=b'{"INPUT0":[1,2,3,4]}',
                headers={"endpoint-load-metrics-format": load_format},
            )
            with urllib.request.urlopen(request, timeout=10) as answer:
                headers[load_format] = answer.headers["endpoint-load-metrics"]
    assert headers == {
        "text": "TEXT named_metrics.kv_cache_utilization=0.250000, named_metrics.max_token_capacity=2560",
        "json": 'JSON {"named_metrics":{"kv_cache_utilization":0.25,"max_token_capacity":2560}}',
        "other": None,
    }


def test_the_log_obeys_at_once(server):
    http = httpclient.InferenceServerClient(server.http_url)
    grpc = grpcclient.InferenceServerClient(server.grpc_url)
    start = {
        "log_file": "",
        "log_info": True,
        "log_warning": True,
        "log_error": True,
        "log_verbose_level": 0,
        "log_format": "default",
    }
    assert http.get_log_settings() == start
    assert http.update_log_settings({"log_format": "ISO8601"})["log_format"] == "ISO8601"
    infer(server)
    server.wait_for_log("POST /v2/models/identity/infer 200")
    assert re.search(
        r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ I .*POST /v2/models/identity/infer 200", server.log, re.MULTILINE
    )
    settings = grpc.update_log_settings({"log_info": False, "log_verbose_level": 1}, as_json=True)["settings"]
    assert settings["log_info"] == {"bool_param": False}
    infer(server, "other")
    assert grpc.get_log_settings(as_json=True)["settings"]["log_format"] == {"string_param": "ISO8601"}
    with pytest.raises(httpclient.InferenceServerException, match="log file location can not be updated"):
        http.update_log_settings({"log_file": "/tmp/x"})
    http.update_log_settings({"log_info": True, "log_verbose_level": 0, "log_format": "default"})
    server.wait_for_log("POST /v2/logging 200", line_count=2)
    http.close()
    grpc.close()

    assert "/v2/models/other/infer" not in server.log


def test_settings_by_the_clients_for_asyncio(server):
    async def run(server):
        async with httpclient_aio.InferenceServerClient(server.http_url) as http:
            assert (await http.update_trace_settings("identity", {"trace_rate": "7"}))["trace_rate"] == "7"
            assert (await http.get_trace_settings())["trace_rate"] == "1000"
            assert (await http.update_log_settings({"log_warning": False}))["log_warning"] is False
        async with grpcclient_aio.InferenceServerClient(server.grpc_url) as grpc:
            settings = (await grpc.get_trace_settings("identity", as_json=True))["settings"]
            assert settings["trace_rate"] == {"value": ["7"]}
            await grpc.update_trace_settings("identity", {"trace_rate": None})
            assert not (await grpc.get_log_settings()).settings["log_warning"].bool_param
            await grpc.update_log_settings({"log_warning": True})

    asyncio.run(run(server))


def test_the_access_log_has_a_line_for_each_answer(server):
    with grpcclient.InferenceServerClient(server.grpc_url) as client:
        client.is_server_ready()
    urllib.request.urlopen(f"http://{server.metrics_url}/metrics", timeout=10).read()
    server.wait_for_log("GET /metrics 200, 0 bytes in, ")
    assert re.search(r'"/inference.GRPCInferenceService/ServerReady 0, 0 bytes in, 2 out, \d+ us"', server.log)


TALKATIVE = """\
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        pb_utils.Logger.log_verbose("verbose words")
        pb_utils.Logger.log_info("plain words")
        return [pb_utils.InferenceResponse([]) for _ in requests]
"""


def test_what_models_log_obeys_too(tmp_path):
    builder = RepositoryBuilder(tmp_path)
    builder.add_python_identity("talkative", dims=(4,))
    (tmp_path / "talkative" / "1" / "model.py").write_text(TALKATIVE)
    with RunningServer(tmp_path) as server, httpclient.InferenceServerClient(server.http_url) as client:
        infer(server, "talkative")
        server.wait_for_log("plain words")
        assert "verbose words" not in server.log
        client.update_log_settings({"log_verbose_level": 1, "log_info": False})
        infer(server, "talkative")
        server.wait_for_log("verbose words")
        client.update_log_settings({"log_verbose_level": 0, "log_info": True})
        infer(server, "talkative")
        server.wait_for_log("plain words", line_count=2)
    assert server.log.count("verbose words") == 1
    assert server.log.count("plain words") == 2


SLEEPER = """\
import time

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        time.sleep(0.5)
        return [pb_utils.InferenceResponse([]) for _ in requests]
"""


def test_a_stalled_loop_is_not_live_for_a_while(tmp_path):
    builder = RepositoryBuilder(tmp_path)
    place = 'parameters { key: "EXECUTION_PLACE" value: { string_value: "inline" } }'
    builder.add_python_identity("sleeper", dims=(4,), extra_config=place)
    (tmp_path / "sleeper" / "1" / "model.py").write_text(SLEEPER)
    with (
        RunningServer(tmp_path, "--loop-stall-limit-ms=150") as server,
        httpclient.InferenceServerClient(server.http_url) as client,
    ):
        assert client.is_server_live()
        infer(server, "sleeper")
        assert not client.is_server_live()
        with grpcclient.InferenceServerClient(server.grpc_url) as grpc:
            assert not grpc.is_server_live()
        assert metrics_of(server)["merrow_loop_stalls"] == "1"
        server.wait_for_log("the event loop is held up by")
        assert "time.sleep(0.5)" in server.log


def test_statistics_have_all_fields(server):
    infer(server)
    with httpclient.InferenceServerClient(server.http_url) as client:
        (statistics,) = client.get_inference_statistics("identity", "1")["model_stats"]

    assert list(statistics) == [
        "name",
        "version",
        "last_inference",
        "inference_count",
        "execution_count",
        "inference_stats",
        "response_stats",
        "batch_stats",
        "memory_usage",
    ]
    assert list(statistics["inference_stats"]) == [
        "success",
        "fail",
        "queue",
        "compute_input",
        "compute_infer",
        "compute_output",
        "cache_hit",
        "cache_miss",
    ]
    assert statistics["inference_stats"]["success"]["count"] >= 1
