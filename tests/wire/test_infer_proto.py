"""Inference over gRPC, by value: messages in, requests out; responses in, literal bytes out.

Texts and bytes are those of Triton 2.51, asked with the same messages.
"""

import random
from typing import Any

import pytest

from merrow.core.errors import InternalError, InvalidArgumentError, NotFoundError, ServerError
from merrow.core.model_config import ModelConfig
from merrow.core.request import SEQUENCE_START, Request
from merrow.core.response import Response
from merrow.core.tensor import Tensor
from merrow.wire._generated.grpc_service_pb2 import (
    InferTensorContents,
    ModelInferRequest,
    ModelInferResponse,
    ModelStreamInferResponse,
)
from merrow.wire.infer_proto import (
    MAX_FIELD_COUNT,
    SMALL_MESSAGE_BYTE_SIZE,
    ProtoOutputForms,
    decode_infer_request,
    encode_infer_response,
    encode_stream_error,
    encode_stream_response,
    parse_infer_request,
    parse_model_version,
)
from tests.wire.memory_slice import MemorySlice

CONFIG = ModelConfig(name="m")
BATCHING = ModelConfig(name="m", max_batch_size=4)


class Sink:
    def on_response(self, response: Response) -> None:
        raise AssertionError("nothing answers here")


SINK = Sink()


class Regions:
    """Shared memory: one region, `r`."""

    def __init__(self) -> None:
        self.content = bytearray(range(64))

    def find(self, name: str, offset: int, byte_size: int) -> MemorySlice:
        if name != "r":
            raise NotFoundError(f"Unable to find shared memory region: '{name}'")
        return MemorySlice(self.content, offset, byte_size)


def _message(
    inputs: int = 1, raw: bytes = bytes(8), outputs: tuple[str, ...] = (), **settings: Any
) -> ModelInferRequest:
    message = ModelInferRequest(model_name="m", **settings)
    for index in range(inputs):
        message.inputs.add(name=f"IN{index}", datatype="FP32", shape=[1, 2])
        message.raw_input_contents.append(raw)
    for output in outputs:
        message.outputs.add(name=output)
    return message


def _decode(message: ModelInferRequest | bytes, config: ModelConfig = CONFIG) -> tuple[Request, ProtoOutputForms]:
    encoded = message if isinstance(message, bytes) else message.SerializeToString()
    return decode_infer_request(parse_infer_request(encoded), 3, config, SINK)


def _error(message: ModelInferRequest | bytes) -> ServerError:
    errors: list[ServerError] = []
    # The same message again: what is remembered of it must not change the answer.
    for _ in range(3):
        with pytest.raises(ServerError) as error:
            _decode(message)
        errors.append(error.value)
    assert len({(type(error), error.message) for error in errors}) == 1
    return errors[0]


def _facts(request: Request) -> tuple[Any, ...]:
    """Everything a request says, as plain values."""
    inputs = {
        name: (tensor.name, tensor.datatype, tensor.shape, bytes(tensor.data))
        for name, tensor in request.inputs.items()
    }
    return (
        request.model_name,
        request.model_version,
        request.id,
        inputs,
        request.requested_outputs,
        request.parameters,
        request.priority,
        request.timeout_us,
        request.correlation_id,
        request.flags,
    )


# Versions.


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("", -1),
        ("1", 1),
        ("01", 1),
        ("+1", 1),
        (" 1", 1),
        ("\t\n\v\f\r1", 1),
        ("1x", 1),
        ("1.5", 1),
        ("0", 0),
        ("0x1", 0),
        ("9223372036854775807", 2**63 - 1),
        ("0" * 10_000 + "7", 7),
    ],
)
def test_versions_are_read_as_c_reads_numbers(text: str, version: int):
    assert parse_model_version(text) == version


@pytest.mark.parametrize(
    "text", ["x", "x1", "- 1", "+", " ", "\u00a01", "٣", "9223372036854775808", "-9223372036854775809", "1" + "0" * 30]
)
def test_versions_that_are_no_number(text: str):
    with pytest.raises(InvalidArgumentError) as error:
        parse_model_version(text)
    assert error.value.message == (
        f"failed to get model version from specified version string '{text}' (details: stol), version should be an "
        "integral value > 0"
    )


def test_a_version_of_thousands_of_digits_is_refused_and_not_computed():
    with pytest.raises(InvalidArgumentError, match="details: stol"):
        parse_model_version("9" * 100_000)


