from merrow.backends.probes.execution import execute_each
from merrow.core.errors import InvalidArgumentError
from merrow.core.response import Response
from tests.backends.probes.probe_requests import request


def test_a_request_that_fails_fails_alone():
    good, bad = request(), request()
    response = Response("m", 1)
    error = InvalidArgumentError("no")

    def execute(each):
        if each is bad:
            raise error
        return response

    assert execute_each(execute, [good, bad, good]).outcomes == [response, error, response]


def test_all_of_the_time_is_compute():
    execution = execute_each(lambda _: Response("m", 1), [request()])

    assert execution.start_ns == execution.input_end_ns
    assert execution.output_start_ns == execution.end_ns
