"""Responses: outputs, or an error."""

from merrow.core.errors import InternalError
from merrow.core.response import Response
from merrow.core.tensor import Tensor


def test_an_ordinary_response_is_the_last_one():
    response = Response("m", 1, "id", [Tensor("A", "INT8", (1,), b"a")])

    assert response.is_final
    assert not response.is_empty
    assert response.error is None
    assert response.parameters is None
    assert repr(response) == "Response('m', 1, 'id', [Tensor('A', INT8, [1], 1 bytes)])"


def test_a_failed_response_shows_its_error():
    response = Response("m", 1, error=InternalError("why"))

    assert list(response.outputs) == []
    assert repr(response) == "Response('m', 1, '', InternalError('why'))"
