"""The text of `/metrics`: Triton's families, by Triton's names, in Prometheus' exposition format.

`render_metrics` is a pure function of the counts at one instant. A family is one entry of `MODEL_FAMILIES` or
`SERVER_FAMILIES`; a family without samples is left out, with its HELP and TYPE lines, as prometheus-cpp leaves it out.
Labels stand in the byte order of their names; a tag of the configuration (`metric_tags`) is a label with a leading
underscore. Duration counters are whole microseconds.

Source: Triton, docs/user_guide/metrics.md; the output of a running server.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from merrow.observe.host_usage import HostUsage
from merrow.observe.statistics import FailureReason, ModelStatistics

CONTENT_TYPE = "text/plain; charset=utf-8"

_LONGEST_PLAIN = 10**16


@dataclass(frozen=True, slots=True)
class ModelMetrics:
    """One loaded model version.

    `pending_request_count` are the requests that were accepted and have not begun to execute. `load_duration_ns` is
    how long its last load took.
    """

    statistics: ModelStatistics
    pending_request_count: int = 0
    load_duration_ns: int = 0
    metric_tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ServerMetrics:
    """The server as a whole. `host_usage` is None where the platform does not tell, or nobody wants to know.

    merrow pins no memory, so its pool of pinned memory is empty unless a caller knows of one.
    """

    host_usage: HostUsage | None = None
    pinned_memory_total_byte_size: int = 0
    pinned_memory_used_byte_size: int = 0


Sample = tuple[tuple[tuple[str, str], ...], float]
"""Labels besides the model's own, as name and value, and the sample's value."""


@dataclass(frozen=True, slots=True)
class ModelFamily:
    """A family with samples for each model version."""

    name: str
    type: str
    help: str
    samples: Callable[[ModelMetrics], Sequence[Sample]]


@dataclass(frozen=True, slots=True)
class ServerFamily:
    """A family with at most one sample, without labels."""

    name: str
    type: str
    help: str
    value: Callable[[ServerMetrics], float | None]


def _one(value: float) -> Sequence[Sample]:
    return (((), value),)


def _failures(model: ModelMetrics) -> Sequence[Sample]:
    counts = model.statistics.failures
    return [((("reason", reason.value),), counts.get(reason, 0)) for reason in FailureReason]


MODEL_FAMILIES = (
    ModelFamily(
        "nv_inference_request_success",
        "counter",
        "Number of successful inference requests, all batch sizes",
        lambda model: _one(model.statistics.success.count),
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
        lambda model: _one(model.statistics.inference_count),
    ),
    ModelFamily(
        "nv_inference_exec_count",
        "counter",
        "Number of model executions performed (does not include cached requests)",
        lambda model: _one(model.statistics.execution_count),
    ),
    ModelFamily(
        "nv_inference_request_duration_us",
        "counter",
        "Cumulative inference request duration in microseconds (includes cached requests)",
        lambda model: _one(model.statistics.success.ns // 1000),
    ),
    ModelFamily(
        "nv_inference_queue_duration_us",
        "counter",
        "Cumulative inference queuing duration in microseconds (includes cached requests)",
        lambda model: _one(model.statistics.queue.ns // 1000),
    ),
    ModelFamily(
        "nv_inference_compute_input_duration_us",
        "counter",
        "Cumulative compute input duration in microseconds (does not include cached requests)",
        lambda model: _one(model.statistics.compute_input.ns // 1000),
    ),
    ModelFamily(
        "nv_inference_compute_infer_duration_us",
        "counter",
        "Cumulative compute inference duration in microseconds (does not include cached requests)",
        lambda model: _one(model.statistics.compute_infer.ns // 1000),
    ),
    ModelFamily(
        "nv_inference_compute_output_duration_us",
        "counter",
        "Cumulative inference compute output duration in microseconds (does not include cached requests)",
        lambda model: _one(model.statistics.compute_output.ns // 1000),
    ),
    ModelFamily(
        "nv_inference_pending_request_count",
        "gauge",
        "Instantaneous number of pending requests awaiting execution per-model.",
        lambda model: _one(model.pending_request_count),
    ),
    ModelFamily(
        "nv_model_load_duration_secs",
        "gauge",
        "Model load time in seconds",
        lambda model: _one(model.load_duration_ns / 1e9),
    ),
)

SERVER_FAMILIES = (
    ServerFamily(
        "nv_pinned_memory_pool_total_bytes",
        "gauge",
        "Pinned memory pool total memory size, in bytes",
        lambda server: server.pinned_memory_total_byte_size,
    ),
    ServerFamily(
        "nv_pinned_memory_pool_used_bytes",
        "gauge",
        "Pinned memory pool used memory size, in bytes",
        lambda server: server.pinned_memory_used_byte_size,
    ),
    ServerFamily(
        "nv_cpu_utilization",
        "gauge",
        "CPU utilization rate [0.0 - 1.0]",
        lambda server: None if server.host_usage is None else server.host_usage.cpu_utilization,
    ),
    ServerFamily(
        "nv_cpu_memory_total_bytes",
        "gauge",
        "CPU total memory (RAM), in bytes",
        lambda server: None if server.host_usage is None else server.host_usage.memory_total_byte_size,
    ),
    ServerFamily(
        "nv_cpu_memory_used_bytes",
        "gauge",
        "CPU used memory (RAM), in bytes",
        lambda server: None if server.host_usage is None else server.host_usage.memory_used_byte_size,
    ),
)


def render_metrics(models: Sequence[ModelMetrics], server: ServerMetrics) -> str:
    """The whole exposition, ending in a newline.

    Args:
        models: loaded model versions, in the order they shall be listed in.
    """
    lines: list[str] = []
    # Labels are formatted once for each model: this runs on the loop's thread, and must be short.
    label_texts: list[dict[tuple[tuple[str, str], ...], str]] = [{} for _ in models]
    for family in MODEL_FAMILIES:
        if models:
            lines += _head(family)
        for model, texts in zip(models, label_texts, strict=True):
            for extra, value in family.samples(model):
                text = texts.get(extra)
                if text is None:
                    text = texts[extra] = _format_labels({**_model_labels(model), **dict(extra)})
                lines.append(f"{family.name}{text} {_format_value(value)}")
    for server_family in SERVER_FAMILIES:
        server_value = server_family.value(server)
        if server_value is not None:
            lines += _head(server_family)
            lines.append(f"{server_family.name} {_format_value(server_value)}")
    lines.append("")
    return "\n".join(lines)


def _model_labels(model: ModelMetrics) -> dict[str, str]:
    labels = {f"_{name}": value for name, value in model.metric_tags.items()}
    labels["model"] = model.statistics.name
    labels["version"] = str(model.statistics.version)
    return labels


def _head(family: ModelFamily | ServerFamily) -> tuple[str, str]:
    return f"# HELP {family.name} {family.help}", f"# TYPE {family.name} {family.type}"


def _format_labels(labels: Mapping[str, str]) -> str:
    return "{" + ",".join(f'{name}="{_escape(labels[name])}"' for name in sorted(labels)) + "}"


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _format_value(value: float) -> str:
    # Sixteen significant digits, as prometheus-cpp prints doubles. A short integer is the same in plain.
    return str(value) if isinstance(value, int) and value < _LONGEST_PLAIN else f"{value:.16g}"
