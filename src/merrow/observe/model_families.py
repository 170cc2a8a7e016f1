"""The families of `/metrics` that have samples for each model version, and what must be counted for them.

A family is one entry of `MODEL_FAMILIES`, and says with which settings it is there; one without a sample is left out.
Labels stand in the byte order of their names, `le` and `quantile` last; a tag of the configuration (`metric_tags`) is a
label with a leading underscore. Durations of Triton's families are whole microseconds, those of merrow's seconds.

Source: Triton, docs/user_guide/metrics.md, core/src/metrics.cc; the output of a running server.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from merrow.core.model_config import ModelConfig
from merrow.observe.exposition import Family, Sample, histogram_samples, label_text
from merrow.observe.metrics import ModelMetrics
from merrow.observe.statistics import (
    DurationHistogram,
    FailureReason,
    LatencySummaries,
    ModelStatistics,
    StatisticsRecorder,
)
from merrow.observe.summary import Summary
from merrow.settings import MetricsSettings

_LOG = logging.getLogger("merrow.observe.model_families")

FIRST_RESPONSE_FAMILY = "nv_inference_first_response_histogram_ms"
FIRST_RESPONSE_BOUNDS_MS = (100.0, 500.0, 2000.0, 5000.0)


@dataclass(frozen=True, slots=True)
class _Context:
    """One model version while its samples are made."""

    model: ModelMetrics
    settings: MetricsSettings
    labels: Sequence[tuple[str, str]]
    # The same as text.
    text: str
    now_ns: int


@dataclass(frozen=True, slots=True)
class ModelFamily:
    """A family with samples for each model version. `condition` says with which settings it is there."""

    name: str
    type: str
    help: str
    samples: Callable[[str, _Context], Sequence[Sample]]
    condition: Callable[[MetricsSettings], bool] = lambda settings: True


_ModelSamples = Callable[[str, _Context], Sequence[Sample]]


def _value(read: Callable[[ModelMetrics], float]) -> _ModelSamples:
    return lambda name, context: (Sample(name, context.text, read(context.model)),)


def _failures(name: str, context: _Context) -> Sequence[Sample]:
    counts = context.model.statistics.failures
    return [
        Sample(name, label_text((*context.labels, ("reason", reason.value))), counts.get(reason, 0))
        for reason in FailureReason
    ]


def _cached(read: Callable[[ModelStatistics], float]) -> _ModelSamples:
    """Samples of models whose answers are kept; of no others."""

    def samples(name: str, context: _Context) -> Sequence[Sample]:
        if not context.model.is_cached:
            return ()
        return (Sample(name, context.text, read(context.model.statistics)),)

    return samples


def _summary(read: Callable[[LatencySummaries], Summary], is_for: Callable[[ModelMetrics], bool]) -> _ModelSamples:
    def samples(name: str, context: _Context) -> Sequence[Sample]:
        summaries = context.model.statistics.summaries
        if summaries is None or not is_for(context.model):
            return ()
        summary = read(summaries)
        ranks = [rank for rank, _ in context.settings.summary_quantiles]
        values = summary.quantiles(ranks, context.now_ns)
        return [
            Sample(f"{name}_count", context.text, summary.count),
            Sample(f"{name}_sum", context.text, summary.sum),
            *(
                Sample(name, label_text(context.labels, ("quantile", f"{rank:g}")), value)
                for rank, value in zip(ranks, values, strict=True)
            ),
        ]

    return samples


def _histogram(read: Callable[[ModelStatistics], DurationHistogram | None], unit_ns: int) -> _ModelSamples:
    def samples(name: str, context: _Context) -> Sequence[Sample]:
        histogram = read(context.model.statistics)
        if histogram is None or not histogram.counts:
            return ()
        bounds = _in_unit(histogram.bounds_ns, unit_ns)
        return histogram_samples(name, context.labels, bounds, histogram.counts, histogram.total_ns / unit_ns)

    return samples


@lru_cache(256)
def _in_unit(bounds_ns: tuple[int, ...], unit_ns: int) -> tuple[float, ...]:
    return tuple(bound / unit_ns for bound in bounds_ns)


# A bucket for each power of two.
_BATCH_BOUNDS = tuple(1 << bits for bits in range(11))


def _batch_sizes(name: str, context: _Context) -> Sequence[Sample]:
    counts = [0] * (len(_BATCH_BOUNDS) + 1)
    total = 0
    for batch in context.model.statistics.batch_stats:
        count = batch.compute_infer.count
        total += batch.batch_size * count
        counts[min((max(batch.batch_size, 1) - 1).bit_length(), len(_BATCH_BOUNDS))] += count
    return histogram_samples(name, context.labels, _BATCH_BOUNDS, counts, total)


def _evictions(name: str, context: _Context) -> Sequence[Sample]:
    return [
        Sample(name, label_text((*context.labels, ("reason", reason))), count)
        for reason, count in sorted(context.model.statistics.sequence_evictions.items())
    ]


def _has_counters(settings: MetricsSettings) -> bool:
    return settings.counter_latencies


def _has_summaries(settings: MetricsSettings) -> bool:
    return settings.summary_latencies


def _has_merrow_histograms(settings: MetricsSettings) -> bool:
    return settings.merrow_histograms


MODEL_FAMILIES = (
    ModelFamily(
        "nv_inference_request_success",
        "counter",
        "Number of successful inference requests, all batch sizes",
        _value(lambda model: model.statistics.success.count),
    ),
    ModelFamily(
        "nv_inference_request_failure",
        "counter",
        "Number of failed inference requests, all batch sizes",
        _failures,
    ),
    ModelFamily(
        "nv_inference_count",
        "counter",
        "Number of inferences performed (does not include cached requests)",
        _value(lambda model: model.statistics.inference_count),
    ),
    ModelFamily(
        "nv_inference_exec_count",
        "counter",
        "Number of model executions performed (does not include cached requests)",
        _value(lambda model: model.statistics.execution_count),
    ),
    ModelFamily(
        "nv_inference_request_duration_us",
        "counter",
        "Cumulative inference request duration in microseconds (includes cached requests)",
        _value(lambda model: model.statistics.success.ns // 1000),
        _has_counters,
    ),
    ModelFamily(
        "nv_inference_queue_duration_us",
        "counter",
        "Cumulative inference queuing duration in microseconds (includes cached requests)",
        _value(lambda model: model.statistics.queue.ns // 1000),
        _has_counters,
    ),
    ModelFamily(
        "nv_inference_compute_input_duration_us",
        "counter",
        "Cumulative compute input duration in microseconds (does not include cached requests)",
        _value(lambda model: model.statistics.compute_input.ns // 1000),
        _has_counters,
    ),
    ModelFamily(
        "nv_inference_compute_infer_duration_us",
        "counter",
        "Cumulative compute inference duration in microseconds (does not include cached requests)",
        _value(lambda model: model.statistics.compute_infer.ns // 1000),
        _has_counters,
    ),
    ModelFamily(
        "nv_inference_compute_output_duration_us",
        "counter",
        "Cumulative inference compute output duration in microseconds (does not include cached requests)",
        _value(lambda model: model.statistics.compute_output.ns // 1000),
        _has_counters,
    ),
    ModelFamily(
        "nv_inference_pending_request_count",
        "gauge",
        "Instantaneous number of pending requests awaiting execution per-model.",
        _value(lambda model: model.pending_request_count),
    ),
    ModelFamily(
        "nv_model_load_duration_secs",
        "gauge",
        "Model load time in seconds",
        _value(lambda model: model.load_duration_ns / 1e9),
    ),
    ModelFamily(
        FIRST_RESPONSE_FAMILY,
        "histogram",
        "Duration from request to first response in milliseconds",
        _histogram(lambda statistics: statistics.first_response_histogram, 1_000_000),
        lambda settings: settings.histogram_latencies,
    ),
    ModelFamily(
        "nv_inference_request_summary_us",
        "summary",
        "Summary of inference request duration in microseconds (includes cached requests)",
        _summary(lambda summaries: summaries.request, lambda model: not model.is_cached),
        _has_summaries,
    ),
    ModelFamily(
        "nv_inference_queue_summary_us",
        "summary",
        "Summary of inference queuing duration in microseconds (includes cached requests)",
        _summary(lambda summaries: summaries.queue, lambda model: True),
        _has_summaries,
    ),
    ModelFamily(
        "nv_inference_compute_input_summary_us",
        "summary",
        "Cumulative compute input duration in microseconds (does not include cached requests)",
        _summary(lambda summaries: summaries.compute_input, lambda model: True),
        _has_summaries,
    ),
    ModelFamily(
        "nv_inference_compute_infer_summary_us",
        "summary",
        "Cumulative compute inference duration in microseconds (does not include cached requests)",
        _summary(lambda summaries: summaries.compute_infer, lambda model: True),
        _has_summaries,
    ),
    ModelFamily(
        "nv_inference_compute_output_summary_us",
        "summary",
        "Cumulative inference compute output duration in microseconds (does not include cached requests)",
        _summary(lambda summaries: summaries.compute_output, lambda model: True),
        _has_summaries,
    ),
    ModelFamily(
        "nv_cache_num_hits_per_model",
        "counter",
        "Number of cache hits per model",
        _cached(lambda statistics: statistics.cache_hit.count),
        _has_counters,
    ),
    ModelFamily(
        "nv_cache_hit_duration_per_model",
        "counter",
        "Total cache hit duration per model, in microseconds",
        _cached(lambda statistics: statistics.cache_hit.ns // 1000),
        _has_counters,
    ),
    ModelFamily(
        "nv_cache_num_misses_per_model",
        "counter",
        "Number of cache misses per model",
        _cached(lambda statistics: statistics.cache_miss.count),
        _has_counters,
    ),
    ModelFamily(
        "nv_cache_miss_duration_per_model",
        "counter",
        "Total cache miss (insert+lookup) duration per model, in microseconds",
        _cached(lambda statistics: statistics.cache_miss.ns // 1000),
        _has_counters,
    ),
    ModelFamily(
        "nv_cache_hit_summary_per_model",
        "summary",
        "Summary of cache hit counts/durations per model, in microseconds.",
        _summary(lambda summaries: summaries.cache_hit, lambda model: model.is_cached),
        _has_summaries,
    ),
    ModelFamily(
        "nv_cache_miss_summary_per_model",
        "summary",
        "Summary of cache miss counts/durations per model, in microseconds.",
        _summary(lambda summaries: summaries.cache_miss, lambda model: model.is_cached),
        _has_summaries,
    ),
    ModelFamily(
        "merrow_request_duration_seconds",
        "histogram",
        "Time from a request's arrival to its answer, of successful requests",
        _histogram(lambda statistics: statistics.request_histogram, 10**9),
        _has_merrow_histograms,
    ),
    ModelFamily(
        "merrow_queue_duration_seconds",
        "histogram",
        "Time of a request in the queue, of successful requests",
        _histogram(lambda statistics: statistics.queue_histogram, 10**9),
        _has_merrow_histograms,
    ),
    ModelFamily(
        "merrow_execution_duration_seconds",
        "histogram",
        "Time of a batch in an instance of the model",
        _histogram(lambda statistics: statistics.execution_histogram, 10**9),
        _has_merrow_histograms,
    ),
    ModelFamily(
        "merrow_batch_size",
        "histogram",
        "Rows of the batches that were executed",
        _batch_sizes,
        _has_merrow_histograms,
    ),
    ModelFamily(
        "merrow_sequence_evictions",
        "counter",
        "Sequences that lost their place in the batcher before their end",
        _evictions,
    ),
)


def model_families(models: Sequence[ModelMetrics], settings: MetricsSettings, now_ns: int) -> Iterator[Family]:
    """Every family of models, with the samples that there are of it, perhaps none.

    Args:
        now_ns: the recorders' time.
    """
    contexts = []
    for model in models:
        labels = model.labels()
        contexts.append(_Context(model, settings, labels, label_text(labels), now_ns))
    for family in MODEL_FAMILIES:
        samples: list[Sample] = []
        if family.condition(settings):
            for context in contexts:
                samples += family.samples(family.name, context)
        yield Family(family.name, family.type, family.help, samples)


def first_response_bounds_ns(config: ModelConfig, settings: MetricsSettings) -> tuple[int, ...]:
    """The bounds of a model's histogram of first responses; none where there shall be no histogram."""
    if not settings.histogram_latencies:
        return ()
    bounds_ms: Sequence[float] = FIRST_RESPONSE_BOUNDS_MS
    for control in config.model_metrics.metric_control if config.model_metrics is not None else ():
        identifier, options = control.metric_identifier, control.histogram_options
        if identifier is not None and identifier.family == FIRST_RESPONSE_FAMILY and options is not None:
            bounds_ms = options.buckets
    return tuple(int(bound * 1_000_000) for bound in bounds_ms)


def new_recorder(config: ModelConfig, settings: MetricsSettings) -> StatisticsRecorder:
    """What counts for a model version, with as much as its metrics need."""
    for control in config.model_metrics.metric_control if config.model_metrics is not None else ():
        identifier = control.metric_identifier
        if identifier is not None and identifier.family != FIRST_RESPONSE_FAMILY:
            _LOG.warning(
                "Metric family '%s' in 'metric_identifier' is not a customizable metric in Triton core.",
                identifier.family,
            )
    return StatisticsRecorder(first_response_bounds_ns(config, settings), settings.summary_latencies)
