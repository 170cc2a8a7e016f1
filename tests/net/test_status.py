import json

import pytest

from merrow.net.status import error_body, has_no_body, reason_phrase


def test_reason_phrases():
    assert reason_phrase(200) == b"OK"
    assert reason_phrase(405) == b"Not Allowed"
    assert reason_phrase(799) == b"Unknown"


def test_which_answers_have_no_body():
    assert [status for status in (100, 101, 200, 204, 205, 304, 404) if has_no_body(status)] == [100, 101, 204, 304]


@pytest.mark.parametrize("text", ["plain", 'quoted "text"', "back\\slash", "é", ""])
def test_error_bodies_are_json(text):
    assert json.loads(error_body(text).replace(b"\\x", b"\\u00")) == {"error": text}
