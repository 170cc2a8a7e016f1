"""The suite notices what it should, and overlooks only what nobody can promise."""

import pytest
from tritonclient.grpc import service_pb2 as pb

from tests.oracle import suite
from tests.oracle.cases import GrpcCase, HttpCase
from tests.oracle.comparison import differences
from tests.oracle.differences import Difference, explanation
from tests.oracle.grpc_exchange import GrpcReply
from tests.oracle.http_exchange import HttpReply

HTTP = HttpCase("http/0", "GET", "/v2")
INFER = GrpcCase("grpc/0", "/inference.GRPCInferenceService/ModelInfer", (b"",), "")
STATISTICS = GrpcCase("grpc/1", "/inference.GRPCInferenceService/ModelStatistics", (b"",), "")

JSON = (("content-type", "application/json"),)


def http_reply(body: bytes, status: int = 200, headers: tuple[tuple[str, str], ...] = JSON) -> HttpReply:
    return HttpReply(status, "OK", headers, body)


def grpc_reply(*messages: pb.ModelInferResponse, code: str = "OK", details: str = "") -> GrpcReply:
    return GrpcReply(tuple(message.SerializeToString() for message in messages), code, details)


def test_equal_replies_do_not_differ():
    reply = http_reply(b'{"a":1}')

    assert differences(HTTP, reply, http_reply(b'{"a":1}')) == []


@pytest.mark.parametrize(
    "other",
    [
        http_reply(b'{"a":1}', status=400),
        http_reply(b'{"a":1}', headers=(("content-type", "text/plain"),)),
        http_reply(b'{"a": 1}'),
        http_reply(b'{"a":2}'),
        HttpReply(200, "OK", JSON, b'{"a":1}', is_closed=True),
        HttpReply(is_closed=True),
    ],
)
def test_anything_else_in_an_http_reply_is_a_difference(other: HttpReply):
    assert differences(HTTP, http_reply(b'{"a":1}'), other)


def test_another_spelling_of_the_same_value_is_named_as_that():
    (text,) = differences(HTTP, http_reply(b"[1.0]"), http_reply(b"[1.00]"))

    assert text.startswith("body (the same JSON value):")


def test_clocks_of_statistics_are_overlooked_and_counts_are_not():
    theirs = http_reply(b'{"model_stats":[{"last_inference":5,"success":{"count":1,"ns":7}}]}')

    assert not differences(HTTP, theirs, http_reply(theirs.body.replace(b"5", b"6").replace(b"7", b"8")))
    assert differences(HTTP, theirs, http_reply(theirs.body.replace(b'"count":1', b'"count":2')))


def test_the_order_of_names_in_an_error_is_overlooked():
    theirs = http_reply(b"""{"error":"Got input(s) ['B','A'], but missing ['C']"}""", 400)

    assert not differences(HTTP, theirs, http_reply(theirs.body.replace(b"'B','A'", b"'A','B'"), 400))
    assert differences(HTTP, theirs, http_reply(theirs.body.replace(b"'B','A'", b"'A','X'"), 400))


@pytest.mark.parametrize(
    "other",
    [
        grpc_reply(),
        grpc_reply(pb.ModelInferResponse(id="b")),
        grpc_reply(pb.ModelInferResponse(id="a"), pb.ModelInferResponse()),
        grpc_reply(pb.ModelInferResponse(id="a"), code="INTERNAL"),
        grpc_reply(pb.ModelInferResponse(id="a"), details="text"),
        # The same fields, one of them said twice.
        GrpcReply((pb.ModelInferResponse(id="a").SerializeToString() * 2,), "OK", ""),
    ],
)
def test_anything_else_in_a_grpc_reply_is_a_difference(other: GrpcReply):
    assert differences(INFER, grpc_reply(pb.ModelInferResponse(id="a")), other)


def test_the_order_of_a_map_is_overlooked():
    message = pb.ModelInferResponse()
    for key in "ab":
        message.parameters[key].bool_param = True
    data = message.SerializeToString(deterministic=True)
    half = len(data) // 2
    turned = data[half:] + data[:half]

    assert data != turned
    assert not differences(INFER, GrpcReply((data,), "OK", ""), GrpcReply((turned,), "OK", ""))


def test_clocks_of_grpc_statistics_are_overlooked():
    theirs, ours, counted = (pb.ModelStatisticsResponse() for _ in range(3))
    for message, nanoseconds, count in ((theirs, 5, 1), (ours, 500, 1), (counted, 5, 2)):
        statistics = message.model_stats.add(last_inference=nanoseconds)
        statistics.inference_stats.success.count = count
        statistics.inference_stats.success.ns = nanoseconds

    assert not differences(STATISTICS, grpc_reply(theirs), grpc_reply(ours))
    assert differences(STATISTICS, grpc_reply(theirs), grpc_reply(counted))


def test_a_difference_is_explained_only_by_an_entry_that_fits_on_all_sides():
    entry = Difference("a reason", theirs="^500 .*old text", ours="^400 .*new text", cases="^http/")
    theirs, ours = http_reply(b"old text", 500), http_reply(b"new text", 400)

    assert explanation(HTTP, theirs, ours, [entry]) is entry
    assert explanation(HTTP, theirs, http_reply(b"new text", 401), [entry]) is None
    assert explanation(HTTP, ours, theirs, [entry]) is None
    assert explanation(HttpCase("other/0", "GET", "/v2"), theirs, ours, [entry]) is None


@pytest.mark.parametrize("group", suite.GROUPS)
def test_a_group_is_made_alike_from_the_same_seed_and_can_be_picked_from(group: str):
    cases = suite.GROUPS[group](5)

    assert [case.describe() for case in suite.GROUPS[group](5)] == [case.describe() for case in cases]
    assert suite.find_case(cases[-1].name, 5).describe() == cases[-1].describe()


@pytest.mark.slow
def test_there_are_many_cases():
    names = [case.name for group in suite.GROUPS.values() for case in group(1)]

    assert len(set(names)) == len(names) > 2000
