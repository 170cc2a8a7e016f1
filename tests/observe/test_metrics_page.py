"""The page of metrics: who collects what, and the exposition, against what Triton 2.51 printed for the same counts."""

import pytest

from merrow.observe.custom_metrics import COUNTER, GAUGE, CustomMetrics
from merrow.observe.gpu_usage import GpuUsageCollector
from merrow.observe.host_usage import HostUsage
from merrow.observe.loop_watch import LoopWatch
from merrow.observe.metrics import CacheUsage, ModelMetrics, ServerMetrics
from merrow.observe.metrics_page import KNOWN_FAMILIES, MetricsPage, render_metrics
from merrow.observe.model_families import MODEL_FAMILIES
from merrow.observe.server_families import SERVER_FAMILIES
from merrow.observe.statistics import Duration, FailureReason, ModelStatistics
from merrow.settings import MetricsSettings
from merrow.testing.manual_clock import ManualClock
from tests.observe.test_gpu_usage import FULL, FakeNvml

# A running Triton, after three requests to `add_sub`; nv_model_load_duration_secs is newer than that server.
RECORDED = r"""# HELP nv_inference_request_success Number of successful inference requests, all batch sizes
# TYPE nv_inference_request_success counter
nv_inference_request_success{_zz="a\"b\\c",model="add_sub",version="1"} 3
nv_inference_request_success{_zz="a\"b\\c",model="add_sub2",version="1"} 0
# HELP nv_inference_request_failure Number of failed inference requests, all batch sizes
# TYPE nv_inference_request_failure counter
nv_inference_request_failure{_zz="a\"b\\c",model="add_sub",reason="REJECTED",version="1"} 0
nv_inference_request_failure{_zz="a\"b\\c",model="add_sub",reason="CANCELED",version="1"} 0
nv_inference_request_failure{_zz="a\"b\\c",model="add_sub",reason="BACKEND",version="1"} 0
nv_inference_request_failure{_zz="a\"b\\c",model="add_sub",reason="OTHER",version="1"} 0
nv_inference_request_failure{_zz="a\"b\\c",model="add_sub2",reason="REJECTED",version="1"} 0
nv_inference_request_failure{_zz="a\"b\\c",model="add_sub2",reason="CANCELED",version="1"} 0
nv_inference_request_failure{_zz="a\"b\\c",model="add_sub2",reason="BACKEND",version="1"} 0
nv_inference_request_failure{_zz="a\"b\\c",model="add_sub2",reason="OTHER",version="1"} 0
# HELP nv_inference_count Number of inferences performed (does not include cached requests)
# TYPE nv_inference_count counter
nv_inference_count{_zz="a\"b\\c",model="add_sub",version="1"} 3
nv_inference_count{_zz="a\"b\\c",model="add_sub2",version="1"} 0
# HELP nv_inference_exec_count Number of model executions performed (does not include cached requests)
# TYPE nv_inference_exec_count counter
nv_inference_exec_count{_zz="a\"b\\c",model="add_sub",version="1"} 3
nv_inference_exec_count{_zz="a\"b\\c",model="add_sub2",version="1"} 0
# HELP nv_inference_request_duration_us Cumulative inference request duration in microseconds (includes cached requests)
# TYPE nv_inference_request_duration_us counter
nv_inference_request_duration_us{_zz="a\"b\\c",model="add_sub",version="1"} 65746
nv_inference_request_duration_us{_zz="a\"b\\c",model="add_sub2",version="1"} 0
# HELP nv_inference_queue_duration_us Cumulative inference queuing duration in microseconds (includes cached requests)
# TYPE nv_inference_queue_duration_us counter
nv_inference_queue_duration_us{_zz="a\"b\\c",model="add_sub",version="1"} 232
nv_inference_queue_duration_us{_zz="a\"b\\c",model="add_sub2",version="1"} 0
# HELP nv_inference_compute_input_duration_us Cumulative compute input duration in microseconds (does not include cached requests)
# TYPE nv_inference_compute_input_duration_us counter
nv_inference_compute_input_duration_us{_zz="a\"b\\c",model="add_sub",version="1"} 350
nv_inference_compute_input_duration_us{_zz="a\"b\\c",model="add_sub2",version="1"} 0
# HELP nv_inference_compute_infer_duration_us Cumulative compute inference duration in microseconds (does not include cached requests)
# TYPE nv_inference_compute_infer_duration_us counter
nv_inference_compute_infer_duration_us{_zz="a\"b\\c",model="add_sub",version="1"} 64488
nv_inference_compute_infer_duration_us{_zz="a\"b\\c",model="add_sub2",version="1"} 0
# HELP nv_inference_compute_output_duration_us Cumulative inference compute output duration in microseconds (does not include cached requests)
# TYPE nv_inference_compute_output_duration_us counter
nv_inference_compute_output_duration_us{_zz="a\"b\\c",model="add_sub",version="1"} 633
nv_inference_compute_output_duration_us{_zz="a\"b\\c",model="add_sub2",version="1"} 0
# HELP nv_inference_pending_request_count Instantaneous number of pending requests awaiting execution per-model.
# TYPE nv_inference_pending_request_count gauge
nv_inference_pending_request_count{_zz="a\"b\\c",model="add_sub",version="1"} 0
nv_inference_pending_request_count{_zz="a\"b\\c",model="add_sub2",version="1"} 0
# HELP nv_model_load_duration_secs Model load time in seconds
# TYPE nv_model_load_duration_secs gauge
nv_model_load_duration_secs{_zz="a\"b\\c",model="add_sub",version="1"} 0.25
nv_model_load_duration_secs{_zz="a\"b\\c",model="add_sub2",version="1"} 0
# HELP nv_pinned_memory_pool_total_bytes Pinned memory pool total memory size, in bytes
# TYPE nv_pinned_memory_pool_total_bytes gauge
nv_pinned_memory_pool_total_bytes 268435456
# HELP nv_pinned_memory_pool_used_bytes Pinned memory pool used memory size, in bytes
# TYPE nv_pinned_memory_pool_used_bytes gauge
nv_pinned_memory_pool_used_bytes 0
# HELP nv_cpu_utilization CPU utilization rate [0.0 - 1.0]
# TYPE nv_cpu_utilization gauge
nv_cpu_utilization 0.5099009900990099
# HELP nv_cpu_memory_total_bytes CPU total memory (RAM), in bytes
# TYPE nv_cpu_memory_total_bytes gauge
nv_cpu_memory_total_bytes 25276510208
# HELP nv_cpu_memory_used_bytes CPU used memory (RAM), in bytes
# TYPE nv_cpu_memory_used_bytes gauge
nv_cpu_memory_used_bytes 461070336
"""  # noqa: E501

