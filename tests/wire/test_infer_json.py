"""Inference over HTTP, as bytes. What was recorded from Triton 2.51 holds for newer ones unless a comment says so."""

import re
import struct

import numpy as np
import pytest

from merrow.core.errors import (
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    ServerError,
    UnsupportedError,
)
from merrow.core.response import Response
from merrow.core.tensor import Tensor, encode_bytes_elements
from merrow.wire.infer_json import BINARY_OUTPUT, BINARY_OUTPUTS, JSON_OUTPUT, JSON_OUTPUTS, InferJsonCodec, OutputForm
from tests.wire.memory_slice import MemorySlice

FLOATS = struct.pack("<16f", *range(16))
TENSOR = '"name":"INPUT0","datatype":"FP32","shape":[1,16]'
DATA = '"data":[0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15]'
INPUT = "{" + TENSOR + "," + DATA + "}"
BINARY_INPUT = "{" + TENSOR + ',"parameters":{"binary_data_size":64}}'

NO_SOURCE = (
    "Input must set only one of the following fields: 'data', 'binary_data_size' in 'parameters', "
    "'shared_memory_region' in 'parameters'. But no field is set"
)
SOURCES = NO_SOURCE.replace(" no field is set", " set")
NOT_UINT = "attempt to access JSON non-unsigned-integer as unsigned-integer"
NOT_BOOL = "attempt to access JSON non-boolean as boolean"
NOT_STRING = "attempt to access JSON non-string as string"
NOT_ARRAY = "attempt to access JSON non-array as array"


class Sink:
    def on_response(self, response):
        raise AssertionError("a codec answers nothing")


SINK = Sink()


class Regions:
    """Shared memory of one region, `r`."""

    def __init__(self, byte_size):
        self.memory = bytearray(byte_size)

    def find(self, name, offset, byte_size):
        assert name == "r"
        return MemorySlice(self.memory, offset, byte_size)


def make_codec(max_input_byte_size=1 << 20, regions=None):
    labels = {"OUTPUT0": ("zero", "one", "", "three", "four")}
    return InferJsonCodec("ident", 1, True, labels, max_input_byte_size, regions)


def decode(text, binary=b"", codec=None, header_length=None):
    json_part = text if isinstance(text, bytes) else text.encode()
    if header_length is None and binary:
        header_length = len(json_part)
    return (codec or make_codec()).decode(json_part + binary, header_length, SINK)


def refusal(*arguments, **options):
    with pytest.raises(ServerError) as raised:
        decode(*arguments, **options)
    return type(raised.value), raised.value.message


