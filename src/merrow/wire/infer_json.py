"""Inference over HTTP: a request's body -> `Request`, a `Response` -> a body.

One `InferJsonCodec` serves one model version; it holds what its requests have in common, in bounded tables.

    codec = InferJsonCodec(model_name, model_version, has_batch_dim, labels, max_input_byte_size, regions)
    request, forms = codec.decode(body, header_length, sink)
    json_byte_size, parts = codec.encode(response, forms)

`forms` says in which form each output goes back; it comes from the request and is needed with the response. The front
door keeps it in between.

Decoding walks the document in Triton's order, so that of several errors the same one is reported. A body whose tensors
are all binary has a JSON part that clients repeat byte for byte, but for the id in front: it is decoded once, and
looked up from then on (as HPACK does with header blocks). Tensors are views of the body; only JSON data is converted.

Source: Triton, http_server.cc.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from merrow.core.datatypes import BYTES, ELEMENT_BYTE_SIZES
from merrow.core.errors import (
    InternalError,
    InvalidArgumentError,
    ServerError,
)
from merrow.core.region import RegionSlice
from merrow.core.request import Request, ResponseSink, log_prefix
from merrow.core.response import Response
from merrow.core.tensor import Buffer, Tensor
from merrow.wire.binary_tensor import split_body
from merrow.wire.classification import classify
from merrow.wire.infer_parameters_json import RequestParameters, decode_request_parameters, encode_parameter
from merrow.wire.json_tensor import decode_json_data, encode_json_data
from merrow.wire.regions import NoSharedMemoryRegions, SharedMemoryRegions, tensor_of_region, write_to_region
from merrow.wire.triton_json import (
    NOT_ARRAY,
    NOT_BOOL,
    NOT_STRING,
    NOT_UINT,
    check_input_size,
    cut_at_nul,
    decode_json_exactly,
    decode_odd_json,
    encode_string,
    has_repeated_names,
    member_error,
    uint_member,
)

RAW_INPUT_NAME = "raw_input"

_MAX_INT64 = 2**63 - 1
_NOT_IN_JSON = frozenset({"FP16", "BF16"})

# Bounds of a codec's tables: JSON parts of binary requests, and the constant starts of outputs.
_MAX_KNOWN_HEADERS = 64
_MAX_KNOWN_HEADER_BYTE_SIZE = 4096
_MAX_KNOWN_OUTPUTS = 256

# An object that begins with an id, of characters that JSON writes as they are.
_LEADING_ID = re.compile(rb'\{[ \n\r\t]*"id"[ \n\r\t]*:[ \n\r\t]*"([ !#-\[\]-~]*)"')

_NOTHING: dict[str, Any] = {}


@dataclass(frozen=True, slots=True)
class OutputForm:
    """How one output goes back: as JSON, as binary data, or into shared memory; `class_count` > 0 as classes."""

    is_binary: bool = False
    class_count: int = 0
    region: RegionSlice | None = None


@dataclass(frozen=True, slots=True)
class OutputForms:
    """How the outputs of one request go back: those named, and all others."""

    default: OutputForm
    by_name: Mapping[str, OutputForm]

    def is_json_larger_than(self, byte_size: int, outputs: Sequence[Tensor]) -> bool:
        """Whether tensors of more than so many bytes in all would be written as JSON."""
        total = 0
        for output in outputs:
            total += output.byte_size
        if total <= byte_size:
            # The common case, without a look at the forms.
            return False
        json_byte_size = 0
        for output in outputs:
            form = self.by_name.get(output.name, self.default)
            if not form.is_binary and form.region is None:
                json_byte_size += output.byte_size
        return json_byte_size > byte_size


JSON_OUTPUT = OutputForm()
BINARY_OUTPUT = OutputForm(is_binary=True)
JSON_OUTPUTS = OutputForms(JSON_OUTPUT, {})
BINARY_OUTPUTS = OutputForms(BINARY_OUTPUT, {})


# Of a request without parameters; not written to.
_NO_PARAMETERS = RequestParameters()


class _Content:
    """A JSON part, decoded. A binary input is its name, datatype, shape, and where its data ends."""

    __slots__ = ("binary_inputs", "forms", "id", "inputs", "member_count", "parameters", "requested_outputs")

    def __init__(
        self,
        id: str,
        parameters: RequestParameters,
        inputs: dict[str, Tensor],
        binary_inputs: Sequence[tuple[str, str, tuple[int, ...], int]],
        requested_outputs: tuple[str, ...],
        forms: OutputForms,
        member_count: int,
    ) -> None:
        self.id = id
        self.parameters = parameters
        self.inputs = inputs
        self.binary_inputs = binary_inputs
        self.requested_outputs = requested_outputs
        self.forms = forms
        # Members of the objects that were visited.
        self.member_count = member_count


class _KnownHeader:
    """The JSON part of an all-binary request that was decoded before.

    `content.id` is another request's, where the id is not part of what is looked up; `content.inputs` is empty.
    """

    __slots__ = ("binary_byte_size", "content")

    def __init__(self, content: _Content) -> None:
        self.content = content
        self.binary_byte_size = content.binary_inputs[-1][3] if content.binary_inputs else 0


class InferJsonCodec:
    """Decodes the requests for one model version, and encodes its responses."""

    def __init__(
        self,
        model_name: str,
        model_version: int,
        has_batch_dim: bool,
        labels: Mapping[str, Sequence[str]],
        max_input_byte_size: int,
        regions: SharedMemoryRegions | None = None,
    ) -> None:
        self._model_name = model_name
        self._model_version = model_version
        self._has_batch_dim = has_batch_dim
        self._labels = labels
        self._max_input_byte_size = max_input_byte_size
        self._regions = NoSharedMemoryRegions() if regions is None else regions
        self._known_headers: dict[bytes, _KnownHeader] = {}
        self._known_outputs: dict[tuple[str, str, Sequence[int]], bytes] = {}
        self._model_json = b'"model_name":%b,"model_version":"%d"' % (encode_string(model_name), model_version)
        self._response_start = b"{" + self._model_json + b',"outputs":['

    def decode(self, body: Buffer, header_length: int | None, sink: ResponseSink) -> tuple[Request, OutputForms]:
        """The request in a body, and how its outputs go back.

        Args:
            header_length: bytes of JSON before the binary data, at most the body's; None when the client did not say,
                so that everything is JSON; 0 for a raw request, as which an empty body counts too.

        Raises:
            ServerError: with Triton's text for the first thing wrong.
        """
        if header_length is None:
            if not len(body):
                return self._decode_raw(body, sink)
            json_part: bytes | bytearray = bytes(body) if isinstance(body, memoryview) else body
            return self._decode_json(json_part, memoryview(b""), None, sink)
        if header_length == 0:
            return self._decode_raw(body, sink)
        header, binary_part = split_body(body, header_length)
        match = _LEADING_ID.match(header)
        key = header if match is None else header[match.end() :]
        known = self._known_headers.get(key)
        if (
            known is None
            or known.binary_byte_size != len(binary_part)
            # An id may be of any length.
            or header_length > self._max_input_byte_size
        ):
            return self._decode_json(header, binary_part, key, sink)
        content = known.content
        if len(content.binary_inputs) == 1:
            name, datatype, shape, _ = content.binary_inputs[0]
            inputs = {name: Tensor(name, datatype, shape, binary_part)}
        else:
            inputs = {}
            start = 0
            for name, datatype, shape, end in content.binary_inputs:
                inputs[name] = Tensor(name, datatype, shape, binary_part[start:end])
                start = end
        return self._build(content.id if match is None else match[1].decode(), content, inputs, sink), content.forms

    def encode(self, response: Response, forms: OutputForms) -> tuple[int | None, list[Buffer]]:
        """The body of a successful response, in parts; data of outputs is not copied.

        Returns:
            The size of the JSON when binary data follows it (then it must be announced to the client), else None.

        Raises:
            ServerError: an output cannot be written as asked; the request then fails.
        """
        assert response.error is None
        if response.id:
            start = b'{"id":%b,%b' % (encode_string(response.id), self._response_start[1:])
        else:
            start = self._response_start
        if response.parameters:
            parameters = b",".join([encode_parameter(name, value) for name, value in response.parameters.items()])
            start = b'%b,"parameters":{%b},"outputs":[' % (start[: -len(b',"outputs":[')], parameters)
        pieces = [start]
        parts: list[Buffer] = [b""]
        by_name = forms.by_name
        for tensor in response.outputs:
            form = by_name.get(tensor.name, forms.default) if by_name else forms.default
            if form.class_count:
                labels = self._labels.get(tensor.name, ())
                tensor = classify(tensor, form.class_count, self._has_batch_dim, labels)
            if len(pieces) > 1:
                pieces.append(b",")
            pieces.append(self._encode_output_start(tensor))
            if form.is_binary:
                byte_size = len(tensor.data)
                pieces.append(b',"parameters":{"binary_data_size":%d}}' % byte_size)
                if byte_size:
                    parts.append(tensor.data)
            elif form.region is not None:
                write_to_region(tensor, form.region)
                pieces.append(b"}")
            else:
                pieces.append(b',"data":')
                pieces.append(encode_json_data(tensor))
                pieces.append(b"}")
        pieces.append(b"]}")
        parts[0] = json_part = b"".join(pieces)
        return (len(json_part) if len(parts) > 1 else None), parts

    def _decode_raw(self, body: Buffer, sink: ResponseSink) -> tuple[Request, OutputForms]:
        if len(body) > self._max_input_byte_size:
            raise InvalidArgumentError(
                f"Raw input has a byte_size ({len(body)} bytes) that exceeds the maximum allowed value of "
                f"{self._max_input_byte_size} bytes. Use --http-max-input-size to increase the limit."
            )
        # Name, datatype and shape are left to validation, which knows the configuration.
        inputs = {RAW_INPUT_NAME: Tensor(RAW_INPUT_NAME, "", (), body)}
        return Request(self._model_name, self._model_version, sink, inputs, is_raw=True), BINARY_OUTPUTS

    def _build(self, request_id: str, content: _Content, inputs: dict[str, Tensor], sink: ResponseSink) -> Request:
        parameters = content.parameters
        # Positional, because keywords would cost a third of the time of a known header.
        return Request(
            self._model_name,
            self._model_version,
            sink,
            inputs,
            content.requested_outputs,
            request_id,
            # A copy, since the front door adds to it.
            None if parameters.custom is None else parameters.custom.copy(),
            parameters.priority,
            parameters.timeout_us,
            parameters.correlation_id,
            parameters.flags,
        )

    def _decode_json(
        self, json_part: bytes | bytearray, binary_part: memoryview, key: bytes | None, sink: ResponseSink
    ) -> tuple[Request, OutputForms]:
        """A request with a JSON part; `key` is under what to keep it, if it can be kept."""
        check_input_size(len(json_part), self._max_input_byte_size)
        content = self._decode_content(json_part, binary_part)
        inputs = content.inputs
        if key is not None and len(content.binary_inputs) == len(inputs) and _is_repeatable(key):
            if len(self._known_headers) >= _MAX_KNOWN_HEADERS:
                self._known_headers.clear()
            content.inputs = {}
            self._known_headers[key] = _KnownHeader(content)
        request = self._build(content.id, content, inputs, sink)
        by_name = content.forms.by_name
        if by_name:
            regions = {name: form.region for name, form in by_name.items() if form.region is not None}
            request.output_regions = regions or None
        return request, content.forms

    def _decode_content(self, json_part: bytes | bytearray, binary_part: memoryview) -> _Content:
        """`decode_json` and `_decode_document` in one: counting members costs less on the way than afterwards."""
        try:
            document = orjson.loads(json_part)
        except orjson.JSONDecodeError:
            return self._decode_document(decode_odd_json(json_part), json_part, binary_part)
        try:
            content = self._decode_document(document, json_part, binary_part)
            if content.member_count == json_part.count(b":") or not has_repeated_names(json_part, document):
                return content
        except ServerError:
            if not has_repeated_names(json_part, document):
                raise
        return self._decode_document(decode_json_exactly(json_part), json_part, binary_part)

    def _decode_document(self, document: Any, json_part: bytes | bytearray, binary_part: memoryview) -> _Content:
        if type(document) is not dict:
            document = _NOTHING
        member_count = len(document)
        request_id = document.get("id", "")
        if type(request_id) is not str:
            raise InternalError(f"Unable to parse 'id': {NOT_STRING}")
        if "\0" in request_id:
            request_id = cut_at_nul(request_id)
        request_parameters = _NO_PARAMETERS
        if "parameters" in document:
            request_parameters = decode_request_parameters(document["parameters"])
            member_count += len(document["parameters"])
        input_array = document.get("inputs")
        if type(input_array) is not list:
            raise member_error(document, "inputs", NOT_ARRAY, "Unable to parse 'inputs': ")
        inputs: dict[str, Tensor] = {}
        binary_inputs: list[tuple[str, str, tuple[int, ...], int]] = []
        binary_byte_size = len(binary_part)
        position = 0
        for item in input_array:
            if type(item) is not dict:
                item = _NOTHING
            parameters = item.get("parameters")
            if type(parameters) is not dict:
                parameters = _NOTHING
            member_count += len(item) + len(parameters)
            has_data = "data" in item
            has_binary = "binary_data_size" in parameters
            if has_data + has_binary + ("shared_memory_region" in parameters) != 1:
                raise _data_source_error(item, parameters)
            name, datatype, dims = item.get("name"), item.get("datatype"), item.get("shape")
            if type(name) is not str or type(datatype) is not str or type(dims) is not list:
                raise _tensor_header_error(item)
            if "\0" in name or "\0" in datatype:
                name, datatype = cut_at_nul(name), cut_at_nul(datatype)
            for dim in dims:
                if type(dim) is not int or not 0 <= dim <= _MAX_INT64:
                    shape = _decode_large_shape(dims)
                    break
            else:
                shape = tuple(dims)
            if name in inputs:
                raise InvalidArgumentError(f"{log_prefix(request_id)}input '{name}' already exists in request")
            data: Buffer
            if has_data:
                if parameters:
                    # Of no use here, but their types are checked.
                    self._find_region(parameters)
                data = self._decode_data(name, datatype, shape, item["data"], json_part)
            elif has_binary:
                byte_size = uint_member(parameters, "binary_data_size", "Unable to parse")
                end = position + byte_size
                if end > binary_byte_size:
                    raise InvalidArgumentError(
                        f"unexpected size for input '{name}', expecting {end - binary_byte_size} additional bytes for "
                        f"model '{self._model_name}'"
                    )
                data = binary_part[position:end]
                position = end
                binary_inputs.append((name, datatype, shape, end))
            else:
                region = self._find_region(parameters)
                assert region is not None
                inputs[name] = tensor_of_region(name, datatype, shape, region)
                continue
            inputs[name] = Tensor(name, datatype, shape, data)
        if position != binary_byte_size:
            raise InvalidArgumentError(f"unexpected additional input data for model '{self._model_name}'")

        requested_outputs: tuple[str, ...] = ()
        forms = BINARY_OUTPUTS if request_parameters.is_binary_output else JSON_OUTPUTS
        if "outputs" in document:
            by_name, output_member_count = self._decode_outputs(document["outputs"], request_id)
            member_count += output_member_count
            if by_name:
                requested_outputs = tuple(by_name)
                forms = OutputForms(forms.default, by_name)
        return _Content(request_id, request_parameters, inputs, binary_inputs, requested_outputs, forms, member_count)

    def _decode_data(
        self, name: str, datatype: str, shape: tuple[int, ...], data: Any, json_part: bytes | bytearray
    ) -> Buffer:
        """The data of an input given as JSON."""
        # An empty shape has no elements, for Triton.
        count = 1 if shape else 0
        for dim in shape:
            if dim < 0:
                raise _shape_error(name, shape, "contains one or more invalid dimensions")
            count *= dim
        if count == 0:
            # Whatever `data` is.
            return b""
        byte_size = count * ELEMENT_BYTE_SIZES.get(datatype, 0)
        if 0 < byte_size <= self._max_input_byte_size and type(data) is list and datatype not in _NOT_IN_JSON:
            return decode_json_data(data, datatype, count, b"true" in json_part or b"false" in json_part)
        if count > _MAX_INT64:
            raise _shape_error(name, shape, f"causes total element count to exceed maximum size of {_MAX_INT64}")
        if byte_size > _MAX_INT64:
            raise InvalidArgumentError(
                f"byte size overflow for input '{name}': element count ({count}) * data type size "
                f"({byte_size // count}) exceeds maximum allowed size ({_MAX_INT64})"
            )
        if type(data) is not list:
            raise InternalError(f"Unable to parse 'data': {NOT_ARRAY}")
        if datatype == BYTES:
            encoded = decode_json_data(data, BYTES, count, False)
            self._check_json_input(name, len(encoded))
            return encoded
        self._check_json_input(name, byte_size)
        if datatype in _NOT_IN_JSON:
            raise InvalidArgumentError(
                f"receiving {datatype} data via JSON is not supported. Please use the binary data format for input "
                f"{name}"
            )
        raise InvalidArgumentError(f"invalid datatype for input {name}")

    def _check_json_input(self, name: str, byte_size: int) -> None:
        if byte_size > self._max_input_byte_size:
            raise InvalidArgumentError(
                f"JSON input '{name}' has a byte_size ({byte_size} bytes) that exceeds the maximum allowed value of "
                f"{self._max_input_byte_size} bytes. Use --http-max-input-size to increase the limit."
            )

    def _decode_outputs(self, output_array: Any, request_id: str) -> tuple[dict[str, OutputForm], int]:
        """The forms by output, and the members of all objects in the array."""
        if type(output_array) is not list:
            raise InternalError(f"Unable to parse 'outputs': {NOT_ARRAY}")
        by_name: dict[str, OutputForm] = {}
        member_count = 0
        for item in output_array:
            if type(item) is not dict:
                item = _NOTHING
            parameters = item.get("parameters")
            if type(parameters) is not dict:
                parameters = _NOTHING
            member_count += len(item) + len(parameters)
            if "shared_memory_region" in parameters:
                _check_region_form(parameters)
            name = item.get("name")
            if type(name) is not str:
                raise member_error(item, "name", NOT_STRING, "Unable to parse 'name': ")
            name = cut_at_nul(name)
            if name in by_name:
                raise InvalidArgumentError(f"{log_prefix(request_id)}output '{name}' already exists in request")
            by_name[name] = self._decode_output_form(parameters) if parameters else JSON_OUTPUT
        return by_name, member_count

    def _decode_output_form(self, parameters: dict[str, Any]) -> OutputForm:
        class_count = 0
        if "classification" in parameters:
            # Triton counts classes in 32 bits.
            class_count = uint_member(parameters, "classification", "Unable to set") & 0xFFFFFFFF
        region = self._find_region(parameters)
        if region is not None:
            return OutputForm(region=region)
        is_binary = parameters.get("binary_data", False)
        if type(is_binary) is not bool:
            raise InternalError(f"Unable to parse 'binary_data': {NOT_BOOL}")
        if class_count:
            return OutputForm(is_binary, class_count)
        return BINARY_OUTPUT if is_binary else JSON_OUTPUT

    def _find_region(self, parameters: dict[str, Any]) -> RegionSlice | None:
        """The shared memory that parameters name; None if they name none. Their types are checked either way."""
        name = parameters.get("shared_memory_region")
        if type(name) is not str and "shared_memory_region" in parameters:
            raise InternalError(f"Unable to parse 'shared_memory_region': {NOT_STRING}")
        offset = byte_size = 0
        if "shared_memory_offset" in parameters:
            offset = uint_member(parameters, "shared_memory_offset", "Unable to parse")
        if "shared_memory_byte_size" in parameters:
            byte_size = uint_member(parameters, "shared_memory_byte_size", "Unable to parse")
        return None if name is None else self._regions.find(cut_at_nul(name), offset, byte_size)

    def _encode_output_start(self, tensor: Tensor) -> bytes:
        """An output's JSON as far as it is the same for every tensor of this shape."""
        key = (tensor.name, tensor.datatype, tuple(tensor.shape))
        start = self._known_outputs.get(key)
        if start is None:
            start = b'{"name":%b,"datatype":"%b","shape":%b' % (
                encode_string(tensor.name),
                tensor.datatype.encode(),
                orjson.dumps(key[2]),
            )
            if len(self._known_outputs) >= _MAX_KNOWN_OUTPUTS:
                self._known_outputs.clear()
            self._known_outputs[key] = start
        return start


