"""How many batches an instance is handed before the first comes back.

A quick model would wait for the loop after each batch if it had none in advance. A slow one is handed them singly: what
waits for one instance cannot go to another that becomes idle first, and cannot be taken back when its client leaves.
"""

SUPPLY_NS = 500_000
"""What an instance has at hand keeps it busy for this long."""

WEIGHT = 0.125
"""Of the latest execution in the mean."""


def depth_of(mean_execution_ns: float, max_depth: int) -> int:
    """The number of batches that are worth so much time; at least 1."""
    if mean_execution_ns * max_depth <= SUPPLY_NS:
        return max_depth
    return max(1, int(SUPPLY_NS / mean_execution_ns))
