"""The rate limiter at work: passes the requests of drivers on to `schedule.rate_limit`, and calls those who waited.

Who gives resources back is asked first whether it has more to do, because it competes with those who wait; so these are
called on the loop's next turn, not at once.
"""

import asyncio
from typing import Protocol

from merrow.core.model_config import ModelRateLimiter
from merrow.places.base import PlacedInstance
from merrow.schedule.rate_limit import ExplicitResources, RateLimiter


class WaitingDriver(Protocol):
    """What the limiter needs of a driver."""

    @property
    def pending_count(self) -> int: ...
    def on_permit(self) -> None: ...


class InstancePermits:
    """See the module. Implements `engine.driver.Permits` for all drivers; on the loop's thread."""

    def __init__(self, explicit: ExplicitResources, loop: asyncio.AbstractEventLoop) -> None:
        self._limiter: RateLimiter[PlacedInstance] = RateLimiter(explicit, self._is_wanted)
        self._loop = loop
        self._drivers: dict[PlacedInstance, WaitingDriver] = {}
        self._is_calling = False

    def add(
        self, instance: PlacedInstance, settings: ModelRateLimiter | None, device: int, driver: WaitingDriver
    ) -> None:
        """There is one more instance.

        Raises:
            InvalidArgumentError: it could never execute.
        """
        self._limiter.add(instance, settings, device)
        self._drivers[instance] = driver

    def remove(self, instance: PlacedInstance) -> None:
        """An instance is gone; a no-op for one that is not known."""
        self._limiter.remove(instance)
        if self._drivers.pop(instance, None) is not None:
            self._call_waiting_soon()

    def acquire(self, instance: PlacedInstance) -> bool:
        return self._limiter.acquire(instance)

    def release(self, instance: PlacedInstance, has_executed: bool = True) -> None:
        self._limiter.release(instance, has_executed)
        if not has_executed:
            # Its scheduler waits for more requests; so no other instance of the model has anything to do, either.
            driver = self._drivers[instance]
            for other, owner in self._drivers.items():
                if owner is driver:
                    self._limiter.stop_waiting(other)
        self._call_waiting_soon()

    def _is_wanted(self, instance: PlacedInstance) -> bool:
        return self._drivers[instance].pending_count > 0

    def _call_waiting_soon(self) -> None:
        if not self._is_calling:
            self._is_calling = True
            self._loop.call_soon(self._call_waiting)

    def _call_waiting(self) -> None:
        self._is_calling = False
        while (instance := self._limiter.next_grant()) is not None:
            self._drivers[instance].on_permit()
