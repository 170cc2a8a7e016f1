"""GPUs, through a library that stands in for the driver's."""

import pytest

from merrow.observe.gpu_usage import GpuUsage, GpuUsageCollector, collect_gpu_usage, load_nvml
from merrow.testing.manual_clock import ManualClock

OK, NOT_SUPPORTED, NO_DRIVER = 0, 3, 9


class FakeNvml:
    """As much of NVML as is asked, with ctypes' own arguments. A GPU is a dictionary of what it tells."""

    def __init__(self, *gpus, init_code=OK, count_code=OK):
        self.gpus = gpus
        self.init_code = init_code
        self.count_code = count_code
        self.is_shut_down = False

    def nvmlInit_v2(self):
        return self.init_code

    def nvmlShutdown(self):
        self.is_shut_down = True

    def nvmlDeviceGetCount_v2(self, count):
        count._obj.value = len(self.gpus)
        return self.count_code

    def nvmlDeviceGetHandleByIndex_v2(self, index, handle):
        handle._obj.value = index.value + 1
        return OK if self.gpus[index.value] is not None else NO_DRIVER

    def nvmlDeviceGetUUID(self, handle, uuid, byte_size):
        assert byte_size.value == len(uuid)
        uuid.value = self._gpu(handle)["uuid"].encode()
        return OK

    def nvmlDeviceGetMemoryInfo(self, handle, memory):
        return self._fill(handle, memory._obj, total="total", used="used")

    def nvmlDeviceGetUtilizationRates(self, handle, rates):
        return self._fill(handle, rates._obj, gpu="percent")

    def nvmlDeviceGetPowerUsage(self, handle, power):
        return self._fill(handle, power._obj, value="milliwatts")

    def nvmlDeviceGetEnforcedPowerLimit(self, handle, limit):
        return self._fill(handle, limit._obj, value="limit")

    def nvmlDeviceGetTotalEnergyConsumption(self, handle, energy):
        return self._fill(handle, energy._obj, value="millijoules")

    def _gpu(self, handle):
        return self.gpus[handle.value - 1]

    def _fill(self, handle, target, **fields):
        gpu = self._gpu(handle)
        for field, name in fields.items():
            if name not in gpu:
                return NOT_SUPPORTED
            setattr(target, field, gpu[name])
        return OK


FULL = {
    "uuid": "GPU-1",
    "total": 80 << 30,
    "used": 5 << 30,
    "percent": 37,
    "milliwatts": 120_500,
    "limit": 700_000,
    "millijoules": 5_000_000,
}


def test_a_gpu_tells_everything():
    gpu = dict(FULL)
    collector = GpuUsageCollector(FakeNvml(gpu), ManualClock(), 100)
    gpu["millijoules"] += 2500
    assert collector.usage() == ()
    collector.refresh()

    assert collector.usage() == [GpuUsage("GPU-1", 0.37, 80 << 30, 5 << 30, 120.5, 700.0, 2.5)]
    collector.close()


def test_what_one_gpu_does_not_tell_is_left_out_for_it():
    collector = GpuUsageCollector(FakeNvml(FULL, {"uuid": "GPU-2", "percent": 100}, None), ManualClock(), 100)
    collector.refresh()

    assert [gpu.uuid for gpu in collector.usage()] == ["GPU-1", "GPU-2"]
    assert collector.usage()[1] == GpuUsage("GPU-2", utilization=1.0)


def test_it_is_read_once_an_interval():
    clock = ManualClock()
    gpu = dict(FULL)
    collector = GpuUsageCollector(FakeNvml(gpu), clock, 100)
    assert not collector.is_fresh
    collector.refresh()
    gpu["percent"] = 50
    clock.advance(99)
    assert collector.is_fresh
    collector.refresh()
    assert collector.usage()[0].utilization == 0.37
    clock.advance(1)
    collector.refresh()
    assert collector.usage()[0].utilization == 0.5


def test_a_machine_without_gpus_has_none():
    collector = GpuUsageCollector(FakeNvml(FULL, count_code=NO_DRIVER), ManualClock(), 100)
    collector.refresh()
    assert collector.usage() == []


def test_the_library_is_looked_for_by_its_names():
    library = FakeNvml()

    def load(name):
        if name != "nvml.dll":
            raise OSError(f"{name}: cannot open shared object file")
        return library

    assert load_nvml(load) is library


def test_no_library_no_metrics(caplog):
    def load(name):
        raise OSError(name)

    assert load_nvml(load) is None
    assert caplog.text == ""


def test_a_library_without_a_driver_is_logged(caplog):
    assert load_nvml(lambda name: FakeNvml(init_code=NO_DRIVER)) is None
    assert "no metrics of GPUs: libnvidia-ml.so.1 does not start (error 9)" in caplog.text


def test_the_collector_is_there_if_the_library_is(monkeypatch):
    library = FakeNvml(FULL)
    monkeypatch.setattr("merrow.observe.gpu_usage.load_nvml", lambda: library)
    collector = collect_gpu_usage(ManualClock(), 100)
    assert collector is not None
    collector.close()
    assert library.is_shut_down

    monkeypatch.setattr("merrow.observe.gpu_usage.load_nvml", lambda: None)
    assert collect_gpu_usage(ManualClock(), 100) is None


@pytest.mark.parametrize("library", [load_nvml()], ids=["this machine's"])
def test_this_machine(library):
    if library is None:
        pytest.skip("there is no NVML")
    collector = GpuUsageCollector(library, ManualClock(), 100)
    collector.refresh()
    assert all(gpu.uuid.startswith("GPU-") for gpu in collector.usage())
    collector.close()
