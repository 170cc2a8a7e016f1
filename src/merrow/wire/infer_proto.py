"""Inference over gRPC: ModelInferRequest -> `Request`, `Response` -> ModelInferResponse, and the stream's form of it.

    parsed = parse_infer_request(message)                    # enough to find the model
    version = parse_model_version(parsed.model_version)
    request, forms = decode_infer_request(parsed, model_version, config, sink)
    parts = encode_infer_response(response, forms, labels)

Protobuf writes fields by number, so a request is a head (everything about its tensors) followed by the raw contents.
The top level is walked by hand: contents become slices of the message, views when it is large, and only the head goes
through protobuf. Clients repeat the head byte for byte, except for the request's id, which is cut out: a head that came
with raw contents is decoded once and remembered (a pure function with a bounded memory). A message in any other order,
or with fields that we do not know, takes the long way through protobuf, with the same result.

Responses are put together from bytes: the constant parts are remembered, and large contents stay buffers of their own.

Source: Triton, grpc/infer_handler.cc, grpc/stream_infer_handler.cc.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Final

from google.protobuf.message import DecodeError

from merrow.core.errors import InternalError, InvalidArgumentError
from merrow.core.model_config import ModelConfig
from merrow.core.region import RegionSlice
from merrow.core.request import Request, ResponseSink, log_prefix
from merrow.core.response import Response
from merrow.core.tensor import Buffer, Tensor
from merrow.wire._generated.grpc_service_pb2 import ModelInferRequest
from merrow.wire.classification import classify
from merrow.wire.proto_contents import decode_contents
from merrow.wire.proto_message import count_fields, delimited, encode_varint, read_varint, text_field
from merrow.wire.proto_parameters import (
    RequestFields,
    decode_class_count,
    decode_region,
    decode_request_parameters,
    encode_response_parameter,
)
from merrow.wire.regions import NoSharedMemoryRegions, SharedMemoryRegions, tensor_of_region, write_to_region
from merrow.wire.triton_json import cut_at_nul

FINAL_RESPONSE = "triton_final_response"

# Below this many bytes, copying contents is cheaper than keeping views of them apart.
SMALL_MESSAGE_BYTE_SIZE: Final = 8 * 1024

MAX_RESPONSE_BYTE_SIZE: Final = 2**31 - 1

# Inputs, outputs, contents and so on of one request: a message of nothing but empty fields would hold up the loop.
MAX_FIELD_COUNT: Final = 16 * 1024

_MAX_REMEMBERED_HEADS = 256
_MAX_REMEMBERED_HEAD_BYTE_SIZE = 2048
_MAX_REMEMBERED_OUTPUTS = 1024

# Tags of ModelInferRequest: number << 3 | 2, all its fields being length-delimited.
_ID_TAG = 3 << 3 | 2
_RAW_CONTENTS_TAG = 7 << 3 | 2
_HEAD_TAGS = frozenset(number << 3 | 2 for number in (1, 2, 4, 5, 6))
_FIELD_RANGE = range(MAX_FIELD_COUNT)

_VERSION_NUMBER = re.compile(r"[ \t\n\v\f\r]*([+-]?)0*([0-9]+)", re.ASCII)


@dataclass(frozen=True, slots=True)
class ProtoOutputForms:
    """How the outputs of a request go back: as classes, into shared memory, or (not listed) as raw contents."""

    has_batch_dim: bool = False
    class_counts: Mapping[str, int] = field(default_factory=dict)
    regions: Mapping[str, RegionSlice] = field(default_factory=dict)
    # A stream says when a decoupled request is over, even if the model sends nothing more.
    wants_empty_final_response: bool = False


# Raw contents for everything, as nearly every request has it; by `has_batch_dim`, `wants_empty_final_response`.
_PLAIN_FORMS: Final = {
    (has_batch_dim, wants_empty): ProtoOutputForms(has_batch_dim, wants_empty_final_response=wants_empty)
    for has_batch_dim in (False, True)
    for wants_empty in (False, True)
}


class InferRequestMessage:
    """A request message, taken apart but not checked. `model_version` is the client's text, often empty."""

    __slots__ = ("head", "id", "model_name", "model_version", "raw_contents")

    def __init__(self, head: "_Head", request_id: str, raw_contents: list[Buffer]) -> None:
        self.model_name = head.model_name
        self.model_version = head.model_version
        self.id = cut_at_nul(request_id)
        self.raw_contents = raw_contents
        self.head = head


