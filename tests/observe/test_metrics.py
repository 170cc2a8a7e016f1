"""The exposition, against what Triton 2.51 printed for the same counts."""

import pytest

from merrow.core.model_config import (
    ModelConfig,
    ModelMetricsMetricControl,
    ModelMetricsMetricControlHistogramOptions,
    ModelMetricsMetricControlMetricIdentifier,
)
from merrow.core.model_config import ModelMetrics as ModelMetricsConfig
from merrow.observe.custom_metrics import COUNTER, CustomMetrics
from merrow.observe.host_usage import HostUsage
from merrow.observe.metrics import (
    KNOWN_FAMILIES,
    MODEL_FAMILIES,
    SERVER_FAMILIES,
    CacheUsage,
    ModelMetrics,
    ServerMetrics,
    first_response_bounds_ns,
    new_recorder,
    render_metrics,
)
from merrow.observe.statistics import Duration, FailureReason, ModelStatistics, StatisticsRecorder
from merrow.settings import MetricsSettings

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


def test_failures_are_told_apart_by_reason():
    failures = {FailureReason.REJECTED: 4, FailureReason.BACKEND: 2}
    model = ModelMetrics(ModelStatistics(name="m", version=7, failures=failures))

    lines = render_metrics([model], ServerMetrics()).splitlines()

    assert 'nv_inference_request_failure{model="m",reason="REJECTED",version="7"} 4' in lines
    assert 'nv_inference_request_failure{model="m",reason="CANCELED",version="7"} 0' in lines
    assert 'nv_inference_request_failure{model="m",reason="BACKEND",version="7"} 2' in lines
    assert 'nv_inference_request_failure{model="m",reason="OTHER",version="7"} 0' in lines


def test_the_pending_gauge_is_the_models_own():
    model = ModelMetrics(statistics("m"), pending_request_count=12)

    assert 'nv_inference_pending_request_count{model="m",version="1"} 12\n' in render_metrics([model], ServerMetrics())


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


def test_labels_stand_in_byte_order_of_their_names():
    model = ModelMetrics(statistics("m"), metric_tags={"b": "2", "A": "1"})

    assert 'nv_inference_count{_A="1",_b="2",model="m",version="1"} 0\n' in render_metrics([model], ServerMetrics())


def test_family_names_are_unique():
    names = [family.name for family in (*MODEL_FAMILIES, *SERVER_FAMILIES)]

    assert len(names) == len(set(names))


MS = 1_000_000


def samples(model, settings=PLAIN, server=None, now_ns=0, custom=()):
    text = render_metrics([model], server or ServerMetrics(), settings, custom, now_ns)
    return dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))


def recorded(config=None, settings=PLAIN, is_cached=False):
    """A model after two requests: 3 and 700 ms in all, 1 and 2 ms in the queue."""
    recorder = new_recorder(config or ModelConfig(name="m"), settings)
    recorder.record_success(1, 0, 0, 1 * MS, 1 * MS, 2 * MS, 3 * MS, 3 * MS)
    recorder.record_execution(4, 2 * MS, 100 * MS, 600 * MS, 700 * MS, 700 * MS)
    recorder.record_successes([(4, 0, 0)], 2 * MS, 100 * MS, 600 * MS, 700 * MS, 700 * MS)
    recorder.record_first_response(0, 700 * MS)
    return ModelMetrics(recorder.snapshot("m", 1, 0, 0), is_cached=is_cached)


def names(values):
    return {name.partition("{")[0] for name in values}


def test_counters_of_latencies_can_be_left_out():
    values = samples(recorded(), MetricsSettings(counter_latencies=False, merrow_histograms=False))

    assert names(values) == {
        "nv_inference_request_success",
        "nv_inference_request_failure",
        "nv_inference_count",
        "nv_inference_exec_count",
        "nv_inference_pending_request_count",
        "nv_model_load_duration_secs",
        "nv_pinned_memory_pool_total_bytes",
        "nv_pinned_memory_pool_used_bytes",
    }
    # Unlike Triton's, they go on.
    assert values['nv_inference_request_success{model="m",version="1"}'] == "2"


