"""The REST API but for inference. Bodies were recorded from Triton 2.51."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from merrow.core.errors import InternalError, InvalidArgumentError
from merrow.core.model_config import ModelConfig, ModelInput, ModelOutput
from merrow.wire.admin_json import (
    LoadOptions,
    decode_base64,
    decode_index_request,
    decode_load_request,
    decode_unload_request,
    encode_error,
    encode_model_metadata,
    encode_repository_index,
    encode_server_metadata,
    encode_statistics,
)

LIMIT = 1000


@dataclass(frozen=True)
class Duration:
    count: int = 0
    ns: int = 0


@dataclass(frozen=True)
class ModelStatistics:
    name: str
    version: int
    last_inference_ms: int = 0
    inference_count: int = 0
    execution_count: int = 0
    success: Duration = Duration()
    fail: Duration = Duration()
    queue: Duration = Duration()
    compute_input: Duration = Duration()
    compute_infer: Duration = Duration()
    compute_output: Duration = Duration()
    cache_hit: Duration = Duration()
    cache_miss: Duration = Duration()
    response_stats: dict = field(default_factory=dict)
    batch_stats: tuple = ()
    memory_usage: tuple = ()


@dataclass(frozen=True)
class IndexEntry:
    name: str
    version: int | None
    state: str
    reason: str


@pytest.mark.parametrize(
    ("message", "body"),
    [
        ("Not Found", b'{"error":"Not Found"}'),
        ("load failed: 'x';\n", b'{"error":"load failed: \'x\';\\n"}'),
        ("unexpected '\udcff\x1f'", b'{"error":"unexpected \'\xff\\u001F\'"}'),
    ],
)
def test_errors(message, body):
    assert encode_error(message) == body


def test_server_metadata():
    assert encode_server_metadata("triton", "2.73.0", ("classification", "sequence")) == (
        b'{"name":"triton","version":"2.73.0","extensions":["classification","sequence"]}'
    )


def test_model_metadata_of_a_model_that_batches():
    config = ModelConfig(
        name="ident",
        backend="python",
        max_batch_size=64,
        input=(ModelInput(name="INPUT0", data_type="TYPE_FP32", dims=(16,)),),
        output=(ModelOutput(name="OUTPUT0", data_type="TYPE_STRING", dims=(-1, 16)),),
    )

    assert encode_model_metadata([1], config) == (
        b'{"name":"ident","versions":["1"],"platform":"python",'
        b'"inputs":[{"name":"INPUT0","datatype":"FP32","shape":[-1,16]}],'
        b'"outputs":[{"name":"OUTPUT0","datatype":"BYTES","shape":[-1,-1,16]}]}'
    )


def test_model_metadata_of_a_model_that_does_not():
    config = ModelConfig(
        name="m",
        platform="onnxruntime_onnx",
        backend="onnxruntime",
        output=(ModelOutput(name="O", data_type="TYPE_BF16", dims=(2,)),),
    )

    assert encode_model_metadata([2, 10], config) == (
        b'{"name":"m","versions":["2","10"],"platform":"onnxruntime_onnx","inputs":[],'
        b'"outputs":[{"name":"O","datatype":"BF16","shape":[2]}]}'
    )


def test_statistics():
    statistics = ModelStatistics(
        "ident",
        1,
        last_inference_ms=1795432118924,
        inference_count=4,
        execution_count=3,
        success=Duration(4, 104698894),
        queue=Duration(4, 1048675),
        compute_input=Duration(4, 242830),
        compute_infer=Duration(4, 103119581),
        compute_output=Duration(4, 272343),
        batch_stats=(
            SimpleNamespace(
                batch_size=2,
                compute_input=Duration(3, 1),
                compute_infer=Duration(3, 2),
                compute_output=Duration(3, 3),
            ),
        ),
        memory_usage=(SimpleNamespace(type="CPU", id=0, byte_size=18446744073709551615),),
        response_stats={
            "0": SimpleNamespace(
                compute_infer=Duration(1, 2),
                compute_output=Duration(3, 4),
                success=Duration(5, 6),
                fail=Duration(7, 8),
                empty_response=Duration(9, 10),
                cancel=Duration(11, 12),
            )
        },
    )

    assert encode_statistics([statistics]) == (
        b'{"model_stats":[{"name":"ident","version":"1","last_inference":1795432118924,"inference_count":4,'
        b'"execution_count":3,"inference_stats":{"success":{"count":4,"ns":104698894},"fail":{"count":0,"ns":0},'
        b'"queue":{"count":4,"ns":1048675},"compute_input":{"count":4,"ns":242830},'
        b'"compute_infer":{"count":4,"ns":103119581},"compute_output":{"count":4,"ns":272343},'
        b'"cache_hit":{"count":0,"ns":0},"cache_miss":{"count":0,"ns":0}},"response_stats":{"0":{'
        b'"compute_infer":{"count":1,"ns":2},"compute_output":{"count":3,"ns":4},"success":{"count":5,"ns":6},'
        b'"fail":{"count":7,"ns":8},"empty_response":{"count":9,"ns":10},"cancel":{"count":11,"ns":12}}},'
        b'"batch_stats":[{"batch_size":2,"compute_input":{"count":3,"ns":1},"compute_infer":{"count":3,"ns":2},'
        b'"compute_output":{"count":3,"ns":3}}],"memory_usage":[{"type":"CPU","id":0,'
        b'"byte_size":18446744073709551615}]}]}'
    )


def test_no_statistics():
    assert encode_statistics([]) == b'{"model_stats":[]}'


def test_repository_index():
    entries = [
        IndexEntry("a", 1, "READY", ""),
        IndexEntry("b", 12, "UNAVAILABLE", "unloaded"),
        IndexEntry("c", None, "", ""),
        IndexEntry("d", None, "UNAVAILABLE", "model appears in two or more repositories"),
    ]

    assert encode_repository_index(entries) == (
        b'[{"name":"a","version":"1","state":"READY"},'
        b'{"name":"b","version":"12","state":"UNAVAILABLE","reason":"unloaded"},'
        b'{"name":"c"},'
        b'{"name":"d","state":"UNAVAILABLE","reason":"model appears in two or more repositories"}]'
    )


@pytest.mark.parametrize("decode", [decode_index_request, decode_load_request, decode_unload_request])
class TestEveryBody:
    @pytest.mark.parametrize("body", [b"", b"{}", b"[]", b"null", b'"x"', b'{"other":1}', memoryview(b"{}")])
    def test_no_options(self, decode, body):
        assert decode(body, LIMIT) in (False, LoadOptions(None, {}))

    def test_one_that_is_too_long(self, decode):
        decode(b"{}" + b" " * (LIMIT - 2), LIMIT)

        with pytest.raises(InvalidArgumentError) as raised:
            decode(b"{}" + b" " * (LIMIT - 1), LIMIT)

        assert raised.value.message == (
            "request JSON size of 1001 bytes exceeds the maximum allowed input size of 1000 bytes. "
            "Use --http-max-input-size to increase the limit."
        )


@pytest.mark.parametrize("decode", [decode_index_request, decode_load_request])
def test_a_body_that_is_not_json(decode):
    with pytest.raises(InternalError) as raised:
        decode(b"{", LIMIT)

    assert raised.value.message == "failed to parse the request JSON buffer: Missing a name for object member. at 1"


class TestIndex:
    @pytest.mark.parametrize(
        ("body", "is_ready_only"),
        [(b'{"ready":true}', True), (b'{"ready":false}', False), (b'{"ready":true,"ready":1}', True)],
    )
    def test_ready(self, body, is_ready_only):
        assert decode_index_request(body, LIMIT) is is_ready_only

    @pytest.mark.parametrize("value", [b"1", b"null", b'"true"'])
    def test_ready_is_a_boolean(self, value):
        with pytest.raises(InvalidArgumentError) as raised:
            decode_index_request(b'{"ready":' + value + b"}", LIMIT)

        # Newer than 2.51.
        assert raised.value.message == "Invalid value for 'ready': expected a boolean"


class TestLoad:
    def test_a_configuration_and_files(self):
        body = b'{"parameters":{"file:1/model.py":"eD0x","config":"{\\"name\\":\\"m\\"}\\u0000x","file:a/b":""}}'

        assert decode_load_request(body, LIMIT) == LoadOptions('{"name":"m"}', {"1/model.py": b"x=1", "a/b": b""})

    @pytest.mark.parametrize(
        ("parameters", "text"),
        [
            ("null", "attempt to get members for non-object"),
            ("[]", "attempt to get members for non-object"),
            ('{"config":1}', "attempt to access JSON non-string as string"),
            ('{"foo":null}', "attempt to access JSON non-string as string"),
            ('{"config":"x","foo":"y"}', "unexpected error on creating Triton parameter"),
            ('{"filex":"y"}', "unexpected error on creating Triton parameter"),
            ('{"unload_dependents":true}', "attempt to access JSON non-string as string"),
            ('{"foo\\u0000":"y"}', "attempt to access non-existing object member 'foo'"),
        ],
    )
    def test_errors(self, parameters, text):
        with pytest.raises(InternalError) as raised:
            decode_load_request(b'{"parameters":' + parameters.encode() + b"}", LIMIT)

        assert raised.value.message == text

    @pytest.mark.parametrize(
        ("text", "data"),
        [
            ("", b""),
            ("eD0x", b"x=1"),
            ("eD0xMg==", b"x=12"),
            ("eD0xMg", b"x=12"),
            ("eD0xM", b"x=1"),
            ("eD0x\n Mg=-_!=", b"x=12"),
            ("eD==0xMg==", b"x=12"),
            ("eD0xMg==eD0x", b"x=12\x07\x83\xd3"),
            ("\udcffeD0x", b"x=1"),
        ],
    )
    def test_base64_is_read_leniently(self, text, data):
        assert decode_base64(text) == data


class TestUnload:
    @pytest.mark.parametrize(
        ("body", "unload_dependents"),
        [
            (b'{"parameters":{"unload_dependents":true}}', True),
            (b'{"parameters":{"unload_dependents":false}}', False),
            (b'{"parameters":{"unload_dependents":"true"}}', False),
            (b'{"parameters":{"unload_dependents":1,"other":1}}', False),
            (b'{"parameters":null}', False),
            (b"{", False),
        ],
    )
    def test_unload_dependents(self, body, unload_dependents):
        assert decode_unload_request(body, LIMIT) is unload_dependents
