"""How many batches an instance is handed before the first comes back.

A quick model would wait for the loop after each batch if it had none in advance. A slow one is handed them singly: what
waits for one instance cannot go to another that becomes idle first, and cannot be taken back when its client leaves.
"""

from merrow.backends.base import Execution

SUPPLY_NS = 500_000
"""What an instance has at hand keeps it busy for this long."""

# Of the latest execution in the mean.
_WEIGHT = 0.125


class Supply:
    """Of one instance. Nothing is known of a new one, which gets its batches singly."""

    __slots__ = ("_mean_ns",)

    def __init__(self) -> None:
        self._mean_ns = float(SUPPLY_NS)

    def depth_after(self, execution: Execution, max_depth: int) -> int:
        """The number of batches that are worth `SUPPLY_NS` after an execution: 1 to `max_depth`."""
        mean_ns = self._mean_ns
        mean_ns += (execution.end_ns - execution.start_ns - mean_ns) * _WEIGHT
        self._mean_ns = mean_ns
        if mean_ns * max_depth <= SUPPLY_NS:
            return max_depth
        return max(1, int(SUPPLY_NS / mean_ns))
