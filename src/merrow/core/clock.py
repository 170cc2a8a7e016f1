"""The clock's type. Inside the server, time is integer monotonic nanoseconds."""

from collections.abc import Callable

Clock = Callable[[], int]
"""Returns monotonic nanoseconds; `time.monotonic_ns` in the server, a `ManualClock` in tests."""