def parse_model_version(text: str) -> int:
    """The version that a request names; -1 (the latest) for none.

    Read as C's `stol` does: blanks, a sign, then digits, and whatever follows.

    Raises:
        InvalidArgumentError: no number, or a negative one.
    """
    if not text:
        return -1
    match = _VERSION_NUMBER.match(text)
    # Twenty digits are out of range already, and Python refuses to convert thousands.
    version = int(match[1] + match[2][:20]) if match is not None else None
    if version is None or not -(2**63) <= version < 2**63:
        raise InvalidArgumentError(
            f"failed to get model version from specified version string '{text}' (details: stol), version should be an "
            "integral value > 0"
        )
    if version < 0:
        raise InvalidArgumentError(
            f"invalid model version specified '{text}' , version should be an integral value > 0"
        )
    return version


def parse_infer_request(message: Buffer) -> InferRequestMessage:
    """Take a ModelInferRequest apart. Raw contents are copied out of small messages, and views of large ones.

    Raises:
        InternalError: the bytes are no such message.
    """
    end = len(message)
    if end < SMALL_MESSAGE_BYTE_SIZE:
        if type(message) is not bytes:
            message = bytes(message)
    elif type(message) is not memoryview:
        message = memoryview(message)
    # Straight code: with FP32[1,16] raw, parsing and decoding take 3.5 us this way and would take 9 through protobuf.
    position = id_start = id_end = 0
    request_id = ""
    raw_contents: list[Buffer] = []
    try:
        for _ in _FIELD_RANGE:
            if position >= end:
                break
            tag = message[position]
            if tag == _RAW_CONTENTS_TAG:
                break
            length = message[position + 1]
            body = position + 2
            if length >= 0x80:
                length, body = read_varint(message, body - 1)
            next_position = body + length
            if tag == _ID_TAG:
                if id_end:
                    return _parse_slowly(message)
                id_start, id_end = position, next_position
                request_id = str(message[body:next_position], "utf-8")
            elif tag not in _HEAD_TAGS:
                return _parse_slowly(message)
            position = next_position
        head_end = position
        for _ in _FIELD_RANGE:
            if position >= end:
                break
            if message[position] != _RAW_CONTENTS_TAG:
                return _parse_slowly(message)
            length = message[position + 1]
            body = position + 2
            if length >= 0x80:
                length, body = read_varint(message, body - 1)
            position = body + length
            raw_contents.append(message[body:position])
    except (IndexError, UnicodeDecodeError):
        return _parse_slowly(message)
    if position != end:
        # Cut off, or too many fields.
        return _parse_slowly(message)
    if id_end:
        head_bytes = bytes(message[:id_start]) + bytes(message[id_end:head_end])
    else:
        head_bytes = bytes(message[:head_end])
    # Typed contents are part of the head, which then will not come again.
    if raw_contents and head_end <= _MAX_REMEMBERED_HEAD_BYTE_SIZE:
        return InferRequestMessage(_remember_head(head_bytes), request_id, raw_contents)
    return InferRequestMessage(_Head(head_bytes), request_id, raw_contents)


def decode_infer_request(
    parsed: InferRequestMessage,
    model_version: int,
    config: ModelConfig,
    sink: ResponseSink,
    regions: SharedMemoryRegions | None = None,
) -> tuple[Request, ProtoOutputForms]:
    """The request in a message, and how its outputs go back.

    Args:
        model_version: the version that was found for it.
        regions: the shared memory that clients have registered.

    Raises:
        ServerError: with Triton's text for the first thing wrong.
    """
    facts = parsed.head.facts
    raw_contents = parsed.raw_contents
    if facts is None or len(raw_contents) < len(facts.inputs):
        return _decode_slowly(parsed, model_version, config, sink, regions)
    # From here on everything was checked with an earlier message that had the same head.
    if len(facts.inputs) == 1:
        name, datatype, shape = facts.inputs[0]
        inputs = {name: Tensor(name, datatype, shape, raw_contents[0])}
    else:
        inputs = {
            name: Tensor(name, datatype, shape, data)
            for (name, datatype, shape), data in zip(facts.inputs, raw_contents, strict=False)
        }
    request = _build_request(facts.fields, parsed, model_version, sink, inputs, facts.requested_outputs)
    return request, facts.forms[config.max_batch_size > 0]


