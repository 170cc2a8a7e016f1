"""The generate extension: a flat JSON object <-> tensors and parameters.

A member of the request that has the name of an input becomes that tensor; the members of an object called
`parameters` are taken the same way, one level deep; anything else is a parameter for the model, whatever it is called:
`sequence_id`, `priority` and `timeout` have no meaning of their own here. `id` is the request's id and a parameter.

A scalar is a tensor of one element; an array has as many elements as it is long. The configured shape must be able to
hold them: each fixed dimension divides their number, the innermost free one takes what is left, other free ones are 1.

A response is one flat object with its members in the order of their names, each tensor as a scalar or a flat array.

Source: Triton, http_server.cc, HTTPAPIServer::GenerateRequestClass; extension_generate.md.
"""

from collections.abc import Sequence
from typing import Any

from merrow.core.datatypes import BYTES, DATATYPES_OF_CONFIG, ELEMENT_BYTE_SIZES
from merrow.core.errors import InternalError, InvalidArgumentError, ServerError
from merrow.core.model_config import ModelConfig
from merrow.core.request import ParameterValue, Request, ResponseSink, log_prefix
from merrow.core.response import Response
from merrow.core.tensor import Buffer, Tensor, element_count
from merrow.wire.infer_parameters_json import decode_custom_parameter, encode_parameter
from merrow.wire.json_tensor import decode_json_data, encode_json_data
from merrow.wire.triton_json import (
    NO_MEMBERS,
    NOT_STRING,
    check_input_size,
    cut_at_nul,
    decode_json,
    encode_string,
)

NESTED_KEY = "parameters"
NOT_ONE_RESPONSE = (
    "generate expects model to produce exactly 1 response, use generate stream for model that generates various number "
    "of responses"
)

_NOT_IN_JSON = frozenset({"FP16", "BF16"})


class GenerateCodec:
    """Decodes the requests for one model version, and encodes its responses."""

    def __init__(self, model_version: int, config: ModelConfig, max_input_byte_size: int) -> None:
        self._model_name = config.name
        self._model_version = model_version
        self._max_input_byte_size = max_input_byte_size
        # Datatype and shape of each input, -1 where any size will do.
        self._inputs: dict[str, tuple[str, tuple[int, ...]]] = {
            tensor.name: (
                DATATYPES_OF_CONFIG[tensor.data_type],
                (-1, *tensor.dims) if config.has_batch_dim else tuple(tensor.dims),
            )
            for tensor in config.input
        }

    def decode(self, body: Buffer, sink: ResponseSink) -> Request:
        """The request in a body.

        Raises:
            ServerError: with Triton's text for the first thing wrong.
        """
        check_input_size(len(body), self._max_input_byte_size)
        document = decode_json(body)
        if type(document) is not dict:
            raise InternalError(NO_MEMBERS)
        request_id = document.get("id", "")
        if type(request_id) is not str:
            raise InternalError(f"Unable to parse 'id': {NOT_STRING}")
        mapping = _Mapping(self._inputs, cut_at_nul(request_id), self._max_input_byte_size)
        for member in document:
            name = cut_at_nul(member)
            if name != NESTED_KEY:
                mapping.add(document, name)
                continue
            if NESTED_KEY in self._inputs:
                raise InvalidArgumentError(f"Keyword '{NESTED_KEY}' for nested schema also given as input tensor name")
            self._map_nested(mapping, document.get(NESTED_KEY))
        return Request(
            self._model_name,
            self._model_version,
            sink,
            mapping.tensors,
            id=mapping.request_id,
            parameters=mapping.parameters or None,
        )

    def _map_nested(self, mapping: "_Mapping", members: Any) -> None:
        if type(members) is not dict:
            raise InternalError(
                f"Expected JSON object for keyword: '{NESTED_KEY}': attempt to access JSON non-object as object"
            )
        try:
            for member in members:
                mapping.add(members, cut_at_nul(member))
        except ServerError as error:
            raise type(error)(f"Converting keyword: '{NESTED_KEY}': {error.message}") from None

    def encode(self, response: Response) -> bytes:
        """The JSON object of a successful response.

        Raises:
            ServerError: an output cannot be written as JSON.
        """
        assert response.error is None
        members = {
            "model_name": b'"model_name":%b' % encode_string(self._model_name),
            "model_version": b'"model_version":"%d"' % self._model_version,
        }
        if response.id:
            members["id"] = b'"id":%b' % encode_string(response.id)
        if response.parameters:
            for name, value in response.parameters.items():
                members[name] = encode_parameter(name, value)
        for tensor in response.outputs:
            data = encode_json_data(tensor)
            if element_count(tensor.shape) == 1:
                data = data[1:-1]
            members[tensor.name] = encode_string(tensor.name) + b":" + data
        return b"{" + b",".join([members[name] for name in sorted(members)]) + b"}"


