"""What `/metrics` shows, as of now: the counts of the models, and the figures of the machine, collected when asked.

`render_metrics` is a pure function of the counts at one instant: the families of the models, then the server's, then
those that models make for themselves. A family without a sample is left out.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from merrow.core.clock import Clock
from merrow.observe.custom_metrics import CustomMetrics
from merrow.observe.exposition import Family, render
from merrow.observe.gpu_usage import GpuUsageCollector
from merrow.observe.host_usage import HostUsageCollector
from merrow.observe.loop_watch import LoopWatch
from merrow.observe.metrics import CacheUsage, ModelMetrics, ServerMetrics
from merrow.observe.model_families import MODEL_FAMILIES, model_families
from merrow.observe.server_families import SERVER_FAMILIES, server_families
from merrow.settings import MetricsSettings

KNOWN_FAMILIES: Mapping[str, str] = {family.name: family.type for family in (*MODEL_FAMILIES, *SERVER_FAMILIES)}


class MetricsPage:
    """Owns the collectors and the custom metrics. For the loop's thread, but for `refresh`.

    `custom` is for models to register in. `loop_watch` and `read_cache` are set by whoever has them; `read_cache` gives
    the figures of the response cache, None while there is none.

    Args:
        gpus: None without NVML, or where nobody wants its figures.
    """

    def __init__(self, settings: MetricsSettings, clock: Clock, gpus: GpuUsageCollector | None = None) -> None:
        self.settings = settings
        self.custom = CustomMetrics(KNOWN_FAMILIES)
        self.loop_watch: LoopWatch | None = None
        self.read_cache: Callable[[], CacheUsage | None] | None = None
        self._clock = clock
        self._gpus = gpus
        self._host = HostUsageCollector(clock, settings.interval_ms * 1_000_000) if settings.allow_cpu_metrics else None

    @property
    def must_refresh(self) -> bool:
        """Whether `refresh` has something to do."""
        return self._gpus is not None and not self._gpus.is_fresh

    def refresh(self) -> None:
        """Read what may take a while; on any thread, but on one at a time."""
        if self._gpus is not None:
            self._gpus.refresh()

    def render(self, models: Sequence[ModelMetrics]) -> str:
        """The text of the page."""
        watch = self.loop_watch
        server = ServerMetrics(
            host_usage=None if self._host is None else self._host.usage(),
            cache=None if self.read_cache is None else self.read_cache(),
            gpus=() if self._gpus is None else self._gpus.usage(),
            loop_lag_ns=None if watch is None else watch.lag_ns,
            loop_stall_count=None if watch is None else watch.stall_count,
        )
        return render_metrics(models, server, self.settings, self.custom.families(), self._clock())

    def close(self) -> None:
        """Let go of the machine's libraries."""
        gpus, self._gpus = self._gpus, None
        if gpus is not None:
            gpus.close()


def render_metrics(
    models: Sequence[ModelMetrics],
    server: ServerMetrics,
    settings: MetricsSettings = MetricsSettings(),  # noqa: B008  # frozen
    custom: Iterable[Family] = (),
    now_ns: int = 0,
) -> str:
    """The whole exposition, ending in a newline.

    Args:
        models: loaded model versions, in the order they shall be listed in.
        custom: families of models' own; a name of ours among them adds to ours.
        now_ns: the recorders' time.
    """
    added = {family.name: family for family in custom}
    return render(_families(models, server, settings, added, now_ns))


def _families(
    models: Sequence[ModelMetrics],
    server: ServerMetrics,
    settings: MetricsSettings,
    added: dict[str, Family],
    now_ns: int,
) -> Iterator[Family]:
    for family in model_families(models, settings, now_ns):
        own = added.pop(family.name, None)
        if own is not None:
            family = family._replace(samples=[*own.samples, *family.samples])
        if family.samples:
            yield family
    for family in server_families(server):
        own = added.pop(family.name, None)
        if own is not None:
            family = family._replace(samples=[*family.samples, *own.samples])
        if family.samples:
            yield family
    yield from added.values()