@pytest.mark.parametrize("text", ["-1", "-2", " -1x", "-9223372036854775808"])
def test_versions_below_zero(text: str):
    with pytest.raises(InvalidArgumentError) as error:
        parse_model_version(text)
    assert error.value.message == (
        f"invalid model version specified '{text}' , version should be an integral value > 0"
    )


# Requests.


def test_a_request_is_taken_apart():
    parsed = parse_infer_request(_message(model_version="7", id="abc").SerializeToString())

    assert (parsed.model_name, parsed.model_version, parsed.id) == ("m", "7", "abc")
    assert parsed.raw_contents == [bytes(8)]


def test_a_request_becomes_a_core_request():
    message = _message(2, raw=b"\1" * 8, outputs=("A", "B"), id="abc")
    message.parameters["priority"].int64_param = 2
    message.parameters["sequence_id"].string_param = "s"
    message.parameters["sequence_start"].bool_param = True
    message.parameters["timeout"].int64_param = 9
    message.parameters["custom"].string_param = "c"
    # Once as seen for the first time, then as remembered.
    for _ in range(4):
        request, forms = _decode(message)

        assert _facts(request) == (
            "m",
            3,
            "abc",
            {"IN0": ("IN0", "FP32", (1, 2), b"\1" * 8), "IN1": ("IN1", "FP32", (1, 2), b"\1" * 8)},
            ("A", "B"),
            {"custom": "c"},
            2,
            9,
            "s",
            SEQUENCE_START,
        )
        assert request.sink is SINK
        assert forms == ProtoOutputForms()
        # The front door adds its own; that must not stay with what is remembered.
        assert request.parameters is not None
        request.parameters["header"] = "x"


def test_requests_that_differ_only_in_id_and_data_share_what_is_remembered():
    messages = [_message(id=f"id{number}", raw=bytes([number] * 8)).SerializeToString() for number in range(5)]

    parsed = [parse_infer_request(message) for message in messages]
    requests = [decode_infer_request(one, 1, CONFIG, SINK)[0] for one in parsed]

    assert len({id(one.head) for one in parsed}) == 1
    assert [request.id for request in requests] == ["id0", "id1", "id2", "id3", "id4"]
    assert [request.inputs["IN0"].data for request in requests] == [bytes([number] * 8) for number in range(5)]


def test_the_form_of_outputs_follows_the_model_and_not_what_is_remembered():
    for _ in range(3):
        assert not _decode(_message(), CONFIG)[1].has_batch_dim
        assert _decode(_message(), BATCHING)[1].has_batch_dim


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_a_message_may_be_any_buffer(kind: Any):
    message = _message(2, id="x").SerializeToString()

    assert _facts(_decode(kind(message))[0] if kind is bytes else _decode_buffer(kind(message))) == _facts(
        _decode(message)[0]
    )


def _decode_buffer(message: Any) -> Request:
    return decode_infer_request(parse_infer_request(message), 3, CONFIG, SINK)[0]


def test_contents_of_a_large_message_are_views_of_it():
    raw = random.Random(1).randbytes(SMALL_MESSAGE_BYTE_SIZE)
    message = bytearray(_message(2, raw=raw).SerializeToString())
    for _ in range(3):
        inputs = _decode_buffer(message).inputs

        for tensor in inputs.values():
            assert isinstance(tensor.data, memoryview)
            assert tensor.data.format == "B"
            assert tensor.data.obj is message
            assert tensor.data == raw


def test_contents_of_a_small_message_are_not():
    message = bytearray(_message().SerializeToString())

    assert type(_decode_buffer(message).inputs["IN0"].data) is bytes


def test_a_message_in_another_order():
    message = _message(2, raw=b"\1" * 8, outputs=("A",), id="abc", model_version="2")
    encoded = message.SerializeToString()
    start = encoded.index(b"\x3a\x08")
    reordered = encoded[start:] + encoded[:start]

    parsed = parse_infer_request(reordered)
    assert (parsed.model_name, parsed.model_version, parsed.id) == ("m", "2", "abc")
    assert _facts(_decode(reordered)[0]) == _facts(_decode(encoded)[0])


@pytest.mark.parametrize(
    "unknown",
    [b"\x7a\x01a", b"\x78\x05", b"\x79" + bytes(8), b"\x7d" + bytes(4), b"\x7b\x08\x01\x7c", b"\xfa\x7f\x02ab"],
)
def test_fields_that_nobody_knows_are_ignored(unknown: bytes):
    encoded = _message(id="abc").SerializeToString()

    for message in (encoded + unknown, unknown + encoded):
        assert _facts(_decode(message)[0]) == _facts(_decode(encoded)[0])


