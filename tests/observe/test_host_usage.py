"""Reading `/proc`, from files of our own."""

import sys

import pytest

from merrow.observe.host_usage import HostUsage, HostUsageCollector

MEMORY = "MemTotal:       1000 kB\nMemFree:         100 kB\nMemAvailable:    300 kB\nHugePages_Total:   0\n"


class Machine:
    """A `/proc` folder and a clock to go with it."""

    def __init__(self, proc):
        self.proc = proc
        self.now_ns = 0
        (proc / "meminfo").write_text(MEMORY)
        self.set_cpu(user=0, idle=0)

    def clock(self):
        return self.now_ns

    def set_cpu(self, user, idle, nice=0, system=0, io_wait=0, irq=0, soft_irq=0, steal=0, guest=0):
        fields = (user, nice, system, idle, io_wait, irq, soft_irq, steal, guest, 0)
        (self.proc / "stat").write_text(f"cpu  {' '.join(map(str, fields))}\ncpu0 1 1 1 1 1 1 1 1 1 1\nintr 5\n")


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def test_the_first_answer_knows_memory_and_no_utilization(machine):
    collector = HostUsageCollector(machine.clock, 100, machine.proc)

    assert collector.usage() == HostUsage(0.0, 1000 * 1024, 700 * 1024)


def test_utilization_is_busy_over_all_time_since_the_last_reading(machine):
    collector = HostUsageCollector(machine.clock, 100, machine.proc)
    machine.set_cpu(user=10, nice=5, system=5, irq=5, soft_irq=5, steal=10, idle=50, io_wait=10)
    machine.now_ns = 100

    usage = collector.usage()

    assert usage is not None
    assert usage.cpu_utilization == 0.4


def test_guest_time_is_not_counted_twice(machine):
    collector = HostUsageCollector(machine.clock, 100, machine.proc)
    machine.set_cpu(user=50, idle=50, guest=50)
    machine.now_ns = 100

    usage = collector.usage()

    assert usage is not None
    assert usage.cpu_utilization == 0.5


def test_within_an_interval_the_last_answer_stands(machine):
    collector = HostUsageCollector(machine.clock, 100, machine.proc)
    machine.set_cpu(user=100, idle=0)
    machine.now_ns = 99
    assert collector.usage() == HostUsage(0.0, 1000 * 1024, 700 * 1024)

    machine.now_ns = 100
    assert collector.usage() == HostUsage(1.0, 1000 * 1024, 700 * 1024)


def test_counters_that_run_backwards_give_no_negative_rate(machine):
    machine.set_cpu(user=100, idle=100)
    collector = HostUsageCollector(machine.clock, 100, machine.proc)
    machine.set_cpu(user=50, idle=200)
    machine.now_ns = 100

    usage = collector.usage()

    assert usage is not None
    assert usage.cpu_utilization == 0.0


def test_without_proc_there_is_no_usage(tmp_path):
    assert HostUsageCollector(lambda: 0, 100, tmp_path / "nothing").usage() is None


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_real_linux_tells():
    usage = HostUsageCollector(lambda: 0, 100).usage()

    assert usage is not None
    assert 0 < usage.memory_used_byte_size < usage.memory_total_byte_size
