"""How statuses and their messages are written."""

import pytest

from merrow.net.grpc_status import encode_message, encode_status_fields


@pytest.mark.parametrize(
    ("message", "encoded"),
    [
        ("", b""),
        ("plain text, 'quoted'", b"plain text, 'quoted'"),
        ("100%", b"100%25"),
        ("a\nb", b"a%0Ab"),
        ("é", b"%C3%A9"),
        ("\x7f", b"%7F"),
        ("\ud800", b"?"),
    ],
)
def test_messages_are_percent_encoded(message, encoded):
    assert encode_message(message) == encoded


def test_a_status_without_a_message_has_no_field_for_one():
    assert encode_status_fields(5, "") == b"\x00\x0bgrpc-status\x015"
