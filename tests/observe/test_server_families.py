"""What is there of the server, and when."""

from merrow.observe.exposition import format_value
from merrow.observe.gpu_usage import GpuUsage
from merrow.observe.host_usage import HostUsage
from merrow.observe.metrics import CacheUsage, ServerMetrics
from merrow.observe.server_families import server_families


def samples(server):
    """The samples of the server, as they are written."""
    return {
        sample.name + sample.labels: format_value(sample.value)
        for family in server_families(server)
        for sample in family.samples
    }


def test_what_nobody_knows_is_not_there():
    assert samples(ServerMetrics()) == {
        "nv_pinned_memory_pool_total_bytes": "0",
        "nv_pinned_memory_pool_used_bytes": "0",
    }


def test_the_machine():
    values = samples(ServerMetrics(HostUsage(0.25, 4096, 1024)))

    assert {name: value for name, value in values.items() if name.startswith("nv_cpu")} == {
        "nv_cpu_utilization": "0.25",
        "nv_cpu_memory_total_bytes": "4096",
        "nv_cpu_memory_used_bytes": "1024",
    }


def test_gpus_are_told_apart_and_say_what_they_can():
    gpus = (GpuUsage("GPU-1", 0.5, 80, 20, 300.5, 700.0, 12.5), GpuUsage("GPU-2", None, 40, 10, None, None, None))
    values = samples(ServerMetrics(gpus=gpus))

    assert {name: value for name, value in values.items() if "gpu_uuid" in name} == {
        'nv_gpu_utilization{gpu_uuid="GPU-1"}': "0.5",
        'nv_gpu_memory_total_bytes{gpu_uuid="GPU-1"}': "80",
        'nv_gpu_memory_total_bytes{gpu_uuid="GPU-2"}': "40",
        'nv_gpu_memory_used_bytes{gpu_uuid="GPU-1"}': "20",
        'nv_gpu_memory_used_bytes{gpu_uuid="GPU-2"}': "10",
        'nv_gpu_power_usage{gpu_uuid="GPU-1"}': "300.5",
        'nv_gpu_power_limit{gpu_uuid="GPU-1"}': "700",
        'nv_energy_consumption{gpu_uuid="GPU-1"}': "12.5",
    }


def test_the_whole_cache():
    cache = CacheUsage(5, 9, 6, 3, 1, 7000, 8000, 0.25)
    values = samples(ServerMetrics(cache=cache))

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
    values = samples(ServerMetrics(loop_lag_ns=1_500_000, loop_stall_count=2))

    assert (values["merrow_loop_lag_seconds"], values["merrow_loop_stalls"]) == ("0.0015", "2")
