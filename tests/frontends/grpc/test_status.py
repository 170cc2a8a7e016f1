"""Errors as gRPC statuses."""

import pytest

from merrow.core.errors import ErrorCode, error_of_code
from merrow.frontends.grpc.status import STATUSES, finish_unexpected, finish_with_error
from tests.frontends.fakes import FakeCall


@pytest.mark.parametrize("code", list(ErrorCode))
def test_every_code_has_a_status(code):
    call = FakeCall()
    finish_with_error(call, error_of_code(code, "text"))
    assert (call.status, call.message) == (STATUSES[code], "text")


def test_statuses_are_triton_s():
    assert {code.name: STATUSES[code] for code in ErrorCode} == {
        "UNKNOWN": 2,
        "INTERNAL": 13,
        "NOT_FOUND": 5,
        "INVALID_ARG": 3,
        "UNAVAILABLE": 14,
        "UNSUPPORTED": 12,
        "ALREADY_EXISTS": 6,
        "CANCELLED": 1,
    }


def test_a_defect_tells_nothing_of_itself():
    call = FakeCall()
    finish_unexpected(call)
    assert (call.status, call.message) == (13, "unexpected error in the server; its log tells more")
