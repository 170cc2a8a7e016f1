"""What there is to measure, at one instant: of each model version that is loaded, and of the server as a whole.

Values only. `model_families` and `server_families` say which metrics they become, and `metrics_page` when.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from merrow.observe.gpu_usage import GpuUsage
from merrow.observe.host_usage import HostUsage
from merrow.observe.statistics import ModelStatistics


@dataclass(frozen=True, slots=True)
class ModelMetrics:
    """One loaded model version.

    `pending_request_count` are the requests that were accepted and have not begun to execute. `load_duration_ns` is
    how long its last load took. `namespace` is its repository with `--model-namespacing`, else None. `is_cached` says
    that its answers are kept.
    """

    statistics: ModelStatistics
    pending_request_count: int = 0
    load_duration_ns: int = 0
    metric_tags: Mapping[str, str] = field(default_factory=dict)
    namespace: str | None = None
    is_cached: bool = False

    def labels(self) -> list[tuple[str, str]]:
        """What tells its samples from those of other model versions."""
        labels = [(f"_{name}", value) for name, value in self.metric_tags.items()]
        labels.append(("model", self.statistics.name))
        labels.append(("version", str(self.statistics.version)))
        if self.namespace is not None:
            labels.append(("namespace", self.namespace))
        return labels


@dataclass(frozen=True, slots=True)
class CacheUsage:
    """What the response cache counted; durations in nanoseconds, `utilization` 0.0 to 1.0."""

    entry_count: int = 0
    lookup_count: int = 0
    hit_count: int = 0
    miss_count: int = 0
    eviction_count: int = 0
    lookup_ns: int = 0
    insertion_ns: int = 0
    utilization: float = 0.0


@dataclass(frozen=True, slots=True)
class ServerMetrics:
    """The server as a whole. `host_usage` is None where the platform does not tell, or nobody wants to know.

    merrow pins no memory, so its pool of pinned memory is empty unless a caller knows of one. `loop_stalls` are how
    often the loop was held up for long, and the longest lag of the last interval is `loop_lag_ns`; None if nobody
    measures it.
    """

    host_usage: HostUsage | None = None
    pinned_memory_total_byte_size: int = 0
    pinned_memory_used_byte_size: int = 0
    cache: CacheUsage | None = None
    gpus: Sequence[GpuUsage] = ()
    loop_lag_ns: int | None = None
    loop_stall_count: int | None = None
