"""The event loop's lag."""

import asyncio
import time

import pytest

from merrow.observe import loop_watch
from merrow.observe.loop_watch import MEMORY_NS, LoopWatch
from merrow.testing.manual_clock import ManualClock

MS = 1_000_000


class Beats:
    """A watch whose beats are the test's, on a loop that is not run."""

    def __init__(self, monkeypatch, limit_ms=100):
        self.clock = ManualClock()
        self.watch = LoopWatch(limit_ms, self.clock)
        self.watch._loop = self
        self.callback = None
        monkeypatch.setattr(loop_watch, "BEAT_SECONDS", 0.25)
        self.watch._arm()

    def call_later(self, seconds, callback):
        self.callback = callback

    def beat(self, late_ms=0):
        self.clock.advance(250 * MS + late_ms * MS)
        self.callback()


def test_a_loop_that_keeps_up_is_live(monkeypatch):
    beats = Beats(monkeypatch)
    beats.beat(late_ms=30)
    beats.beat(late_ms=10)

    assert beats.watch.is_live()
    assert beats.watch.lag_ns == 30 * MS
    assert beats.watch.stall_count == 0


def test_a_stall_is_held_against_it_for_a_while(monkeypatch, caplog):
    beats = Beats(monkeypatch)
    beats.beat(late_ms=150)
    assert (beats.watch.is_live(), beats.watch.stall_count) == (False, 1)
    assert "the event loop was held up for 150 ms" in caplog.text
    beats.beat()
    assert not beats.watch.is_live()
    for _ in range(MEMORY_NS // (250 * MS)):
        beats.beat()
    assert beats.watch.is_live()


def test_it_is_not_live_in_the_midst_of_a_stall(monkeypatch):
    beats = Beats(monkeypatch)
    beats.clock.advance(250 * MS + 101 * MS)

    assert not beats.watch.is_live()


def test_a_long_lag_is_forgotten(monkeypatch):
    beats = Beats(monkeypatch)
    beats.beat(late_ms=90)
    for _ in range(3):
        beats.clock.advance(MEMORY_NS)
        beats.watch._due_ns = beats.clock()
        beats.callback()
    assert beats.watch.lag_ns < 90 * MS


@pytest.mark.slow
def test_what_holds_up_the_loop_is_logged(caplog):
    async def run():
        watch = LoopWatch(50, time.monotonic_ns)
        watch.start()
        await asyncio.sleep(0)
        hold_up_the_loop()
        assert not watch.is_live()
        watch.stop()
        watch.stop()

    asyncio.run(run())
    assert "the event loop is held up by" in caplog.text
    assert "hold_up_the_loop" in caplog.text


def hold_up_the_loop():
    time.sleep(0.6)  # the stall itself
