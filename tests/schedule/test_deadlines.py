from merrow.schedule.deadlines import Deadlines


class Subject:
    def __init__(self):
        self.is_over = False


def make_deadlines():
    return Deadlines(lambda _, subject: subject.is_over)


def test_what_is_due_comes_in_the_order_of_time_and_of_coming():
    deadlines = Deadlines(lambda _, subject: False)
    for deadline_ns, subject in ((30, "c"), (10, "a"), (30, "d"), (20, "b")):
        deadlines.push(deadline_ns, subject)

    assert deadlines.next_ns() == 10
    assert deadlines.pop_due(9) is None
    assert [deadlines.pop_due(30) for _ in range(5)] == ["a", "b", "c", "d", None]
    assert deadlines.next_ns() is None


def test_stale_ones_are_skipped():
    deadlines = make_deadlines()
    first, second = Subject(), Subject()
    deadlines.push(10, first)
    deadlines.push(20, second)

    first.is_over = True

    assert deadlines.next_ns() == 20
    assert deadlines.pop_due(15) is None
    assert deadlines.pop_due(20) is second


def test_staleness_may_depend_on_the_time():
    deadlines = Deadlines(lambda deadline_ns, subject: subject["due_ns"] != deadline_ns)
    subject = {"due_ns": 10}
    deadlines.push(20, subject)
    deadlines.push(10, subject)

    assert deadlines.pop_due(30) is subject
    assert deadlines.pop_due(30) is None


def test_stale_ones_are_dropped_when_there_are_many():
    deadlines = make_deadlines()
    lasting = Subject()
    deadlines.push(1, lasting)
    for deadline_ns in range(2, 10_000):
        subject = Subject()
        deadlines.push(deadline_ns, subject)
        subject.is_over = True
        # Two were not stale when the others were dropped.
        assert len(deadlines) <= 2 * 2 + 64

    assert deadlines.pop_due(1) is lasting
