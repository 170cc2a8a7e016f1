"""Executions of batches, and single responses, as the bodies of messages: one section (`sections`) for each outcome.

The contents of an outcome's section are its kind. Its extras are the parameters of a response, or the error that took
its place.
"""

import struct
from collections.abc import Sequence

from merrow.backends.base import Deferral, Execution, Outcome
from merrow.core.region import RegionSlice, RegionTensor
from merrow.core.request import ParameterValue, Request
from merrow.core.response import Response
from merrow.core.tensor import Buffer, Tensor
from merrow.places.process.channel import (
    ANSWER,
    HEADER,
    HEADER_SIZE,
    IS_EMPTY,
    IS_FINAL,
    PADDING,
    ProtocolError,
    decode_failure,
    decode_parameters,
    encode_failure,
    encode_parameters,
)
from merrow.places.process.sections import CLIENT_MEMORY, PLACED, OpenBlock, Place, Reference, Sections

# The kinds of an outcome.
_SUCCEEDED = 0
_ANSWERED_WITH_ERROR = 1
_FAILED = 2
_DEFERRED = 3
_RESCHEDULED = 4

_STAMPS = struct.Struct("<QQQQ")


class AnswerCodec:
    """Executions: `encode` in the child, `decode` in the server.

    `has_exceptions` is set by either when an outcome is no response; whoever asks for it also resets it.
    """

    def __init__(self, model_name: str, model_version: int) -> None:
        self.has_exceptions = False
        self._model_name = model_name
        self._model_version = model_version
        self._sections = Sections()

    def encode(self, number: int, execution: Execution, place: Place) -> tuple[bytes, list[Reference]]:
        """One ANSWER message, and those of its tensors that `relocate` may still move."""
        outcomes = execution.outcomes
        parts: list[Buffer] = [
            _STAMPS.pack(execution.start_ns, execution.input_end_ns, execution.output_start_ns, execution.end_ns)
        ]
        references: list[Reference] = []
        for outcome in outcomes:
            kind, extras = _SUCCEEDED, b""
            outputs: Sequence[Tensor] = ()
            if isinstance(outcome, Response):
                if outcome.error is not None:
                    kind, extras = _ANSWERED_WITH_ERROR, encode_failure(outcome.error)
                else:
                    outputs = outcome.outputs
                    if outcome.parameters:
                        extras = encode_parameters(outcome.parameters)
                        extras += PADDING[len(extras) & 7]
            elif isinstance(outcome, Deferral):
                self.has_exceptions = True
                kind = _DEFERRED if outcome is Deferral.DEFERRED else _RESCHEDULED
            else:
                self.has_exceptions = True
                kind, extras = _FAILED, encode_failure(outcome)
            self._sections.write(parts, outputs, kind, extras, place, references)
        body = b"".join(parts)
        return HEADER.pack(HEADER_SIZE + len(body), ANSWER, 0, len(outcomes), number) + body, references

    def decode(
        self, chunk: bytes, position: int, end: int, requests: Sequence[Request], open_block: OpenBlock
    ) -> Execution:
        """The execution of an ANSWER message.

        Small outputs are copied out of the chunk; large ones are what `open_block` gives.
        """
        stamps = _STAMPS.unpack_from(chunk, position)
        position += _STAMPS.size
        name, version = self._model_name, self._model_version
        outcomes: list[Outcome] = []
        for request in requests:
            layout, kind, extras, position = self._sections.read(chunk, position, end)
            parameters: dict[str, ParameterValue] | None = None
            if kind != _SUCCEEDED:
                if kind in (_DEFERRED, _RESCHEDULED):
                    self.has_exceptions = True
                    outcomes.append(Deferral.DEFERRED if kind == _DEFERRED else Deferral.RESCHEDULED)
                    continue
                if kind not in (_ANSWERED_WITH_ERROR, _FAILED):
                    raise ProtocolError(f"an outcome of kind {kind}")
                self.has_exceptions = self.has_exceptions or kind == _FAILED
                error = decode_failure(chunk, extras, position)
                outcomes.append(error if kind == _FAILED else Response(name, version, request.id, error=error))
                continue
            if extras != position:
                parameters, _ = decode_parameters(chunk, extras, position)
            outputs: list[Tensor] = []
            for tensor_name, datatype, shape, size, padded_size in layout:
                if padded_size >= 0:
                    outputs.append(Tensor(tensor_name, datatype, shape, chunk[position : position + size]))
                    position += padded_size
                else:
                    location, segment, offset = PLACED.unpack_from(chunk, position)
                    position += PLACED.size
                    if location == CLIENT_MEMORY:
                        region = _find_output_region(request, tensor_name, segment, offset, size)
                        outputs.append(RegionTensor(tensor_name, datatype, shape, region, size))
                        continue
                    block = open_block(location, segment, offset, size)
                    outputs.append(Tensor(tensor_name, datatype, shape, block))
            outcomes.append(Response(name, version, request.id, outputs, parameters))
        # A tensor cut short would have pushed this beyond the end.
        if position != end:
            raise ProtocolError(f"an answer ends at {position}, not at {end}")
        return Execution(outcomes, *stamps)


def _find_output_region(request: Request, name: str, number: int, offset: int, byte_size: int) -> RegionSlice:
    """Where the request wants an output that is said to be there.

    Raises:
        ProtocolError: the request wants it elsewhere.
    """
    region = None if request.output_regions is None else request.output_regions.get(name)
    file = None if region is None else region.file
    if region is None or file is None or (file.number, region.file_offset) != (number, offset):
        raise ProtocolError(f"output '{name}' is not wanted in file {number}")
    if byte_size > region.byte_size:
        raise ProtocolError(f"output '{name}' does not fit where it is said to be")
    return region


class ResponseCodec:
    """Single responses, each as an execution of one request without its times; what kind of message it is, and whether
    the response is final, stands in the header."""

    def __init__(self, model_name: str, model_version: int) -> None:
        self._answers = AnswerCodec(model_name, model_version)

    def encode(self, kind: int, number: int, response: Response, place: Place) -> bytes:
        """One RESPONSE or CALL_RESPONSE message."""
        message, _ = self._answers.encode(number, Execution((response,), 0, 0, 0, 0), place)
        flags = (IS_FINAL if response.is_final else 0) | (IS_EMPTY if response.is_empty else 0)
        return HEADER.pack(len(message), kind, 0, flags, number) + message[HEADER_SIZE:]

    def decode(
        self, chunk: bytes, position: int, end: int, flags: int, request: Request, open_block: OpenBlock
    ) -> Response:
        """The response of such a message, to this request."""
        (response,) = self._answers.decode(chunk, position, end, (request,), open_block).outcomes
        if not isinstance(response, Response):
            raise ProtocolError("a response is none")
        response.is_final = bool(flags & IS_FINAL)
        response.is_empty = bool(flags & IS_EMPTY)
        return response