def encode_infer_response(
    response: Response, forms: ProtoOutputForms, labels: Mapping[str, Sequence[str]]
) -> list[Buffer]:
    """A ModelInferResponse, in parts that follow one another; large contents are the outputs' own buffers.

    Raises:
        ServerError: an output cannot be returned as asked; the request then fails.
    """
    parts, byte_size = _encode_response(response, forms, labels, b"")
    if byte_size > MAX_RESPONSE_BYTE_SIZE:
        raise _too_large(byte_size)
    return parts


def encode_stream_response(
    response: Response, forms: ProtoOutputForms, labels: Mapping[str, Sequence[str]], requested_version: str = ""
) -> list[Buffer]:
    """A ModelStreamInferResponse for anything a model sent: outputs, an error, or only the end of its responses.

    Of the last, only a request whose `forms.wants_empty_final_response` is set hears.

    Args:
        requested_version: `InferRequestMessage.model_version`, which responses without outputs repeat.

    Raises:
        ServerError: an output cannot be returned as asked.
    """
    final = _FINAL if response.is_final else _NOT_FINAL
    if response.error is None and not response.is_empty:
        parts, byte_size = _encode_response(response, forms, labels, final)
        start = b"\x12" + encode_varint(byte_size)
        if byte_size + len(start) > MAX_RESPONSE_BYTE_SIZE:
            raise _too_large(byte_size + len(start))
        return [start + parts[0], *parts[1:]]
    infer_response = b"".join(
        (
            text_field(1, response.model_name),
            text_field(2, requested_version),
            text_field(3, response.id),
            final,
        )
    )
    error = b"" if response.error is None else text_field(1, response.error.message)
    return [error + delimited(2, infer_response)]


def encode_stream_error(message: str, request_id: str) -> list[Buffer]:
    """A ModelStreamInferResponse for a request that was refused before any model saw it."""
    return [text_field(1, message) + delimited(2, text_field(3, request_id))]


class _HeadFacts:
    """A head whose inputs all take raw contents, checked: name, datatype and shape of each, and so on.

    `forms` are those for a model that does not batch, and for one that does.
    """

    __slots__ = ("fields", "forms", "inputs", "requested_outputs")

    def __init__(
        self,
        fields: RequestFields,
        inputs: tuple[tuple[str, str, tuple[int, ...]], ...],
        requested_outputs: tuple[str, ...],
        forms: tuple[ProtoOutputForms, ProtoOutputForms],
    ) -> None:
        self.fields = fields
        self.inputs = inputs
        self.requested_outputs = requested_outputs
        self.forms = forms


class _Head:
    """The part of a message before its raw contents, without the id.

    `facts` are there from the second time on that it was found valid: most heads that differ never come again.
    """

    __slots__ = ("facts", "message", "model_name", "model_version", "was_valid")

    def __init__(self, head_bytes: bytes) -> None:
        try:
            self.message = ModelInferRequest.FromString(head_bytes)
        except DecodeError:
            raise _unable_to_parse() from None
        self.model_name = self.message.model_name
        self.model_version = self.message.model_version
        self.facts: _HeadFacts | None = None
        self.was_valid = False


_remember_head = lru_cache(_MAX_REMEMBERED_HEADS)(_Head)


def _parse_slowly(message: bytes | memoryview) -> InferRequestMessage:
    """Any message, in whatever order its fields come."""
    try:
        field_count = count_fields(message, MAX_FIELD_COUNT)
    except IndexError:
        raise _unable_to_parse() from None
    if field_count > MAX_FIELD_COUNT:
        raise InvalidArgumentError(f"request has more than {MAX_FIELD_COUNT} inputs, outputs and contents")
    head = _Head(bytes(message))
    return InferRequestMessage(head, head.message.id, list(head.message.raw_input_contents))


