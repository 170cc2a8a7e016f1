"""Waiting for a server, as the example clients do."""

import pytest
from tritonclient.utils import InferenceServerException

from examples.readiness import wait_until_ready


class Client:
    """Its answers in order, the last one again and again; exceptions are raised."""

    def __init__(self, *answers):
        self._answers = list(answers)
        self.is_closed = False

    def is_server_ready(self):
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self):
        self.is_closed = True


def test_a_server_that_is_ready_is_not_waited_for(capsys):
    client = Client(True)

    assert wait_until_ready(client, "host:1")
    assert capsys.readouterr().err == ""
    assert client.is_closed


@pytest.mark.parametrize("failure", [ConnectionRefusedError(), InferenceServerException("UNAVAILABLE")])
def test_a_server_that_starts_is_waited_for(capsys, failure):
    assert wait_until_ready(Client(failure, failure, False, True), "host:1")
    assert capsys.readouterr().err == "waiting for the server at host:1 ...\n"


def test_waiting_has_an_end(capsys):
    client = Client(ConnectionRefusedError())

    assert not wait_until_ready(client, "host:1", seconds=0)
    assert capsys.readouterr().err == "no server became ready at host:1\n"
    assert client.is_closed


def test_a_server_that_has_ended_is_not_waited_for(capsys):
    running = iter([True, False])

    assert not wait_until_ready(Client(ConnectionRefusedError()), "host:1", is_running=lambda: next(running))
    assert capsys.readouterr().err.endswith("no server became ready at host:1\n")
