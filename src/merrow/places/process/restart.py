"""When a child that died is started again. Pure: told of starts and deaths, it says how long to wait.

The delay doubles with each death in a row, and is the shortest again after a long life. Too many deaths within the
window are a crash loop: the child is started again seldom, and the instance says so, until one has lived for as long as
the window.
"""

from collections import deque

from merrow.settings import ProcessSettings

_MS = 1_000_000
_SECOND = 1_000_000_000


class RestartPolicy:
    """Of one instance. A failed start counts as a death."""

    def __init__(self, settings: ProcessSettings) -> None:
        self._settings = settings
        self._delay_ms = settings.restart_delay_min_ms
        self._deaths_ns: deque[int] = deque(maxlen=settings.crash_loop_death_count)
        self._started_ns = 0
        self.is_crash_loop = False
        # How long the last deaths took, once it is a crash loop.
        self._span_ns = 0

    def start(self, now_ns: int) -> None:
        """A child is ready."""
        self._started_ns = now_ns

    def die(self, now_ns: int) -> int:
        """It died, or could not be started; returns after how many milliseconds to start another."""
        settings = self._settings
        lived_ns = now_ns - self._started_ns if self._started_ns else 0
        self._started_ns = 0
        if lived_ns >= settings.crash_loop_window_seconds * _SECOND:
            self.is_crash_loop = False
            self._deaths_ns.clear()
        if lived_ns > settings.restart_delay_max_ms * _MS:
            # It had been well for long: this is a new misfortune, not the next of a row.
            self._delay_ms = settings.restart_delay_min_ms
        self._deaths_ns.append(now_ns)
        if not self.is_crash_loop and len(self._deaths_ns) == settings.crash_loop_death_count:
            self._span_ns = now_ns - self._deaths_ns[0]
            self.is_crash_loop = self._span_ns <= settings.crash_loop_window_seconds * _SECOND
        if self.is_crash_loop:
            return settings.crash_loop_retry_seconds * 1000
        delay_ms = self._delay_ms
        self._delay_ms = min(2 * delay_ms, settings.restart_delay_max_ms)
        return delay_ms

    @property
    def verdict(self) -> str:
        """The crash loop, in words; empty while there is none."""
        if not self.is_crash_loop:
            return ""
        settings = self._settings
        return (
            f"crash loop: its process died {settings.crash_loop_death_count} times within {self._span_ns / 1e9:.1f} s "
            f"and is started again only every {settings.crash_loop_retry_seconds} s"
        )
