import logging
from typing import Any

import pytest

from merrow.observe.gpu_devices import count_gpus, find_gpus


class FakeDriver:
    """Answers as the CUDA driver does; `capabilities` by device, None for one that cannot be opened."""

    def __init__(self, *capabilities: tuple[int, int] | None, works: bool = True) -> None:
        self.capabilities = capabilities
        self.works = works

    def cuInit(self, flags: int) -> int:
        return 0 if self.works else 100

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = len(self.capabilities)
        return 0

    def cuDeviceGet(self, device: Any, number: int) -> int:
        device._obj.value = number
        return 101 if self.capabilities[number] is None else 0

    def cuDeviceGetAttribute(self, value: Any, which: int, device: Any) -> int:
        capability = self.capabilities[device.value]
        assert capability is not None
        value._obj.value = capability[which - 75]
        return 0


def test_gpus_that_are_new_enough(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        assert count_gpus(FakeDriver((9, 0), (5, 2), None, (7, 5)), 6.0) == (0, 3)
    assert "GPU 1 is not used: its compute capability 5.2 is less than 6.0" in caplog.text


def test_no_gpu_is_no_error():
    assert count_gpus(FakeDriver(), 6.0) == ()
    assert count_gpus(FakeDriver((9, 0), works=False), 6.0) == ()
    assert find_gpus(6.0, ("libno-such-driver.so.1",)) == ()