PLAIN = MetricsSettings(merrow_histograms=False)
TAGS = {"zz": 'a"b\\c'}


def statistics(name: str) -> ModelStatistics:
    return ModelStatistics(name=name, version=1, failures=dict.fromkeys(FailureReason, 0))


def test_everything_that_is_there_is_on_the_page():
    clock = ManualClock()
    library = FakeNvml(FULL)
    page = MetricsPage(MetricsSettings(), clock, GpuUsageCollector(library, clock, 100))
    page.loop_watch = LoopWatch(1000, clock)
    page.read_cache = lambda: CacheUsage(entry_count=3, utilization=0.5)
    page.custom.set(page.custom.add_metric(page.custom.add_family("mine", "", GAUGE), {}), 4)
    assert page.must_refresh
    page.refresh()
    assert not page.must_refresh
    lines = page.render([]).splitlines()

    assert 'nv_gpu_utilization{gpu_uuid="GPU-1"} 0.37' in lines
    assert "nv_cache_num_entries 3" in lines
    assert "nv_cache_util 0.5" in lines
    assert "merrow_loop_stalls 0" in lines
    assert lines[-1] == "mine 4"
    page.close()
    assert library.is_shut_down


def test_what_is_not_there_is_not():
    page = MetricsPage(MetricsSettings(allow_cpu_metrics=False), ManualClock())
    page.refresh()

    assert not page.must_refresh
    assert {line.split()[0] for line in page.render([]).splitlines() if not line.startswith("#")} == {
        "nv_pinned_memory_pool_total_bytes",
        "nv_pinned_memory_pool_used_bytes",
    }
    page.close()


