"""Calls, questions and replies as the bodies of messages of the services socket. Nothing here has effects.

A call is a head (what `InstanceHost.infer` is told besides the request) and the request, as a batch of one. A question
is its kind and its fields as JSON; the files of a model to load follow as a batch of one request, whose inputs they
are, so that large ones travel through the arena.
"""

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from merrow.backends.base import (
    Answer,
    ChangeMetric,
    DropMetric,
    DropMetricFamily,
    IsModelReady,
    LoadModel,
    NewMetric,
    NewMetricFamily,
    Question,
    ReadMetric,
    UnloadModel,
)
from merrow.core.errors import ServerError
from merrow.core.plain_values import decode_plain, encode_plain
from merrow.core.request import Request
from merrow.core.response import Response
from merrow.core.tensor import Buffer, Tensor
from merrow.places.process.batches import BatchCodec
from merrow.places.process.channel import (
    CALL,
    HEADER_SIZE,
    PADDING,
    QUESTION,
    REPLY,
    ProtocolError,
    decode_failure,
    decode_text,
    encode_failure,
    encode_text,
    frame,
    frame_of_parts,
)
from merrow.places.process.sections import OpenBlock, Place

_QUESTIONS = (
    LoadModel,
    UnloadModel,
    IsModelReady,
    NewMetricFamily,
    NewMetric,
    ChangeMetric,
    ReadMetric,
    DropMetric,
    DropMetricFamily,
)
# Version, number of the request whose trace it belongs to (0: none), whether it is decoupled, how many parents.
_CALL = struct.Struct("<qQII")
_NUMBER = struct.Struct("<Q")
_TEXT_HEAD = struct.Struct("<II")

# A reply's flag, in the place of its count.
_IS_ANSWER = 0
_IS_FAILURE = 1


@dataclass(frozen=True, slots=True)
class CallHead:
    """What a CALL says besides the request; requests of batches by their numbers."""

    model_name: str
    model_version: int
    is_decoupled: bool
    trace: int
    parents: tuple[int, ...]


class _NoSink:
    """Requests that were only decoded are answered by whoever decodes them."""

    def on_response(self, response: Response) -> None:
        raise AssertionError("a decoded request has no sink")


NO_SINK = _NoSink()


class ServiceCodec:
    """Calls and questions: `encode_...` in the child, `decode_...` in the server."""

    def __init__(self) -> None:
        self._requests = BatchCodec("", -1)

    def encode_call(
        self, number: int, request: Request, is_decoupled: bool, trace: int, parents: Sequence[int], place: Place
    ) -> bytes:
        """One CALL message.

        Raises:
            struct.error: a number does not fit.
        """
        name = encode_text(request.model_name)
        head = [
            _CALL.pack(request.model_version, trace, is_decoupled, len(parents)),
            *[_NUMBER.pack(parent) for parent in parents],
            name,
            PADDING[len(name) & 7],
        ]
        return frame_of_parts(CALL, number, 0, [*head, self._encode_request(number, request, place)])

    def decode_call(self, body: bytes, open_block: OpenBlock) -> tuple[CallHead, Request]:
        """The head, and the request, which has no sink yet."""
        version, trace, is_decoupled, parent_count = _CALL.unpack_from(body)
        position = _CALL.size
        parents = []
        for _ in range(parent_count):
            parents.append(_NUMBER.unpack_from(body, position)[0])
            position += _NUMBER.size
        name, end_of_name = decode_text(body, position, len(body))
        position = end_of_name + (position - end_of_name) % 8
        request = self._decode_request(body, position, open_block)
        request.model_name, request.model_version = name, version
        return CallHead(name, version, bool(is_decoupled), trace, tuple(parents)), request

    def encode_question(self, number: int, question: Question, place: Place) -> bytes:
        """One QUESTION message; number 0 wants no reply."""
        files: Mapping[str, Buffer] = {}
        if isinstance(question, LoadModel):
            files = question.files
            question = replace(question, files={})
        text = json.dumps(encode_plain(question)).encode()
        parts: list[Buffer] = [
            _TEXT_HEAD.pack(_QUESTIONS.index(type(question)), len(text)),
            text,
            PADDING[len(text) & 7],
        ]
        if files:
            inputs = {path: Tensor(path, "UINT8", (len(content),), content) for path, content in files.items()}
            parts.append(self._encode_request(number, Request("", -1, NO_SINK, inputs), place))
        return frame_of_parts(QUESTION, number, 0, parts)

    def decode_question(self, body: bytes, open_block: OpenBlock) -> Question:
        kind, size = _TEXT_HEAD.unpack_from(body)
        position = _TEXT_HEAD.size + size
        if kind >= len(_QUESTIONS) or position > len(body):
            raise ProtocolError("a question is cut, or of no known kind")
        question: Question = decode_plain(  # type: ignore[assignment]  # mypy joins the classes to `object`
            _QUESTIONS[kind], json.loads(body[_TEXT_HEAD.size : position])
        )
        position += -size % 8
        if isinstance(question, LoadModel) and position < len(body):
            request = self._decode_request(body, position, open_block)
            question = replace(question, files={name: tensor.data for name, tensor in request.inputs.items()})
        return question

    def _encode_request(self, number: int, request: Request, place: Place) -> bytes:
        return self._requests.encode(number, (request,), place)[HEADER_SIZE:]

    def _decode_request(self, body: bytes, position: int, open_block: OpenBlock) -> Request:
        # The model that gets a tensor may write to it.
        data = memoryview(bytearray(body))
        (request,) = self._requests.decode(body, data, position, len(body), 1, NO_SINK, open_block, Request)
        return request


def encode_reply(number: int, answer: Answer | ServerError) -> bytes:
    """One REPLY message."""
    if isinstance(answer, ServerError):
        return frame(REPLY, number, encode_failure(answer), _IS_FAILURE)
    return frame(REPLY, number, json.dumps(answer).encode(), _IS_ANSWER)


def decode_reply(count: int, body: bytes) -> Answer | ServerError:
    """The answer, or why there is none."""
    if count == _IS_FAILURE:
        return decode_failure(body, 0, len(body))
    answer = json.loads(body.rstrip(b"\0"))
    if answer is not None and not isinstance(answer, (bool, int, float)):
        raise ProtocolError(f"an answer of {answer!r}")
    return answer