def _unable_to_parse() -> InternalError:
    return InternalError("Unable to parse request")


def _build_request(
    fields: RequestFields,
    parsed: InferRequestMessage,
    model_version: int,
    sink: ResponseSink,
    inputs: dict[str, Tensor],
    requested_outputs: tuple[str, ...],
) -> Request:
    # Positional: keywords would cost a tenth of the time of a small request.
    return Request(
        parsed.model_name,
        model_version,
        sink,
        inputs,
        requested_outputs,
        parsed.id,
        # The front door adds to it.
        None if fields.parameters is None else fields.parameters.copy(),
        fields.priority,
        fields.timeout_us,
        fields.correlation_id,
        fields.flags,
    )


def _decode_slowly(
    parsed: InferRequestMessage,
    model_version: int,
    config: ModelConfig,
    sink: ResponseSink,
    regions: SharedMemoryRegions | None,
) -> tuple[Request, ProtoOutputForms]:
    """Check everything, in Triton's order, and remember the result with the head where it may be used again."""
    message = parsed.head.message
    fields = decode_request_parameters(message.parameters)
    _names_of("input", message.inputs, parsed.id)
    requested_outputs = _names_of("output", message.outputs, parsed.id)
    known_regions = NoSharedMemoryRegions() if regions is None else regions
    inputs = _decode_inputs(message, parsed, known_regions)
    forms = _decode_forms(message, config.max_batch_size > 0, fields.wants_empty_final_response, known_regions)
    head = parsed.head
    if head.was_valid and _takes_raw_contents_only(message) and not forms.regions:
        head.facts = _HeadFacts(
            fields,
            tuple((tensor.name, tensor.datatype, tuple(tensor.shape)) for tensor in inputs.values()),
            requested_outputs,
            (replace(forms, has_batch_dim=False), replace(forms, has_batch_dim=True)),
        )
    head.was_valid = True
    request = _build_request(fields, parsed, model_version, sink, inputs, requested_outputs)
    request.output_regions = forms.regions or None
    return request, forms


def _names_of(
    kind: str,
    tensors: Iterable[ModelInferRequest.InferInputTensor] | Iterable[ModelInferRequest.InferRequestedOutputTensor],
    request_id: str,
) -> tuple[str, ...]:
    """The names of inputs or outputs, which must differ."""
    names: dict[str, None] = {}
    for tensor in tensors:
        name = cut_at_nul(tensor.name)
        if name in names:
            raise InvalidArgumentError(f"{log_prefix(request_id)}{kind} '{name}' already exists in request")
        names[name] = None
    return tuple(names)


def _takes_raw_contents_only(message: ModelInferRequest) -> bool:
    return not any(
        tensor.HasField("contents") or "shared_memory_region" in tensor.parameters for tensor in message.inputs
    )


def _decode_inputs(
    message: ModelInferRequest, parsed: InferRequestMessage, regions: SharedMemoryRegions
) -> dict[str, Tensor]:
    model_name = parsed.model_name
    raw_contents = iter(parsed.raw_contents)
    inputs: dict[str, Tensor] = {}
    for tensor in message.inputs:
        name, datatype = cut_at_nul(tensor.name), cut_at_nul(tensor.datatype)
        region = decode_region(tensor.parameters, tensor.name)
        has_contents = tensor.HasField("contents")
        data: Buffer | None
        if region is not None:
            if has_contents:
                raise InvalidArgumentError(
                    f"unexpected 'content' provided when using shared memory for input tensor '{tensor.name}' for "
                    f"model '{model_name}'"
                )
            found = regions.find(region.name, region.offset, region.byte_size)
            inputs[name] = tensor_of_region(name, datatype, tuple(tensor.shape), found)
            continue
        if has_contents:
            if parsed.raw_contents:
                raise InvalidArgumentError(
                    f"contents field must not be specified when using raw_input_contents for '{tensor.name}' for "
                    f"model '{model_name}'"
                )
            data = decode_contents(tensor.contents, datatype, tensor.name, model_name)
        else:
            data = next(raw_contents, None)
            if data is None:
                raise InvalidArgumentError(
                    f"unable to find data for input tensor '{tensor.name}' for model '{model_name}' in request."
                )
        inputs[name] = Tensor(name, datatype, tuple(tensor.shape), data)
    return inputs


