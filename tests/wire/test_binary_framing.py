"""Where the length of the JSON stands; texts as the real server's sources have them."""

import pytest

from merrow.core.errors import InvalidArgumentError
from merrow.wire.binary_framing import INFERENCE_HEADER, SAGEMAKER_CONTENT_TYPE, VERTEX_AI_CONTENT_TYPE

SAGEMAKER = b"application/vnd.sagemaker-triton.binary+json;json-header-size="
OCTETS = (b"Content-Type", b"application/octet-stream")


def decode(framing, fields, body_byte_size=100):
    text = framing.length_text_of(fields)
    return None if text is None else framing.decode_length(text, body_byte_size)


@pytest.mark.parametrize(
    ("content_type", "length"),
    [
        (None, None),
        (b"application/json", None),
        (b"application/vnd.vertex-ai-triton.binary+json;json-header-size=5", None),
        (SAGEMAKER + b"0", 0),
        (SAGEMAKER + b"100", 100),
        (SAGEMAKER + b" +7x", 7),
    ],
)
def test_content_types(content_type, length):
    fields = {} if content_type is None else {b"content-type": content_type}
    assert decode(SAGEMAKER_CONTENT_TYPE, {**fields, b"inference-header-content-length": b"3"}) == length


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (SAGEMAKER + b"x", "Unable to parse inference header size, got: x"),
        (SAGEMAKER, "Unable to parse inference header size, got: "),
        (SAGEMAKER + b"2147483648", "Unable to parse inference header size, value is out of range, got: 2147483648"),
        (SAGEMAKER + b"9" * 5000, "Unable to parse inference header size, value is out of range, got: " + "9" * 5000),
        (SAGEMAKER + b"101", "inference header size should be in range (0, 100), got: 101"),
        (SAGEMAKER + b"-1", "inference header size should be in range (0, 100), got: -1"),
        (
            b"a; " + SAGEMAKER + b"1",
            f"expect MIME type for binary data starts with '{SAGEMAKER.decode()}', got: a; {SAGEMAKER.decode()}1",
        ),
    ],
)
def test_a_content_type_that_says_no_length_is_refused(value, text):
    with pytest.raises(InvalidArgumentError) as raised:
        decode(SAGEMAKER_CONTENT_TYPE, {b"content-type": value})
    assert raised.value.message == text


def test_tritons_own_header():
    assert decode(INFERENCE_HEADER, {b"inference-header-content-length": b"7", b"content-type": SAGEMAKER + b"1"}) == 7
    assert decode(INFERENCE_HEADER, {}) is None


def test_an_answer_says_its_length_as_the_request_did():
    ours = (OCTETS, (b"Inference-Header-Content-Length", b"7"))
    assert INFERENCE_HEADER.response_headers(7) == ours
    assert VERTEX_AI_CONTENT_TYPE.response_headers(7) == ours
    assert SAGEMAKER_CONTENT_TYPE.response_headers(7) == ((b"Content-Type", SAGEMAKER + b"7"),)