class TestDecodingRequests:
    def test_json_tensors(self):
        request, forms = decode('{"id":"a1","inputs":[' + INPUT + "]}")

        assert (request.model_name, request.model_version, request.sink) == ("ident", 1, SINK)
        assert request.id == "a1"
        assert list(request.inputs) == ["INPUT0"]
        tensor = request.inputs["INPUT0"]
        assert (tensor.name, tensor.datatype, tensor.shape) == ("INPUT0", "FP32", (1, 16))
        assert bytes(tensor.data) == FLOATS
        assert request.requested_outputs == ()
        assert request.parameters is None
        assert not request.is_raw
        assert forms is JSON_OUTPUTS

    @pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
    def test_binary_tensors_are_views_of_the_body(self, kind):
        header = b'{"inputs":[' + BINARY_INPUT.encode() + b"]}"
        body = kind(header + FLOATS)
        codec = make_codec()

        for _ in range(2):
            request, _ = codec.decode(body, len(header), SINK)

            data = request.inputs["INPUT0"].data
            assert data == FLOATS
            assert data.obj is (body.obj if kind is memoryview else body)

    @pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
    def test_json_may_be_any_buffer(self, kind):
        request, _ = make_codec().decode(kind(b'{"inputs":[' + INPUT.encode() + b"]}"), None, SINK)

        assert bytes(request.inputs["INPUT0"].data) == FLOATS

    def test_json_and_binary_inputs_mix_in_any_order(self):
        inputs = (
            '{"name":"A","datatype":"INT8","shape":[2],"parameters":{"binary_data_size":2}},'
            '{"name":"B","datatype":"INT8","shape":[1],"data":[7]},'
            '{"name":"C","datatype":"BYTES","shape":[1],"parameters":{"binary_data_size":5}},'
            '{"name":"D","datatype":"BYTES","shape":[0],"parameters":{"binary_data_size":0}}'
        )

        request, _ = decode('{"inputs":[' + inputs + "]}", b"\1\2\1\0\0\0x")

        data = {name: bytes(tensor.data) for name, tensor in request.inputs.items()}
        assert data == {"A": b"\1\2", "B": b"\7", "C": b"\1\0\0\0x", "D": b""}

    @pytest.mark.parametrize("body", [b"", FLOATS])
    def test_a_header_length_of_zero_and_an_empty_body_make_a_raw_request(self, body):
        request, forms = make_codec().decode(body, 0 if body else None, SINK)

        assert request.is_raw
        assert [bytes(tensor.data) for tensor in request.inputs.values()] == [body]
        assert forms is BINARY_OUTPUTS

    @pytest.mark.parametrize("shape", ["[]", "[0]", "[3,0,2]"])
    @pytest.mark.parametrize("data", ["[]", "[1,2]", "5", '"x"', "null"])
    def test_without_elements_the_data_is_ignored(self, shape, data):
        request, _ = decode('{"inputs":[{"name":"A","datatype":"FP16","shape":' + shape + ',"data":' + data + "}]}")

        assert bytes(request.inputs["A"].data) == b""

    def test_strings_that_triton_passes_on_as_c_strings_end_at_a_nul(self):
        request, _ = decode(
            '{"id":"a\\u0000b","parameters":{"p":"x\\u0000y"},"outputs":[{"name":"OUT\\u0000x"}],'
            '"inputs":[{"name":"A\\u0000x","datatype":"BYTES\\u0000","shape":[1],"data":["x\\u0000y"]}]}'
        )

        assert request.id == "a"
        assert request.parameters == {"p": "x"}
        assert request.requested_outputs == ("OUT",)
        assert request.inputs["A"].datatype == "BYTES"
        assert request.inputs["A"].data == b"\3\0\0\0x\0y"

    def test_the_first_of_repeated_names_wins(self):
        request, _ = decode(
            '{"id":"a","id":5,"inputs":[{"name":"A","name":1,"datatype":"INT8","shape":[1],"data":[1],"data":[2]}]}'
        )

        assert request.id == "a"
        assert bytes(request.inputs["A"].data) == b"\1"

    def test_an_error_of_a_repeated_name_does_not_count(self):
        request, _ = decode('{"inputs":[' + INPUT + '],"inputs":5,"outputs":[],"outputs":null}')

        assert list(request.inputs) == ["INPUT0"]

    def test_colons_in_strings_are_only_characters(self):
        request, _ = decode('{"id":"a:b","inputs":[{"name":"A","datatype":"BYTES","shape":[1],"data":["x: y"]}]}')

        assert request.id == "a:b"
        assert request.inputs["A"].data == b"\4\0\0\0x: y"

    def test_nan_and_infinity_are_numbers(self):
        request, _ = decode('{"inputs":[{"name":"A","datatype":"FP64","shape":[3],"data":[NaN,-Infinity,1e3]}]}')

        assert str(request.inputs["A"].as_numpy().tolist()) == "[nan, -inf, 1000.0]"

    def test_what_is_not_known_is_ignored(self):
        request, _ = decode(
            '{"x":{"y":[1,{"z":2}]},"inputs":[{"x":1,"parameters":{"y":[]},' + TENSOR + "," + DATA + "}]}"
        )

        assert bytes(request.inputs["INPUT0"].data) == FLOATS

    @pytest.mark.parametrize("parameters", ["1", "null", "[1]", '"binary_data_size"'])
    def test_tensor_parameters_that_are_no_object_are_ignored(self, parameters):
        request, forms = decode(
            '{"inputs":[{"parameters":' + parameters + "," + TENSOR + "," + DATA + "}],"
            '"outputs":[{"name":"OUTPUT0","parameters":' + parameters + "}]}"
        )

        assert bytes(request.inputs["INPUT0"].data) == FLOATS
        assert forms.by_name == {"OUTPUT0": JSON_OUTPUT}

    def test_dimensions_beyond_63_bits_are_negative_as_in_triton(self):
        request, _ = decode(
            '{"inputs":[{"name":"A","datatype":"INT8","shape":[18446744073709551615,9223372036854775807],'
            '"parameters":{"binary_data_size":1}}]}',
            b"x",
        )

        assert request.inputs["A"].shape == (-1, 2**63 - 1)


