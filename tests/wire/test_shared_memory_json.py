"""Texts are Triton's: of 2.51 on a machine without GPUs, and for CUDA of its source."""

import base64
import re
from types import SimpleNamespace

import pytest

from merrow.core.errors import InternalError, InvalidArgumentError, ServerError
from merrow.wire.shared_memory_json import (
    CudaRegistration,
    SystemRegistration,
    decode_cuda_registration,
    decode_system_registration,
    encode_cuda_regions,
    encode_system_regions,
)

NOT_STRING = "attempt to access JSON non-string as string"
NOT_UINT = "attempt to access JSON non-unsigned-integer as unsigned-integer"


def refusal(decode, text):
    with pytest.raises(ServerError) as raised:
        decode(text.encode(), 1000)
    return type(raised.value), raised.value.message


class TestSystem:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ('{"key":"/k","byte_size":64}', SystemRegistration("/k", 0, 64)),
            ('{"byte_size":18446744073709551615,"offset":4096,"key":"k"}', SystemRegistration("k", 4096, 2**64 - 1)),
            ('{"key":"a\\u0000b","key":"c","byte_size":1,"other":null}', SystemRegistration("a", 0, 1)),
        ],
    )
    def test_registrations(self, text, expected):
        assert decode_system_registration(text.encode(), 1000) == expected

    @pytest.mark.parametrize(
        ("text", "error_class", "message"),
        [
            ("", InternalError, "failed to parse the request JSON buffer: The document is empty. at 0"),
            ("{}", InvalidArgumentError, "Shared memory register request has no 'key' field"),
            ("[]", InvalidArgumentError, "Shared memory register request has no 'key' field"),
            ('{"key":5}', InternalError, NOT_STRING),
            ('{"key":null,"byte_size":1}', InternalError, NOT_STRING),
            ('{"key":"k"}', InvalidArgumentError, "Shared memory register request has no 'byte_size' field"),
            ('{"key":"k","offset":-1}', InternalError, NOT_UINT),
            ('{"key":"k","byte_size":1.0}', InternalError, NOT_UINT),
            ('{"key":"k","byte_size":18446744073709551616}', InternalError, NOT_UINT),
            ('{"key":"k","byte_size":true}', InternalError, NOT_UINT),
        ],
    )
    def test_refusals(self, text, error_class, message):
        assert refusal(decode_system_registration, text) == (error_class, message)

    def test_a_body_has_a_limit(self):
        error_class, message = refusal(decode_system_registration, '{"key":"' + 1000 * "k" + '"}')

        assert error_class is InvalidArgumentError
        assert re.match("request JSON size of 1010 bytes exceeds the maximum", message)

    def test_regions_are_an_array(self):
        region = SimpleNamespace(name='a"b', key="/k", offset=4096, byte_size=2**64 - 1)

        assert encode_system_regions([]) == b"[]"
        assert encode_system_regions([region]) == (
            b'[{"name":"a\\"b","key":"/k","offset":4096,"byte_size":18446744073709551615}]'
        )


class TestCuda:
    def test_registrations(self):
        handle = bytes(range(64))
        encoded = base64.b64encode(handle).decode()
        text = '{"raw_handle":{"b64":"' + encoded + '"},"device_id":1,"byte_size":8}'

        assert decode_cuda_registration(text.encode(), 1000) == CudaRegistration(handle, 1, 8)

    @pytest.mark.parametrize(
        ("text", "error_class", "message"),
        [
            ("{}", InvalidArgumentError, "Shared memory register request has no 'raw_handle' field"),
            ('{"raw_handle":{}}', InternalError, "attempt to access non-existing object member 'b64'"),
            ('{"raw_handle":"x"}', InternalError, "attempt to access non-existing object member 'b64'"),
            ('{"raw_handle":{"b64":5}}', InternalError, NOT_STRING),
            ('{"raw_handle":{"b64":""}}', InternalError, "attempt to access non-existing object member 'byte_size'"),
            (
                '{"raw_handle":{"b64":""},"byte_size":1}',
                InternalError,
                "attempt to access non-existing object member 'device_id'",
            ),
            ('{"raw_handle":{"b64":""},"byte_size":1,"device_id":-1}', InternalError, NOT_UINT),
        ],
    )
    def test_refusals(self, text, error_class, message):
        assert refusal(decode_cuda_registration, text) == (error_class, message)

    def test_regions_are_an_array(self):
        region = SimpleNamespace(name="a", device_id=1, byte_size=8)

        assert encode_cuda_regions([region]) == b'[{"name":"a","device_id":1,"byte_size":8}]'
