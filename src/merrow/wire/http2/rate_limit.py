"""How many events a second a peer may cause."""

_SECOND_NS = 10**9


class RateLimit:
    """A bucket that holds one second's worth of events, and refills as time passes."""

    __slots__ = ("_available_ns", "_cost_ns", "_last_ns")

    def __init__(self, events_per_second: int, now_ns: int) -> None:
        self._cost_ns = _SECOND_NS // events_per_second
        self._available_ns = _SECOND_NS
        self._last_ns = now_ns

    def take(self, now_ns: int) -> bool:
        """Count one event; False if it is one too many."""
        available_ns = self._available_ns + now_ns - self._last_ns
        self._last_ns = now_ns
        if available_ns > _SECOND_NS:
            available_ns = _SECOND_NS
        self._available_ns = available_ns - self._cost_ns
        return self._available_ns >= 0

    def give(self, event_count: int) -> None:
        """Allow so many more events, now."""
        self._available_ns += event_count * self._cost_ns
