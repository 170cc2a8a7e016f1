from merrow.core.model_config import ModelQueuePolicy
from merrow.schedule.hold import HeldScheduler
from merrow.schedule.sequence_direct import DirectSequenceBatcher
from tests.schedule.sequence_rig import START, SequenceRig
from tests.schedule.test_dynamic_batch import batcher, fill, request


def test_the_first_batch_waits_for_enough_requests_and_later_ones_do_not():
    held = HeldScheduler(batcher(max_batch_size=2), 3)
    first, second = fill(held, [request(), request()])
    assert held.decide(0) is None
    assert held.next_deadline_ns() is None
    (third,) = fill(held, [request()])

    assert held.decide(0).requests == (first, second)
    assert held.decide(0).requests == (third,)
    (fourth,) = fill(held, [request()])
    assert held.decide(0).requests == (fourth,)


def test_nothing_times_out_while_it_is_held():
    held = HeldScheduler(batcher(policy=ModelQueuePolicy(default_timeout_microseconds=1)), 2)
    fill(held, [request()])
    assert held.expire(5000) == ()
    assert held.next_timeout_ns() is None
    fill(held, [request()], now_ns=5000)

    assert len(held.expire(5000)) == 1


def test_sequences_become_idle_while_they_are_held():
    rig = SequenceRig(max_batch_size=1, max_sequence_idle_microseconds=1000)
    rig.batcher = held = HeldScheduler(rig.batcher, 9)
    rig.request(1, START)
    assert held.next_deadline_ns() == held.next_timeout_ns() == rig.now_ns + 1_000_000
    rig.pass_time(1000)

    assert rig.events == [("idle", 1)]
    assert rig.run() is None


def test_a_backlog_may_be_waited_for_too():
    rig = SequenceRig(max_batch_size=1)
    direct = rig.batcher
    assert isinstance(direct, DirectSequenceBatcher)
    held = HeldScheduler(direct, 1, 2, lambda: direct.backlog_count)
    rig.batcher = held
    one = rig.request(1, START)
    rig.request(2, START)
    assert held.follows_requests
    assert held.held_count == 1
    assert rig.run() is None
    rig.request(3, START)

    assert rig.run() == [one]
    rig.done()
    assert held.cancel(one, 0) == []
    held.lose_instance(0, 0)
    held.restore_instance(0, 0)
    assert len(held.drain()) == 1