def test_of_two_ids_the_last_counts():
    encoded = _message(id="first").SerializeToString()

    assert parse_infer_request(encoded + b"\x1a\x04last").id == "last"
    assert parse_infer_request(b"\x1a\x04last" + encoded).id == "first"


def test_texts_end_at_a_nul():
    message = ModelInferRequest(model_name="m", id="a\0b")
    message.inputs.add(name="IN\0x", datatype="INT8\0", shape=[1])
    message.outputs.add(name="OUT\0x")
    message.raw_input_contents.append(b"a")

    request, _ = _decode(message)

    assert request.id == "a"
    assert request.requested_outputs == ("OUT",)
    assert (request.inputs["IN"].name, request.inputs["IN"].datatype) == ("IN", "INT8")


@pytest.mark.parametrize(
    "message", [b"\xff\xff", b"\x0a", b"\x0a\x05m", b"\x0a\x01\xff", b"\x1a\x01\xff", b"\x2a\x01\xff"]
)
def test_bytes_that_are_no_message(message: bytes):
    with pytest.raises(InternalError) as error:
        parse_infer_request(message)
    assert error.value.message == "Unable to parse request"


def test_a_message_cut_at_every_length():
    encoded = _message(2, outputs=("A",), id="abc", model_version="1").SerializeToString()
    for end in range(len(encoded)):
        cut = encoded[:end]
        try:
            expected = ModelInferRequest.FromString(cut)
        except Exception:
            with pytest.raises(InternalError):
                parse_infer_request(cut)
        else:
            parsed = parse_infer_request(cut)
            assert (parsed.model_name, parsed.id) == (expected.model_name, expected.id)
            assert [bytes(raw) for raw in parsed.raw_contents] == list(expected.raw_input_contents)


def test_any_bytes_at_all_give_a_request_or_one_of_our_errors():
    generator = random.Random(7)
    encoded = bytearray(_message(2, outputs=("A",), id="abc").SerializeToString())
    for _ in range(2000):
        mutated = bytearray(encoded)
        for _ in range(generator.randint(1, 4)):
            mutated[generator.randrange(len(mutated))] = generator.randrange(256)
        try:
            request, _ = _decode(bytes(mutated))
        except ServerError:
            continue
        assert isinstance(request, Request)


@pytest.mark.parametrize("field", [b"\x2a\x00", b"\x3a\x00", b"\x7a\x00"])
def test_a_message_of_nothing_but_empty_fields_is_refused(field: bytes):
    with pytest.raises(InvalidArgumentError) as error:
        parse_infer_request(field * (MAX_FIELD_COUNT + 1))
    assert error.value.message == f"request has more than {MAX_FIELD_COUNT} inputs, outputs and contents"


def test_no_message_at_all_names_no_model():
    parsed = parse_infer_request(b"")

    assert (parsed.model_name, parsed.model_version, parsed.id, parsed.raw_contents) == ("", "", "", [])


# Where the data comes from.


def test_raw_contents_that_nobody_asked_for_are_ignored():
    message = _message()
    message.raw_input_contents.append(b"extra")
    for _ in range(3):
        assert _decode(message)[0].inputs["IN0"].data == bytes(8)


def test_too_few_raw_contents():
    message = _message(2)
    for _ in range(3):
        _decode(message)
    # The head is known by now, but there is not enough behind it.
    del message.raw_input_contents[1:]

    error = _error(message)

    assert type(error) is InvalidArgumentError
    assert error.message == "unable to find data for input tensor 'IN1' for model 'm' in request."


def test_typed_contents():
    message = ModelInferRequest(model_name="m")
    message.inputs.add(name="A", datatype="INT8", shape=[2], contents=InferTensorContents(int_contents=[-1, 300]))
    message.inputs.add(name="B", datatype="FP32", shape=[0], contents=InferTensorContents())
    for _ in range(3):
        request, _ = _decode(message)
        assert {name: bytes(tensor.data) for name, tensor in request.inputs.items()} == {"A": b"\xff\x2c", "B": b""}


