import pytest

from merrow.backends.base import Deferral
from merrow.core.errors import InternalError
from merrow.core.response import Response
from merrow.places.process.open_requests import OpenRequests
from tests.places.process.codec_values import request_of

A, B, C = (request_of(id=name) for name in "ABC")
ANSWERED = Response("m", 1)
FAILED = InternalError("no")


@pytest.fixture
def table():
    """A batch of two requests, 1 and 2, and one of one, 3."""
    table = OpenRequests()
    table.in_flight[1] = ([A, B], ())
    table.in_flight[3] = ([C], ())
    return table


def answer(table, number, *outcomes):
    over = table.settle(number, table.in_flight[number][0], outcomes)
    del table.in_flight[number]
    return over


def test_an_empty_table_knows_nobody():
    table = OpenRequests()

    assert table.is_empty
    assert table.oldest_batch is None
    assert not table.has_deferred
    assert table.find(1) is None
    assert table.number_of(A) is None
    assert table.executing_batch(0) == ()
    assert table.clear() == ([], [])


def test_requests_in_flight_have_the_numbers_after_their_batch(table):
    assert not table.is_empty
    assert [table.find(number) for number in range(5)] == [None, A, B, C, None]
    assert [table.number_of(request) for request in (A, B, C, request_of())] == [1, 2, 3, None]


def test_the_oldest_batch_is_the_one_that_is_executed(table):
    assert table.oldest_batch == 1
    assert table.executing_batch(0) == [A, B]
    assert [table.executing_batch(number) for number in (2, 3, 4)] == [[A, B], [C], ()]
    del table.in_flight[1]
    assert table.oldest_batch == 3
    assert table.executing_batch(0) == [C]


def test_what_is_deferred_outlives_its_batch(table):
    assert answer(table, 1, Deferral.DEFERRED, ANSWERED) == [2]

    assert table.has_deferred
    assert (table.find(1), table.find(2), table.number_of(A), table.number_of(B)) == (A, None, 1, None)
    assert table.executing_batch(1) == ()
    table.take_response(1, is_final=False)
    assert table.find(1) is A
    table.take_response(1, is_final=True)
    assert table.find(1) is None
    assert not table.has_deferred


def test_what_goes_on_under_another_number_and_what_failed_is_over(table):
    assert answer(table, 1, Deferral.RESCHEDULED, FAILED) == [1, 2]
    assert not table.has_deferred


def test_a_last_response_may_come_before_the_answer(table):
    table.take_response(2, is_final=True)
    assert (table.find(1), table.find(2)) == (A, None)

    # Number 2 was over before.
    assert answer(table, 1, ANSWERED, Deferral.DEFERRED) == [1]
    assert not table.has_deferred
    assert not table.is_empty
    answer(table, 3, ANSWERED)
    assert table.is_empty


def test_silence_is_counted_from_the_first_look(table):
    assert table.longest_silence_ns(1000) == 0
    answer(table, 1, Deferral.DEFERRED, Deferral.DEFERRED)
    assert table.longest_silence_ns(2000) == 0
    assert table.longest_silence_ns(2500) == 500

    table.take_response(1, is_final=False)
    assert table.longest_silence_ns(3000) == 1000
    table.take_response(2, is_final=True)
    # Number 1 has been silent since the last look.
    assert table.longest_silence_ns(3300) == 300
    table.forgive_silence()
    assert table.longest_silence_ns(4000) == 0


def test_all_that_is_open_is_handed_over_once(table):
    answer(table, 1, Deferral.DEFERRED, ANSWERED)

    assert table.clear() == ([[C]], [A])
    assert table.is_empty
    assert table.clear() == ([], [])