class TestKnownHeaders:
    def test_a_repeated_header_gives_an_equal_request(self):
        codec = make_codec()
        text = (
            '{"id":"x","parameters":{"sequence_id":7,"sequence_end":true,"priority":2,"timeout":9,"p":1},'
            '"inputs":[' + BINARY_INPUT + ',{"name":"B","datatype":"INT8","shape":[2],"parameters":'
            '{"binary_data_size":2}}],"outputs":[{"name":"OUTPUT0","parameters":{"binary_data":true}}]}'
        )

        (first, first_forms), (second, second_forms) = (
            decode(text, data, codec) for data in (FLOATS + b"ab", FLOATS + b"cd")
        )

        assert second_forms is first_forms
        assert bytes(first.inputs["B"].data) == b"ab"
        assert bytes(second.inputs["B"].data) == b"cd"
        for request in (first, second):
            assert (request.id, request.correlation_id, request.flags) == ("x", 7, 2)
            assert (request.priority, request.timeout_us) == (2, 9)
            assert request.requested_outputs == ("OUTPUT0",)
            assert request.inputs["INPUT0"].shape == (1, 16)
            assert request.parameters == {"p": 1}
            # What one request's receiver does to it, another must not see.
            request.parameters["q"] = 1
            request.inputs.clear()

    @pytest.mark.parametrize("space", ["", " "])
    def test_the_id_is_that_of_the_request(self, space):
        codec = make_codec()

        for request_id in ("1", "22", "", "a b:c", 'q\\"uote', "caf\u00e9", "1"):
            text = f'{{{space}"id":{space}"{request_id}"{space},"inputs":[{BINARY_INPUT}]}}'
            request, _ = decode(text, FLOATS, codec)
            assert request.id == request_id.replace("\\", "")
        assert decode('{"inputs":[' + BINARY_INPUT + "]}", FLOATS, codec)[0].id == ""

    def test_a_second_id_does_not_count_there_either(self):
        codec = make_codec()

        for request_id in ("1", "2"):
            request, _ = decode(f'{{"id":"{request_id}","inputs":[{BINARY_INPUT}],"id":"3"}}', FLOATS, codec)
            assert request.id == request_id

    def test_other_amounts_of_data_are_still_noticed(self):
        codec = make_codec()
        text = '{"inputs":[' + BINARY_INPUT + "]}"
        decode(text, FLOATS, codec)

        assert refusal(text, FLOATS + b"x", codec=codec) == (
            InvalidArgumentError,
            "unexpected additional input data for model 'ident'",
        )
        assert refusal(text, FLOATS[1:], codec=codec) == (
            InvalidArgumentError,
            "unexpected size for input 'INPUT0', expecting 1 additional bytes for model 'ident'",
        )

    def test_an_error_is_not_remembered_as_a_success(self):
        codec = make_codec()
        text = '{"id":"1","inputs":[' + BINARY_INPUT + '],"outputs":5}'

        for _ in range(2):
            assert refusal(text, FLOATS, codec=codec) == (InternalError, f"Unable to parse 'outputs': {NOT_ARRAY}")

    def test_any_number_of_headers_may_come(self):
        codec = make_codec()

        for count in (*range(1, 200), *range(1, 200)):
            text = f'{{"inputs":[{{"name":"A","datatype":"INT8","shape":[{count}],"parameters":'
            request, _ = decode(text + f'{{"binary_data_size":{count}}}}}]}}', bytes(count), codec)
            assert request.inputs["A"].shape == (count,)

    @pytest.mark.parametrize("name", ["shared_memory_region", "shared\\u005fmemory_region"])
    def test_a_region_is_looked_up_each_time(self, name):
        found = []

        class ChangingRegions:
            def find(self, name, offset, byte_size):
                found.append(MemorySlice(bytearray(byte_size)))
                return found[-1]

        codec = make_codec(regions=ChangingRegions())
        text = (
            '{"inputs":[' + BINARY_INPUT + '],"outputs":[{"name":"OUTPUT0","parameters":{"' + name + '":"r",'
            '"shared_memory_byte_size":64}}]}'
        )

        forms = [decode(text, FLOATS, codec)[1] for _ in range(2)]

        assert [form.by_name["OUTPUT0"].region for form in forms] == found


class TestRequestParameters:
    def test_they_reach_the_request(self):
        request, _ = decode(
            '{"parameters":{"sequence_id":"s","sequence_start":true,"priority":3,"timeout":4,"p":"x"},"inputs":[]}'
        )

        assert (request.correlation_id, request.flags, request.priority, request.timeout_us) == ("s", 1, 3, 4)
        assert request.parameters == {"p": "x"}

    def test_the_first_of_a_repeated_name_counts(self):
        assert decode('{"parameters":{"a":1,"a":null},"inputs":[]}')[0].parameters == {"a": 1}

    def test_their_errors_come_before_those_of_inputs(self):
        assert refusal('{"parameters":null,"inputs":5}') == (
            InternalError,
            "failed to get request params.: attempt to get members for non-object",
        )

    @pytest.mark.parametrize(("value", "forms"), [("true", BINARY_OUTPUTS), ("false", JSON_OUTPUTS)])
    def test_binary_data_output_is_for_all_outputs(self, value, forms):
        assert decode('{"parameters":{"binary_data_output":' + value + '},"inputs":[]}')[1] is forms