class _Mapping:
    """What the members of one request have become so far."""

    __slots__ = ("_byte_size", "_inputs", "_max_byte_size", "parameters", "request_id", "tensors")

    def __init__(self, inputs: dict[str, tuple[str, tuple[int, ...]]], request_id: str, max_byte_size: int) -> None:
        self._inputs = inputs
        self._max_byte_size = max_byte_size
        self._byte_size = 0
        self.request_id = request_id
        self.tensors: dict[str, Tensor] = {}
        self.parameters: dict[str, ParameterValue] = {}

    def add(self, members: dict[str, Any], name: str) -> None:
        """Take one member."""
        if name not in self._inputs or name not in members:
            self.parameters[name] = decode_custom_parameter(members, name)
            return
        if name in self.tensors:
            raise InvalidArgumentError(f"{log_prefix(self.request_id)}input '{name}' already exists in request")
        value = members[name]
        self.tensors[name] = self._decode_tensor(name, value if type(value) is list else [value])

    def _decode_tensor(self, name: str, data: list[Any]) -> Tensor:
        datatype, dims = self._inputs[name]
        if not data:
            # Validation decides what an input without a shape is worth.
            return Tensor(name, datatype, (), b"")
        shape = _fit_shape(len(data), dims)
        # Strings are measured first, which finds what is none of them.
        encoded = decode_json_data(data, BYTES, len(data), False) if datatype == BYTES else None
        if shape is None:
            raise InvalidArgumentError(f"The schema can not convert input '{name}' to tensor with proper shape")
        if encoded is not None:
            self._count(name, len(encoded))
            return Tensor(name, datatype, shape, encoded)
        self._count(name, len(data) * ELEMENT_BYTE_SIZES[datatype])
        if datatype in _NOT_IN_JSON:
            raise InvalidArgumentError(
                f"receiving {datatype} data via JSON is not supported. Please use the binary data format for input "
                f"{name}"
            )
        return Tensor(name, datatype, shape, decode_json_data(data, datatype, len(data), may_hold_booleans=True))

    def _count(self, name: str, byte_size: int) -> None:
        self._byte_size += byte_size
        if self._byte_size > self._max_byte_size:
            raise InvalidArgumentError(
                f"request size of {self._byte_size} bytes with input '{name}' of size {byte_size} bytes exceeds the "
                f"maximum allowed input size of {self._max_byte_size}. Use --http-max-input-size to increase the limit."
            )


def _fit_shape(count: int, dims: Sequence[int]) -> tuple[int, ...] | None:
    """The shape of `count` elements under these dimensions; None if they do not fit."""
    for dim in dims:
        if dim >= 0:
            if dim == 0 or count % dim:
                return None
            count //= dim
    shape = []
    for dim in reversed(dims):
        if dim < 0:
            dim, count = count, 1
        shape.append(dim)
    return tuple(reversed(shape)) if count == 1 else None


def encode_event(content: bytes) -> bytes:
    """One server-sent event."""
    return b"data: " + content + b"\n\n"