def _data_source_error(item: dict[str, Any], parameters: dict[str, Any]) -> InvalidArgumentError:
    """An input takes its data from exactly one place; this one has none, or several."""
    fields = "".join(
        f" '{field}'"
        for field, owner in (("data", item), ("binary_data_size", parameters), ("shared_memory_region", parameters))
        if field in owner
    )
    return InvalidArgumentError(
        "Input must set only one of the following fields: 'data', 'binary_data_size' in 'parameters', "
        "'shared_memory_region' in 'parameters'. But" + (f" set{fields}" if fields else " no field is set")
    )


def _tensor_header_error(item: dict[str, Any]) -> InternalError:
    """The first of an input's name, datatype and shape that is missing or of the wrong type."""
    for name in ("name", "datatype"):
        if type(item.get(name)) is not str:
            return member_error(item, name, NOT_STRING, f"Unable to parse '{name}': ")
    return member_error(item, "shape", NOT_ARRAY, "Unable to parse 'shape': ")


def _decode_large_shape(dims: list[Any]) -> tuple[int, ...]:
    """A shape with something unusual in it. Triton reads dimensions as unsigned, and keeps them as signed."""
    for dim in dims:
        if type(dim) is not int or dim < 0:
            raise InternalError(f"Unable to parse 'shape': {NOT_UINT}")
    return tuple(dim - 2**64 if dim > _MAX_INT64 else dim for dim in dims)


def _shape_error(name: str, shape: tuple[int, ...], problem: str) -> InvalidArgumentError:
    dims = ",".join(map(str, shape))
    return InvalidArgumentError(f"invalid shape for input '{name}': shape [{dims}] {problem}")


def _is_repeatable(key: bytes) -> bool:
    """Whether a JSON part will mean the same next time: regions of shared memory come and go."""
    # A name written with an escape could hide one.
    return len(key) <= _MAX_KNOWN_HEADER_BYTE_SIZE and b"shared_memory_region" not in key and b"\\" not in key


def _check_region_form(parameters: dict[str, Any]) -> None:
    """Classes are not written to shared memory, and what is there is not sent as well."""
    if "classification" in parameters:
        raise InvalidArgumentError("Output can't set both 'shared_memory_region' and 'classification'")
    is_binary = parameters.get("binary_data", False)
    if type(is_binary) is not bool:
        raise InternalError(f"Unable to set 'binary_data': {NOT_BOOL}")
    if is_binary:
        raise InvalidArgumentError("Output can't set both 'shared_memory_region' and 'binary_data'")