class TestRefusedRequests:
    @pytest.mark.parametrize("text", ["[]", '"x"', "1", "null", "{}"])
    def test_inputs_are_required(self, text):
        assert refusal(text) == (
            InternalError,
            "Unable to parse 'inputs': attempt to access non-existing object member 'inputs'",
        )

    @pytest.mark.parametrize("request_id", ["5", "null", "[]"])
    def test_the_id_is_a_string(self, request_id):
        assert refusal('{"parameters":5,"id":' + request_id + "}") == (
            InternalError,
            f"Unable to parse 'id': {NOT_STRING}",
        )

    @pytest.mark.parametrize("value", ["null", "{}", "1"])
    def test_inputs_and_outputs_are_arrays(self, value):
        assert refusal('{"inputs":' + value + "}") == (InternalError, f"Unable to parse 'inputs': {NOT_ARRAY}")
        assert refusal('{"inputs":[],"outputs":' + value + "}") == (
            InternalError,
            f"Unable to parse 'outputs': {NOT_ARRAY}",
        )

    @pytest.mark.parametrize(
        ("item", "error_class", "text"),
        [
            ("1", InvalidArgumentError, NO_SOURCE),
            ("null", InvalidArgumentError, NO_SOURCE),
            ("{}", InvalidArgumentError, NO_SOURCE),
            ("{" + TENSOR + "}", InvalidArgumentError, NO_SOURCE),
            (
                '{"data":1,"parameters":{"binary_data_size":1}}',
                InvalidArgumentError,
                SOURCES + " 'data' 'binary_data_size'",
            ),
            (
                '{"data":1,"parameters":{"shared_memory_region":1}}',
                InvalidArgumentError,
                SOURCES + " 'data' 'shared_memory_region'",
            ),
            (
                '{"parameters":{"shared_memory_region":1,"binary_data_size":1}}',
                InvalidArgumentError,
                SOURCES + " 'binary_data_size' 'shared_memory_region'",
            ),
            (
                '{"data":1}',
                InternalError,
                "Unable to parse 'name': attempt to access non-existing object member 'name'",
            ),
            ('{"data":1,"name":1}', InternalError, f"Unable to parse 'name': {NOT_STRING}"),
            (
                '{"data":1,"name":"A"}',
                InternalError,
                "Unable to parse 'datatype': attempt to access non-existing object member 'datatype'",
            ),
            ('{"data":1,"name":"A","datatype":1}', InternalError, f"Unable to parse 'datatype': {NOT_STRING}"),
            (
                '{"data":1,"name":"A","datatype":"FP32"}',
                InternalError,
                "Unable to parse 'shape': attempt to access non-existing object member 'shape'",
            ),
            (
                '{"data":1,"name":"A","datatype":"FP32","shape":1}',
                InternalError,
                f"Unable to parse 'shape': {NOT_ARRAY}",
            ),
            ("{" + TENSOR + ',"data":null}', InternalError, f"Unable to parse 'data': {NOT_ARRAY}"),
            ("{" + TENSOR + ',"data":5}', InternalError, f"Unable to parse 'data': {NOT_ARRAY}"),
            (
                "{" + TENSOR + ',"data":[1]}',
                InternalError,
                # Newer than 2.51, which says the same as for too many.
                "Failed to parse 'data' field: shape does not match true shape",
            ),
            (
                "{" + TENSOR + ',"data":[0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,true]}',
                InternalError,
                "Unable to parse 'data': attempt to access JSON non-number as double",
            ),
            (
                '{"name":"A","datatype":"BYTES","shape":[1],"data":[1]}',
                InternalError,
                f"Unable to parse JSON bytes array: {NOT_STRING}",
            ),
            (
                '{"name":"A","datatype":"FP16","shape":[1],"data":[1]}',
                InvalidArgumentError,
                "receiving FP16 data via JSON is not supported. Please use the binary data format for input A",
            ),
            (
                '{"name":"A","datatype":"BF16","shape":[1],"data":["x"]}',
                InvalidArgumentError,
                "receiving BF16 data via JSON is not supported. Please use the binary data format for input A",
            ),
            (
                '{"name":"A","datatype":"fp32","shape":[1],"data":[1]}',
                InvalidArgumentError,
                "invalid datatype for input A",
            ),
            (
                "{" + TENSOR + ',"parameters":{"binary_data_size":null}}',
                InternalError,
                f"Unable to parse 'binary_data_size': {NOT_UINT}",
            ),
            (
                "{" + TENSOR + ',"parameters":{"binary_data_size":-64}}',
                InternalError,
                f"Unable to parse 'binary_data_size': {NOT_UINT}",
            ),
            (
                "{" + TENSOR + ',"parameters":{"binary_data_size":64}}',
                InvalidArgumentError,
                "unexpected size for input 'INPUT0', expecting 64 additional bytes for model 'ident'",
            ),
            (
                "{" + TENSOR + ',"parameters":{"binary_data_size":18446744073709551615}}',
                InvalidArgumentError,
                "unexpected size for input 'INPUT0', expecting 18446744073709551615 additional bytes for model 'ident'",
            ),
            (
                INPUT + "," + INPUT,
                InvalidArgumentError,
                "[request id: <id_unknown>] input 'INPUT0' already exists in request",
            ),
            (INPUT + ",{" + TENSOR + "}", InvalidArgumentError, NO_SOURCE),
            (
                "{" + TENSOR + "," + DATA + ',"parameters":{"shared_memory_offset":-1}}',
                InternalError,
                f"Unable to parse 'shared_memory_offset': {NOT_UINT}",
            ),
            (
                "{" + TENSOR + "," + DATA + ',"parameters":{"shared_memory_byte_size":"x"}}',
                InternalError,
                f"Unable to parse 'shared_memory_byte_size': {NOT_UINT}",
            ),
        ],
        ids=lambda value: repr(value)[:60],
    )
    def test_inputs(self, item, error_class, text):
        # Whatever is wrong with the outputs is found later.
        assert refusal('{"inputs":[' + item + '],"outputs":5}') == (error_class, text)

    @pytest.mark.parametrize("dim", ["-1", "1.0", '"1"', "[1]", "null", "true", "18446744073709551616"])
    def test_dimensions_are_unsigned_integers(self, dim):
        assert refusal('{"inputs":[{"name":"A","datatype":"INT8","shape":[1,' + dim + '],"data":[1]}]}') == (
            InternalError,
            f"Unable to parse 'shape': {NOT_UINT}",
        )

    @pytest.mark.parametrize(
        ("shape", "datatype", "text"),
        [
            # Newer than 2.51, which crashes.
            (
                "[2,18446744073709551615]",
                "FP32",
                "invalid shape for input 'A': shape [2,-1] contains one or more invalid dimensions",
            ),
            (
                "[18446744073709551615,18446744073709551615]",
                "INT8",
                "invalid shape for input 'A': shape [-1,-1] contains one or more invalid dimensions",
            ),
            (
                "[0,9223372036854775808]",
                "FP32",
                "invalid shape for input 'A': shape [0,-9223372036854775808] contains one or more invalid dimensions",
            ),
            (
                "[9223372036854775807,2]",
                "BYTES",
                "invalid shape for input 'A': shape [9223372036854775807,2] causes total element count to exceed "
                "maximum size of 9223372036854775807",
            ),
            (
                "[9223372036854775807]",
                "FP32",
                "byte size overflow for input 'A': element count (9223372036854775807) * data type size (4) exceeds "
                "maximum allowed size (9223372036854775807)",
            ),
        ],
    )
    def test_shapes_that_overflow(self, shape, datatype, text):
        item = '{"name":"A","datatype":"' + datatype + '","shape":' + shape + ',"data":[1]}'
        assert refusal('{"inputs":[' + item + "]}") == (InvalidArgumentError, text)

    def test_the_id_is_in_the_texts_that_have_a_place_for_it(self):
        assert refusal('{"id":"q","inputs":[' + INPUT + "," + INPUT + "]}") == (
            InvalidArgumentError,
            "[request id: q] input 'INPUT0' already exists in request",
        )

    def test_data_left_over_is_refused_before_the_outputs_are_read(self):
        text = '{"inputs":[' + BINARY_INPUT + '],"outputs":[{"name":5}]}'

        assert refusal(text, FLOATS + b"y") == (
            InvalidArgumentError,
            "unexpected additional input data for model 'ident'",
        )
        assert refusal(text, FLOATS) == (InternalError, f"Unable to parse 'name': {NOT_STRING}")

    @pytest.mark.parametrize("length", range(1, 99))
    def test_a_header_cut_anywhere_is_refused(self, length):
        header = ('{"inputs":[' + BINARY_INPUT + "]}").encode()
        assert len(header) == 100

        error_class, text = refusal(header[:length], FLOATS, header_length=length)

        assert error_class is InternalError
        assert re.fullmatch(r"failed to parse the request JSON buffer: [A-Z].*\. at \d+", text)

    def test_a_binary_tail_without_its_header_is_a_json_error(self):
        header = ('{"inputs":[' + BINARY_INPUT + "]}").encode()

        with pytest.raises(InternalError) as raised:
            make_codec().decode(header + b"\1\2\3", None, SINK)

        assert raised.value.message == (
            "failed to parse the request JSON buffer: The document root must not be followed by other values. at 100"
        )


