import random

import pytest

from merrow.core.errors import InvalidArgumentError
from merrow.core.model_config import ModelRateLimiter, ModelRateLimiterResource
from merrow.schedule.rate_limit import RateLimiter


def needs(*resources: tuple[str, int], priority: int = 0, is_global: bool = False) -> ModelRateLimiter:
    return ModelRateLimiter(
        tuple(ModelRateLimiterResource(name, is_global, count) for name, count in resources), priority
    )


def test_an_instance_without_needs_is_never_refused():
    limiter = RateLimiter({})
    limiter.add("hungry", needs(("R", 1)), 0)
    limiter.add("modest", None, 0)
    assert limiter.acquire("hungry")
    limiter.add("waits", needs(("R", 1)), 0)
    assert not limiter.acquire("waits")

    assert limiter.acquire("modest")
    limiter.release("modest")


def test_a_pool_has_the_largest_need_unless_the_operator_says_more():
    implicit = RateLimiter({})
    explicit = RateLimiter({("R", None): 8})
    for limiter in (implicit, explicit):
        for key in "ab":
            limiter.add(key, needs(("R", 4)), 0)
        assert limiter.acquire("a")

    assert not implicit.acquire("b")
    assert explicit.acquire("b")


def test_what_comes_back_goes_to_who_waits():
    limiter = RateLimiter({})
    for key in "ab":
        limiter.add(key, needs(("R", 1)), 0)
    limiter.acquire("a")
    limiter.acquire("b")
    assert limiter.next_grant() is None

    limiter.release("a")
    assert not limiter.acquire("a"), "b has executed less"
    assert limiter.next_grant() == "b"
    assert limiter.acquire("b")
    assert limiter.next_grant() is None


def test_priority_two_gets_half_the_turns():
    limiter = RateLimiter({})
    limiter.add("one", needs(("R", 1), priority=1), 0)
    limiter.add("two", needs(("R", 1), priority=2), 0)
    turns = {"one": 0, "two": 0}
    running = "one"
    assert limiter.acquire("one")
    assert not limiter.acquire("two")
    for _ in range(300):
        limiter.release(running)
        turns[running] += 1
        if not limiter.acquire(running):
            grant = limiter.next_grant()
            assert isinstance(grant, str)
            running = grant
            assert limiter.acquire(running)
    assert turns == {"one": 200, "two": 100}


def test_nobody_passes_the_first_that_waits():
    limiter = RateLimiter({("R", None): 4})
    limiter.add("large", needs(("R", 4)), 0)
    limiter.add("small", needs(("R", 1)), 0)
    limiter.add("other", needs(("R", 1)), 0)
    assert limiter.acquire("small")
    assert not limiter.acquire("large")

    assert not limiter.acquire("other"), "there is room for it, but large comes first"
    limiter.release("small")
    assert limiter.next_grant() == "large"
    assert limiter.acquire("large")
    limiter.release("large")
    assert limiter.next_grant() == "other"


def test_pools_are_apart_by_device_unless_global():
    limiter = RateLimiter({})
    for device in (0, 1):
        limiter.add(device, needs(("R", 1)), device)
        limiter.add(("global", device), needs(("G", 1), is_global=True), device)

    assert limiter.acquire(0)
    assert limiter.acquire(1)
    assert limiter.acquire(("global", 0))
    assert not limiter.acquire(("global", 1))


def test_the_operator_may_give_each_device_its_own_amount():
    limiter = RateLimiter({("R", None): 1, ("R", 1): 2})
    for key in ("a", "b"):
        limiter.add(("zero", key), needs(("R", 1)), 0)
        limiter.add(("one", key), needs(("R", 1)), 1)

    assert limiter.acquire(("one", "a"))
    assert limiter.acquire(("one", "b"))
    assert limiter.acquire(("zero", "a"))
    assert not limiter.acquire(("zero", "b"))


def test_an_amount_that_is_too_small_is_refused():
    for explicit in ({("R1", None): 2}, {("R1", 0): 2}):
        limiter = RateLimiter(explicit)
        with pytest.raises(InvalidArgumentError) as raised:
            limiter.add("a", needs(("R1", 4)), 0)
        assert raised.value.message == (
            'Resource count for "R1" is limited to 2 which will prevent scheduling of one or more model instances, the '
            "minimum required count is 4"
        )
        limiter.add("b", needs(("R1", 2)), 0)
        assert limiter.acquire("b")


def test_a_device_given_for_a_global_resource_means_its_pool():
    limiter = RateLimiter({("G", 3): 2})
    limiter.add("a", needs(("G", 1), is_global=True), 0)
    limiter.add("b", needs(("G", 1), is_global=True), 1)

    assert limiter.acquire("a")
    assert limiter.acquire("b")


def test_a_resource_is_global_or_a_devices():
    limiter = RateLimiter({})
    limiter.add("a", needs(("R", 1)), 0)
    with pytest.raises(InvalidArgumentError) as raised:
        limiter.add("b", needs(("R", 1), is_global=True), 0)
    assert raised.value.message == (
        'Resource "R" is present as both global and device-specific resource in the model configuration.'
    )


def test_who_has_nothing_to_do_any_more_loses_its_place():
    wanted = {"a", "b", "c"}
    limiter = RateLimiter({}, lambda key: key in wanted)
    for key in "abc":
        limiter.add(key, needs(("R", 1)), 0)
    limiter.acquire("a")
    limiter.acquire("b")
    limiter.acquire("c")
    wanted.discard("b")
    limiter.release("a")

    assert limiter.next_grant() == "c"


def test_a_grant_that_is_not_taken_goes_to_the_next():
    limiter = RateLimiter({})
    for key in "abc":
        limiter.add(key, needs(("R", 1)), 0)
        limiter.acquire(key)
    limiter.release("a", has_executed=False)

    assert limiter.next_grant() == "b"
    assert limiter.next_grant() == "c"
    assert limiter.next_grant() is None


def test_an_instance_that_goes_gives_back_what_it_holds():
    limiter = RateLimiter({})
    for key in "ab":
        limiter.add(key, needs(("R", 1)), 0)
        limiter.acquire(key)
    limiter.remove("a")
    limiter.remove("unknown")
    limiter.check_invariants()

    assert limiter.next_grant() == "b"


@pytest.mark.parametrize("seed", range(300))
def test_nothing_is_held_twice_and_everyone_gets_a_turn(seed: int):
    random_ = random.Random(seed)
    limiter = RateLimiter({("A", None): 6} if random_.random() < 0.5 else {})
    keys = list(range(random_.randint(2, 6)))
    for key in keys:
        resources = [(name, random_.randint(1, 6)) for name in "AB" if random_.random() < 0.7]
        limiter.add(key, needs(*resources, priority=random_.randint(0, 3)), random_.choice((0, 0, 1)))
    work = dict.fromkeys(keys, 20)
    running: list[int] = []

    def try_to_start(key: int) -> None:
        if work[key] and key not in running and limiter.acquire(key):
            work[key] -= 1
            running.append(key)

    for key in keys:
        try_to_start(key)
    while running:
        limiter.check_invariants()
        key = running.pop(random_.randrange(len(running)))
        limiter.release(key)
        try_to_start(key)
        while (granted := limiter.next_grant()) is not None:
            assert isinstance(granted, int)
            try_to_start(granted)
    assert not any(work.values())
