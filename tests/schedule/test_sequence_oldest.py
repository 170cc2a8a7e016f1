from merrow.schedule.base import BatchCut
from tests.schedule.sequence_rig import END, START, SequenceRig, oldest


def test_batches_hold_one_request_of_each_sequence():
    rig = SequenceRig(oldest=oldest(4))
    one, one_next, two = rig.request(1, START), rig.request(1), rig.request(2, START)

    assert rig.run() == [one, two]
    rig.done()
    assert rig.run() == [one_next]


def test_a_request_waits_for_the_one_before_it():
    rig = SequenceRig(oldest=oldest(4))
    rig.request(1, START), rig.request(1)
    rig.run()

    assert rig.run() is None
    assert len(rig.batcher) == 1


def test_candidates_bound_the_sequences_of_an_instance():
    rig = SequenceRig(oldest=oldest(2))
    one, two, three = rig.request(1, START), rig.request(2, START), rig.request(3, START)

    assert rig.run() == [one, two]
    rig.done()
    assert rig.run() is None
    last = rig.request(2, END)
    assert rig.run() == [last, three]


def test_without_candidates_the_batch_size_is_the_bound():
    rig = SequenceRig(max_batch_size=2, oldest=oldest())
    rig.request(1, START), rig.request(2, START), rig.request(3, START)

    assert rig.batcher.backlog_count == 1


def test_a_preferred_size_is_cut_off():
    rig = SequenceRig(max_batch_size=4, oldest=oldest(4, preferred=(2,)))
    requests = [rig.request(number, START) for number in (1, 2, 3)]

    assert rig.run() == requests[:2]
    assert rig.cut is BatchCut.PREFERRED_SIZE


def test_the_queue_delay_counts_from_when_a_request_could_run():
    rig = SequenceRig(oldest=oldest(4, preferred=(4,), delay_us=100))
    first, second = rig.request(1, START), rig.request(1)
    assert rig.run() is None
    assert rig.batcher.next_deadline_ns() == rig.now_ns + 100_000
    rig.now_ns += 100_000
    assert rig.run() == [first]
    rig.now_ns += 50_000
    rig.done()

    assert rig.run() is None
    assert rig.batcher.next_deadline_ns() == rig.now_ns + 100_000
    # The statistics count the whole wait.
    assert second.queue_ns == first.queue_ns


def test_the_state_of_an_ended_sequence_does_not_reach_the_next():
    rig = SequenceRig(max_batch_size=1, oldest=oldest(1))
    rig.request(1, START | END)
    two = rig.request(2, START)
    rig.run()
    rig.done()

    assert rig.run() == [two]