def test_typed_contents_are_not_remembered():
    message = ModelInferRequest(model_name="m")
    contents = InferTensorContents(int_contents=[1])
    message.inputs.add(name="A", datatype="INT8", shape=[1], contents=contents)
    encoded = message.SerializeToString()

    assert parse_infer_request(encoded).head is not parse_infer_request(encoded).head


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            lambda m: m.inputs[0].contents.fp32_contents.append(1),
            "contents field must not be specified when using raw_input_contents for 'IN0' for model 'm'",
        ),
        (
            lambda m: (m.inputs[0].contents.int_contents.append(1), m.raw_input_contents.pop()),
            "unexpected explicit tensor data for input tensor 'IN0' for model 'm' of type 'INT32', expected datatype "
            "'FP32'",
        ),
        (
            lambda m: m.raw_input_contents.pop(),
            "unable to find data for input tensor 'IN0' for model 'm' in request.",
        ),
        (
            lambda m: m.inputs.add(name="IN0"),
            "[request id: <id_unknown>] input 'IN0' already exists in request",
        ),
        (
            lambda m: (m.outputs.add(name="A"), m.outputs.add(name="A"), setattr(m, "id", "x")),
            "[request id: x] output 'A' already exists in request",
        ),
        (
            lambda m: setattr(m.parameters["timeout"], "bool_param", True),
            "invalid value type for 'timeout' parameter, expected int64_param.",
        ),
        (
            lambda m: setattr(m.outputs.add(name="A").parameters["classification"], "int64_param", 0),
            "invalid value for 'classification' parameter, expected >= 0",
        ),
    ],
)
def test_requests_that_are_wrong(change: Any, text: str):
    message = _message()
    change(message)

    error = _error(message)

    assert type(error) is InvalidArgumentError
    assert error.message == text


def test_of_several_errors_parameters_come_first_then_inputs_data_and_outputs():
    message = _message()
    message.parameters["timeout"].bool_param = True
    message.inputs.add(name="IN0", datatype="FP32")
    message.raw_input_contents.pop()
    message.outputs.add(name="A").parameters["classification"].int64_param = 0

    assert "'timeout' parameter" in _error(message).message
    del message.parameters["timeout"]
    assert "input 'IN0' already exists" in _error(message).message
    del message.inputs[1]
    assert "unable to find data" in _error(message).message
    message.raw_input_contents.append(bytes(8))
    assert "'classification'" in _error(message).message


# Forms of outputs, and shared memory.


def test_classes_are_asked_for_by_output():
    message = _message(outputs=("A", "B"))
    message.outputs[1].parameters["classification"].int64_param = 2
    for _ in range(3):
        request, forms = _decode(message, BATCHING)
        assert request.requested_outputs == ("A", "B")
        assert forms == ProtoOutputForms(has_batch_dim=True, class_counts={"B": 2})


def test_the_empty_final_response_is_asked_for_by_request():
    message = _message()
    message.parameters["triton_enable_empty_final_response"].bool_param = True
    for _ in range(3):
        assert _decode(message)[1].wants_empty_final_response
    assert not _decode(_message())[1].wants_empty_final_response


def _in_region(tensor: Any, byte_size: int = 8, name: str = "r") -> None:
    tensor.parameters["shared_memory_region"].string_param = name
    tensor.parameters["shared_memory_byte_size"].int64_param = byte_size
    tensor.parameters["shared_memory_offset"].int64_param = 16


def test_inputs_in_shared_memory_leave_raw_contents_to_the_others():
    message = _message(2, outputs=("A",))
    message.raw_input_contents.pop()
    _in_region(message.inputs[0])
    _in_region(message.outputs[0], 4)
    regions = Regions()
    for _ in range(3):
        parsed = parse_infer_request(message.SerializeToString())
        request, forms = decode_infer_request(parsed, 1, CONFIG, SINK, regions)

        assert request.inputs["IN0"].data == bytes(range(16, 24))
        assert request.inputs["IN1"].data == bytes(8)
        assert forms.regions["A"].read() == bytes(range(16, 20))
        assert request.output_regions == {"A": forms.regions["A"]}


def test_shared_memory_that_is_not_there():
    message = _message()
    _in_region(message.inputs[0], name="q")

    error = _error(message)

    assert type(error) is NotFoundError
    assert error.message == "Unable to find shared memory region: 'q'"


def test_shared_memory_excludes_other_data_and_classes():
    message = _message()
    _in_region(message.inputs[0])
    message.inputs[0].contents.fp32_contents.append(1)
    assert _error(message).message == (
        "unexpected 'content' provided when using shared memory for input tensor 'IN0' for model 'm'"
    )

    message = _message(outputs=("A",))
    _in_region(message.outputs[0])
    message.outputs[0].parameters["classification"].int64_param = 1
    assert _error(message).message == "output can't set both 'shared_memory_region' and 'classification'"


