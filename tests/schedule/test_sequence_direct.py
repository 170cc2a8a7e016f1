from merrow.core.request import PaddingRequest
from merrow.schedule.base import BatchCut
from tests.schedule.sequence_rig import END, START, SequenceRig, correlation_control, direct


def test_a_sequence_keeps_its_row():
    rig = SequenceRig()
    one, two = rig.request(1, START), rig.request(2, START)
    assert rig.run() == [one, two]
    rig.done()
    again = rig.request(2)

    assert rig.run() == [None, again]


def test_rows_above_the_last_ready_one_are_not_padded():
    rig = SequenceRig()
    rig.request(1, START), rig.request(2, START), rig.request(3, START)
    rig.run()
    rig.done()
    again = rig.request(1)

    assert rig.run() == [again]


def test_padding_looks_like_a_request_of_zeros_that_is_not_ready():
    controls = SequenceRig().config.sequence_batching.control_input
    rig = SequenceRig(controls=(*controls, correlation_control("TYPE_UINT64")))
    rig.request(1, START), rig.request(2, START)
    rig.run()
    rig.done()
    rig.request(2, END)
    batch = rig.batcher.decide(rig.now_ns)
    padding, real = batch.requests

    assert isinstance(padding, PaddingRequest)
    assert padding.inputs.keys() == real.inputs.keys()
    assert padding.inputs["IN"].shape == real.inputs["IN"].shape
    assert bytes(padding.inputs["IN"].data) == bytes(4)
    assert {name: bytes(padding.inputs[name].data) for name in ("START", "END", "READY")} == dict.fromkeys(
        ("START", "END", "READY"), bytes(4)
    )
    assert bytes(padding.inputs["CORRID"].data) == bytes(8)
    assert {name: real.inputs[name].data for name in ("START", "END", "READY")} == {
        "START": bytes(4),
        "END": b"\1\0\0\0",
        "READY": b"\1\0\0\0",
    }
    assert bytes(real.inputs["CORRID"].data) == b"\2" + bytes(7)


def test_one_request_of_a_sequence_at_a_time():
    rig = SequenceRig()
    first, second = rig.request(1, START), rig.request(1)

    assert rig.run() == [first]
    rig.done()
    assert rig.run() == [second]


def test_a_row_of_another_shape_waits_and_is_padded():
    rig = SequenceRig(dims=(-1,))
    two, also_two, one = (
        rig.request(1, START, shape=(2,)),
        rig.request(2, START, shape=(2,)),
        rig.request(3, START, shape=(1,)),
    )

    assert rig.run() == [two, also_two, None]
    rig.done()
    assert rig.run() == [None, None, one]


def test_whoever_moves_into_a_slot_is_for_the_next_batch():
    rig = SequenceRig(max_batch_size=1)
    last, first = rig.request(1, START | END), rig.request(2, START)

    assert rig.run() == [last]
    rig.done()
    assert rig.run() == [first]


def test_a_batch_waits_for_enough_slots_but_not_for_longer_than_the_delay():
    rig = SequenceRig(direct=direct(delay_us=100, utilization=0.5))
    lone = rig.request(1, START)
    assert rig.run() is None
    assert rig.batcher.next_deadline_ns() == rig.now_ns + 100_000
    rig.now_ns += 100_000

    assert rig.run() == [lone]
    assert rig.cut is BatchCut.QUEUE_DELAY


def test_enough_slots_end_the_wait():
    rig = SequenceRig(direct=direct(delay_us=100, utilization=0.5))
    one = rig.request(1, START)
    assert rig.run() is None
    two = rig.request(2, START)

    assert rig.run() == [one, two]
    assert rig.cut is BatchCut.SLOT_UTILIZATION


def test_without_a_minimum_the_delay_means_nothing():
    rig = SequenceRig(direct=direct(delay_us=100))
    lone = rig.request(1, START)

    assert rig.run() == [lone]
    assert rig.cut is BatchCut.NOTHING_TO_WAIT_FOR


def test_a_model_without_batching_has_one_slot():
    rig = SequenceRig(max_batch_size=0)
    one, two = rig.request(1, START), rig.request(2, START)

    assert rig.run() == [one]
    assert one.inputs["READY"].shape == (1,)
    rig.done()
    rig.request(1, END)
    rig.run()
    rig.done()
    assert rig.run() == [two]


def test_a_lost_instance_waits_for_nothing():
    rig = SequenceRig(direct=direct(delay_us=100, utilization=1.0), max_sequence_idle_microseconds=0)
    rig.request(1, START)
    rig.run()
    rig.batcher.lose_instance(0, rig.now_ns)

    assert rig.batcher.next_deadline_ns() is None