def _decode_forms(
    message: ModelInferRequest,
    has_batch_dim: bool,
    wants_empty_final_response: bool,
    known_regions: SharedMemoryRegions,
) -> ProtoOutputForms:
    if not any(output.parameters for output in message.outputs):
        return _PLAIN_FORMS[has_batch_dim, wants_empty_final_response]
    class_counts: dict[str, int] = {}
    regions: dict[str, RegionSlice] = {}
    for output in message.outputs:
        name = cut_at_nul(output.name)
        region = decode_region(output.parameters, output.name)
        class_count = decode_class_count(output.parameters)
        if class_count is not None:
            if region is not None:
                raise InvalidArgumentError("output can't set both 'shared_memory_region' and 'classification'")
            class_counts[name] = class_count
        elif region is not None:
            regions[name] = known_regions.find(region.name, region.offset, region.byte_size)
    return ProtoOutputForms(has_batch_dim, class_counts, regions, wants_empty_final_response)


def _encode_response(
    response: Response, forms: ProtoOutputForms, labels: Mapping[str, Sequence[str]], extra_parameters: bytes
) -> tuple[list[Buffer], int]:
    """The parts of a ModelInferResponse and their size in all; the first part is always `bytes`."""
    assert response.error is None
    pieces: list[bytes] = [_response_start(response.model_name, response.model_version)]
    if response.id:
        pieces.append(text_field(3, response.id))
    if response.parameters:
        for name, value in response.parameters.items():
            pieces.append(encode_response_parameter(name, value))
    if extra_parameters:
        pieces.append(extra_parameters)
    contents: list[Buffer] = []
    content_byte_size = 0
    for tensor in response.outputs:
        if forms.class_counts:
            class_count = forms.class_counts.get(tensor.name)
            if class_count is not None:
                tensor = classify(tensor, class_count, forms.has_batch_dim, labels.get(tensor.name, ()))
        pieces.append(_output_header(tensor.name, tensor.datatype, tuple(tensor.shape)))
        region = forms.regions.get(tensor.name) if forms.regions else None
        if region is None:
            data = tensor.data
        else:
            write_to_region(tensor, region)
            # An empty entry keeps the others in step with the outputs.
            data = b""
        contents.append(data)
        content_byte_size += len(data)
    if content_byte_size < SMALL_MESSAGE_BYTE_SIZE:
        for data in contents:
            pieces.append(_contents_start(len(data)))
            pieces.append(data)  # type: ignore[arg-type]  # join takes any buffer
        whole = b"".join(pieces)
        return [whole], len(whole)
    parts: list[Buffer] = []
    for data in contents:
        pieces.append(_contents_start(len(data)))
        parts.append(b"".join(pieces))
        parts.append(data)
        pieces = []
    return parts, sum(map(len, parts))


@lru_cache(_MAX_REMEMBERED_OUTPUTS)
def _response_start(model_name: str, model_version: int) -> bytes:
    return text_field(1, model_name) + text_field(2, str(model_version))


@lru_cache(_MAX_REMEMBERED_OUTPUTS)
def _output_header(name: str, datatype: str, shape: tuple[int, ...]) -> bytes:
    """An InferOutputTensor, its tag included."""
    # A negative dimension is ten bytes long.
    dims = b"".join(encode_varint(dim % 2**64) for dim in shape)
    return delimited(5, text_field(1, name) + text_field(2, datatype) + (delimited(3, dims) if dims else b""))


@lru_cache(_MAX_REMEMBERED_OUTPUTS)
def _contents_start(byte_size: int) -> bytes:
    return b"\x32" + encode_varint(byte_size)


def _too_large(byte_size: int) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"Response has byte size {byte_size} which exceeds gRPC's byte size limit {MAX_RESPONSE_BYTE_SIZE}."
    )


_FINAL: Final = encode_response_parameter(FINAL_RESPONSE, True)
_NOT_FINAL: Final = encode_response_parameter(FINAL_RESPONSE, False)
