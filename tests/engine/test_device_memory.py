from types import SimpleNamespace

import pytest

from merrow.engine import device_memory


class Collector:
    """One GPU that says what it is told."""

    def __init__(self, used, total):
        self._gpu = SimpleNamespace(memory_used_byte_size=used, memory_total_byte_size=total)
        self.is_closed = False

    def refresh(self):
        pass

    def usage(self):
        return [self._gpu]

    def close(self):
        self.is_closed = True


def ask(monkeypatch, collector, device_id=0):
    monkeypatch.setattr(device_memory, "collect_gpu_usage", lambda clock, interval_ns: collector)
    return device_memory.device_memory_use(device_id)


def test_the_fraction_in_use(monkeypatch):
    collector = Collector(30, 40)
    assert ask(monkeypatch, collector) == 0.75
    assert collector.is_closed


def test_a_gpu_that_is_not_there_has_none(monkeypatch):
    assert ask(monkeypatch, Collector(30, 40), device_id=1) is None
    assert ask(monkeypatch, None) is None


@pytest.mark.parametrize(("used", "total"), [(None, 40), (30, None), (0, 0)])
def test_a_gpu_that_does_not_tell_has_none(monkeypatch, used, total):
    assert ask(monkeypatch, Collector(used, total)) is None
