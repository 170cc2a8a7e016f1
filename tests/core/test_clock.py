"""The clock's type is a function without arguments that returns nanoseconds."""

import time

from merrow.core.clock import Clock


def test_the_monotonic_clock_is_one():
    clock: Clock = time.monotonic_ns

    assert isinstance(clock(), int)