def test_summaries_have_the_quantiles_that_were_asked_for():
    settings = MetricsSettings(summary_latencies=True, summary_quantiles=((0.5, 0.05), (0.999, 0.001)))
    values = samples(recorded(settings=settings), settings)

    assert values['nv_inference_request_summary_us_count{model="m",version="1"}'] == "2"
    assert values['nv_inference_request_summary_us_sum{model="m",version="1"}'] == "703000"
    assert values['nv_inference_request_summary_us{model="m",version="1",quantile="0.5"}'] == "2992"
    assert values['nv_inference_request_summary_us{model="m",version="1",quantile="0.999"}'] == "696320"
    assert values['nv_inference_queue_summary_us{model="m",version="1",quantile="0.5"}'] == "1000"
    assert {name for name in names(values) if "summary" in name and not name.endswith(("_count", "_sum"))} == {
        "nv_inference_request_summary_us",
        "nv_inference_queue_summary_us",
        "nv_inference_compute_input_summary_us",
        "nv_inference_compute_infer_summary_us",
        "nv_inference_compute_output_summary_us",
    }


def test_a_summary_of_nothing_is_not_a_number():
    settings = MetricsSettings(summary_latencies=True)
    values = samples(ModelMetrics(new_recorder(ModelConfig(), settings).snapshot("m", 1, 0, 0)), settings)

    assert values['nv_inference_queue_summary_us{model="m",version="1",quantile="0.5"}'] == "Nan"


def test_a_cached_model_has_the_cache_and_no_summary_of_requests():
    settings = MetricsSettings(summary_latencies=True)
    recorder = new_recorder(ModelConfig(name="m"), settings)
    recorder.record_cache_hit(0, 0, 1 * MS, 3 * MS)
    recorder.record_cache_miss(5 * MS, 9 * MS)
    values = samples(ModelMetrics(recorder.snapshot("m", 1, 0, 0), is_cached=True), settings)

    assert values['nv_cache_num_hits_per_model{model="m",version="1"}'] == "1"
    assert values['nv_cache_hit_duration_per_model{model="m",version="1"}'] == "2000"
    assert values['nv_cache_num_misses_per_model{model="m",version="1"}'] == "1"
    assert values['nv_cache_miss_duration_per_model{model="m",version="1"}'] == "5000"
    assert values['nv_cache_hit_summary_per_model_sum{model="m",version="1"}'] == "2000"
    assert values['nv_cache_miss_summary_per_model_sum{model="m",version="1"}'] == "5000"
    assert "nv_inference_request_summary_us" not in names(values)
    assert values['nv_inference_queue_duration_us{model="m",version="1"}'] == "1000"
    assert values['nv_inference_count{model="m",version="1"}'] == "0"


def test_a_model_without_cache_has_no_families_of_it():
    assert not [name for name in names(samples(recorded())) if name.startswith("nv_cache")]


def config_with(family, *bounds):
    control = ModelMetricsMetricControl(
        ModelMetricsMetricControlMetricIdentifier(family), ModelMetricsMetricControlHistogramOptions(bounds)
    )
    return ModelConfig(name="m", model_metrics=ModelMetricsConfig((control,)))


def test_first_responses():
    settings = MetricsSettings(histogram_latencies=True, merrow_histograms=False)
    family = "nv_inference_first_response_histogram_ms"
    values = samples(recorded(settings=settings), settings)

    assert {name: value for name, value in values.items() if name.startswith(family)} == {
        f'{family}_count{{model="m",version="1"}}': "2",
        f'{family}_sum{{model="m",version="1"}}': "703",
        f'{family}_bucket{{model="m",version="1",le="100"}}': "1",
        f'{family}_bucket{{model="m",version="1",le="500"}}': "1",
        f'{family}_bucket{{model="m",version="1",le="2000"}}': "2",
        f'{family}_bucket{{model="m",version="1",le="5000"}}': "2",
        f'{family}_bucket{{model="m",version="1",le="+Inf"}}': "2",
    }
    own = samples(recorded(config_with(family, 2.5, 1000), settings), settings)
    assert own[f'{family}_bucket{{model="m",version="1",le="2.5"}}'] == "0"
    assert own[f'{family}_bucket{{model="m",version="1",le="1000"}}'] == "2"


