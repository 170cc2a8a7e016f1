"""How busy the machine's NVIDIA GPUs are, from the driver's own library (NVML), when there is one.

The library is loaded at run time; without it, or without a GPU, there are no values and no errors. What one GPU does
not tell (power of a virtual one, say) is left out for it alone. Calls may take milliseconds, so the collector is asked
on a thread; it reads at most once per interval.

Source: NVIDIA, NVML API reference; Triton, metrics.cc, which asks DCGM for the same.
"""

import ctypes
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from merrow.core.clock import Clock

_LOG = logging.getLogger("merrow.observe.gpu_usage")

LIBRARY_NAMES = ("libnvidia-ml.so.1", "nvml.dll")

_SUCCESS = 0
_UUID_BYTE_SIZE = 96


@dataclass(frozen=True, slots=True)
class GpuUsage:
    """One GPU. `utilization` is 0.0 to 1.0; energy is counted since the collector started. None: it does not tell."""

    uuid: str
    utilization: float | None = None
    memory_total_byte_size: int | None = None
    memory_used_byte_size: int | None = None
    power_watts: float | None = None
    power_limit_watts: float | None = None
    energy_joules: float | None = None


class _Memory(ctypes.Structure):
    """nvmlMemory_t."""

    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class _Utilization(ctypes.Structure):
    """nvmlUtilization_t, in percent."""

    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


class _Device:
    """One GPU of the library."""

    __slots__ = ("handle", "start_energy", "uuid")

    def __init__(self, handle: Any, uuid: str, start_energy: int | None) -> None:
        self.handle = handle
        self.uuid = uuid
        # Millijoules at the start.
        self.start_energy = start_energy


class GpuUsageCollector:
    """Reads at most once per interval. Not for several threads at once.

    Args:
        library: NVML, as `load_nvml` found it.
    """

    def __init__(self, library: Any, clock: Clock, interval_ns: int) -> None:
        self._library = library
        self._clock = clock
        self._interval_ns = interval_ns
        self._read_ns: int | None = None
        self._usage: Sequence[GpuUsage] = ()
        self._devices = self._find_devices()

    @property
    def is_fresh(self) -> bool:
        """Whether the last reading is young enough."""
        return self._read_ns is not None and self._clock() - self._read_ns < self._interval_ns

    def usage(self) -> Sequence[GpuUsage]:
        """As of the last `refresh`."""
        return self._usage

    def refresh(self) -> None:
        """Read all GPUs, unless that was done a moment ago."""
        if not self.is_fresh:
            self._usage = [self._read(device) for device in self._devices]
            self._read_ns = self._clock()

    def close(self) -> None:
        self._library.nvmlShutdown()

    def _find_devices(self) -> list[_Device]:
        library = self._library
        count = ctypes.c_uint()
        if library.nvmlDeviceGetCount_v2(ctypes.byref(count)) != _SUCCESS:
            return []
        devices = []
        for index in range(count.value):
            handle = ctypes.c_void_p()
            uuid = ctypes.create_string_buffer(_UUID_BYTE_SIZE)
            if (
                library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(handle)) == _SUCCESS
                and library.nvmlDeviceGetUUID(handle, uuid, ctypes.c_uint(_UUID_BYTE_SIZE)) == _SUCCESS
            ):
                device = _Device(handle, uuid.value.decode(), None)
                device.start_energy = self._energy(device)
                devices.append(device)
        return devices

    def _read(self, device: _Device) -> GpuUsage:
        library = self._library
        memory = _Memory()
        has_memory = library.nvmlDeviceGetMemoryInfo(device.handle, ctypes.byref(memory)) == _SUCCESS
        utilization = _Utilization()
        has_rates = library.nvmlDeviceGetUtilizationRates(device.handle, ctypes.byref(utilization)) == _SUCCESS
        power = _ask(library.nvmlDeviceGetPowerUsage, device, ctypes.c_uint())
        limit = _ask(library.nvmlDeviceGetEnforcedPowerLimit, device, ctypes.c_uint())
        energy = self._energy(device)
        return GpuUsage(
            uuid=device.uuid,
            utilization=utilization.gpu / 100 if has_rates else None,
            memory_total_byte_size=memory.total if has_memory else None,
            memory_used_byte_size=memory.used if has_memory else None,
            power_watts=None if power is None else power / 1000,
            power_limit_watts=None if limit is None else limit / 1000,
            energy_joules=None
            if energy is None or device.start_energy is None
            else (energy - device.start_energy) / 1000,
        )

    def _energy(self, device: _Device) -> int | None:
        return _ask(self._library.nvmlDeviceGetTotalEnergyConsumption, device, ctypes.c_ulonglong())


def collect_gpu_usage(clock: Clock, interval_ns: int) -> GpuUsageCollector | None:
    """A collector for this machine's GPUs; None if it has none that can be asked. Takes a while."""
    library = load_nvml()
    if library is None:
        return None
    return GpuUsageCollector(library, clock, interval_ns)


def load_nvml(load: Callable[[str], Any] = ctypes.CDLL) -> Any | None:
    """The driver's library, ready for use; None where there is none, or no driver behind it."""
    for name in LIBRARY_NAMES:
        try:
            library = load(name)
        except OSError:
            continue
        code = library.nvmlInit_v2()
        if code == _SUCCESS:
            return library
        _LOG.warning("no metrics of GPUs: %s does not start (error %d)", name, code)
    return None


def _ask(function: Callable[..., int], device: _Device, result: Any) -> int | None:
    """One number about a device; None if it does not tell."""
    return int(result.value) if function(device.handle, ctypes.byref(result)) == _SUCCESS else None
