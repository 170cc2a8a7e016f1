"""Whatever bytes come in, the codecs of inference give a request or one of the server's errors, and lose nothing.

Where there is another implementation (protobuf's runtime, Python's JSON), it must see the same.
"""

import json
import struct

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from merrow.core.errors import ServerError
from merrow.core.model_config import ModelConfig, ModelInput, ModelOutput
from merrow.core.request import Request
from merrow.core.response import Response
from merrow.core.tensor import Tensor, decode_bytes_elements, encode_bytes_elements, split_bytes_elements
from merrow.wire._generated.grpc_service_pb2 import ModelInferRequest
from merrow.wire.binary_tensor import decode_header_length
from merrow.wire.compression import ContentCoding, compress, decompress
from merrow.wire.infer_json import InferJsonCodec
from merrow.wire.infer_proto import decode_infer_request, parse_infer_request
from merrow.wire.triton_json import decode_json, encode_json

pytestmark = pytest.mark.slow

CONFIG = ModelConfig(
    name="m",
    backend="python",
    max_batch_size=8,
    input=tuple(ModelInput(name=f"I{number}", data_type="TYPE_FP32", dims=(-1,)) for number in range(3)),
    output=(ModelOutput(name="O", data_type="TYPE_FP32", dims=(-1,)),),
)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=5),
    st.sampled_from(["I0", "I1", "O", "FP32", "BYTES", "INT64", "BOOL", "triton_x"]),
)  # fmt: skip
NAMES = st.one_of(
    st.sampled_from(
        [
            *("inputs", "outputs", "parameters", "id", "name", "datatype", "shape", "data", "binary_data_size"),
            *("binary_data", "classification", "sequence_id", "priority", "timeout", "shared_memory_region", "x"),
        ]
    ),
    st.text(max_size=3),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(NAMES, inner, max_size=4)),
    max_leaves=12,
)
INPUTS = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["I0", "I1", "I2"]),
        "datatype": st.sampled_from(["FP32", "BYTES", "INT8", "BOOL", "FP16"]),
        "shape": st.lists(st.integers(-1, 4), max_size=3),
    },
    optional={
        "data": VALUES,
        "parameters": st.one_of(VALUES, st.fixed_dictionaries({"binary_data_size": st.integers(-1, 40)})),
    },
)
DOCUMENTS = st.fixed_dictionaries(
    {"inputs": st.one_of(VALUES, st.lists(INPUTS, max_size=3))},
    optional={"outputs": VALUES, "parameters": VALUES, "id": VALUES},
)


class Sink:
    def on_response(self, response):
        raise AssertionError("nobody answers")


def decode_json_request(body, header_length):
    codec = InferJsonCodec("m", 1, True, {}, 1 << 20)
    try:
        request, forms = codec.decode(body, header_length, Sink())
    except ServerError:
        return None
    assert isinstance(request, Request)
    # Once more, when it may be known already.
    again, _ = codec.decode(body, header_length, Sink())
    assert summary(again) == summary(request)
    response = Response("m", 1, request.id, (Tensor.from_numpy("O", np.zeros((1, 2), np.float32)),))
    try:
        size, parts = codec.encode(response, forms)
        assert json.loads(bytes(b"".join(parts)[:size]))["model_name"] == "m"
    except ServerError:
        pass
    return request


def summary(request):
    tensors = {name: (each.datatype, tuple(each.shape), bytes(each.data)) for name, each in request.inputs.items()}
    return request.id, repr(request.parameters), request.priority, request.correlation_id, tensors


@given(DOCUMENTS, st.binary(max_size=60), st.one_of(st.none(), st.integers(-2, 400)))
@settings(max_examples=150, deadline=None)
def test_documents_and_binary_parts(document, tail, header_length):
    text = json.dumps(document).encode()
    if header_length is None:
        decode_json_request(text, None)
        header_length = len(text)
    try:
        length = decode_header_length(b"%d" % header_length, len(text) + len(tail))
    except ServerError:
        assert not 0 <= header_length <= len(text) + len(tail)
        return
    decode_json_request(text + tail, length)


@given(DOCUMENTS, st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), max_size=4), st.integers(0, 5000))
@settings(max_examples=100, deadline=None)
def test_spoiled_documents(document, changes, cut):
    text = bytearray(json.dumps(document).encode())
    for position, value in changes:
        text[position % len(text)] = value
    decode_json_request(bytes(text[: max(cut % (2 * len(text)), 1)]), None)


@given(st.lists(st.tuples(st.sampled_from(["FP32", "INT8", "BYTES"]), st.binary(max_size=40)), max_size=4), st.binary())
@settings(max_examples=80, deadline=None)
def test_binary_parts_are_split_as_announced(tensors, extra):
    document = {
        "inputs": [
            {"name": f"T{index}", "datatype": datatype, "shape": [1, -1], "parameters": {"binary_data_size": len(data)}}
            for index, (datatype, data) in enumerate(tensors)
        ]
    }
    text = json.dumps(document).encode()
    request = decode_json_request(text + b"".join(data for _, data in tensors) + extra, len(text))
    if request is not None:
        assert not extra
        assert [bytes(each.data) for each in request.inputs.values()] == [data for _, data in tensors]