class TestLimits:
    """All newer than 2.51."""

    def test_the_json_part(self):
        text = '{"inputs":[' + BINARY_INPUT + "]}"

        decode(text, FLOATS, codec=make_codec(len(text)))

        assert refusal(text, FLOATS, codec=make_codec(len(text) - 1)) == (
            InvalidArgumentError,
            f"request JSON size of {len(text)} bytes exceeds the maximum allowed input size of {len(text) - 1} bytes. "
            "Use --http-max-input-size to increase the limit.",
        )

    def test_the_json_part_of_a_known_header_with_a_longer_id(self):
        codec = make_codec(200)
        text = '{"id":"%s","inputs":[' + BINARY_INPUT + "]}"
        decode(text % "x", FLOATS, codec=codec)

        error_class, message = refusal(text % ("x" * 100), FLOATS, codec=codec)

        assert error_class is InvalidArgumentError
        assert message.startswith(f"request JSON size of {len(text) + 98} bytes exceeds the maximum allowed input size")

    @pytest.mark.parametrize(
        ("item", "byte_size"),
        [
            ('{"name":"A","datatype":"FP64","shape":[1000],"data":[]}', 8000),
            ('{"name":"A","datatype":"FP16","shape":[1000],"data":[]}', 2000),
            ('{"name":"A","datatype":"BYTES","shape":[1],"data":[' + '"",' * 260 + '""]}', 1044),
        ],
        ids=["FP64", "FP16", "BYTES"],
    )
    def test_the_size_of_a_json_tensor(self, item, byte_size):
        assert refusal('{"inputs":[' + item + "]}", codec=make_codec(1000)) == (
            InvalidArgumentError,
            f"JSON input 'A' has a byte_size ({byte_size} bytes) that exceeds the maximum allowed value of 1000 bytes. "
            "Use --http-max-input-size to increase the limit.",
        )

    def test_a_raw_request(self):
        codec = make_codec(64)
        codec.decode(FLOATS, 0, SINK)

        with pytest.raises(InvalidArgumentError) as raised:
            codec.decode(FLOATS + b"x", 0, SINK)

        assert raised.value.message == (
            "Raw input has a byte_size (65 bytes) that exceeds the maximum allowed value of 64 bytes. "
            "Use --http-max-input-size to increase the limit."
        )

    def test_binary_data_is_not_limited(self):
        text = '{"inputs":[{"name":"A","datatype":"INT8","shape":[1000],"parameters":{"binary_data_size":1000}}]}'

        request, _ = decode(text, bytes(1000), codec=make_codec(len(text)))

        assert len(request.inputs["A"].data) == 1000


