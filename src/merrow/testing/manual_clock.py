"""A clock that stands still until a test moves it."""


class ManualClock:
    """Returns `now_ns` when called; a `core.clock.Clock`."""

    def __init__(self, now_ns: int = 1_000_000_000) -> None:
        self.now_ns = now_ns

    def __call__(self) -> int:
        return self.now_ns

    def advance(self, ns: int) -> None:
        """Let time pass."""
        assert ns >= 0
        self.now_ns += ns
