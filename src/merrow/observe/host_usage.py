"""How busy the machine is: CPU time and memory, from Linux's `/proc`.

The collector keeps the last reading and reads again when it is asked after at least one interval, so nothing polls
while nobody scrapes. A reading costs some tens of microseconds; it never waits for a disk.

CPU utilisation is busy over all time since the reading before, guest time counted once; memory in use is what is not
available. Elsewhere than on Linux there are no values.

Source: Triton, metrics.cc, ParseCpuInfo and ParseMemInfo; proc(5).
"""

from dataclasses import dataclass
from pathlib import Path

from merrow.core.clock import Clock

_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class HostUsage:
    """`cpu_utilization` is 0.0 to 1.0, over the last interval."""

    cpu_utilization: float
    memory_total_byte_size: int
    memory_used_byte_size: int


class HostUsageCollector:
    """Reads `proc` at most once per interval. Not for several threads."""

    def __init__(self, clock: Clock, interval_ns: int, proc: Path = _PROC) -> None:
        self._clock = clock
        self._interval_ns = interval_ns
        self._proc = proc
        self._read_ns = clock()
        self._cpu_times = self._read_cpu_times()
        self._usage = self._read_usage()

    def usage(self) -> HostUsage | None:
        """The usage now, or as of at most one interval ago; None where the platform has no `/proc`."""
        now_ns = self._clock()
        if now_ns - self._read_ns >= self._interval_ns:
            self._read_ns = now_ns
            self._usage = self._read_usage()
        return self._usage

    def _read_usage(self) -> HostUsage | None:
        memory = self._read_memory()
        cpu_times = self._read_cpu_times()
        if memory is None or cpu_times is None or self._cpu_times is None:
            return None
        busy = cpu_times[0] - self._cpu_times[0]
        total = cpu_times[1] - self._cpu_times[1]
        self._cpu_times = cpu_times
        utilization = min(1.0, max(0.0, busy / total)) if total > 0 else 0.0
        return HostUsage(utilization, *memory)

    def _read_cpu_times(self) -> tuple[int, int] | None:
        """Busy ticks and all ticks of all CPUs since the machine started."""
        try:
            line = (self._proc / "stat").read_text().partition("\n")[0]
        except OSError:
            return None
        user, nice, system, idle, io_wait, irq, soft_irq, steal = map(int, line.split()[1:9])
        busy = user + nice + system + irq + soft_irq + steal
        return busy, busy + idle + io_wait

    def _read_memory(self) -> tuple[int, int] | None:
        """Total and used bytes."""
        try:
            lines = (self._proc / "meminfo").read_text().splitlines()
        except OSError:
            return None
        kib = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
        return kib["MemTotal"] * 1024, (kib["MemTotal"] - kib["MemAvailable"]) * 1024