class TestRequestedOutputs:
    @pytest.mark.parametrize(
        ("outputs", "names", "by_name"),
        [
            ("[]", (), {}),
            ('[{"name":"A"},{"name":"B"}]', ("A", "B"), {"A": JSON_OUTPUT, "B": JSON_OUTPUT}),
            ('[{"name":"A","parameters":{"binary_data":true}}]', ("A",), {"A": BINARY_OUTPUT}),
            ('[{"name":"A","parameters":{"binary_data":false}}]', ("A",), {"A": JSON_OUTPUT}),
            ('[{"name":"A","parameters":{"classification":0}}]', ("A",), {"A": JSON_OUTPUT}),
            ('[{"name":"A","parameters":{"classification":4294967296}}]', ("A",), {"A": JSON_OUTPUT}),
            ('[{"name":"A","parameters":{"classification":3}}]', ("A",), {"A": OutputForm(False, 3)}),
            (
                '[{"name":"A","parameters":{"classification":3,"binary_data":true}}]',
                ("A",),
                {"A": OutputForm(True, 3)},
            ),
        ],
    )
    def test_forms(self, outputs, names, by_name):
        request, forms = decode('{"inputs":[],"outputs":' + outputs + "}")

        assert request.requested_outputs == names
        assert forms.by_name == by_name
        assert forms.default is JSON_OUTPUT

    def test_what_is_listed_is_json_whatever_binary_data_output_says(self):
        _, forms = decode('{"inputs":[],"parameters":{"binary_data_output":true},"outputs":[{"name":"A"}]}')

        assert forms.by_name == {"A": JSON_OUTPUT}
        assert forms.default is BINARY_OUTPUT

    @pytest.mark.parametrize(
        ("item", "error_class", "text"),
        [
            ("1", InternalError, "Unable to parse 'name': attempt to access non-existing object member 'name'"),
            ("{}", InternalError, "Unable to parse 'name': attempt to access non-existing object member 'name'"),
            ('{"name":1,"parameters":{"classification":-1}}', InternalError, f"Unable to parse 'name': {NOT_STRING}"),
            (
                '{"name":"A","parameters":{"binary_data":1}}',
                InternalError,
                f"Unable to parse 'binary_data': {NOT_BOOL}",
            ),
            (
                '{"name":"A","parameters":{"binary_data":null}}',
                InternalError,
                f"Unable to parse 'binary_data': {NOT_BOOL}",
            ),
            (
                '{"name":"A","parameters":{"classification":-1,"binary_data":1}}',
                InternalError,
                f"Unable to set 'classification': {NOT_UINT}",
            ),
            (
                '{"name":"A","parameters":{"shared_memory_region":1}}',
                InternalError,
                f"Unable to parse 'shared_memory_region': {NOT_STRING}",
            ),
            (
                '{"name":"A","parameters":{"shared_memory_offset":"x","binary_data":3}}',
                InternalError,
                f"Unable to parse 'shared_memory_offset': {NOT_UINT}",
            ),
            (
                '{"name":1,"parameters":{"shared_memory_region":"r","classification":0}}',
                InvalidArgumentError,
                "Output can't set both 'shared_memory_region' and 'classification'",
            ),
            (
                '{"name":1,"parameters":{"shared_memory_region":"r","binary_data":true}}',
                InvalidArgumentError,
                "Output can't set both 'shared_memory_region' and 'binary_data'",
            ),
            (
                '{"name":1,"parameters":{"shared_memory_region":"r","binary_data":1}}',
                InternalError,
                f"Unable to set 'binary_data': {NOT_BOOL}",
            ),
            (
                '{"name":"A","parameters":{"shared_memory_region":"r","binary_data":false}}',
                NotFoundError,
                "Unable to find shared memory region: 'r'",
            ),
            (
                '{"name":"A"},{"name":"A","parameters":{"binary_data":1}}',
                InvalidArgumentError,
                # Newer than 2.51, which serves the first.
                "[request id: <id_unknown>] output 'A' already exists in request",
            ),
        ],
        ids=lambda value: repr(value)[:60],
    )
    def test_errors(self, item, error_class, text):
        assert refusal('{"inputs":[],"outputs":[' + item + "]}") == (error_class, text)


