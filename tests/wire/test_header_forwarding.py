"""Headers as parameters."""

import pytest

from merrow.core.errors import InvalidArgumentError
from merrow.wire.header_forwarding import HeaderForwarding, metadata_of_application

RESERVED = ["sequence_id", "sequence_start", "sequence_end", "priority", "timeout", "headers", "binary_data_output"]


def test_headers_that_match_become_parameters_under_the_names_that_were_sent():
    headers = [(b"X-Fwd-A", b"1"), (b"my-x-fwd", b""), (b"Other", b"2"), (b"X-Fwd-A", b"3"), (b"x-fwd-a", b"4")]

    assert HeaderForwarding("x-fwd").parameters_of(headers) == {"X-Fwd-A": "3", "my-x-fwd": "", "x-fwd-a": "4"}
    assert HeaderForwarding("nothing").parameters_of(headers) == {}


@pytest.mark.parametrize("name", [*RESERVED, "triton_", "triton_x"])
def test_reserved_names_are_refused_only_if_they_match(name):
    with pytest.raises(InvalidArgumentError) as raised:
        HeaderForwarding(".*").parameters_of([(b"a", b"1"), (name.encode(), b"1")])
    assert raised.value.message == f"Header '{name}' is reserved for Triton usage and cannot be forwarded."
    assert HeaderForwarding("^x").parameters_of([(name.encode(), b"1")]) == {}


def test_values_that_are_no_utf8_pass_through():
    [value] = HeaderForwarding("a").parameters_of([(b"a", b"caf\xe9")]).values()
    assert value.encode("utf-8", "surrogateescape") == b"caf\xe9"


def test_metadata_is_what_an_application_sees():
    metadata = [
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
        (b"grpc-timeout", b"1S"),
        (b"user-agent", b"x"),
        (b"a-bin", b"AQI"),
        (b"b-bin", b"AQI="),
        (b"c-bin", b"A"),
        (b"d", b"1"),
    ]

    assert list(metadata_of_application(metadata)) == [
        (b"user-agent", b"x"), (b"a-bin", b"\1\2"), (b"b-bin", b"\1\2"), (b"d", b"1"),
    ]  # fmt: skip
