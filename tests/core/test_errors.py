"""Errors: one class per code, and how load errors spell them."""

import pytest

from merrow.core.errors import (
    CODE_NAMES,
    ERROR_CLASSES,
    CancelledError,
    ErrorCode,
    InvalidArgumentError,
    ServerError,
    UnknownError,
    error_of_code,
)


@pytest.mark.parametrize("code", list(ErrorCode))
def test_every_code_has_one_class_and_a_name(code: ErrorCode):
    error = error_of_code(code, "why")

    assert type(error) is ERROR_CLASSES[code]
    assert (error.code, error.message) == (code, "why")
    assert error.describe() == f"{CODE_NAMES[code]}: why"


def test_numbers_are_those_of_tritons_server_api():
    assert [code.name for code in sorted(ErrorCode)] == [
        "UNKNOWN",
        "INTERNAL",
        "NOT_FOUND",
        "INVALID_ARG",
        "UNAVAILABLE",
        "UNSUPPORTED",
        "ALREADY_EXISTS",
        "CANCELLED",
    ]


def test_a_number_that_nobody_knows_is_unknown():
    assert type(error_of_code(99, "why")) is UnknownError


def test_an_error_without_a_message():
    assert CancelledError().message == ""
    assert CancelledError("").describe() == "Cancelled"
    assert InvalidArgumentError("bad").describe() == "Invalid argument: bad"


def test_the_base_is_what_callers_catch():
    with pytest.raises(ServerError, match="bad"):
        raise InvalidArgumentError("bad")
