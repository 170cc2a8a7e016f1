import pytest

from merrow.core.errors import InvalidArgumentError, UnavailableError
from merrow.core.request import Request
from tests.schedule.sequence_rig import END, START, NoSink, SequenceRig, oldest

BOTH = pytest.mark.parametrize("strategy", [None, oldest(2)], ids=["direct", "oldest"])


@BOTH
@pytest.mark.parametrize("correlation_id", [0, ""])
def test_a_request_needs_a_correlation_id(strategy, correlation_id):
    rig = SequenceRig(oldest=strategy)

    with pytest.raises(InvalidArgumentError) as refusal:
        rig.request(correlation_id, START)
    assert refusal.value.message == (
        "inference request to model 'm' must specify a non-zero or non-empty correlation ID"
    )


@BOTH
def test_a_request_has_one_row(strategy):
    rig = SequenceRig(oldest=strategy)
    request = Request("m", 1, NoSink(), {}, correlation_id=1, flags=START)
    request.batch_size = 2

    with pytest.raises(InvalidArgumentError) as refusal:
        rig.batcher.enqueue(request, 0)
    assert refusal.value.message == (
        "inference request to model 'm' must specify batch-size 1 due to requirements of sequence batcher"
    )


@BOTH
@pytest.mark.parametrize("correlation_id", [5, "five"])
def test_a_sequence_begins_with_a_start(strategy, correlation_id):
    rig = SequenceRig(oldest=strategy)

    with pytest.raises(InvalidArgumentError) as refusal:
        rig.request(correlation_id)
    assert refusal.value.message == (
        f"inference request for sequence {correlation_id} to model 'm' must specify the START flag on the first "
        "request of the sequence"
    )
    assert len(rig.batcher) == 0


@BOTH
def test_after_its_end_a_sequence_must_start_again(strategy):
    rig = SequenceRig(oldest=strategy)
    rig.request(5, START | END)

    with pytest.raises(InvalidArgumentError, match="must specify the START flag"):
        rig.request(5)
    assert rig.request(5, START)


@BOTH
def test_a_start_in_the_middle_goes_on_in_the_same_place_with_a_warning(strategy):
    rig = SequenceRig(oldest=strategy)
    first, second = rig.request(5, START), rig.request(5, START)

    assert rig.events == [("conflict", 5)]
    assert rig.batcher.sequence_count == 1
    assert rig.run() == [first]
    rig.done()
    assert rig.run() == [second]
    assert second.inputs["START"].data == b"\1\0\0\0"


def test_sequences_beyond_the_slots_wait_for_one_to_end():
    rig = SequenceRig(max_batch_size=2)
    one, two = rig.request(1, START), rig.request(2, START)
    three, three_next = rig.request(3, START), rig.request(3, END)
    assert rig.run() == [one, two]
    assert rig.batcher.backlog_count == 2
    rig.done()
    last = rig.request(1, END)
    assert rig.run()[0] is last
    rig.done()

    assert rig.run() == [three]
    rig.done()
    assert rig.run() == [three_next]


@BOTH
def test_the_backlog_is_served_in_order(strategy):
    rig = SequenceRig(max_batch_size=1, oldest=oldest(1) if strategy else None)
    requests = [rig.request(number, START | END) for number in range(1, 6)]

    served = []
    while batch := rig.run():
        served += batch
        rig.done()
    assert served == requests


@BOTH
def test_a_long_backlog_of_short_sequences_is_no_stack_of_calls(strategy):
    rig = SequenceRig(max_batch_size=1, oldest=oldest(1) if strategy else None)
    rig.request(1, START)
    requests = []
    for number in range(2, 3000):
        request = Request("m", 1, NoSink(), {}, correlation_id=number, flags=START | END)
        rig.batcher.enqueue(request, rig.now_ns)
        requests.append(request)
    rig.request(1, END)
    count = 0
    while (batch := rig.batcher.decide(rig.now_ns)) is not None:
        for request in batch.requests:
            rig.batcher.release(request, None, rig.now_ns)
            count += 1

    assert count == 3000


