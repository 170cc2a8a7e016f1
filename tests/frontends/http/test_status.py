"""Errors as HTTP answers."""

import pytest

from merrow.core.errors import ErrorCode, error_of_code
from merrow.frontends.http.status import JSON_HEADERS, STATUSES, TEXT_HEADERS, respond_error, respond_unexpected
from tests.frontends.fakes import FakeExchange


@pytest.mark.parametrize("code", list(ErrorCode))
def test_every_code_has_a_status(code):
    exchange = FakeExchange()

    respond_error(exchange, error_of_code(code, "text"), JSON_HEADERS)

    assert exchange.status == STATUSES[code]
    assert exchange.answer == b'{"error":"text"}'
    assert exchange.content_type == b"application/json"


def test_statuses_are_triton_s():
    assert {code.name: STATUSES[code] for code in ErrorCode} == {
        "UNKNOWN": 400,
        "INTERNAL": 500,
        "NOT_FOUND": 404,
        "INVALID_ARG": 400,
        "UNAVAILABLE": 503,
        "UNSUPPORTED": 501,
        "ALREADY_EXISTS": 400,
        "CANCELLED": 400,
    }


def test_a_message_is_a_json_string():
    exchange = FakeExchange()
    respond_error(exchange, error_of_code(3, 'a "b"\n'), TEXT_HEADERS)
    assert exchange.answer == b'{"error":"a \\"b\\"\\n"}'


def test_a_defect_tells_nothing_of_itself():
    exchange = FakeExchange()
    respond_unexpected(exchange)
    assert exchange.status == 500
    assert exchange.answer == b'{"error":"unexpected error in the server; its log tells more"}'