# Responses.

PLAIN = ProtoOutputForms()


def _encode(response: Response, forms: ProtoOutputForms = PLAIN, labels: Any = None) -> bytes:
    return b"".join(bytes(part) for part in encode_infer_response(response, forms, labels or {}))


def _stream(response: Response, forms: ProtoOutputForms = PLAIN, version: str = "") -> bytes:
    return b"".join(bytes(part) for part in encode_stream_response(response, forms, {}, version))


def _tensor(name: str = "ON", shape: Any = (1, 4), data: Any = b"\1" * 16, datatype: str = "FP32") -> Tensor:
    return Tensor(name, datatype, shape, data)


def test_a_response_byte_by_byte():
    for _ in range(2):
        assert _encode(Response("ident", 1, outputs=[_tensor()])) == (
            b"\n\x05ident\x12\x011*\x0e\n\x02ON\x12\x04FP32\x1a\x02\x01\x042\x10" + b"\1" * 16
        )
        assert _encode(Response("ident", 1, "r1", [_tensor(shape=[1, 4])])) == (
            b"\n\x05ident\x12\x011\x1a\x02r1*\x0e\n\x02ON\x12\x04FP32\x1a\x02\x01\x042\x10" + b"\1" * 16
        )


def test_a_response_without_outputs():
    assert _encode(Response("ident", 12)) == b"\n\x05ident\x12\x0212"


def test_a_response_as_protobuf_reads_it():
    response = Response(
        "m",
        123,
        "é",
        [
            _tensor("A", (2, 300), bytearray(2400)),
            _tensor("", (), memoryview(b"abcd")),
            _tensor("Z", (0,), b""),
            _tensor("N", (-1,), b"x"),
        ],
        parameters={"b": True, "i": -1, "d": 0.5, "s": "x"},
    )

    decoded = ModelInferResponse.FromString(_encode(response))

    assert (decoded.model_name, decoded.model_version, decoded.id) == ("m", "123", "é")
    assert [(o.name, o.datatype, list(o.shape)) for o in decoded.outputs] == [
        ("A", "FP32", [2, 300]),
        ("", "FP32", []),
        ("Z", "FP32", [0]),
        ("N", "FP32", [-1]),
    ]
    assert list(decoded.raw_output_contents) == [bytes(2400), b"abcd", b"", b"x"]
    assert not any(output.HasField("contents") for output in decoded.outputs)
    assert decoded.parameters["b"].bool_param is True
    assert decoded.parameters["i"].int64_param == -1
    assert decoded.parameters["d"].double_param == 0.5
    assert decoded.parameters["s"].string_param == "x"


def test_large_contents_are_not_copied():
    first, second = bytes(SMALL_MESSAGE_BYTE_SIZE), memoryview(bytes(10))
    response = Response("m", 1, outputs=[_tensor("A", (1,), first), _tensor("B", (1,), second)])

    parts = encode_infer_response(response, PLAIN, {})

    assert [part is first or part is second for part in parts] == [False, True, False, True]
    decoded = ModelInferResponse.FromString(b"".join(parts))
    assert list(decoded.raw_output_contents) == [first, bytes(10)]
    stream_parts = encode_stream_response(response, PLAIN, {})
    assert [part is first or part is second for part in stream_parts] == [False, True, False, True]
    assert list(ModelStreamInferResponse.FromString(b"".join(stream_parts)).infer_response.raw_output_contents) == [
        first,
        bytes(10),
    ]


def test_small_contents_are_one_part():
    assert len(encode_infer_response(Response("m", 1, outputs=[_tensor(), _tensor()]), PLAIN, {})) == 1


def test_classes_byte_by_byte():
    forms = ProtoOutputForms(has_batch_dim=True, class_counts={"ON": 2})
    data = b"\0\0\x80?" * 4

    assert _encode(Response("ident", 1, outputs=[_tensor(data=data)]), forms, {"ON": ("a", "b", "", "d")}) == (
        b"\n\x05ident\x12\x011*\x0f\n\x02ON\x12\x05BYTES\x1a\x02\x01\x022 "
        b"\x0c\x00\x00\x001.000000:0:a\x0c\x00\x00\x001.000000:1:b"
    )


