"""Times at which something is due, of which most never come.

What an entry was made for may end before it is due: then the entry is stale. Stale entries are skipped when they come
to the front, and dropped when there may be as many of them as of the rest: what they keep in memory may be large, and
their time hours away.
"""

import heapq
from collections.abc import Callable
from typing import Generic, TypeVar

# So many are kept before stale ones are looked for.
_MIN_LIMIT = 64

Subject = TypeVar("Subject")


class Deadlines(Generic[Subject]):
    """Entries in the order of their time, equal ones in that of their coming. `is_stale(deadline_ns, subject)`."""

    def __init__(self, is_stale: Callable[[int, Subject], bool]) -> None:
        self._is_stale = is_stale
        # (when, tie-breaker, subject)
        self._heap: list[tuple[int, int, Subject]] = []
        self._limit = _MIN_LIMIT
        self._pushed = 0

    def __len__(self) -> int:
        """Entries, stale ones among them."""
        return len(self._heap)

    def push(self, deadline_ns: int, subject: Subject) -> None:
        self._pushed += 1
        heapq.heappush(self._heap, (deadline_ns, self._pushed, subject))
        if len(self._heap) > self._limit:
            self._heap = [entry for entry in self._heap if not self._is_stale(entry[0], entry[2])]
            heapq.heapify(self._heap)
            self._limit = 2 * len(self._heap) + _MIN_LIMIT

    def pop_due(self, now_ns: int) -> Subject | None:
        """Take out the first that is due; None if none is."""
        heap = self._heap
        while heap and heap[0][0] <= now_ns:
            deadline_ns, _, subject = heapq.heappop(heap)
            if not self._is_stale(deadline_ns, subject):
                return subject
        return None

    def next_ns(self) -> int | None:
        """When the first is due; None if there is none."""
        heap = self._heap
        while heap and self._is_stale(heap[0][0], heap[0][2]):
            heapq.heappop(heap)
        return heap[0][0] if heap else None
