"""The rate limiter: which instances, of whatever models, may execute, given resources that they must hold meanwhile.

A resource is a name and an amount that models and operator agree on; it stands for whatever must not be used up at once
(memory bandwidth, a licence, a disk). An instance reserves all of its resources, executes, and gives them back. A
resource is either global, with one pool, or has a pool for each device.

    acquire ──┬─ granted: executes ──► release
              └─ refused: waits ──► next_grant names it when its turn has come, and it asks again

Those who wait are served by `executions so far x priority`, the smallest first, then by who has waited longest. The
order is strict: nobody passes the first, even where what he needs is free and what the first needs is not. An instance
that needs nothing is never refused.

A pool has the amount that the operator gave it, or else the largest that any one instance needs.

Source: Triton, core/src/rate_limiter.cc; rate_limiter.md.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from merrow.core.errors import InvalidArgumentError
from merrow.core.model_config import ModelRateLimiter

_Key = TypeVar("_Key")

Pool = tuple[str, int | None]
"""A resource's name, and the device that it belongs to; None for a global resource."""

ExplicitResources = Mapping[tuple[str, int | None], int]
"""The operator's amounts, by name and device; None is every device, and a global resource."""


@dataclass(slots=True, eq=False)
class _Member:
    """An instance: what it needs, and how much it has had."""

    needs: dict[Pool, int]
    priority: int
    execution_count: int = 0
    # When it was refused, as a number that grows; None if it does not wait.
    waiting_since: int | None = None
    holds: bool = False

    @property
    def rank(self) -> int:
        return self.execution_count * self.priority


class RateLimiter(Generic[_Key]):
    """See the module. Instances are known by any hashable key.

    Args:
        is_wanted: whether an instance that waits still has something to execute; one that has not loses its place.
    """

    def __init__(self, explicit: ExplicitResources, is_wanted: Callable[[_Key], bool] = lambda key: True) -> None:
        self._explicit = dict(explicit)
        self._is_wanted = is_wanted
        self._members: dict[_Key, _Member] = {}
        self._sizes: dict[Pool, int] = {}
        self._used: dict[Pool, int] = {}
        self._refusal_count = 0
        # Whom `next_grant` named, until it asks.
        self._called: _Member | None = None

    def add(self, key: _Key, settings: ModelRateLimiter | None, device: int) -> None:
        """There is one more instance.

        Raises:
            InvalidArgumentError: it could never execute, or takes a global resource for a device's.
        """
        needs: dict[Pool, int] = {}
        for resource in settings.resources if settings is not None else ():
            pool = (resource.name, None if resource.global_ else device)
            needs[pool] = max(needs.get(pool, 0), resource.count)
        member = _Member(needs, max(1, settings.priority if settings is not None else 1))
        sizes = self._pool_sizes([*self._members.values(), member])
        self._members[key] = member
        self._sizes = sizes

    def remove(self, key: _Key) -> None:
        """An instance is gone; what it holds is free. A no-op for one that is not known."""
        member = self._members.get(key)
        if member is None:
            return
        if member.holds:
            self._give_back(member)
        if self._called is member:
            self._called = None
        del self._members[key]
        # Pools that are as large as their largest need may shrink; amounts in use stay until they come back.
        self._sizes = self._pool_sizes(self._members.values())

    def acquire(self, key: _Key) -> bool:
        """Whether an instance may execute now; if so, it holds its resources until `release`."""
        member = self._members[key]
        assert not member.holds, "an instance executes one batch at a time"
        if not member.needs:
            member.holds = True
            return True
        first = self._first_waiting()
        is_turn = first is None or first is member or self._order(member) < self._order(first)
        if is_turn and self._fits(member):
            member.waiting_since = None
            if self._called is member:
                self._called = None
            member.holds = True
            for pool, count in member.needs.items():
                self._used[pool] = self._used.get(pool, 0) + count
            return True
        if member.waiting_since is None:
            self._refusal_count += 1
            member.waiting_since = self._refusal_count
        return False

    def release(self, key: _Key, has_executed: bool = True) -> None:
        """An instance gives back what it holds; afterwards `next_grant` may have somebody.

        One that holds nothing executed without asking (warm-up), and is not counted.
        """
        member = self._members[key]
        if not member.holds:
            return
        self._give_back(member)
        if has_executed:
            member.execution_count += 1

    def stop_waiting(self, key: _Key) -> None:
        """An instance has nothing to execute for now."""
        member = self._members[key]
        member.waiting_since = None
        if self._called is member:
            self._called = None

    def next_grant(self) -> _Key | None:
        """An instance that waits and would now be granted; it loses its place unless it asks again.

        Call until it returns None, after releases.
        """
        if self._called is not None:
            self._called.waiting_since = None
            self._called = None
        first = self._first_waiting()
        if first is None or not self._fits(first):
            return None
        self._called = first
        return next(key for key, member in self._members.items() if member is first)

    def check_invariants(self) -> None:
        """For tests: what is used is what is held, within the pools."""
        used: dict[Pool, int] = {}
        for member in self._members.values():
            assert not (member.holds and member.waiting_since is not None)
            if member.holds:
                for pool, count in member.needs.items():
                    used[pool] = used.get(pool, 0) + count
        assert used == {pool: count for pool, count in self._used.items() if count}
        assert all(count <= self._sizes[pool] for pool, count in used.items())

    def _order(self, member: _Member) -> tuple[int, int]:
        since = member.waiting_since
        return member.rank, self._refusal_count + 1 if since is None else since

    def _first_waiting(self) -> _Member | None:
        first: _Member | None = None
        for key, member in self._members.items():
            if member.waiting_since is None:
                continue
            if not self._is_wanted(key):
                member.waiting_since = None
            elif first is None or self._order(member) < self._order(first):
                first = member
        return first

    def _fits(self, member: _Member) -> bool:
        return all(self._used.get(pool, 0) + count <= self._sizes[pool] for pool, count in member.needs.items())

    def _give_back(self, member: _Member) -> None:
        member.holds = False
        for pool, count in member.needs.items():
            self._used[pool] -= count

    def _pool_sizes(self, members: Iterable[_Member]) -> dict[Pool, int]:
        """The size of each pool that is needed.

        Raises:
            InvalidArgumentError: one is too small for somebody, or both global and a device's.
        """
        needed: dict[Pool, int] = {}
        for member in members:
            for pool, count in member.needs.items():
                needed[pool] = max(needed.get(pool, 0), count)
        global_names = {name for name, device in needed if device is None}
        for name, device in needed:
            if device is not None and name in global_names:
                raise InvalidArgumentError(
                    f'Resource "{name}" is present as both global and device-specific resource in the model '
                    "configuration."
                )
        sizes: dict[Pool, int] = {}
        for pool, count in needed.items():
            size = self._explicit_size(pool)
            if size is not None and size < count:
                raise InvalidArgumentError(
                    f'Resource count for "{pool[0]}" is limited to {size} which will prevent scheduling of one or '
                    f"more model instances, the minimum required count is {count}"
                )
            sizes[pool] = count if size is None else size
        return sizes

    def _explicit_size(self, pool: Pool) -> int | None:
        name, device = pool
        if device is not None and (name, device) in self._explicit:
            return self._explicit[(name, device)]
        if (name, None) in self._explicit:
            return self._explicit[(name, None)]
        if device is None:
            # Of a global resource, a device in the operator's words means nothing.
            return max((count for (other, _), count in self._explicit.items() if other == name), default=None)
        return None
