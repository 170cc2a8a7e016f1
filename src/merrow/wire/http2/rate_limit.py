"""How many events a second a peer may cause."""

_SECOND_NS = 10**9

# Control frames that each request, and each message of a stream, allows.
_FRAMES_PER_REQUEST = 8
_FRAMES_PER_DATA = 4
_CREDIT_SECONDS = 10


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


class ControlFrameLimit:
    """How many control frames a peer may send: so many a second, and more in proportion to the traffic.

    Peers update windows and probe the connection as they send and receive. What a peer has not used of that is kept,
    up to some seconds' allowance, because it may read late, and all at once.
    """

    __slots__ = ("_credit", "_data_count", "_max_credit", "_rate", "_request_count")

    def __init__(self, frames_per_second: int, now_ns: int) -> None:
        self._rate = RateLimit(frames_per_second, now_ns)
        self._max_credit = _CREDIT_SECONDS * frames_per_second
        self._credit = 0
        self._request_count = 0
        self._data_count = 0

    def take(self, now_ns: int, request_count: int, data_count: int) -> bool:
        """Count one control frame; False if it is one too many.

        Args:
            request_count: of the connection, so far.
            data_count: frames of DATA and messages, both ways, so far.
        """
        earned = (request_count - self._request_count) * _FRAMES_PER_REQUEST
        earned += (data_count - self._data_count) * _FRAMES_PER_DATA
        if earned:
            self._request_count = request_count
            self._data_count = data_count
            self._credit = min(self._credit + earned, self._max_credit)
        if self._credit:
            self._credit -= 1
            return True
        return self._rate.take(now_ns)
