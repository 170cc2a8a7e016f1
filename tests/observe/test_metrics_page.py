"""The page of metrics: who collects what."""

from merrow.observe.custom_metrics import GAUGE
from merrow.observe.gpu_usage import GpuUsageCollector
from merrow.observe.loop_watch import LoopWatch
from merrow.observe.metrics import CacheUsage
from merrow.observe.metrics_page import MetricsPage
from merrow.settings import MetricsSettings
from merrow.testing.manual_clock import ManualClock
from tests.observe.test_gpu_usage import FULL, FakeNvml


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
