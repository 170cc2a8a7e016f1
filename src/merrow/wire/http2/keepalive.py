"""Pings of a connection that carries gRPC calls: when to ask a silent client, and when a client asks too often.

What the server sends besides pings starts both counts again. `sent` stands for it: it is any value that differs
whenever headers or data have been sent meanwhile.

    ask         silent for `time` -> ping -> something received, or silent for `timeout` more -> the client has gone
    be asked    sooner than allowed after the last ping -> a strike -> too many -> the client is shown out

Source: gRPC, doc/keepalive.md; chttp2's ping_rate_policy and ping_abuse_policy.
"""

import enum

from merrow.settings import KeepaliveSettings

# How often a client may ping when there are no calls, unless that is permitted.
_IDLE_PING_INTERVAL_NS = 2 * 3600 * 10**9

PING = b"keepaliv"
"""What the server's pings carry."""


class KeepaliveAction(enum.Enum):
    """What is due."""

    NOTHING = enum.auto()
    PING = enum.auto()
    GIVE_UP = enum.auto()


class Keepalive:
    """The pings of one connection."""

    __slots__ = (
        "_last_ping_ns",
        "_pinged_ns",
        "_pings_without_data",
        "_received_after",
        "_sent_after",
        "_settings",
        "_strikes",
    )

    def __init__(self, settings: KeepaliveSettings) -> None:
        self._settings = settings
        # When the ping that nothing has come after yet was sent; and those sent since `_sent_after`.
        self._pinged_ns: int | None = None
        self._pings_without_data = 0
        self._sent_after: object = None
        # When the client last pinged since `_received_after`.
        self._last_ping_ns: int | None = None
        self._strikes = 0
        self._received_after: object = None

    def check(self, now_ns: int, last_received_ns: int, has_calls: bool, sent: object) -> KeepaliveAction:
        """What is due now; a ping that is due counts as sent."""
        settings = self._settings
        if self._pinged_ns is not None:
            if last_received_ns < self._pinged_ns:
                is_late = now_ns - self._pinged_ns >= settings.timeout_ms * 10**6
                return KeepaliveAction.GIVE_UP if is_late else KeepaliveAction.NOTHING
            self._pinged_ns = None
        if sent != self._sent_after:
            self._sent_after = sent
            self._pings_without_data = 0
        if (
            now_ns - last_received_ns < settings.time_ms * 10**6
            or not (has_calls or settings.permit_without_calls)
            or 0 < settings.max_pings_without_data <= self._pings_without_data
        ):
            return KeepaliveAction.NOTHING
        self._pings_without_data += 1
        self._pinged_ns = now_ns
        return KeepaliveAction.PING

    def receive_ping(self, now_ns: int, has_calls: bool, sent: object) -> bool:
        """Count a client's ping; False if it is one too many."""
        settings = self._settings
        if sent != self._received_after:
            self._received_after = sent
            self._last_ping_ns = None
            self._strikes = 0
        last_ns = self._last_ping_ns
        interval_ns = settings.min_recv_ping_interval_without_data_ms * 10**6
        if not has_calls and not settings.permit_without_calls:
            interval_ns = max(interval_ns, _IDLE_PING_INTERVAL_NS)
        self._last_ping_ns = now_ns
        if last_ns is None or now_ns - last_ns >= interval_ns:
            return True
        self._strikes += 1
        return settings.max_ping_strikes == 0 or self._strikes <= settings.max_ping_strikes