@given(VALUES)
@settings(max_examples=80, deadline=None)
def test_json_is_what_python_reads(value):
    encoded = encode_json(value if not has_odd_numbers(value) else None)
    assert json.loads(encoded) == (value if not has_odd_numbers(value) else None)
    text = json.dumps(value)
    try:
        decoded = decode_json(text.encode())
    except ServerError:
        assume(not has_odd_numbers(value))
        raise
    assert repr(decoded) == repr(json.loads(text)) or has_odd_numbers(value)


def has_odd_numbers(value):
    """Numbers that JSON has not, or that Triton reads otherwise: beyond 64 bits, infinite; and lone surrogates."""
    if isinstance(value, dict):
        return any(has_odd_numbers(each) for pair in value.items() for each in pair)
    if isinstance(value, list):
        return any(map(has_odd_numbers, value))
    if isinstance(value, float):
        return True
    if isinstance(value, str):
        return "\0" in value or any(0xD800 <= ord(each) < 0xE000 for each in value)
    return isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**64


@given(st.lists(st.binary(max_size=20), max_size=20))
def test_bytes_elements_come_back(elements):
    array = np.array([*elements, None], dtype=object)[:-1]
    data = encode_bytes_elements(array)
    assert split_bytes_elements(data) == elements
    assert decode_bytes_elements(data, (len(elements),)).tolist() == elements


@given(st.binary(max_size=60), st.integers(0, 2**32 - 1))
@settings(max_examples=100)
def test_any_bytes_are_elements_or_an_error(data, length):
    for candidate in (data, struct.pack("<I", length) + data):
        try:
            elements = split_bytes_elements(candidate)
        except (ServerError, ValueError):
            continue
        assert b"".join(struct.pack("<I", len(each)) + each for each in elements) == candidate


@given(st.binary(max_size=3000), st.sampled_from(ContentCoding), st.integers(0, 3500))
def test_compression_comes_back_within_its_limit(body, coding, limit):
    inflated = decompress(compress((body[:10], body[10:]), coding), limit)
    assert inflated == (body if len(body) <= limit else None)


@given(st.binary(max_size=200), st.integers(0, 1000))
def test_spoiled_compression_is_cut_or_inflated(data, limit):
    if data:
        inflated = decompress(data, limit)
        assert inflated is None or len(inflated) <= limit


def make_message(fields):
    message = ModelInferRequest(model_name=fields["name"], model_version=fields["version"], id=fields["id"])
    for name, datatype, shape, contents in fields["inputs"]:
        tensor = message.inputs.add(name=name, datatype=datatype, shape=shape)
        if contents is not None:
            tensor.contents.fp32_contents.extend(contents)
    for name in fields["outputs"]:
        message.outputs.add(name=name)
    for key, value in fields["parameters"].items():
        parameter = message.parameters[key]
        kinds = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}
        setattr(parameter, kinds[type(value)], value)
    message.raw_input_contents.extend(fields["raw"])
    return message


MESSAGES = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["m", "", "ü"]),
        "version": st.sampled_from(["", "1", "x"]),
        "id": st.text(max_size=5),
        "inputs": st.lists(
            st.tuples(
                st.sampled_from(["I0", "I1", "I2"]),
                st.sampled_from(["FP32", "BYTES", "x"]),
                st.lists(st.integers(-1, 3), max_size=3),
                st.one_of(st.none(), st.lists(st.floats(width=32), max_size=3)),
            ),
            max_size=3,
        ),
        "outputs": st.lists(st.sampled_from(["O", "P"]), max_size=2),
        "parameters": st.dictionaries(
            st.sampled_from(["priority", "timeout", "sequence_id", "a", "triton_x"]),
            st.one_of(st.booleans(), st.integers(-(2**63), 2**63 - 1), st.text(max_size=3), st.floats()),
            max_size=3,
        ),
        "raw": st.lists(st.binary(max_size=20), max_size=4),
    }
).map(make_message)


def decode_message(data):
    try:
        parsed = parse_infer_request(data)
        request, _ = decode_infer_request(parsed, 1, CONFIG, Sink())
    except ServerError:
        return None, None
    return parsed, request


@given(MESSAGES)
@settings(max_examples=100, deadline=None)
def test_messages_are_what_protobuf_reads(message):
    data = message.SerializeToString()
    for form in (data, memoryview(data), bytearray(data)):
        parsed, request = decode_message(form)
        if parsed is not None:
            assert (parsed.model_name, parsed.model_version) == (message.model_name, message.model_version)
            assert parsed.id == message.id.partition("\0")[0]
            assert list(request.inputs) == [each.name for each in message.inputs]


@given(
    MESSAGES,
    st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), max_size=4),
    st.integers(0, 5000),
    st.binary(),
)
@settings(max_examples=150, deadline=None)
def test_spoiled_messages_are_read_as_protobuf_reads_them(message, changes, cut, tail):
    data = bytearray(message.SerializeToString() or b"\0")
    for position, value in changes:
        data[position % len(data)] = value
    spoiled = bytes(data[: max(cut % (2 * len(data)), 1)]) + tail
    try:
        expected = ModelInferRequest.FromString(spoiled)
    except Exception:
        expected = None
    try:
        parsed = parse_infer_request(spoiled)
    except ServerError:
        assert expected is None or len(expected.inputs) > 1000
        return
    assert expected is not None
    assert parsed.model_name == expected.model_name
    assert [bytes(each) for each in parsed.raw_contents] == list(expected.raw_input_contents)
    decode_message(spoiled)
