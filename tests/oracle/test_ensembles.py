"""Ensembles under the real Triton and under merrow: the same requests, the same answers, errors and counts."""

import contextlib
import json
import os
import pathlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
from tritonclient.grpc import service_pb2 as pb

from tests.oracle import ensemble_cases, real_triton
from tests.oracle.availability import install_or_skip
from tests.oracle.cases import DEFAULT_SEED, Case
from tests.oracle.comparison import Reply, describe, differences
from tests.oracle.differences import explanation
from tests.oracle.http_exchange import HttpReply
from tests.oracle.server_process import ADDRESS, ServerProcess, start_merrow, start_real_triton
from tests.oracle.suite import Peer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

Pair = tuple[ServerProcess, ServerProcess]

SEED = int(os.environ.get("MERROW_ORACLE_SEED", DEFAULT_SEED))


@contextlib.contextmanager
def both_servers(folder: pathlib.Path, *options: str) -> Iterator[Pair]:
    install_or_skip(real_triton.install)
    names = ensemble_cases.build(folder / "models", SEED)
    with (
        start_real_triton(folder / "models", folder / "triton.log", *options, "--exit-timeout-secs=1") as triton,
        start_merrow(folder / "models", folder / "merrow.log", *options) as merrow,
    ):
        for server in (triton, merrow):
            server.wait_until_live()
            if "--model-control-mode=explicit" not in options:
                server.wait_until_models_ready(names)
        yield triton, merrow


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with both_servers(tmp_path_factory.mktemp("ensembles"), "--exit-on-error=false") as servers:
        yield servers


def exchange(pair: Pair, cases: Sequence[Case]) -> list[tuple[Case, Reply, Reply]]:
    with contextlib.ExitStack() as stack:
        theirs, ours = [
            stack.enter_context(contextlib.closing(Peer(each.name, ADDRESS, each.ports.http, each.ports.grpc)))
            for each in pair
        ]
        return [(case, theirs.exchange(case), ours.exchange(case)) for case in cases]


def normalized(reply: Reply) -> Reply:
    """A reply without what is a matter of version, of hashing, or of timing.

    Triton 2.51 does not know `max_inflight_requests`, writes maps and outputs in the order of their hashes, and the
    parameters of an answer once for each output. Whether the last response with outputs is the final one, or an empty
    one follows, depends on which step ends first.
    """
    if isinstance(reply, HttpReply):
        if b'"ensemble_scheduling"' not in reply.body and b'"outputs"' not in reply.body:
            return reply
        document = json.loads(reply.body)
        if "ensemble_scheduling" in document:
            document["ensemble_scheduling"].pop("max_inflight_requests", None)
            return replace(reply, body=json.dumps(document, sort_keys=True).encode())
        document["outputs"].sort(key=lambda output: output["name"])
        return replace(reply, body=json.dumps(document).encode())
    messages = []
    for encoded in reply.messages:
        message = pb.ModelStreamInferResponse.FromString(encoded)
        message.infer_response.parameters.pop("triton_final_response", None)
        if message.infer_response.outputs:
            messages.append(message.SerializeToString(deterministic=True))
    return replace(reply, messages=tuple(messages))


def is_lost_step(case: Case, theirs: Reply) -> bool:
    """Whether the real one left out the step of an output that is not asked for, though another step reads it."""
    return "ensembles/random_" in case.name and isinstance(theirs, HttpReply) and b"unexpected deadlock" in theirs.body


def check(pair: Pair, cases: Sequence[Case]) -> None:
    found = []
    for case, their_reply, our_reply in exchange(pair, cases):
        theirs, ours = normalized(their_reply), normalized(our_reply)
        problems = differences(case, theirs, ours)
        if problems and explanation(case, theirs, ours) is None and not is_lost_step(case, theirs):
            found.append("\n  ".join([case.describe(), *problems, f"theirs: {describe(case, theirs)}"]))
    assert not found, "\n".join([f"{len(found)} differences", *found])


def test_requests_written_down(pair: Pair):
    check(pair, ensemble_cases.listed_cases())


def test_random_graphs(pair: Pair):
    check(pair, ensemble_cases.random_cases(SEED))


def test_everything_was_counted_the_same(pair: Pair):
    """After the other tests, or alone: the same was sent to both."""
    check(pair, ensemble_cases.statistics_cases())


def test_what_cannot_be_loaded_is_refused_with_the_same_text(tmp_path: pathlib.Path):
    with both_servers(tmp_path, "--model-control-mode=explicit") as servers:
        check(servers, ensemble_cases.load_cases())
