"""The rate limiter between drivers that want to execute."""

import asyncio
from collections.abc import Callable, Sequence

from merrow.core.model_config import ModelRateLimiter, ModelRateLimiterResource
from merrow.core.request import Request
from merrow.engine.permits import InstancePermits


class FakeInstance:
    depth = 1
    is_healthy = True

    def __init__(self, name: str) -> None:
        self.name = name

    def submit(self, requests: Sequence[Request]) -> None:
        raise AssertionError

    def cancel(self, request: Request) -> None:
        raise AssertionError

    def resume(self, request: Request) -> None:
        raise AssertionError

    async def close(self) -> None:
        raise AssertionError


class FakeDriver:
    """Executes as often as it has work, when it is called and allowed to."""

    def __init__(self, permits: InstancePermits, name: str, work: int, priority: int = 1) -> None:
        self.permits = permits
        self.instance = FakeInstance(name)
        self.pending_count = work
        self.calls = 0
        self.is_executing = False
        resource = ModelRateLimiterResource("R", False, 1)
        permits.add(self.instance, ModelRateLimiter((resource,), priority), 0, self)

    def on_permit(self) -> None:
        self.calls += 1
        self.start()

    def start(self) -> None:
        if self.pending_count and not self.is_executing and self.permits.acquire(self.instance):
            self.pending_count -= 1
            self.is_executing = True

    def finish(self) -> None:
        self.is_executing = False
        self.permits.release(self.instance)
        self.start()


def run(scenario: Callable[[InstancePermits], object]) -> None:
    async def main() -> None:
        result = scenario(InstancePermits({}, asyncio.get_running_loop()))
        if asyncio.iscoroutine(result):
            await result

    asyncio.run(main())


def test_who_was_refused_is_called_when_the_resource_is_free():
    async def scenario(permits: InstancePermits) -> None:
        first, second = FakeDriver(permits, "first", 1), FakeDriver(permits, "second", 1)
        first.start()
        second.start()
        assert (first.is_executing, second.is_executing) == (True, False)

        first.finish()
        await asyncio.sleep(0)
        assert (second.is_executing, second.calls) == (True, 1)

    run(scenario)


def test_turns_follow_the_priorities():
    async def scenario(permits: InstancePermits) -> None:
        drivers = [FakeDriver(permits, "one", 300, 1), FakeDriver(permits, "two", 300, 2)]
        for driver in drivers:
            driver.start()
        for _ in range(300):
            (executing,) = [driver for driver in drivers if driver.is_executing]
            executing.finish()
            await asyncio.sleep(0)
        done = [300 - driver.pending_count - driver.is_executing for driver in drivers]
        assert sum(done) == 300
        assert abs(done[0] - 2 * done[1]) <= 3, done

    run(scenario)


def test_a_driver_that_only_waits_for_more_requests_calls_nobody_of_its_own():
    async def scenario(permits: InstancePermits) -> None:
        holder = FakeDriver(permits, "holder", 1)
        waiting = FakeDriver(permits, "waiting", 1)
        other = FakeInstance("other of waiting")
        permits.add(other, ModelRateLimiter((ModelRateLimiterResource("R", False, 1),)), 0, waiting)
        holder.start()
        assert not permits.acquire(waiting.instance)
        assert not permits.acquire(other)
        holder.pending_count = 0
        holder.finish()
        assert permits.acquire(waiting.instance)
        permits.release(waiting.instance, has_executed=False)
        await asyncio.sleep(0)
        assert waiting.calls == 0

    run(scenario)


def test_an_instance_that_goes_lets_others_in():
    async def scenario(permits: InstancePermits) -> None:
        first, second = FakeDriver(permits, "first", 1), FakeDriver(permits, "second", 1)
        first.start()
        second.start()
        permits.remove(first.instance)
        permits.remove(first.instance)
        await asyncio.sleep(0)
        assert second.is_executing

    run(scenario)


def test_a_warm_up_that_never_asked_gives_nothing_back():
    def scenario(permits: InstancePermits) -> None:
        driver = FakeDriver(permits, "m", 1)
        permits.release(driver.instance)
        driver.start()
        assert driver.is_executing

    run(scenario)
