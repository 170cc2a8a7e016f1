"""The local response store: answers in this process's memory, up to a number of bytes. Pure but for its clock.

What was used longest ago goes first. An answer that is larger than the store is not kept. An answer is charged for its
bytes and for what Python needs around them, so that the limit is one on memory, not on payload.

Source: Triton, local_cache/src/local_cache.cc.
"""

from collections import OrderedDict
from collections.abc import Callable

from merrow.core.clock import Clock
from merrow.engine.response_cache import CachedResponse
from merrow.observe.metrics import CacheUsage

# What an entry, and each of its tensors, takes besides names and data: measured on CPython 3.11, rounded up.
_ENTRY_BYTE_SIZE = 300
_TENSOR_BYTE_SIZE = 350


class LocalStore:
    """See the module. Implements `response_cache.ResponseStore`."""

    is_shared = False

    def __init__(self, byte_size: int, clock: Clock) -> None:
        self._byte_size = byte_size
        self._clock = clock
        # The one used longest ago comes first.
        self._entries: OrderedDict[bytes, tuple[CachedResponse, int]] = OrderedDict()
        self._used_byte_size = 0
        self._hit_count = 0
        self._miss_count = 0
        self._eviction_count = 0
        self._lookup_ns = 0
        self._insertion_ns = 0

    def usage(self) -> CacheUsage:
        return CacheUsage(
            entry_count=len(self._entries),
            lookup_count=self._hit_count + self._miss_count,
            hit_count=self._hit_count,
            miss_count=self._miss_count,
            eviction_count=self._eviction_count,
            lookup_ns=self._lookup_ns,
            insertion_ns=self._insertion_ns,
            utilization=self._used_byte_size / self._byte_size,
        )

    def look_up(self, key: bytes, found: Callable[[CachedResponse | None], None]) -> None:
        start_ns = self._clock()
        entry = self._entries.get(key)
        if entry is None:
            self._miss_count += 1
        else:
            self._hit_count += 1
            self._entries.move_to_end(key)
        self._lookup_ns += self._clock() - start_ns
        found(None if entry is None else entry[0])

    def insert(self, key: bytes, response: CachedResponse) -> None:
        start_ns = self._clock()
        byte_size = entry_byte_size(response)
        replaced = self._entries.pop(key, None)
        if replaced is not None:
            self._used_byte_size -= replaced[1]
        if byte_size <= self._byte_size:
            self._entries[key] = (response, byte_size)
            self._used_byte_size += byte_size
            while self._used_byte_size > self._byte_size:
                _, (_, evicted_byte_size) = self._entries.popitem(last=False)
                self._used_byte_size -= evicted_byte_size
                self._eviction_count += 1
        self._insertion_ns += self._clock() - start_ns

    async def close(self) -> None:
        self._entries.clear()
        self._used_byte_size = 0

    def check_invariants(self) -> None:
        """For tests: the size agrees with the entries, and is within the limit."""
        assert self._used_byte_size == sum(byte_size for _, byte_size in self._entries.values())
        assert self._used_byte_size <= self._byte_size


def entry_byte_size(response: CachedResponse) -> int:
    """What an answer is charged for."""
    return _ENTRY_BYTE_SIZE + sum(len(tensor.name) + len(tensor.data) + _TENSOR_BYTE_SIZE for tensor in response)
