import pytest

from merrow.backends.python.pb_errors import (
    TritonError,
    TritonModelException,
    bind_arguments,
    describe_exception,
    incompatible_arguments,
)

HERE = __file__


def described(function):
    try:
        function()
    except BaseException as error:
        return describe_exception(error)
    raise AssertionError("nothing was raised")


def test_an_error_has_a_message_and_a_code():
    error = TritonError("text", TritonError.NOT_FOUND)

    assert (error.message(), error.code(), int(error.code())) == ("text", TritonError.NOT_FOUND, 2)
    assert TritonError("text").code() is TritonError.INTERNAL
    assert TritonError(message="text", code=TritonError.CANCELLED).code() == 7


def test_codes_print_as_those_of_pybind11():
    assert repr(TritonError.INVALID_ARG) == "<__ErrorCode.INVALID_ARG: 3>"
    assert str(TritonError.INVALID_ARG) == "__ErrorCode.INVALID_ARG"
    assert TritonError.INVALID_ARG.name == "INVALID_ARG"
    assert repr(TritonError) == "<class 'c_python_backend_utils.TritonError'>"
    assert repr(TritonModelException) == "<class 'c_python_backend_utils.TritonModelException'>"


@pytest.mark.parametrize(
    ("args", "kwargs", "invoked"),
    [
        (("a", 3), {}, "'a', 3"),
        ((1,), {}, "1"),
        ((), {}, ""),
        (("a", TritonError.INTERNAL, 1), {}, "'a', <__ErrorCode.INTERNAL: 1>, 1"),
        (("a",), {"message": "b"}, "'a'; kwargs: message='b'"),
        ((), {"text": "b"}, "kwargs: text='b'"),
    ],
)
def test_wrong_arguments_are_refused_in_the_words_of_pybind11(args, kwargs, invoked):
    with pytest.raises(TypeError) as caught:
        TritonError(*args, **kwargs)

    assert str(caught.value) == (
        "__init__(): incompatible constructor arguments. The following argument types are supported:\n"
        "    1. c_python_backend_utils.TritonError(message: str, code: c_python_backend_utils.TritonError.__ErrorCode "
        f"= <__ErrorCode.INTERNAL: 1>)\n\nInvoked with: {invoked}"
    )


def test_arguments_are_bound_by_place_and_by_name():
    assert bind_arguments(("a", "b", "c"), (1, 2, 3), (10,), {"c": 30}, "f()") == [10, 2, 30]


def test_functions_are_told_from_constructors():
    assert "log(): incompatible function arguments" in str(incompatible_arguments("(a: str)", (1,), None, "log"))


def test_frames_are_listed_innermost_first_without_the_one_that_caught():
    def inner():
        raise KeyError("k")

    def outer():
        inner()

    line = inner.__code__.co_firstlineno
    assert described(outer) == f"KeyError: 'k'\n\nAt:\n  {HERE}({line + 1}): inner\n  {HERE}({line + 4}): outer\n"


def test_a_frame_stands_where_its_last_line_ran():
    def function():
        try:
            raise ValueError("x")
        finally:
            _ = 1

    line = function.__code__.co_firstlineno
    assert described(function) == f"ValueError: x\n\nAt:\n  {HERE}({line + 4}): function\n"


def test_an_exception_of_the_call_itself_has_no_frames():
    def takes_one(_argument):
        return None

    try:
        takes_one()
    except TypeError as error:
        text = describe_exception(error)
    assert text.startswith("TypeError: ")
    assert "At:" not in text


def test_an_exception_without_a_message_says_so():
    def function():
        raise KeyboardInterrupt

    assert described(function).startswith("KeyboardInterrupt: <EMPTY MESSAGE>\n\nAt:\n")


def test_an_exception_that_cannot_be_printed_is_described_all_the_same():
    class Unprintable(Exception):
        def __str__(self):
            raise ValueError

    def function():
        raise Unprintable

    assert described(function).startswith("Unprintable: <MESSAGE UNAVAILABLE DUE TO EXCEPTION>\n\nAt:\n")


def test_frames_of_the_backend_are_left_out():
    def function():
        TritonError(1)

    line = function.__code__.co_firstlineno
    assert described(function).endswith(f"Invoked with: 1\n\nAt:\n  {HERE}({line + 1}): function\n")


def test_an_exception_that_was_never_raised_has_no_frames():
    assert describe_exception(ValueError("x")) == "ValueError: x"
