import os
import threading
from pathlib import Path

import pytest

from merrow.core.errors import InvalidArgumentError, UnsupportedError
from merrow.places.affinity import bind_to_cores, compute_in_the_background, cores_of_node

needs_affinity = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this platform binds no threads")


@needs_affinity
def test_a_thread_and_what_it_starts_stay_on_the_cores():
    before = os.sched_getaffinity(0)
    core = min(before)
    seen: list[set[int]] = []

    def work() -> None:
        bind_to_cores((core,))
        inner = threading.Thread(target=lambda: seen.append(os.sched_getaffinity(0)))
        inner.start()
        inner.join()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [{core}]
    assert os.sched_getaffinity(0) == before


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="this platform has one kind of thread")
def test_a_thread_and_what_it_starts_compute_in_the_background():
    before = os.sched_getscheduler(0)
    seen: list[int] = []

    def work() -> None:
        compute_in_the_background()
        inner = threading.Thread(target=lambda: seen.append(os.sched_getscheduler(0)))
        inner.start()
        inner.join()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [os.SCHED_BATCH]
    assert os.sched_getscheduler(0) == before


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="this platform has one kind of thread")
def test_where_that_is_forbidden_nothing_happens(monkeypatch: pytest.MonkeyPatch):
    def refuse(*_arguments: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    compute_in_the_background()


def test_without_cores_nothing_happens(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(os, "sched_setaffinity", raising=False)
    bind_to_cores(())
    with pytest.raises(UnsupportedError, match="this platform cannot bind threads to CPU cores"):
        bind_to_cores((0,))


@needs_affinity
def test_cores_that_are_not_there_are_refused():
    with pytest.raises(InvalidArgumentError, match=r"cannot bind to the CPU cores \[1023\]: "):
        bind_to_cores((1023,))


def test_the_cores_of_a_numa_node(tmp_path: Path):
    (tmp_path / "node1").mkdir()
    (tmp_path / "node1" / "cpulist").write_text("0-2,8,10-11\n")

    assert cores_of_node(1, tmp_path) == (0, 1, 2, 8, 10, 11)
    with pytest.raises(InvalidArgumentError, match="there is no NUMA node 2 on this machine"):
        cores_of_node(2, tmp_path)
