import time

import pytest

from merrow.backends.base import Execution, Instance
from merrow.core.errors import InternalError, NotFoundError
from merrow.core.response import Response
from merrow.places.guard import ask_guarded, execute_guarded
from tests.places.process.codec_values import request_of


class Model(Instance):
    def __init__(self, behaviour):
        self._behaviour = behaviour

    def execute(self, requests):
        return self._behaviour(requests)


def raising(error):
    def behave(*_):
        raise error

    return behave


def test_what_a_model_answers_is_its_answer():
    execution = Execution([Response("m", 1)], 1, 2, 3, 4)

    assert execute_guarded(Model(lambda requests: execution), "m_0", [request_of()]) is execution


@pytest.mark.parametrize(
    ("behaviour", "kind", "text"),
    [
        (raising(NotFoundError("lost")), NotFoundError, "lost"),
        (raising(ValueError("boom")), InternalError, "ValueError: boom"),
        (
            lambda requests: Execution([Response("m", 1)], 1, 2, 3, 4),
            InternalError,
            "instance 'm_0' answered 1 of 2 requests",
        ),
    ],
)
def test_what_a_model_raises_fails_each_request_of_its_batch(behaviour, kind, text):
    before_ns = time.monotonic_ns()
    execution = execute_guarded(Model(behaviour), "m_0", [request_of(), request_of()])
    after_ns = time.monotonic_ns()

    assert [(type(outcome), outcome.message) for outcome in execution.outcomes] == [(kind, text)] * 2
    times = [execution.start_ns, execution.input_end_ns, execution.output_start_ns, execution.end_ns]
    assert [before_ns, *times, after_ns] == sorted([before_ns, *times, after_ns])


def test_only_what_no_model_should_raise_is_logged(caplog):
    execute_guarded(Model(raising(NotFoundError("lost"))), "m_0", [request_of()])
    assert caplog.text == ""
    execute_guarded(Model(raising(ValueError("boom"))), "m_0", [request_of()])
    assert "execution failed in instance 'm_0'" in caplog.text


@pytest.mark.parametrize("is_ready", [True, False])
def test_an_instance_says_whether_it_is_ready(is_ready):
    assert ask_guarded(lambda: is_ready) is is_ready


def test_an_instance_that_cannot_say_whether_it_is_ready_says_why(caplog):
    error = NotFoundError("lost")
    assert ask_guarded(raising(error)) is error
    assert caplog.text == ""
    failure = ask_guarded(raising(ValueError("boom")))

    assert isinstance(failure, InternalError)
    assert failure.message == "ValueError: boom"
    assert "the check of an instance's readiness failed" in caplog.text
