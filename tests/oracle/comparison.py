"""Whether two replies say the same: every byte, but for what must differ (clocks) or has no order (lists of names)."""

import json
import re

from google.protobuf import text_format
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health_pb2
from tritonclient.grpc import service_pb2 as pb

from tests.oracle.cases import Case, GrpcCase
from tests.oracle.grpc_exchange import GrpcReply
from tests.oracle.http_exchange import HttpReply

Reply = HttpReply | GrpcReply

RESPONSES: dict[str, type[Message]] = {
    "Check": health_pb2.HealthCheckResponse,
    "CudaSharedMemoryRegister": pb.CudaSharedMemoryRegisterResponse,
    "CudaSharedMemoryStatus": pb.CudaSharedMemoryStatusResponse,
    "CudaSharedMemoryUnregister": pb.CudaSharedMemoryUnregisterResponse,
    "LogSettings": pb.LogSettingsResponse,
    "ModelConfig": pb.ModelConfigResponse,
    "ModelInfer": pb.ModelInferResponse,
    "ModelMetadata": pb.ModelMetadataResponse,
    "ModelReady": pb.ModelReadyResponse,
    "ModelStatistics": pb.ModelStatisticsResponse,
    "ModelStreamInfer": pb.ModelStreamInferResponse,
    "RepositoryIndex": pb.RepositoryIndexResponse,
    "ServerLive": pb.ServerLiveResponse,
    "ServerMetadata": pb.ServerMetadataResponse,
    "ServerReady": pb.ServerReadyResponse,
    "SystemSharedMemoryRegister": pb.SystemSharedMemoryRegisterResponse,
    "SystemSharedMemoryStatus": pb.SystemSharedMemoryStatusResponse,
    "SystemSharedMemoryUnregister": pb.SystemSharedMemoryUnregisterResponse,
    "TraceSetting": pb.TraceSettingResponse,
}
# Characters of a long text that are shown around the first difference.
SHOWN = 400
CLOCK_MEMBERS = re.compile(rb'"(ns|last_inference)":\d+')
NAME_LIST = re.compile(r"\[('[^'\]]*'(?:,'[^'\]]*')+)\]")


def differences(case: Case, theirs: Reply, ours: Reply) -> list[str]:
    """What differs, one line each; empty when nothing does."""
    if isinstance(theirs, HttpReply) and isinstance(ours, HttpReply):
        return _http_differences(case, theirs, ours)
    assert isinstance(case, GrpcCase)
    assert isinstance(theirs, GrpcReply)
    assert isinstance(ours, GrpcReply)
    return _grpc_differences(case, theirs, ours)


def describe(case: Case, reply: Reply) -> str:
    """A reply as one text, which the list of known differences matches against."""
    if isinstance(reply, HttpReply):
        if reply.status == 0:
            return "closed without a reply"
        headers = " ".join(f"{name}:{value}" for name, value in reply.headers)
        body = _http_body(reply.body).decode("utf-8", "backslashreplace")
        return f"{reply.status} {reply.reason} | {headers} | {body}{' | closed' if reply.is_closed else ''}"
    assert isinstance(case, GrpcCase)
    messages = [_message_text(case, message) for message in reply.messages]
    return f"{reply.code} {_with_sorted_names(reply.details)!r} | {' '.join(messages)}"


def _http_differences(case: Case, theirs: HttpReply, ours: HttpReply) -> list[str]:
    found = [
        f"{what}: {their!r} became {our!r}"
        for what, their, our in (
            ("status", theirs.status, ours.status),
            ("reason", theirs.reason, ours.reason),
            ("headers", theirs.headers, ours.headers),
            ("closed", theirs.is_closed, ours.is_closed),
        )
        if their != our
    ]
    their_body, our_body = _http_body(theirs.body), _http_body(ours.body)
    if their_body != our_body:
        is_spelling = _parsed(their_body) is not None and _parsed(their_body) == _parsed(our_body)
        what = "body (the same JSON value)" if is_spelling else "body"
        found.append(f"{what}:{_beside(repr(their_body), repr(our_body))}")
    return found


