import random

import pytest

from merrow.core.errors import UnavailableError
from merrow.core.model_config import ModelQueuePolicy
from merrow.core.request import Request
from merrow.core.tensor import Tensor
from merrow.schedule.dynamic_batch import BatchPolicy, DynamicBatcher, RunBatch


class NoSink:
    def on_response(self, response):
        raise AssertionError("a scheduler answers nobody")


def request(rows=1, priority=0, timeout_us=0, shape=(1,)):
    result = Request("m", 1, NoSink(), {"x": Tensor("x", "FP32", (rows, *shape), b"")}, priority=priority)
    result.timeout_us = timeout_us
    result.batch_size = rows
    return result


def batcher(
    max_batch_size=8, preferred=(), delay_ns=0, levels=0, default_level=0, policy=None, policies=None, key=None
):
    return DynamicBatcher(
        BatchPolicy(
            max_batch_size=max_batch_size,
            preferred_batch_sizes=frozenset(preferred or {max_batch_size}),
            max_queue_delay_ns=delay_ns,
            priority_levels=levels,
            default_priority_level=default_level,
            default_queue_policy=policy or ModelQueuePolicy(),
            priority_queue_policies=policies or {},
            batch_key=key,
        )
    )


def fill(queue, requests, now_ns=0):
    for each in requests:
        queue.enqueue(each, now_ns)
    return requests


def test_an_empty_queue_decides_nothing():
    queue = batcher()

    assert queue.decide(0) is None
    assert queue.next_deadline_ns() is None


def test_without_a_delay_a_lone_request_runs_at_once():
    queue = batcher()
    (lone,) = fill(queue, [request()])

    assert queue.decide(0) == RunBatch((lone,))
    assert len(queue) == 0


def test_what_waits_runs_together_up_to_the_maximum():
    queue = batcher(max_batch_size=4)
    requests = fill(queue, [request() for _ in range(6)])

    assert queue.decide(0) == RunBatch(tuple(requests[:4]))
    assert queue.decide(0) == RunBatch(tuple(requests[4:]))
    assert queue.decide(0) is None


def test_rows_are_counted_not_requests():
    queue = batcher(max_batch_size=8)
    requests = fill(queue, [request(3), request(3), request(3)])

    assert queue.decide(0) == RunBatch(tuple(requests[:2]))
    assert queue.decide(0) == RunBatch(tuple(requests[2:]))


def test_a_lone_request_waits_out_the_queue_delay():
    queue = batcher(max_batch_size=4, delay_ns=100)
    (lone,) = fill(queue, [request()])

    assert queue.decide(99) is None
    assert queue.next_deadline_ns() == 100
    assert queue.decide(100) == RunBatch((lone,))


def test_a_full_batch_does_not_wait():
    queue = batcher(max_batch_size=2, delay_ns=100)
    requests = fill(queue, [request(), request()])

    assert queue.decide(0) == RunBatch(tuple(requests))


def test_a_preferred_size_is_cut_off_at_once():
    queue = batcher(max_batch_size=8, preferred=(4, 8))
    requests = fill(queue, [request() for _ in range(6)])

    assert queue.decide(0) == RunBatch(tuple(requests[:4]))
    assert queue.decide(0) == RunBatch(tuple(requests[4:]))


def test_fewer_than_preferred_run_when_nothing_delays_them():
    queue = batcher(max_batch_size=8, preferred=(4,))
    requests = fill(queue, [request() for _ in range(3)])

    assert queue.decide(0) == RunBatch(tuple(requests))


def test_after_the_delay_everything_goes_even_past_a_preferred_size():
    queue = batcher(max_batch_size=8, preferred=(4,), delay_ns=100)
    requests = fill(queue, [request() for _ in range(6)])

    assert queue.decide(100) == RunBatch(tuple(requests))


def test_other_shapes_end_the_batch_and_order_is_kept():
    queue = batcher(key=lambda each: each.inputs["x"].shape[1:])
    first, second, third = fill(queue, [request(shape=(1,)), request(shape=(2,)), request(shape=(1,))])

    assert [queue.decide(0).requests for _ in range(3)] == [(first,), (second,), (third,)]


def test_a_higher_priority_is_served_first():
    queue = batcher(max_batch_size=1, levels=2, default_level=2)
    low, unset, high = fill(queue, [request(priority=2), request(priority=0), request(priority=1)])

    assert [queue.decide(0).requests[0] for _ in range(3)] == [high, low, unset]


def test_an_unknown_priority_is_the_default_level():
    queue = batcher(max_batch_size=1, levels=2, default_level=1)
    unknown, high = fill(queue, [request(priority=9), request(priority=1)])

    assert [queue.decide(0).requests[0] for _ in range(2)] == [unknown, high]


def test_a_full_queue_refuses():
    queue = batcher(policy=ModelQueuePolicy(max_queue_size=1))
    fill(queue, [request()])

    with pytest.raises(UnavailableError, match=r"^\[request id: <id_unknown>\] Exceeds maximum queue size$"):
        queue.enqueue(request(), 0)
    assert len(queue) == 1