@BOTH
def test_a_sequence_is_idle_too_long_after_its_last_arrival(strategy):
    rig = SequenceRig(oldest=strategy, max_sequence_idle_microseconds=1000)
    rig.request(5, START)
    rig.run()
    rig.done()
    rig.pass_time(900)
    rig.request(5)
    rig.run()
    rig.done()
    rig.pass_time(900)
    assert rig.events == []
    assert rig.batcher.next_timeout_ns() == rig.now_ns + 100_000
    rig.pass_time(100)

    assert rig.events == [("idle", 5)]
    assert rig.batcher.sequence_count == 0
    with pytest.raises(InvalidArgumentError, match="must specify the START flag"):
        rig.request(5)


@BOTH
def test_what_an_idle_sequence_had_queued_still_runs(strategy):
    rig = SequenceRig(oldest=strategy, max_batch_size=1, max_sequence_idle_microseconds=1000)
    first, second = rig.request(5, START), rig.request(5)
    rig.run()
    rig.pass_time(1000)
    rig.done()

    assert rig.run() == [second]
    rig.done()
    assert rig.batcher.sequence_count == 0
    assert first is not second


@BOTH
@pytest.mark.parametrize("wait_us", [500, 5000])
def test_a_sequence_is_not_idle_while_it_waits_in_the_backlog(strategy, wait_us):
    rig = SequenceRig(max_batch_size=1, oldest=oldest(1) if strategy else None, max_sequence_idle_microseconds=1000)
    rig.request(1, START)
    waiting = rig.request(2, START)
    rig.run()
    rig.done()
    for _ in range(wait_us // 500):
        rig.request(1)
        rig.pass_time(500)
    rig.request(1, END)
    while waiting not in (rig.run() or ()):
        rig.done()
    rig.done()
    rig.pass_time(999)
    assert rig.events == []
    rig.pass_time(1)

    assert rig.events == [("idle", 2)]


@BOTH
def test_sequences_that_are_over_are_not_kept_until_their_limits(strategy):
    rig = SequenceRig(
        max_batch_size=1,
        oldest=oldest(1) if strategy else None,
        max_sequence_idle_microseconds=10**9,
    )
    for number in range(1, 1000):
        rig.request(number, START | END, timeout_us=10**9)
        rig.request(-number, START | END, timeout_us=10**9)
        for _ in range(2):
            assert rig.run() is not None
            rig.done()

    assert rig.batcher.sequence_count == 0
    assert len(rig.batcher._idle) < 100
    assert len(rig.batcher._expirations) < 100
    waiting = rig.request(1, START)
    behind = rig.request(2, START, timeout_us=5)
    assert rig.pass_time(5) == [(behind, "timeout of the corresponding sequence has been expired")]
    assert rig.run() == [waiting]


@BOTH
def test_a_timeout_in_the_backlog_refuses_the_whole_sequence(strategy):
    rig = SequenceRig(max_batch_size=1, oldest=oldest(1) if strategy else None)
    rig.request(1, START, timeout_us=5)
    rig.request(1, timeout_us=5)
    first, second = rig.request(2, START), rig.request(2, timeout_us=50)
    later = rig.request(3, START)
    assert rig.batcher.next_timeout_ns() == rig.now_ns + 50_000
    refused = rig.pass_time(50)

    text = "timeout of the corresponding sequence has been expired"
    assert refused == [(first, text), (second, text)]
    assert rig.events == [("backlog_timeout", 2)]
    with pytest.raises(InvalidArgumentError):
        rig.request(2)
    assert later in rig.batcher._backlog[0].queue


def test_the_refusal_of_a_timeout_is_unavailable():
    rig = SequenceRig(max_batch_size=1)
    rig.request(1, START)
    rig.request(2, START, timeout_us=5)
    (refusal,) = rig.batcher.expire(rig.now_ns + 5000)

    assert isinstance(refusal.error, UnavailableError)


@BOTH
def test_a_slot_frees_a_sequence_of_its_timeout(strategy):
    rig = SequenceRig(max_batch_size=1, oldest=oldest(1) if strategy else None)
    rig.request(1, START | END)
    waiting = rig.request(2, START, timeout_us=50)
    rig.run()
    rig.done()

    assert rig.pass_time(50) == []
    assert rig.batcher.next_timeout_ns() != rig.now_ns
    assert waiting is not None


@BOTH
def test_cancelling_a_queued_request_ends_it_and_what_is_behind_it(strategy):
    rig = SequenceRig(oldest=strategy, max_batch_size=1)
    first, second, third = rig.request(5, START), rig.request(5), rig.request(5)
    rig.run()

    assert rig.batcher.cancel(second, rig.now_ns) == [second, third]
    rig.batcher.check_invariants()
    assert rig.events == [("cancelled", 5)]
    with pytest.raises(InvalidArgumentError):
        rig.request(5)
    rig.done()
    assert rig.batcher.sequence_count == 0
    assert first is not None


@BOTH
def test_cancelling_the_head_frees_the_slot_at_once(strategy):
    rig = SequenceRig(max_batch_size=1, oldest=oldest(1) if strategy else None)
    first, second = rig.request(1, START), rig.request(1)
    waiting = rig.request(2, START)

    assert rig.batcher.cancel(first, rig.now_ns) == [first, second]
    rig.batcher.check_invariants()
    assert rig.run() == [waiting]


@BOTH
def test_cancelling_a_request_in_the_backlog_drops_its_sequence(strategy):
    rig = SequenceRig(max_batch_size=1, oldest=oldest(1) if strategy else None)
    rig.request(1, START)
    first, second = rig.request(2, START), rig.request(2)

    assert rig.batcher.cancel(second, rig.now_ns) == [first, second]
    rig.batcher.check_invariants()
    assert rig.batcher.backlog_count == 0


@BOTH
def test_a_running_request_is_not_taken_back(strategy):
    rig = SequenceRig(oldest=strategy)
    request = rig.request(5, START)
    rig.run()

    assert rig.batcher.cancel(request, rig.now_ns) == []
    rig.done()
    assert rig.batcher.cancel(request, rig.now_ns) == []
    assert rig.request(5)


@BOTH
def test_the_loss_of_an_instance_ends_its_sequences(strategy):
    rig = SequenceRig(instances=2, max_batch_size=1, oldest=oldest(1) if strategy else None)
    running, queued, other = rig.request(1, START), rig.request(1), rig.request(2, START)
    rig.run(0)
    waiting = rig.request(3, START)

    assert rig.batcher.lose_instance(0, rig.now_ns) == [queued]
    rig.batcher.release(running, None, rig.now_ns)
    rig.batcher.check_invariants()
    assert rig.events == [("instance_lost", 1)]
    assert rig.run(0) is None
    assert rig.run(1) == [other]
    assert rig.batcher.backlog_count == 1
    rig.batcher.restore_instance(0, rig.now_ns)
    rig.batcher.check_invariants()
    assert rig.run(0) == [waiting]


@BOTH
def test_what_waits_for_a_slot_is_drained_when_all_is_lost(strategy):
    rig = SequenceRig(max_batch_size=1, oldest=oldest(1) if strategy else None)
    one, two = rig.request(1, START), rig.request(2, START)

    assert rig.batcher.lose_instance(0, rig.now_ns) == [one]
    assert rig.batcher.drain() == [two]
    rig.batcher.check_invariants()
    assert len(rig.batcher) == 0


@BOTH
def test_a_generation_gets_a_correlation_id_and_a_start(strategy):
    rig = SequenceRig(oldest=strategy, iterative_sequence=True)
    one, two = rig.request(0), rig.request("")

    assert (one.correlation_id, two.correlation_id) == (1, 2)
    assert rig.run() == [one, two]
    assert one.inputs["START"].data == b"\1\0\0\0"


@BOTH
def test_a_rescheduled_request_runs_again_without_its_start(strategy):
    rig = SequenceRig(oldest=strategy, iterative_sequence=True)
    request = rig.request(0)
    rig.run()
    rig.now_ns += 7
    rig.batcher.reschedule(request, rig.now_ns)
    rig.batcher.check_invariants()

    assert rig.run() == [request]
    assert request.inputs["START"].data == b"\0\0\0\0"
    assert request.queue_ns == rig.now_ns


@BOTH
def test_a_generation_that_is_not_rescheduled_is_over(strategy):
    rig = SequenceRig(max_batch_size=1, oldest=oldest(1) if strategy else None, iterative_sequence=True)
    rig.request(0)
    waiting = rig.request(0)
    rig.run()
    rig.done()

    assert rig.run() == [waiting]
    assert rig.batcher.sequence_count == 1


@BOTH
def test_a_generation_that_was_idle_too_long_is_not_taken_back(strategy):
    rig = SequenceRig(oldest=strategy, iterative_sequence=True, max_sequence_idle_microseconds=200)
    request = rig.request(0)
    rig.run()
    rig.pass_time(500)

    with pytest.raises(InvalidArgumentError, match="for sequence 1 to model 'm' must specify the START flag"):
        rig.batcher.reschedule(request, rig.now_ns)
    rig.batcher.check_invariants()
    assert rig.batcher.sequence_count == 0


@BOTH
@pytest.mark.parametrize("other_id", [1, 5])
def test_a_generation_shares_its_slot_with_no_other_of_its_id(strategy, other_id):
    rig = SequenceRig(oldest=strategy, iterative_sequence=True)
    own = rig.request(0 if other_id == 1 else 5, START)
    other = rig.request(other_id, START)

    assert rig.run() == [own, other]
    assert rig.batcher.sequence_count == 2
    rig.batcher.release(own, None, rig.now_ns)
    rig.batcher.reschedule(other, rig.now_ns)
    rig.batcher.check_invariants()
    assert [request for request in rig.run() if request is not None] == [other]
    assert rig.events == []


@BOTH
def test_a_generation_ends_when_its_model_says_so_not_its_client(strategy):
    rig = SequenceRig(oldest=strategy, iterative_sequence=True)
    request = rig.request(5, START | END)
    rig.run()
    rig.batcher.reschedule(request, rig.now_ns)
    rig.batcher.check_invariants()

    assert rig.run() == [request]
    rig.done()
    assert rig.batcher.sequence_count == 0


@BOTH
def test_an_automatic_id_is_none_that_a_client_uses(strategy):
    rig = SequenceRig(oldest=strategy, iterative_sequence=True)
    rig.request(1, START)

    assert rig.request(0).correlation_id == 2
    with pytest.raises(InvalidArgumentError, match="for sequence 2 to model 'm' must specify the START flag"):
        rig.request(2)


@BOTH
def test_only_an_iterative_model_may_reschedule(strategy):
    rig = SequenceRig(oldest=strategy)
    request = rig.request(1, START)
    rig.run()

    with pytest.raises(InvalidArgumentError) as refusal:
        rig.batcher.reschedule(request, rig.now_ns)
    assert refusal.value.message == (
        "Request is released with TRITONSERVER_REQUEST_RELEASE_RESCHEDULE, while the model is not configured to "
        "handle such a flag."
    )


@BOTH
def test_instances_take_turns_in_the_smallest_slot(strategy):
    rig = SequenceRig(instances=2, max_batch_size=2, oldest=strategy)
    one, two, three = (rig.request(number, START) for number in (1, 2, 3))

    assert rig.run(0) == [one, three]
    assert rig.run(1) == [two]


@BOTH
def test_an_instance_that_is_to_leave_keeps_its_sequences_and_gets_no_others(strategy):
    rig = SequenceRig(instances=2, max_batch_size=1, oldest=oldest(1) if strategy else None)
    one, two = rig.request(1, START), rig.request(2, START)
    assert not rig.batcher.retire_instance(0, rig.now_ns)
    waiting = rig.request(3, START)
    assert rig.run(0) == [one]
    rig.done(0)
    last = rig.request(1, END)
    assert rig.run(0) == [last]
    rig.done(0)
    rig.batcher.check_invariants()

    assert rig.batcher.retire_instance(0, rig.now_ns)
    assert rig.run(0) is None
    assert rig.run(1) == [two]
    assert rig.batcher.backlog_count == 1
    assert waiting is not None


def test_a_request_that_is_not_scheduled_is_completed_as_a_sequence_of_its_own():
    rig = SequenceRig()
    request = Request("m", 1, NoSink(), {"READY": "its own"})
    rig.batcher.complete(request)

    assert request.inputs["READY"] == "its own"
    assert request.inputs["START"].data == request.inputs["END"].data == b"\1\0\0\0"
