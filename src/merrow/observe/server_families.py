"""The families of `/metrics` that are the server's own: the machine, its GPUs, the response cache, the event loop.

A family is one entry of `SERVER_FAMILIES`; one without a value is left out.

Source: Triton, docs/user_guide/metrics.md, core/src/metrics.cc; the output of a running server.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from merrow.observe.exposition import Family, Sample, label_text
from merrow.observe.gpu_usage import GpuUsage
from merrow.observe.host_usage import HostUsage
from merrow.observe.metrics import CacheUsage, ServerMetrics


@dataclass(frozen=True, slots=True)
class ServerFamily:
    """A family of the server; no samples leave it out."""

    name: str
    type: str
    help: str
    samples: Callable[[str, ServerMetrics], Sequence[Sample]]


_ServerSamples = Callable[[str, ServerMetrics], Sequence[Sample]]


def _one(read: Callable[[ServerMetrics], float | None]) -> _ServerSamples:
    def samples(name: str, server: ServerMetrics) -> Sequence[Sample]:
        value = read(server)
        return () if value is None else (Sample(name, "", value),)

    return samples


def _host(read: Callable[[HostUsage], float]) -> _ServerSamples:
    return _one(lambda server: None if server.host_usage is None else read(server.host_usage))


def _cache(read: Callable[[CacheUsage], float]) -> _ServerSamples:
    return _one(lambda server: None if server.cache is None else read(server.cache))


def _gpu(read: Callable[[GpuUsage], float | None]) -> _ServerSamples:
    def samples(name: str, server: ServerMetrics) -> Sequence[Sample]:
        values = [(gpu.uuid, read(gpu)) for gpu in server.gpus]
        return [Sample(name, label_text([("gpu_uuid", uuid)]), value) for uuid, value in values if value is not None]

    return samples


SERVER_FAMILIES = (
    ServerFamily(
        "nv_pinned_memory_pool_total_bytes",
        "gauge",
        "Pinned memory pool total memory size, in bytes",
        _one(lambda server: server.pinned_memory_total_byte_size),
    ),
    ServerFamily(
        "nv_pinned_memory_pool_used_bytes",
        "gauge",
        "Pinned memory pool used memory size, in bytes",
        _one(lambda server: server.pinned_memory_used_byte_size),
    ),
    ServerFamily(
        "nv_cpu_utilization",
        "gauge",
        "CPU utilization rate [0.0 - 1.0]",
        _host(lambda host: host.cpu_utilization),
    ),
    ServerFamily(
        "nv_cpu_memory_total_bytes",
        "gauge",
        "CPU total memory (RAM), in bytes",
        _host(lambda host: host.memory_total_byte_size),
    ),
    ServerFamily(
        "nv_cpu_memory_used_bytes",
        "gauge",
        "CPU used memory (RAM), in bytes",
        _host(lambda host: host.memory_used_byte_size),
    ),
    ServerFamily("nv_gpu_utilization", "gauge", "GPU utilization rate [0.0 - 1.0)", _gpu(lambda gpu: gpu.utilization)),
    ServerFamily(
        "nv_gpu_memory_total_bytes",
        "gauge",
        "GPU total memory, in bytes",
        _gpu(lambda gpu: gpu.memory_total_byte_size),
    ),
    ServerFamily(
        "nv_gpu_memory_used_bytes",
        "gauge",
        "GPU used memory, in bytes",
        _gpu(lambda gpu: gpu.memory_used_byte_size),
    ),
    ServerFamily("nv_gpu_power_usage", "gauge", "GPU power usage in watts", _gpu(lambda gpu: gpu.power_watts)),
    ServerFamily(
        "nv_gpu_power_limit",
        "gauge",
        "GPU power management limit in watts",
        _gpu(lambda gpu: gpu.power_limit_watts),
    ),
    ServerFamily(
        "nv_energy_consumption",
        "counter",
        "GPU energy consumption in joules since the Triton Server started",
        _gpu(lambda gpu: gpu.energy_joules),
    ),
    ServerFamily("nv_cache_util", "gauge", "Cache utilization [0.0 - 1.0]", _cache(lambda cache: cache.utilization)),
    ServerFamily(
        "nv_cache_num_entries",
        "gauge",
        "Number of responses stored in response cache",
        _cache(lambda cache: cache.entry_count),
    ),
    ServerFamily(
        "nv_cache_num_lookups",
        "gauge",
        "Number of cache lookups in response cache",
        _cache(lambda cache: cache.lookup_count),
    ),
    ServerFamily(
        "nv_cache_num_hits",
        "gauge",
        "Number of cache hits in response cache",
        _cache(lambda cache: cache.hit_count),
    ),
    ServerFamily(
        "nv_cache_num_misses",
        "gauge",
        "Number of cache misses in response cache",
        _cache(lambda cache: cache.miss_count),
    ),
    ServerFamily(
        "nv_cache_num_evictions",
        "gauge",
        "Number of cache evictions in response cache",
        _cache(lambda cache: cache.eviction_count),
    ),
    ServerFamily(
        "nv_cache_lookup_duration",
        "gauge",
        "Total cache lookup duration (hit and miss), in microseconds",
        _cache(lambda cache: cache.lookup_ns // 1000),
    ),
    ServerFamily(
        "nv_cache_insertion_duration",
        "gauge",
        "Total cache insertion duration, in microseconds",
        _cache(lambda cache: cache.insertion_ns // 1000),
    ),
    ServerFamily(
        "merrow_loop_lag_seconds",
        "gauge",
        "How late the event loop was, at most, in the last interval",
        _one(lambda server: None if server.loop_lag_ns is None else server.loop_lag_ns / 1e9),
    ),
    ServerFamily(
        "merrow_loop_stalls",
        "counter",
        "How often the event loop was held up longer than --loop-stall-limit-ms",
        _one(lambda server: server.loop_stall_count),
    ),
)


def server_families(server: ServerMetrics) -> Iterator[Family]:
    """Every family of the server, with the samples that there are of it, perhaps none."""
    for family in SERVER_FAMILIES:
        yield Family(family.name, family.type, family.help, family.samples(family.name, server))