def test_a_timed_out_request_is_refused():
    queue = batcher(policy=ModelQueuePolicy(default_timeout_microseconds=1))
    (late,) = fill(queue, [request()])

    assert queue.next_timeout_ns() == 1000
    assert queue.expire(999) == []
    (refusal,) = queue.expire(1000)
    assert refusal.request is late
    assert refusal.error.message == "Request timeout expired"
    assert len(queue) == 0
    assert queue.next_timeout_ns() is None


def test_a_delayed_request_goes_behind_its_level():
    queue = batcher(max_batch_size=1, policy=ModelQueuePolicy(default_timeout_microseconds=1, timeout_action="DELAY"))
    (late,) = fill(queue, [request()])
    assert queue.expire(1000) == []
    (fresh,) = fill(queue, [request()], now_ns=1000)

    assert [queue.decide(1000).requests[0] for _ in range(2)] == [fresh, late]


@pytest.mark.parametrize(
    ("allowed", "own_us", "deadline_ns"), [(True, 2, 2000), (True, 20, 10_000), (True, 0, 10_000), (False, 2, 10_000)]
)
def test_a_requests_own_timeout_counts_when_allowed_and_shorter(allowed, own_us, deadline_ns):
    queue = batcher(policy=ModelQueuePolicy(default_timeout_microseconds=10, allow_timeout_override=allowed))
    fill(queue, [request(timeout_us=own_us)])

    assert queue.next_timeout_ns() == deadline_ns


def test_without_a_default_timeout_an_override_is_ignored():
    queue = batcher(policy=ModelQueuePolicy(allow_timeout_override=True))
    fill(queue, [request(timeout_us=5)])

    assert queue.next_timeout_ns() is None


def test_a_request_taken_before_its_timeout_does_not_expire():
    queue = batcher(policy=ModelQueuePolicy(default_timeout_microseconds=1))
    fill(queue, [request()])
    queue.decide(0)

    assert queue.expire(5000) == []


def test_under_steady_load_requests_are_not_kept_until_their_timeout():
    queue = batcher(max_batch_size=1, policy=ModelQueuePolicy(default_timeout_microseconds=60_000_000))
    waiting, late = fill(queue, [request(), request()])
    for now_ns in range(1000):
        # One is always queued, so that the queue is never empty.
        queue.enqueue(request(), now_ns)
        queue.decide(now_ns)
        assert queue.next_timeout_ns() is not None
        queue.check_invariants()
    kept = [entry[2] for entry in queue._timeouts]

    assert len(kept) < 30
    assert waiting not in kept
    assert late not in kept
    assert len(queue.expire(60_000_000_000 + 1000)) == len(queue) + 2 == 2


def test_a_client_that_leaves_is_taken_out():
    queue = batcher()
    gone, stays = fill(queue, [request(), request()])

    assert queue.cancel(gone, 0) == [gone]
    assert queue.cancel(gone, 0) == []
    assert queue.decide(0) == RunBatch((stays,))


def test_drain_empties_the_queue_in_order():
    queue = batcher(levels=2, default_level=2)
    low, high = fill(queue, [request(priority=2), request(priority=1)])

    assert queue.drain() == [high, low]
    assert len(queue) == 0


@pytest.mark.parametrize("seed", range(60))
def test_random_events_lose_and_repeat_nothing(seed):
    chance = random.Random(seed)
    levels = chance.choice([0, 0, 3])
    max_batch_size = chance.choice([1, 4, 8])
    queue = batcher(
        max_batch_size=max_batch_size,
        preferred=chance.choice([(), (max_batch_size,), (1, max_batch_size)]),
        delay_ns=chance.choice([0, 50, 5000]),
        levels=levels,
        default_level=2 if levels else 0,
        policy=ModelQueuePolicy(
            timeout_action=chance.choice(["REJECT", "DELAY"]),
            default_timeout_microseconds=chance.choice([0, 1, 3]),
            allow_timeout_override=chance.random() < 0.5,
            max_queue_size=chance.choice([0, 0, 5]),
        ),
        key=chance.choice([None, lambda each: each.inputs["x"].shape[1:]]),
    )
    now_ns, waiting, ended = 0, [], []
    for _ in range(300):
        now_ns += chance.randrange(400)
        for refused in queue.expire(now_ns):
            waiting.remove(refused.request)
            ended.append(refused)
        event = chance.random()
        if event < 0.6:
            each = request(
                chance.randint(1, max_batch_size), chance.randrange(5), chance.randrange(4), (chance.randint(1, 2),)
            )
            try:
                queue.enqueue(each, now_ns)
                waiting.append(each)
            except UnavailableError:
                pass
        elif event < 0.65 and waiting:
            gone = chance.choice(waiting)
            assert queue.cancel(gone, 0) == [gone]
            waiting.remove(gone)
        elif (batch := queue.decide(now_ns)) is not None:
            assert 0 < sum(each.batch_size for each in batch.requests) <= max_batch_size
            for each in batch.requests:
                waiting.remove(each)
                ended.append(each)
        elif waiting:
            assert queue.next_deadline_ns() is not None
        queue.check_invariants()
        assert len(queue) == len(waiting)
    assert len(ended) == len(set(map(id, ended)))
