"""The same requests to the real Triton and to merrow: the same answers, but for a list of differences with reasons.

    pytest tests/oracle                         # the seed that is always used
    MERROW_ORACLE_SEED=7 pytest tests/oracle    # other requests

A failure prints the case's name and its bytes; `python -m tests.oracle NAME --seed SEED` sends it again, to any server.
"""

import contextlib
import struct
import subprocess
from pathlib import Path

import pytest
from tritonclient.grpc import service_pb2 as pb

from tests.oracle import repository, suite
from tests.oracle.cases import DEFAULT_SEED, Case, HttpCase
from tests.oracle.comparison import describe, differences
from tests.oracle.conftest import Peers, Servers
from tests.oracle.differences import DIFFERENCES, explanation
from tests.oracle.grpc_cases import unary
from tests.oracle.http_drafts import infer_target
from tests.oracle.server_process import ADDRESS, ServerProcess, start_merrow, start_real_triton

pytestmark = pytest.mark.slow

MOST_SHOWN = 12
# The real server now and then dies of an error that ends a stream.
DANGEROUS_GROUP = "grpc-stream-status"
MOST_ATTEMPTS = 5
# A request that one of the servers refuses, for a listed reason, and the other executes, goes to one of these.
UNEVEN_MODELS = (repository.MATRIX, repository.REQUEST_VIEW, repository.TEXT, repository.TYPES_BATCHED)
# The same, for other seeds than the usual one.
MORE_UNEVEN_MODELS = (repository.TEXT_BATCHED, repository.TYPES)
# Which requests of a stream make a batch depends on the clock.
BATCHING_MODELS = (repository.IDENT, repository.RAGGED)


@pytest.mark.parametrize("group", [group for group in suite.GROUPS if group != DANGEROUS_GROUP])
def test_both_servers_answer_the_same(group: str, peers: Peers):
    peers.servers.groups_done.add(group)

    check(suite.GROUPS[group](peers.servers.seed), peers)


def test_errors_that_end_a_stream(servers: Servers, tmp_path: Path):
    """As above, with servers of its own, of which the real one is started again when it has died."""
    models = tmp_path / "models"
    repository.add_model(models, repository.FAILING)
    servers.groups_done.add(DANGEROUS_GROUP)
    remaining = suite.GROUPS[DANGEROUS_GROUP](servers.seed)
    with start_merrow(models, tmp_path / "merrow.log") as merrow:
        merrow.wait_until_live()
        for _ in range(MOST_ATTEMPTS):
            with start_real_triton(models, tmp_path / "triton.log", "--exit-timeout-secs=1") as triton:
                triton.wait_until_live()
                while remaining and (failure := _put_to_both_of(remaining[0], triton, merrow, servers)) is not LOST:
                    assert failure is None, failure
                    remaining.pop(0)
            if not remaining:
                return
    pytest.fail(f"the real server dies of {remaining[0].name}")


LOST = "the real server has died"


def _put_to_both_of(case: Case, triton: ServerProcess, merrow: ServerProcess, servers: Servers) -> str | None:
    """As `put_to_both`, or LOST."""
    with contextlib.ExitStack() as stack:
        both = [
            stack.enter_context(contextlib.closing(suite.Peer(one.name, ADDRESS, one.ports.http, one.ports.grpc)))
            for one in (triton, merrow)
        ]
        failure = put_to_both(case, Peers(*both, servers))
    if failure is not None:
        # Its end comes a moment after that of its connections.
        with contextlib.suppress(subprocess.TimeoutExpired):
            triton.process.wait(timeout=3)
            return LOST
    return failure


def test_every_request_so_far_was_counted_the_same(peers: Peers):
    """The models saw the same requests: their counters agree, over both protocols."""
    uneven = UNEVEN_MODELS + BATCHING_MODELS
    if peers.servers.seed != DEFAULT_SEED:
        uneven += MORE_UNEVEN_MODELS
    cases: list[Case] = []
    for model in repository.MODELS:
        if model not in uneven:
            cases.append(HttpCase(f"statistics/http/{model.name}", "GET", f"/v2/models/{model.name}/stats"))
            message = pb.ModelStatisticsRequest(name=model.name)
            cases.append(unary(f"statistics/grpc/{model.name}", "ModelStatistics", message))
    check(cases, peers)


def test_statistics_count_successes_failures_and_batches(peers: Peers):
    """A scenario on a model that nobody else uses, so that a wrong count can be told from a missing request."""

    def run(name: str, code: int, batch_size: int, count: int) -> list[Case]:
        data = struct.pack("<i", code) * batch_size
        header = (
            f'{{"inputs":[{{"name":"CODE","datatype":"INT32","shape":[{batch_size},1],'
            f'"parameters":{{"binary_data_size":{len(data)}}}}}]}}'
        )
        headers = (("Inference-Header-Content-Length", str(len(header))),)
        case = HttpCase(f"counted/{name}", "POST", infer_target("counted"), headers, header.encode() + data)
        return [case] * count

    cases = [
        *run("batch of one", 8, 1, 3),
        *run("batch of two", 8, 2, 2),
        *run("batch of four", 8, 4, 1),
        *run("batch too large", 8, 5, 2),
        *run("error response", 3, 1, 2),
        *run("exception", 9, 2, 3),
        *run("wrong number of responses", 11, 1, 1),
        HttpCase("counted/statistics", "GET", "/v2/models/counted/stats"),
        HttpCase("counted/version statistics", "GET", "/v2/models/counted/versions/1/stats"),
        unary("counted/grpc", "ModelStatistics", pb.ModelStatisticsRequest(name="counted", version="1")),
    ]
    check(cases, peers)


def test_every_known_difference_is_still_one(servers: Servers):
    if servers.groups_done != set(suite.GROUPS):
        pytest.skip("not all groups ran")
    if servers.seed != DEFAULT_SEED:
        pytest.skip("other requests than the usual ones")

    assert [entry.reason for entry in DIFFERENCES if not entry.is_rare and entry not in servers.used_differences] == []


def check(cases: list[Case], peers: Peers) -> None:
    """Fail if the servers answer any of these differently without a listed reason."""
    failures = [text for case in cases if (text := put_to_both(case, peers))]
    if failures:
        head = f"{len(failures)} unexplained differences in {len(cases)} cases, seed {peers.servers.seed}"
        pytest.fail("\n\n".join([head, *failures[:MOST_SHOWN]]), pytrace=False)


def put_to_both(case: Case, peers: Peers) -> str | None:
    """Send a case to both; returns the account of an unexplained difference."""
    theirs = peers.triton.exchange(case)
    try:
        ours = peers.merrow.exchange(case)
    except TimeoutError:
        return f"{case.name}: merrow gives no answer\n  {case.describe()}\n  theirs: {describe(case, theirs)}"
    found = differences(case, theirs, ours)
    if not found:
        return None
    known = explanation(case, theirs, ours)
    if known is not None:
        peers.servers.used_differences.add(known)
        return None
    return "\n  ".join([f"{case.name}:", *found, f"request: {case.describe()}"])
