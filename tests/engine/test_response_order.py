import random

import pytest

from merrow.core.request import Request
from merrow.core.response import Response
from merrow.engine.response_order import ResponseOrder


def request(name):
    return Request("m", 1, None, {}, id=name)


class Line:
    """An order, and what it released."""

    def __init__(self, *names):
        self.released = []
        self.order = ResponseOrder(lambda request, response: self.on_release(request, response))
        self.requests = {name: request(name) for name in names}
        for each in self.requests.values():
            self.order.join(each)

    def on_release(self, request, response):
        self.released.append((request.id, response.id))

    def answer(self, name, text, is_final=True):
        self.order.answer(self.requests[name], Response("m", 1, text, is_final=is_final))
        self.order.check_invariants()


def test_the_first_in_line_is_answered_at_once_and_others_wait():
    line = Line("a", "b", "c")
    line.answer("b", "1")
    line.answer("c", "2")
    assert line.released == []
    line.answer("a", "3")

    assert line.released == [("a", "3"), ("b", "1"), ("c", "2")]
    assert line.requests["a"] not in line.order


def test_the_responses_of_a_request_stay_together():
    line = Line("a", "b")
    line.answer("b", "1", is_final=False)
    line.answer("a", "2", is_final=False)
    line.answer("b", "3")
    assert line.released == [("a", "2")]
    line.answer("a", "4")

    assert line.released == [("a", "2"), ("a", "4"), ("b", "1"), ("b", "3")]


def test_who_is_asked_back_while_answering_waits_for_the_rest():
    line = Line("a", "b")
    line.on_release = lambda request, response: (
        line.released.append((request.id, response.id)),
        response.id == "1" and line.order.answer(line.requests["b"], Response("m", 1, "x")),
    )
    line.answer("a", "1", is_final=False)
    line.answer("a", "2")

    assert line.released == [("a", "1"), ("a", "2"), ("b", "x")]


@pytest.mark.parametrize("seed", range(50))
def test_any_order_of_answers_leaves_in_the_order_of_requests(seed):
    draw = random.Random(seed)
    names = [str(number) for number in range(8)]
    line = Line(*names)
    total = {name: draw.randint(1, 4) for name in names}
    expected = [(name, f"{name}.{index}") for name in names for index in range(total[name])]
    given = dict.fromkeys(names, 0)
    while open_names := [name for name in names if given[name] < total[name]]:
        name = draw.choice(open_names)
        given[name] += 1
        line.answer(name, f"{name}.{given[name] - 1}", is_final=given[name] == total[name])

    assert line.released == expected