def test_only_that_histogram_can_be_customized(caplog):
    config = config_with("nv_inference_count", 1)
    settings = MetricsSettings(histogram_latencies=True)

    assert first_response_bounds_ns(config, settings) == (100 * MS, 500 * MS, 2000 * MS, 5000 * MS)
    assert first_response_bounds_ns(config, MetricsSettings()) == ()
    new_recorder(config, settings)
    assert (
        "Metric family 'nv_inference_count' in 'metric_identifier' is not a customizable metric in Triton core."
        in caplog.text
    )


def test_merrow_s_own_histograms():
    values = samples(recorded(), MetricsSettings())

    assert values['merrow_request_duration_seconds_sum{model="m",version="1"}'] == "0.703"
    assert values['merrow_request_duration_seconds_bucket{model="m",version="1",le="0.004194304"}'] == "1"
    assert values['merrow_request_duration_seconds_bucket{model="m",version="1",le="+Inf"}'] == "2"
    assert values['merrow_queue_duration_seconds_count{model="m",version="1"}'] == "2"
    assert values['merrow_execution_duration_seconds_sum{model="m",version="1"}'] == "0.7"
    assert [values[f'merrow_batch_size_bucket{{model="m",version="1",le="{bound}"}}'] for bound in (1, 2, 4, 1024)] == [
        "1",
        "1",
        "2",
        "2",
    ]
    assert values['merrow_batch_size_sum{model="m",version="1"}'] == "5"


def test_evicted_sequences_are_told_apart_by_reason():
    recorder = StatisticsRecorder()
    recorder.record_eviction("idle")
    values = samples(ModelMetrics(recorder.snapshot("m", 1, 0, 0)))

    assert values['merrow_sequence_evictions{model="m",reason="idle",version="1"}'] == "1"


def test_a_namespace_is_a_label():
    model = ModelMetrics(statistics("m"), namespace="/models")

    assert 'nv_inference_count{model="m",namespace="/models",version="1"}' in samples(model)


def test_the_whole_cache():
    cache = CacheUsage(5, 9, 6, 3, 1, 7000, 8000, 0.25)
    values = samples(ModelMetrics(statistics("m")), server=ServerMetrics(cache=cache))

    assert {name: value for name, value in values.items() if name.startswith("nv_cache")} == {
        "nv_cache_util": "0.25",
        "nv_cache_num_entries": "5",
        "nv_cache_num_lookups": "9",
        "nv_cache_num_hits": "6",
        "nv_cache_num_misses": "3",
        "nv_cache_num_evictions": "1",
        "nv_cache_lookup_duration": "7",
        "nv_cache_insertion_duration": "8",
    }


def test_the_loop():
    values = samples(ModelMetrics(statistics("m")), server=ServerMetrics(loop_lag_ns=1_500_000, loop_stall_count=2))

    assert (values["merrow_loop_lag_seconds"], values["merrow_loop_stalls"]) == ("0.0015", "2")


def test_a_custom_family_may_add_to_one_of_ours():
    custom = CustomMetrics(KNOWN_FAMILIES)
    custom.increment(custom.add_metric(custom.add_family("nv_inference_count", "", COUNTER), {"a": "b"}), 7)
    text = render_metrics([ModelMetrics(statistics("m"))], ServerMetrics(), PLAIN, custom.families())

    assert text.count("# TYPE nv_inference_count counter") == 1
    assert 'nv_inference_count{a="b"} 7\nnv_inference_count{model="m",version="1"} 0\n' in text