def _beside(theirs: str, ours: str) -> str:
    """Two texts, one below the other; of long ones what surrounds the first difference."""
    start = next(
        (index for index, (their, our) in enumerate(zip(theirs, ours, strict=False)) if their != our),
        min(len(theirs), len(ours)),
    )
    start = max(0, start - SHOWN // 2)
    return "".join(
        f"\n    {'... ' if start else ''}{text[start : start + SHOWN]}{' ...' if start + SHOWN < len(text) else ''}"
        for text in (theirs, ours)
    )


def _http_body(body: bytes) -> bytes:
    """The body without clocks, and with the names of errors in order."""
    if body.startswith(b'{"model_stats":'):
        return CLOCK_MEMBERS.sub(rb'"\1":0', body)
    if body.startswith(b'{"error":"'):
        return _with_sorted_names(body.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")
    return body


def _parsed(body: bytes) -> object:
    try:
        return json.dumps(json.loads(body), sort_keys=True)
    except ValueError:
        return None


def _grpc_differences(case: GrpcCase, theirs: GrpcReply, ours: GrpcReply) -> list[str]:
    found = [
        f"{what}: {their!r} became {our!r}"
        for what, their, our in (
            ("code", theirs.code, ours.code),
            ("details", _with_sorted_names(theirs.details), _with_sorted_names(ours.details)),
            ("metadata", theirs.metadata, ours.metadata),
            ("number of messages", len(theirs.messages), len(ours.messages)),
        )
        if their != our
    ]
    their_messages, our_messages = theirs.messages, ours.messages
    if case.interleaves:
        their_messages, our_messages = (tuple(sorted(each, key=_id_of)) for each in (their_messages, our_messages))
    for index, (their_message, our_message) in enumerate(zip(their_messages, our_messages, strict=False)):
        their_text, our_text = _message_text(case, their_message), _message_text(case, our_message)
        if their_text != our_text:
            found.append(f"message {index}:{_beside(their_text, our_text)}")
        elif len(their_message) != len(our_message) and "ModelStatistics" not in case.method:
            # The order of a map's entries is free, the number of bytes is not: nothing is sent that says nothing.
            found.append(f"message {index}, encoded otherwise:\n    {their_message.hex()}\n    {our_message.hex()}")
    return found


def _id_of(message: bytes) -> str:
    """Of which request of a stream a message is."""
    return pb.ModelStreamInferResponse.FromString(message).infer_response.id


def _message_text(case: GrpcCase, message: bytes) -> str:
    """The fields of a message, those without clocks."""
    kind = RESPONSES.get(case.method.rsplit("/", 1)[1])
    if kind is None:
        return message.hex()
    parsed = kind()
    try:
        parsed.ParseFromString(message)
    except DecodeError:
        return f"undecodable {message.hex()}"
    if isinstance(parsed, pb.ModelStatisticsResponse):
        _forget_clocks(parsed)
    if isinstance(parsed, pb.ModelStreamInferResponse):
        parsed.error_message = _with_sorted_names(parsed.error_message)
    return text_format.MessageToString(parsed, as_one_line=True, print_unknown_fields=True)


def _forget_clocks(response: pb.ModelStatisticsResponse) -> None:
    for model in response.model_stats:
        model.last_inference = 0
        durations = [duration for _, duration in model.inference_stats.ListFields()]
        for batch in model.batch_stats:
            durations += (batch.compute_input, batch.compute_infer, batch.compute_output)
        for duration in durations:
            duration.ns = 0


def _with_sorted_names(text: str) -> str:
    """`Got input(s) ['B','A']` lists come in the order of a hash table, which nobody can promise."""
    return NAME_LIST.sub(lambda found: f"[{','.join(sorted(found[1].split(',')))}]", text)