class TestSharedMemory:
    def test_an_input_is_a_copy_of_its_region_made_when_it_is_looked_at(self):
        regions = Regions(64)
        regions.memory[8:10] = b"\5\6"
        item = (
            '{"name":"A","datatype":"INT8","shape":[2],"parameters":'
            '{"shared_memory_region":"r\\u0000x","shared_memory_offset":8,"shared_memory_byte_size":2}}'
        )

        request, _ = decode('{"inputs":[' + item + "]}", codec=make_codec(regions=regions))

        assert request.inputs["A"].byte_size == 2
        regions.memory[9] = 7
        assert request.inputs["A"].data == b"\5\7"
        regions.memory[9] = 8
        assert request.inputs["A"].data == b"\5\7"

    def test_an_unknown_region_is_not_found(self):
        item = "{" + TENSOR + ',"parameters":{"shared_memory_region":"r"}}'

        assert refusal('{"inputs":[' + item + "]}") == (NotFoundError, "Unable to find shared memory region: 'r'")

    def test_an_output_is_written_to_its_region(self):
        regions = Regions(80)
        codec = make_codec(regions=regions)
        parameters = '{"shared_memory_region":"r","shared_memory_offset":8,"shared_memory_byte_size":72}'

        text = '{"inputs":[],"outputs":[{"name":"OUTPUT0","parameters":' + parameters + "}]}"
        request, forms = decode(text, codec=codec)
        length, parts = codec.encode(Response("ident", 1, outputs=[output(FLOATS)]), forms)

        assert request.output_regions == {"OUTPUT0": forms.by_name["OUTPUT0"].region}
        assert regions.memory == bytes(8) + FLOATS + bytes(8)
        assert (length, b"".join(parts)) == (
            None,
            b'{"model_name":"ident","model_version":"1","outputs":'
            b'[{"name":"OUTPUT0","datatype":"FP32","shape":[1,16]}]}',
        )

    def test_an_output_must_fit_its_region(self):
        codec = make_codec(regions=Regions(32))
        parameters = '{"shared_memory_region":"r","shared_memory_byte_size":32}'
        _, forms = decode('{"inputs":[],"outputs":[{"name":"OUTPUT0","parameters":' + parameters + "}]}", codec=codec)

        with pytest.raises(InternalError) as raised:
            codec.encode(Response("ident", 1, outputs=[output(FLOATS)]), forms)

        assert raised.value.message == (
            "shared memory size specified with the request for output 'OUTPUT0' (32 bytes) should be at least 64 bytes "
            "to hold the results"
        )


def output(data, name="OUTPUT0", datatype="FP32", shape=(1, 16)):
    return Tensor(name, datatype, shape, data)


def encode(response, forms=JSON_OUTPUTS, codec=None):
    length, parts = (codec or make_codec()).encode(response, forms)
    return length, b"".join(parts)


