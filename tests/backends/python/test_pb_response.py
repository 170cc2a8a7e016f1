import json

import numpy as np
import pytest

from merrow.backends.python.pb_errors import TritonError, TritonModelException
from merrow.backends.python.pb_response import InferenceResponse, decode_response, encode_response
from merrow.backends.python.pb_tensor import Tensor
from merrow.core import tensor as core
from merrow.core.errors import NotFoundError
from merrow.core.response import Response
from tests.backends.python.model_files import make_request

OUT = Tensor("OUT", np.arange(3, dtype=np.float32))
OTHER = Tensor("OTHER", np.zeros(1))


def test_a_response_holds_tensors_or_an_error():
    assert InferenceResponse([OUT]).output_tensors() == [OUT]
    assert InferenceResponse((OUT,)).output_tensors() == [OUT]
    assert InferenceResponse().output_tensors() == []
    assert InferenceResponse(output_tensors=[OUT]).error() is None
    error = TritonError("x")
    assert InferenceResponse([], error).error() is error
    assert InferenceResponse(error=error).has_error()
    assert json.loads(InferenceResponse([], parameters={"a": 1, "b": "c"}).parameters()) == {"a": 1, "b": "c"}


@pytest.mark.parametrize("args", [([1],), ("a",), ([], "a"), (5,), ([], None, {}, 1)])
def test_a_response_of_the_wrong_types_is_refused(args):
    with pytest.raises(TypeError) as caught:
        InferenceResponse(*args)

    assert str(caught.value) == (
        "__init__(): incompatible constructor arguments. The following argument types are supported:\n"
        "    1. c_python_backend_utils.InferenceResponse(output_tensors: List[c_python_backend_utils.Tensor] = [], "
        "error: c_python_backend_utils.TritonError = None, parameters: object = None)\n\n"
        f"Invoked with: {', '.join(map(repr, args))}"
    )


def test_a_response_that_makes_no_sense_is_refused():
    with pytest.raises(TritonModelException) as caught:
        InferenceResponse([None])
    assert str(caught.value) == "Output tensor for inference response should not be empty."
    with pytest.raises(TritonModelException):
        InferenceResponse([], parameters={"a": 1.5})


def test_only_what_was_asked_for_is_encoded():
    response = InferenceResponse([OUT, OTHER, OUT], parameters={"p": 1})

    every = encode_response(response, make_request(), ("OUT", "OTHER"), False)
    assert [tensor.name for tensor in every.outputs] == ["OUT", "OTHER", "OUT"]
    assert every.parameters == {"p": 1}
    some = encode_response(response, make_request(requested_outputs=("OTHER", "NONE")), ("OUT", "OTHER"), False)
    assert [tensor.name for tensor in some.outputs] == ["OTHER"]


def test_an_error_response_keeps_its_code_and_loses_its_tensors():
    response = InferenceResponse([OUT], TritonError("gone", TritonError.NOT_FOUND))
    encoded = encode_response(response, make_request(), ("OUT",), False)

    assert isinstance(encoded.error, NotFoundError)
    assert encoded.error.message == "gone"
    assert encoded.outputs == ()


@pytest.mark.parametrize(("must_copy", "expected"), [(True, 1.0), (False, 2.0)])
def test_large_arrays_are_copied_where_they_must_not_change(must_copy, expected):
    array = np.ones(10_000, np.float32)
    encoded = encode_response(InferenceResponse([Tensor("OUT", array)]), make_request(), ("OUT",), must_copy)
    array[:] = 2

    assert encoded.outputs[0].as_numpy()[0] == expected


def test_the_response_of_another_model_is_seen_as_its_caller_would_have_made_it():
    tensor = core.Tensor.from_numpy("OUT", np.arange(3, dtype=np.float32))
    seen = decode_response(Response("m", 1, "", [tensor], {"a": True}))

    assert [(each.name(), each.as_numpy().tolist()) for each in seen.output_tensors()] == [("OUT", [0, 1, 2])]
    assert seen.parameters() == '{"a": true}'
    assert not seen.has_error()


def test_the_error_of_another_model_keeps_its_code():
    seen = decode_response(Response("m", 1, error=NotFoundError("gone")))

    assert seen.error().message() == "gone"
    assert seen.error().code() is TritonError.NOT_FOUND
