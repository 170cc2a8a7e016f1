"""What is there of each model version, and when."""

from merrow.core.model_config import (
    ModelConfig,
    ModelMetricsMetricControl,
    ModelMetricsMetricControlHistogramOptions,
    ModelMetricsMetricControlMetricIdentifier,
)
from merrow.core.model_config import ModelMetrics as ModelMetricsConfig
from merrow.observe.exposition import format_value
from merrow.observe.metrics import ModelMetrics
from merrow.observe.model_families import first_response_bounds_ns, model_families, new_recorder
from merrow.observe.statistics import FailureReason, ModelStatistics, StatisticsRecorder
from merrow.settings import MetricsSettings

PLAIN = MetricsSettings(merrow_histograms=False)
MS = 1_000_000


def statistics(name: str) -> ModelStatistics:
    return ModelStatistics(name=name, version=1, failures=dict.fromkeys(FailureReason, 0))


def samples(model, settings=PLAIN):
    """The samples of one model, as they are written."""
    return {
        sample.name + sample.labels: format_value(sample.value)
        for family in model_families([model], settings, now_ns=0)
        for sample in family.samples
    }


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


def test_failures_are_told_apart_by_reason():
    failures = {FailureReason.REJECTED: 4, FailureReason.BACKEND: 2}
    values = samples(ModelMetrics(ModelStatistics(name="m", version=7, failures=failures)))

    assert {name: value for name, value in values.items() if name.startswith("nv_inference_request_failure")} == {
        'nv_inference_request_failure{model="m",reason="REJECTED",version="7"}': "4",
        'nv_inference_request_failure{model="m",reason="CANCELED",version="7"}': "0",
        'nv_inference_request_failure{model="m",reason="BACKEND",version="7"}': "2",
        'nv_inference_request_failure{model="m",reason="OTHER",version="7"}': "0",
    }


def test_the_pending_gauge_is_the_models_own():
    values = samples(ModelMetrics(statistics("m"), pending_request_count=12))

    assert values['nv_inference_pending_request_count{model="m",version="1"}'] == "12"


def test_labels_stand_in_byte_order_of_their_names():
    values = samples(ModelMetrics(statistics("m"), metric_tags={"b": "2", "A": "1"}, namespace="/models"))

    assert 'nv_inference_count{_A="1",_b="2",model="m",namespace="/models",version="1"}' in values


def test_counters_of_latencies_can_be_left_out():
    values = samples(recorded(), MetricsSettings(counter_latencies=False, merrow_histograms=False))

    assert names(values) == {
        "nv_inference_request_success",
        "nv_inference_request_failure",
        "nv_inference_count",
        "nv_inference_exec_count",
        "nv_inference_pending_request_count",
        "nv_model_load_duration_secs",
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