class TestEncodingResponses:
    def test_json(self):
        codec = make_codec()
        for _ in range(2):
            assert encode(Response("ident", 1, "a1", [output(FLOATS)]), codec=codec) == (
                None,
                b'{"id":"a1","model_name":"ident","model_version":"1","outputs":[{"name":"OUTPUT0","datatype":"FP32",'
                b'"shape":[1,16],"data":[0.0,1.0,2.0,3.0,4.0,5.0,6.0,7.0,8.0,9.0,10.0,11.0,12.0,13.0,14.0,15.0]}]}',
            )

    def test_binary(self):
        header = (
            b'{"id":"a1","model_name":"ident","model_version":"1","outputs":[{"name":"OUTPUT0","datatype":"FP32",'
            b'"shape":[1,16],"parameters":{"binary_data_size":64}}]}'
        )

        length, parts = make_codec().encode(Response("ident", 1, "a1", [output(FLOATS)]), BINARY_OUTPUTS)

        assert length == len(header) == 153
        assert parts == [header, FLOATS]
        assert parts[1] is FLOATS

    def test_json_and_binary_outputs_stand_in_the_order_of_the_backend(self):
        _, forms = decode(
            '{"inputs":[],"outputs":[{"name":"C","parameters":{"binary_data":true}},{"name":"B"},'
            '{"name":"A","parameters":{"binary_data":true}}]}'
        )
        outputs = [output(bytes([index]), name, "INT8", [1]) for index, name in enumerate("ABC")]

        length, body = encode(Response("ident", 1, outputs=outputs), forms)

        assert body[:length] == (
            b'{"model_name":"ident","model_version":"1","outputs":['
            b'{"name":"A","datatype":"INT8","shape":[1],"parameters":{"binary_data_size":1}},'
            b'{"name":"B","datatype":"INT8","shape":[1],"data":[1]},'
            b'{"name":"C","datatype":"INT8","shape":[1],"parameters":{"binary_data_size":1}}]}'
        )
        assert body[length:] == b"\0\2"

    def test_binary_outputs_of_no_bytes_are_not_announced(self):
        assert encode(Response("ident", 1, outputs=[output(b"", shape=(0, 16))]), BINARY_OUTPUTS) == (
            None,
            b'{"model_name":"ident","model_version":"1","outputs":[{"name":"OUTPUT0","datatype":"FP32","shape":[0,16],'
            b'"parameters":{"binary_data_size":0}}]}',
        )

    def test_no_outputs(self):
        assert encode(Response("ident", 1)) == (None, b'{"model_name":"ident","model_version":"1","outputs":[]}')

    def test_parameters_stand_before_the_outputs(self):
        parameters = {"b": True, "i": -5, "d": 1e20, "s": "\x1f\u00e9"}

        _, body = encode(Response("ident", 1, "q", parameters=parameters))

        assert body == (
            b'{"id":"q","model_name":"ident","model_version":"1","parameters":{"b":true,"i":-5,'
            b'"d":100000000000000000000.0,"s":"\\u001F\xc3\xa9"},"outputs":[]}'
        )

    def test_a_parameter_of_bytes_is_not_supported(self):
        with pytest.raises(UnsupportedError) as raised:
            encode(Response("ident", 1, parameters={"b": b"x"}))

        assert raised.value.message == (
            "Response parameter of type 'TRITONSERVER_PARAMETER_BYTES' is not currently supported"
        )

    @pytest.mark.parametrize(
        ("request_id", "encoded"),
        [('q"\\', b'q\\"\\\\'), ("caf\u00e9", b"caf\xc3\xa9"), ("\x1f\x7f/", b"\\u001F\x7f/"), ("\udcff", b"\xff")],
    )
    def test_the_id_is_a_json_string(self, request_id, encoded):
        _, body = encode(Response("ident", 1, request_id))

        assert body.startswith(b'{"id":"' + encoded + b'","model_name"')

    def test_what_json_cannot_hold_is_refused(self):
        with pytest.raises(InvalidArgumentError, match=r"^sending FP16 data via JSON is not supported"):
            encode(Response("ident", 1, outputs=[output(bytes(32), datatype="FP16")]))

        assert encode(Response("ident", 1, outputs=[output(bytes(32), datatype="FP16")]), BINARY_OUTPUTS)[0]

    def test_any_number_of_shapes_may_come(self):
        codec = make_codec()

        for count in (*range(1, 600), *range(1, 600)):
            length, body = encode(
                Response("ident", 1, outputs=[output(bytes(count), "A", "INT8", [count])]), BINARY_OUTPUTS, codec
            )
            assert f'"shape":[{count}],'.encode() in body[:length]


class TestClassification:
    RESPONSE = Response("ident", 1, outputs=[output(np.array([[0.5, 3, 1, 3, -1, 7]], "<f4").tobytes(), shape=(1, 6))])

    def forms(self, parameters):
        return decode('{"inputs":[],"outputs":[{"name":"OUTPUT0","parameters":' + parameters + "}]}")[1]

    def test_json(self):
        _, body = encode(self.RESPONSE, self.forms('{"classification":3}'))

        assert body == (
            b'{"model_name":"ident","model_version":"1","outputs":[{"name":"OUTPUT0","datatype":"BYTES","shape":[1,3],'
            b'"data":["7.000000:5","3.000000:1:one","3.000000:3:three"]}]}'
        )

    def test_binary(self):
        length, body = encode(self.RESPONSE, self.forms('{"classification":2,"binary_data":true}'))

        assert body[:length].endswith(b'"datatype":"BYTES","shape":[1,2],"parameters":{"binary_data_size":32}}]}')
        assert body[length:] == encode_bytes_elements(np.array([b"7.000000:5", b"3.000000:1:one"], object))