def test_no_classes_at_all():
    """What is left of 2 ** 32 classes after Triton counted them in 32 bits."""
    forms = ProtoOutputForms(has_batch_dim=True, class_counts={"ON": 0})

    assert _encode(Response("ident", 1, outputs=[_tensor()]), forms) == (
        b"\n\x05ident\x12\x011*\x0f\n\x02ON\x12\x05BYTES\x1a\x02\x01\x002\x00"
    )


def test_classes_of_what_has_no_order():
    forms = ProtoOutputForms(class_counts={"ON": 1})

    with pytest.raises(InvalidArgumentError, match="class result not available"):
        _encode(Response("m", 1, outputs=[_tensor(datatype="BOOL")]), forms)


def test_an_output_in_shared_memory_leaves_an_empty_place():
    content = bytearray(20)
    forms = ProtoOutputForms(regions={"A": MemorySlice(content, 2, 16)})
    response = Response("m", 1, outputs=[_tensor("A"), _tensor("B")])

    decoded = ModelInferResponse.FromString(_encode(response, forms))

    assert list(decoded.raw_output_contents) == [b"", b"\1" * 16]
    assert content == b"\0\0" + b"\1" * 16 + b"\0\0"


def test_an_output_that_shared_memory_cannot_hold():
    forms = ProtoOutputForms(regions={"A": MemorySlice(bytearray(15))})

    with pytest.raises(InternalError) as error:
        _encode(Response("m", 1, outputs=[_tensor("A")]), forms)
    assert error.value.message == (
        "shared memory size specified with the request for output 'A' (15 bytes) should be at least 16 bytes to hold "
        "the results"
    )


class HugeBuffer(bytes):
    """Bytes that claim to be as many as gRPC cannot carry."""

    def __len__(self) -> int:
        return 2**31 - 1


def test_a_response_that_grpc_cannot_carry():
    response = Response("m", 1, outputs=[_tensor("A", (1,), HugeBuffer())])

    with pytest.raises(InvalidArgumentError) as error:
        encode_infer_response(response, PLAIN, {})
    assert error.value.message == ("Response has byte size 2147483673 which exceeds gRPC's byte size limit 2147483647.")
    with pytest.raises(InvalidArgumentError, match="exceeds gRPC's byte size limit"):
        encode_stream_response(response, PLAIN, {})


# The stream's form.


def test_a_response_in_a_stream_byte_by_byte():
    assert _stream(Response("ident", 1, "s1", [_tensor()])) == (
        b'\x12M\n\x05ident\x12\x011\x1a\x02s1"\x1b\n\x15triton_final_response\x12\x02\x08\x01'
        b"*\x0e\n\x02ON\x12\x04FP32\x1a\x02\x01\x042\x10" + b"\1" * 16
    )
    assert _stream(Response("dec", 1, "d", [_tensor("OUT", (1,), b"\2\0\0\0", "INT32")], is_final=False)) == (
        b'\x12?\n\x03dec\x12\x011\x1a\x01d"\x1b\n\x15triton_final_response\x12\x02\x08\x00'
        b"*\x0f\n\x03OUT\x12\x05INT32\x1a\x01\x012\x04\x02\x00\x00\x00"
    )


def test_the_end_of_a_decoupled_request_repeats_the_requested_version():
    assert _stream(Response("dec", 1, "d", is_empty=True), version="1") == (
        b'\x12(\n\x03dec\x12\x011\x1a\x01d"\x1b\n\x15triton_final_response\x12\x02\x08\x01'
    )
    assert _stream(Response("dec", 1, "d", is_empty=True)) == (
        b'\x12%\n\x03dec\x1a\x01d"\x1b\n\x15triton_final_response\x12\x02\x08\x01'
    )


def test_an_error_of_a_model_in_a_stream():
    response = Response("errm", 1, "e", error=InternalError("custom error 2"), is_final=False)

    decoded = ModelStreamInferResponse.FromString(_stream(response, version="1"))

    assert decoded.error_message == "custom error 2"
    assert decoded.infer_response.id == "e"
    assert (decoded.infer_response.model_name, decoded.infer_response.model_version) == ("errm", "1")
    assert decoded.infer_response.parameters["triton_final_response"].bool_param is False
    assert not decoded.infer_response.outputs


def test_an_error_before_any_model_byte_by_byte():
    assert encode_stream_error("Request for unknown model: 'nosuch' is not found", "q") == [
        b"\n0Request for unknown model: 'nosuch' is not found\x12\x03\x1a\x01q"
    ]
    assert encode_stream_error("x", "") == [b"\n\x01x\x12\x00"]