def test_the_text_is_the_one_that_triton_prints():
    busy = ModelStatistics(
        name="add_sub",
        version=1,
        inference_count=3,
        execution_count=3,
        success=Duration(3, 65_746_237),
        queue=Duration(3, 232_807),
        compute_input=Duration(3, 350_865),
        compute_infer=Duration(3, 64_488_349),
        compute_output=Duration(3, 633_335),
        failures=dict.fromkeys(FailureReason, 0),
    )
    models = [
        ModelMetrics(busy, load_duration_ns=250_000_000, metric_tags=TAGS),
        ModelMetrics(statistics("add_sub2"), metric_tags=TAGS),
    ]
    server = ServerMetrics(HostUsage(0.5099009900990099, 25276510208, 461070336), 268435456, 0)

    assert render_metrics(models, server, PLAIN) == RECORDED


def test_a_server_without_models_lists_no_model_family():
    text = render_metrics([], ServerMetrics(HostUsage(0.0, 0, 0)))

    # As recorded from a Triton with an empty repository.
    assert [line for line in text.splitlines() if not line.startswith("#")] == [
        "nv_pinned_memory_pool_total_bytes 0",
        "nv_pinned_memory_pool_used_bytes 0",
        "nv_cpu_utilization 0",
        "nv_cpu_memory_total_bytes 0",
        "nv_cpu_memory_used_bytes 0",
    ]
    assert "nv_inference" not in text


def test_unknown_host_usage_leaves_its_families_out():
    assert "nv_cpu" not in render_metrics([], ServerMetrics(None))


@pytest.mark.parametrize(
    ("written", "printed"),
    [("plain", "plain"), ('"', '\\"'), ("\\", "\\\\"), ("two\nlines", "two\\nlines"), ("é", "é")],
)
def test_label_values_are_escaped(written, printed):
    model = ModelMetrics(statistics("m"), metric_tags={"tag": written})

    assert f'nv_inference_count{{_tag="{printed}",model="m",version="1"}} 0\n' in render_metrics(
        [model], ServerMetrics()
    )


@pytest.mark.parametrize(
    ("count", "printed"),
    [(0, "0"), (10**15, "1000000000000000"), (10**16, "1e+16"), (12345678901234567890, "1.234567890123457e+19")],
)
def test_values_have_sixteen_digits(count, printed):
    model = ModelMetrics(ModelStatistics(name="m", version=1, inference_count=count))

    assert f'nv_inference_count{{model="m",version="1"}} {printed}\n' in render_metrics([model], ServerMetrics())


def test_family_names_are_unique():
    names = [family.name for family in (*MODEL_FAMILIES, *SERVER_FAMILIES)]

    assert len(names) == len(set(names))


def test_a_custom_family_may_add_to_one_of_ours():
    custom = CustomMetrics(KNOWN_FAMILIES)
    custom.increment(custom.add_metric(custom.add_family("nv_inference_count", "", COUNTER), {"a": "b"}), 7)
    text = render_metrics([ModelMetrics(statistics("m"))], ServerMetrics(), PLAIN, custom.families())

    assert text.count("# TYPE nv_inference_count counter") == 1
    assert 'nv_inference_count{a="b"} 7\nnv_inference_count{model="m",version="1"} 0\n' in text


def test_a_custom_family_may_add_to_one_of_the_server_s():
    custom = CustomMetrics(KNOWN_FAMILIES)
    custom.set(custom.add_metric(custom.add_family("nv_cache_num_hits", "", GAUGE), {"a": "b"}), 7)
    text = render_metrics([], ServerMetrics(cache=CacheUsage(hit_count=3)), PLAIN, custom.families())

    assert text.count("# TYPE nv_cache_num_hits gauge") == 1
    assert 'nv_cache_num_hits 3\nnv_cache_num_hits{a="b"} 7\n' in text
