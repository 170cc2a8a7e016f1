import random

from merrow.engine.local_cache import LocalStore, entry_byte_size
from merrow.engine.response_cache import CachedResponse, CachedTensor
from merrow.observe.metrics import CacheUsage
from merrow.testing.manual_clock import ManualClock


def answer(size: int, fill: bytes = b"x") -> CachedResponse:
    return (CachedTensor("OUT", "UINT8", (size,), fill * size),)


def look_up(store: LocalStore, key: bytes) -> CachedResponse | None:
    found: list[CachedResponse | None] = []
    store.look_up(key, found.append)
    (response,) = found
    return response


def test_what_was_inserted_is_found():
    store = LocalStore(10_000, ManualClock())
    assert look_up(store, b"a") is None
    store.insert(b"a", answer(100))

    assert look_up(store, b"a") == answer(100)
    assert not store.is_shared


def test_what_was_used_longest_ago_goes_first():
    store = LocalStore(3 * entry_byte_size(answer(100)), ManualClock())
    for key in (b"a", b"b", b"c"):
        store.insert(key, answer(100))
    look_up(store, b"a")
    store.insert(b"d", answer(100))
    store.check_invariants()

    assert look_up(store, b"b") is None
    assert look_up(store, b"a") is not None
    assert store.usage().eviction_count == 1


def test_an_answer_larger_than_the_store_is_not_kept():
    store = LocalStore(5000, ManualClock())
    store.insert(b"small", answer(10))
    store.insert(b"large", answer(5000))

    assert look_up(store, b"large") is None
    assert look_up(store, b"small") is not None


def test_an_answer_that_is_inserted_again_replaces_the_old_one():
    store = LocalStore(5000, ManualClock())
    store.insert(b"a", answer(100, b"1"))
    store.insert(b"a", answer(200, b"2"))
    store.check_invariants()

    assert look_up(store, b"a") == answer(200, b"2")


def test_the_figures_of_the_metrics():
    clock = ManualClock()
    store = LocalStore(entry_byte_size(answer(100)) * 2, clock)
    look_up(store, b"a")
    store.insert(b"a", answer(100))
    look_up(store, b"a")

    assert store.usage() == CacheUsage(entry_count=1, lookup_count=2, hit_count=1, miss_count=1, utilization=0.5)


def test_the_size_is_never_exceeded():
    random_ = random.Random(5)
    store = LocalStore(20_000, ManualClock())
    for _ in range(2000):
        key = str(random_.randrange(60)).encode()
        if random_.random() < 0.5:
            store.insert(key, answer(random_.randrange(3000)))
        else:
            look_up(store, key)
        store.check_invariants()
